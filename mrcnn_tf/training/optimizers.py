"""Optimisers and learning rate schedules as the detection recipes mean them."""

from __future__ import annotations

import math

import keras
import tensorflow as tf

from mrcnn_tf.schema import Config

SCHEDULES = ("constant", "step", "cosine")


@keras.saving.register_keras_serializable("mrcnn_tf")
class SGD(keras.optimizers.SGD):
    """SGD whose weight decay is added to the gradient and so goes through the momentum, as in PyTorch and Detectron.

    Keras' own `weight_decay` shrinks the weights beside the momentum; with momentum 0.9 the published decay of 1e-4
    would then act ten times weaker.

    Args:
        learning_rate: number or schedule.
        momentum: in [0, 1].
        coupled_decay: factor of the weight in its gradient. Weights named to `exclude_from_weight_decay` have none.
    """

    def __init__(self, learning_rate=0.01, momentum: float = 0.9, coupled_decay: float = 0.0, **kwargs):
        super().__init__(learning_rate=learning_rate, momentum=momentum, **kwargs)
        self.coupled_decay = coupled_decay

    def update_step(self, gradient, variable, learning_rate) -> None:
        """Adds the decay to the gradient, then steps."""
        if self.coupled_decay and self._use_weight_decay(variable):
            gradient = gradient + self.coupled_decay * tf.convert_to_tensor(variable)
        super().update_step(gradient, variable, learning_rate)

    def get_config(self) -> dict:
        """The constructor's arguments."""
        return {**super().get_config(), "coupled_decay": self.coupled_decay}


@keras.saving.register_keras_serializable("mrcnn_tf")
class Schedule(keras.optimizers.schedules.LearningRateSchedule):
    """Linear warm-up, then a constant, a stepwise or a cosine learning rate.

    Args:
        base: learning rate after the warm-up.
        kind: `"constant"`; `"step"`: times `gamma` at each of `milestones`; `"cosine"`: half a cosine from `base`
            at step 0 down to `final * base` at `total_steps` (Loshchilov and Hutter, 2017).
        total_steps: where the cosine ends.
        warmup_steps: over which the rate rises linearly from `warmup_factor` of what the schedule says to all of it.
        milestones, gamma: of `"step"`.
        final: of `"cosine"`, share of `base`.
    """

    def __init__(
        self,
        base: float,
        kind: str = "constant",
        total_steps: int = 1,
        warmup_steps: int = 0,
        warmup_factor: float = 0.001,
        milestones: tuple[int, ...] = (),
        gamma: float = 0.1,
        final: float = 0.0,
    ):
        if kind not in SCHEDULES:
            raise ValueError(f"schedule is {kind!r}; it must be one of {', '.join(SCHEDULES)}")
        self.base, self.kind, self.total_steps = base, kind, total_steps
        self.warmup_steps, self.warmup_factor = warmup_steps, warmup_factor
        self.milestones, self.gamma, self.final = tuple(milestones), gamma, final

    def __call__(self, step):
        """The learning rate of `step` (from 0), float32."""
        step = tf.cast(step, tf.float32)
        rate = tf.constant(self.base, tf.float32)
        if self.kind == "step":
            passed = tf.reduce_sum(tf.cast(step >= tf.constant(self.milestones, tf.float32), tf.float32))
            rate *= self.gamma**passed
        elif self.kind == "cosine":
            progress = tf.minimum(step / self.total_steps, 1.0)
            rate *= self.final + (1 - self.final) * 0.5 * (1 + tf.cos(math.pi * progress))
        if self.warmup_steps:
            share = tf.minimum(step / self.warmup_steps, 1.0)
            rate *= self.warmup_factor * (1 - share) + share
        return rate

    def get_config(self) -> dict:
        """The constructor's arguments."""
        return dict(vars(self))


def make_optimizer(
    model: keras.Model,
    *,
    name: str,
    schedule: Schedule,
    weight_decay: float = 1e-4,
    momentum: float = 0.9,
    decay_norms: bool = False,
    decay_biases: bool = True,
    ema: float | None = None,
) -> keras.optimizers.Optimizer:
    """An optimiser, built for the model's trainable weights.

    Args:
        model: the model.
        name: `"sgd"` or `"adamw"`.
        schedule: the learning rate.
        weight_decay: through the momentum with SGD, decoupled with AdamW (Loshchilov and Hutter, 2019).
        momentum: of SGD.
        decay_norms, decay_biases: whether the scales and shifts of norms, and biases, decay too.
        ema: if given, the decay of an exponential moving average of the weights, in [0, 1).

    Returns:
        Under a mixed_float16 policy wrapped for loss scaling.
    """
    average = {"use_ema": ema is not None, "ema_momentum": ema if ema is not None else 0.99}
    if name == "sgd":
        optimizer = SGD(schedule, momentum=momentum, coupled_decay=weight_decay, **average)
    elif name == "adamw":
        optimizer = keras.optimizers.AdamW(schedule, weight_decay=weight_decay, **average)
    else:
        raise ValueError(f"optimizer is {name!r}; it must be 'sgd' or 'adamw'")

    def spared(path: str) -> bool:
        last = path.rsplit("/", 1)[-1]
        return (last in ("gamma", "beta") and not decay_norms) or (last == "bias" and not decay_biases)

    free = [w for w in model.trainable_weights if spared(w.path)]
    if free:
        optimizer.exclude_from_weight_decay(var_list=free)
    if model.dtype_policy.name == "mixed_float16":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    # Before the first traced step: under a distribution strategy variables cannot be made inside it.
    optimizer.build(model.trainable_weights)
    return optimizer


def build_optimizer(config: Config, model: keras.Model) -> keras.optimizers.Optimizer:
    """The optimiser of a config with its learning rate schedule, built for the model's trainable weights."""
    settings = config.train
    schedule = Schedule(
        settings.learning_rate,
        settings.schedule,
        settings.steps,
        settings.warmup_steps,
        settings.warmup_factor,
        tuple(settings.milestones),
        settings.gamma,
        settings.final,
    )
    return make_optimizer(
        model,
        name=settings.optimizer,
        schedule=schedule,
        weight_decay=settings.weight_decay,
        momentum=settings.momentum,
        decay_norms=settings.decay_norms,
        decay_biases=settings.decay_biases,
        ema=settings.ema,
    )
