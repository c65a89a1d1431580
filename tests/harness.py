"""What every layer and model must pass: one call checks saving, precision and gradients."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

POLICIES = ("float32", "mixed_float16", "mixed_bfloat16")
# How far a 16-bit result may be from float32's, relative to the largest value.
TOLERANCE = {"float32": 0.0, "mixed_float16": 0.02, "mixed_bfloat16": 0.12}


@keras.saving.register_keras_serializable("tests")
class Holder(keras.Model):
    """A model that is one layer, for saving it to a `.keras` file."""

    def __init__(self, layer: keras.layers.Layer, **kwargs: Any):
        super().__init__(autocast=False, **kwargs)
        self.layer = layer
        self.built = True

    def call(self, x: Any) -> Any:
        return self.layer(x)

    def get_config(self) -> dict:
        return {**super().get_config(), "layer": keras.saving.serialize_keras_object(self.layer)}

    @classmethod
    def from_config(cls, config: dict) -> Holder:
        return cls(**{**config, "layer": keras.saving.deserialize_keras_object(config["layer"])})


def check_layer(
    make: Callable[[], keras.layers.Layer],
    run: Callable[[keras.layers.Layer], Any],
    folder: Path,
    untrained: tuple[str, ...] = (),
) -> None:
    """Serialisation, `.keras` files, the three precisions, and a gradient for every weight.

    Args:
        make: makes the layer, built.
        run: calls it on fixed inputs; a tensor or a nest of tensors.
        folder: for files.
        untrained: ends of the paths of trainable weights that `run` does not reach.
    """
    reference = None
    for policy in POLICIES:
        keras.config.set_dtype_policy(policy)
        try:
            layer = make()
            if reference is None:
                weights = jittered(layer)
            layer.set_weights(weights)
            out = flat(run(layer))
            assert all(np.isfinite(x).all() for x in out), policy
            if reference is None:
                reference = out
            for x, expected in zip(out, reference, strict=True):
                bound = TOLERANCE[policy] * max(1.0, float(np.abs(expected).max(initial=0.0)))
                np.testing.assert_allclose(x, expected, atol=bound, rtol=0)
            check_config(layer)
            check_file(layer, run, folder / f"{policy}.keras")
            check_gradients(layer, run, untrained)
        finally:
            keras.config.set_dtype_policy("float32")


def jittered(layer: keras.layers.Layer) -> list[np.ndarray]:
    """The weights, none left at its initial zero or one, behind which a mistake could hide."""
    rng = np.random.default_rng(0)
    return [w + rng.uniform(0.005, 0.02, w.shape) * rng.choice([-1, 1], w.shape) for w in layer.get_weights()]


def check_config(layer: keras.layers.Layer) -> None:
    """The config makes an equal config."""
    config = keras.saving.serialize_keras_object(layer)
    again = keras.saving.serialize_keras_object(keras.saving.deserialize_keras_object(config))
    assert config == again


def check_file(layer: keras.layers.Layer, run: Callable[[Any], Any], path: Path) -> None:
    """A `.keras` file gives a layer with equal outputs, bit for bit."""
    Holder(layer).save(path)
    loaded = keras.models.load_model(path).layer
    for x, y in zip(flat(run(loaded)), flat(run(layer)), strict=True):
        np.testing.assert_array_equal(x, y)


def check_gradients(layer: keras.layers.Layer, run: Callable[[Any], Any], untrained: tuple[str, ...]) -> None:
    """Every trainable weight has a gradient that is finite and not all zero."""
    with tf.GradientTape() as tape:
        out = tf.nest.flatten(run(layer))
        # Weights that differ from place to place: a plain sum has no gradient through a norm.
        loss = tf.add_n(
            [
                tf.reduce_sum(
                    tf.cast(x, tf.float32)
                    * tf.reshape(tf.cos(tf.range(tf.size(x), dtype=tf.float32)), tf.shape(x))
                )
                for x in out
                if x.dtype.is_floating
            ]
        )
    assert layer.trainable_weights
    check_reached(layer.trainable_weights, tape, loss, untrained)


def check_model(model: keras.Model, batch: dict[str, tf.Tensor], path: Path) -> Any:
    """Losses, a gradient for every weight, and a `.keras` file with equal outputs; returns the model read from it.

    Args:
        model: a `MaskRCNN` with jittered weights, of any precision.
        batch: a training batch on which every loss is positive.
        path: of the file.
    """
    with tf.GradientTape() as tape:
        losses, _ = model.losses_of(batch, tf.constant(0))
        total = tf.add_n(list(losses.values()))
    assert set(losses) == set(model.LOSSES)
    assert all(loss.dtype == tf.float32 and np.isfinite(loss) and loss > 0 for loss in losses.values())
    check_reached(model.trainable_weights, tape, total)
    model.save(path)
    loaded = keras.models.load_model(path)
    inputs = {"images": batch["images"], "image_sizes": batch["image_sizes"]}
    first, second = model(inputs), loaded(inputs)
    for name, value in first.items():
        assert value.dtype in (tf.float32, tf.int32)
        np.testing.assert_array_equal(value, second[name], err_msg=name)
    assert json.dumps(loaded.get_config()) == json.dumps(model.get_config())  # JSON knows no tuples
    return loaded


def check_reached(
    weights: list[keras.Variable], tape: tf.GradientTape, loss: tf.Tensor, untrained: tuple[str, ...] = ()
) -> None:
    """Every weight whose path does not end as one of `untrained` has a gradient, finite and not all zero."""
    for weight, gradient in zip(weights, tape.gradient(loss, [w.value for w in weights]), strict=True):
        if weight.path.endswith(untrained) and untrained:
            continue
        assert gradient is not None, f"no gradient reaches {weight.path}"
        value = tf.convert_to_tensor(gradient).numpy()
        assert np.isfinite(value).all() and np.abs(value).max() > 0, weight.path


def flat(nest: Any) -> list[np.ndarray]:
    """The tensors of a nest as float64 arrays."""
    return [np.asarray(tf.cast(x, tf.float64)) for x in tf.nest.flatten(nest)]
