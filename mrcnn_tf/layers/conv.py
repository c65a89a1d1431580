"""Convolution with its normalisation and activation as one layer, so that the cheap forms can be taken."""

from __future__ import annotations

import math
from typing import Any

import keras
import tensorflow as tf

NORMS = (None, "frozen_batch", "batch", "sync_batch", "group")


@keras.saving.register_keras_serializable("mrcnn_tf")
class BatchNorm(keras.layers.Layer):
    """Batch normalisation that can say what it amounts to: a scale and a shift per channel.

    Keras' own layer normalises outside the fused kernel on TensorFlow, and cannot be folded into a convolution.

    Args:
        mode: `"frozen_batch"` never updates or trains anything; `"batch"` normalises by each replica's own
            batch in training; `"sync_batch"` by the batch over all replicas.
        momentum: weight of the old moving statistics at an update, in [0, 1].
        epsilon: added to the variance.
        gamma: initial scale; 0 makes a residual branch start as nothing.
    """

    def __init__(
        self,
        mode: str = "batch",
        momentum: float = 0.9,
        epsilon: float = 1e-5,
        gamma: float = 1.0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.mode, self.momentum, self.epsilon, self.initial_gamma = mode, momentum, epsilon, gamma

    def build(self, input_shape: tuple) -> None:
        """Creates gamma, beta and the moving statistics, each `[C]`, float32 under every policy."""
        learn = self.mode != "frozen_batch"

        def weight(name: str, value: float, trainable: bool) -> keras.Variable:
            start = keras.initializers.Constant(value)
            return self.add_weight(
                name=name,
                shape=(input_shape[-1],),
                initializer=start,
                trainable=trainable,
                dtype="float32",
                autocast=False,
            )

        self.gamma = weight("gamma", self.initial_gamma, learn)
        self.beta = weight("beta", 0.0, learn)
        self.moving_mean = weight("moving_mean", 0.0, False)
        self.moving_variance = weight("moving_variance", 1.0, False)

    def scale_and_shift(self) -> tuple[tf.Tensor, tf.Tensor]:
        """`(scale, shift)`, `[C]` float32, with which inference is `x * scale + shift`."""
        gamma, variance = tf.convert_to_tensor(self.gamma), tf.convert_to_tensor(self.moving_variance)
        scale = gamma * tf.math.rsqrt(variance + self.epsilon)
        return scale, self.beta - self.moving_mean * scale

    def uses_batch_statistics(self, training: bool) -> bool:
        """Whether a call normalises by the batch; otherwise `scale_and_shift` says all."""
        return bool(training) and self.mode != "frozen_batch" and self.trainable

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        """`[..., C]` -> the same."""
        if not self.uses_batch_statistics(training):
            scale, shift = self.scale_and_shift()
            return x * tf.cast(scale, x.dtype) + tf.cast(shift, x.dtype)
        if self.mode == "batch":
            out, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
                x=x,
                scale=self.gamma,
                offset=self.beta,
                mean=tf.zeros([0]),
                variance=tf.zeros([0]),
                epsilon=self.epsilon,
                is_training=True,
            )
            # What inference will use must not depend on which replica is asked.
            moments = tf.stop_gradient(tf.stack([mean, variance]))
            mean, variance = tf.unstack(tf.distribute.get_replica_context().all_reduce("MEAN", moments))
        else:
            x32 = tf.cast(x, tf.float32)
            moments = tf.stack([tf.reduce_mean(x32, [0, 1, 2]), tf.reduce_mean(x32 * x32, [0, 1, 2])])
            mean, square = tf.unstack(tf.distribute.get_replica_context().all_reduce("MEAN", moments))
            variance = tf.nn.relu(square - mean * mean)
            scale = self.gamma * tf.math.rsqrt(variance + self.epsilon)
            out = tf.cast(x32 * scale + (self.beta - mean * scale), x.dtype)
        for moving, now in ((self.moving_mean, mean), (self.moving_variance, variance)):
            moving.assign(moving * self.momentum + tf.stop_gradient(now) * (1 - self.momentum))
        return out

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        """The input's."""
        return tuple(input_shape)

    def get_config(self) -> dict:
        """The constructor's arguments."""
        own = {
            "mode": self.mode,
            "momentum": self.momentum,
            "epsilon": self.epsilon,
            "gamma": self.initial_gamma,
        }
        return {**super().get_config(), **own}


@keras.saving.register_keras_serializable("mrcnn_tf")
class Conv(keras.layers.Layer):
    """2-D convolution, then normalisation, then ReLU.

    Padding is `kernel_size // 2` on every side whatever the stride, as in PyTorch, unless `same_padding` asks for
    TensorFlow's `SAME`, which differs at stride 2. A normalisation that does not depend on the batch (frozen, or any
    batch norm at inference) is multiplied into the kernel, which saves passes over the activations and lets
    TensorFlow fuse bias, residual addition and ReLU into the convolution.

    Args:
        filters: output channels.
        kernel_size, strides: in pixels, the same both ways.
        norm: one of `None, "frozen_batch", "batch", "sync_batch", "group"` (32 groups, or as many as divide).
        relu: whether ReLU ends the layer.
        use_bias: whether the convolution has a bias of its own; `None`: just where there is no norm.
        epsilon: the norm's.
        gamma: the norm's initial scale.
        kernel_initializer: of the kernel; the default is He's for ReLU networks, fan out.
        groups: into how many the channels are split; each group of outputs sees its own group of inputs alone
            (Xie et al., 2017). Must divide the channels on both sides.
        same_padding: TensorFlow's padding: no more than the strides need, and the odd cell at bottom and right.

    Raises:
        ValueError: unknown norm, or groups that do not divide the channels.
    """

    def __init__(
        self,
        filters: int,
        kernel_size: int = 3,
        strides: int = 1,
        norm: str | None = None,
        relu: bool = False,
        use_bias: bool | None = None,
        epsilon: float = 1e-5,
        gamma: float = 1.0,
        kernel_initializer="he_normal",
        groups: int = 1,
        same_padding: bool = False,
        **kwargs,
    ):
        super().__init__(autocast=False, **kwargs)
        if norm not in NORMS:
            raise ValueError(f"norm is {norm!r}; it must be one of {', '.join(map(repr, NORMS))}")
        if groups < 1 or filters % groups:
            raise ValueError(f"groups is {groups}; it must divide the {filters} filters")
        self.groups, self.same_padding = groups, same_padding
        self.filters, self.kernel_size, self.strides = filters, kernel_size, strides
        self.norm_name, self.relu, self.epsilon, self.initial_gamma = norm, relu, epsilon, gamma
        self.use_bias = norm is None if use_bias is None else use_bias
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.norm: Any = make_norm(norm, filters, epsilon, gamma, dtype=self.dtype_policy, name="norm")

    def build(self, input_shape: tuple) -> None:
        """Creates the kernel `[k, k, C / groups, filters]` and, where wanted, the bias `[filters]`, both float32."""
        k, channels = self.kernel_size, input_shape[-1]
        if channels % self.groups:
            raise ValueError(f"groups is {self.groups}; it must divide the {channels} channels of the input")
        self.kernel = self.add_weight(
            name="kernel",
            shape=(k, k, channels // self.groups, self.filters),
            initializer=self.kernel_initializer,
            autocast=False,
        )
        self.bias = None
        if self.use_bias:
            self.bias = self.add_weight(
                name="bias", shape=(self.filters,), initializer="zeros", autocast=False
            )
        if self.norm is not None:
            self.norm.build((*input_shape[:-1], self.filters))

    def call(
        self,
        x: tf.Tensor,
        training: bool = False,
        residual: tf.Tensor | None = None,
        share: tf.Tensor | None = None,
    ) -> tf.Tensor:
        """`[B, H, W, C]` -> `[B, ceil(H / strides), ceil(W / strides), filters]`.

        `residual`, of the output's shape, is added before the ReLU. `share`: see `GroupNorm`.
        """
        kernel = tf.convert_to_tensor(self.kernel)
        bias = None if self.bias is None else tf.convert_to_tensor(self.bias)
        normalise = self.norm is not None
        if isinstance(self.norm, BatchNorm) and not self.norm.uses_batch_statistics(training):
            scale, shift = self.norm.scale_and_shift()
            kernel = kernel * scale
            bias = shift if bias is None else bias * scale + shift
            normalise = False
        dtype, kernel = x.dtype, tf.cast(kernel, x.dtype)
        if dtype == tf.float16 and not tf.config.list_logical_devices("GPU"):
            # TensorFlow's float16 gradients on a CPU take 100 times as long as float32's. The sums are float32 anyway,
            # as a GPU's are: what goes in and comes out is float16.
            x, kernel = tf.cast(x, tf.float32), tf.cast(kernel, tf.float32)
        x = tf.cast(self.convolve(x, kernel, training), dtype)
        if bias is not None:
            x = tf.nn.bias_add(x, tf.cast(bias, x.dtype))
        if normalise:
            x = normalised(self.norm, x, training, share)
        if residual is not None:
            x = x + residual
        return tf.nn.relu(x) if self.relu else x

    def convolve(self, x: tf.Tensor, kernel: tf.Tensor, training: bool) -> tf.Tensor:
        """The convolution alone; `kernel`, of `x`'s dtype, may have a norm folded into it."""
        strides = self.strides
        on_cpu = not tf.config.list_logical_devices("GPU")
        if training and on_cpu and strides > 1 and self.kernel_size == 1:
            # oneDNN's gradient of such a convolution writes beyond its memory for a single small image.
            x, strides = x[:, ::strides, ::strides], 1
        # At stride 1 the two paddings are the same, and SAME is the one that every kernel and converter knows.
        padding: Any = "SAME"
        p = self.kernel_size // 2
        if strides > 1 and p and not self.same_padding:
            padding = [[0, 0], [p, p], [p, p], [0, 0]]
            if training or self.groups > 1:
                # TensorFlow has no oneDNN gradients for explicit padding: they would take 20 times as long on a CPU,
                # and those of groups would fail.
                x, padding = tf.pad(x, padding), "VALID"
        if self.groups > 1 and training and on_cpu:
            return convolve_merged(x, kernel, self.groups, strides, padding)
        return tf.nn.conv2d(x, kernel, strides, padding)

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        """See `call`."""
        h, w = (None if n is None else -(-n // self.strides) for n in input_shape[1:3])
        return (input_shape[0], h, w, self.filters)

    def get_config(self) -> dict:
        """The constructor's arguments."""
        return {
            **super().get_config(),
            "filters": self.filters,
            "kernel_size": self.kernel_size,
            "strides": self.strides,
            "norm": self.norm_name,
            "relu": self.relu,
            "use_bias": self.use_bias,
            "epsilon": self.epsilon,
            "gamma": self.initial_gamma,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "groups": self.groups,
            "same_padding": self.same_padding,
        }


def make_norm(
    norm: str | None, filters: int, epsilon: float = 1e-5, gamma: float = 1.0, **kwargs
) -> BatchNorm | GroupNorm | None:
    """The normalisation layer of `filters` channels that one of `NORMS` names; arguments as for `Conv`."""
    if norm is None:
        return None
    if norm == "group":
        groups = next(g for g in (32, 16, 8, 4, 2, 1) if filters % g == 0)
        return GroupNorm(groups, epsilon, gamma, **kwargs)
    return BatchNorm(norm, epsilon=epsilon, gamma=gamma, **kwargs)


def normalised(
    norm: BatchNorm | GroupNorm, x: tf.Tensor, training: bool, share: tf.Tensor | None = None
) -> tf.Tensor:
    """`x` after a layer of `make_norm`; each kind wants to know only one of the other two."""
    return norm(x, training=training) if isinstance(norm, BatchNorm) else norm(x, share)


def convolve_merged(x: tf.Tensor, kernel: tf.Tensor, groups: int, strides: int, padding: Any) -> tf.Tensor:
    """`tf.nn.conv2d` in groups, as fewer dense convolutions of neighbouring groups with zeros between them.

    Args:
        x: `[B, H, W, C]`.
        kernel: `[k, k, C / groups, filters]`, of `x`'s dtype.
        groups: must divide C and filters.
        strides, padding: those of `tf.nn.conv2d`.
    """
    # Measured on a CPU with oneDNN: forward alone, TensorFlow's grouped kernel is the fastest nearly everywhere (up to
    # 2.5 times), but its gradients take up to 3 times as long as those of pieces of 16 channels. Without oneDNN, it
    # has none at all.
    k, _, depth, filters = kernel.shape
    merged = math.gcd(groups, max(1, 16 // depth))
    pieces = groups // merged
    # Rows are (group within the piece, channel), columns (piece, group within it, filter).
    same = tf.reshape(tf.eye(merged, dtype=kernel.dtype), [merged, 1, 1, merged, 1])
    blocks = tf.reshape(kernel, [k, k, 1, depth, pieces, merged, filters // groups]) * same
    blocks = tf.reshape(blocks, [k, k, merged * depth, filters])
    parts = zip(tf.split(x, pieces, -1), tf.split(blocks, pieces, -1), strict=True)
    return tf.concat([tf.nn.conv2d(part, block, strides, padding) for part, block in parts], -1)


@keras.saving.register_keras_serializable("mrcnn_tf")
class GroupNorm(keras.layers.Layer):
    """Group normalisation (Wu and He, 2018) of `[B, H, W, C]`, statistics in float32.

    Args:
        groups: into how many the channels are split; must divide C.
        epsilon: added to the variance.
        gamma: initial scale.

    Call: `[B, H, W, C]` -> the same. `share` `[B, 2]` says which part of height and width is image and not padding; the
    statistics are the image's alone. Otherwise an image would be seen with other eyes on another canvas: trained on
    padded ones, a model found far less where there was no padding.
    """

    def __init__(self, groups: int = 32, epsilon: float = 1e-5, gamma: float = 1.0, **kwargs):
        super().__init__(autocast=False, **kwargs)
        self.groups, self.epsilon, self.initial_gamma = groups, epsilon, gamma

    def build(self, input_shape: tuple) -> None:
        """Creates gamma and beta, `[C]`."""
        shape, start = (input_shape[-1],), keras.initializers.Constant(self.initial_gamma)
        self.gamma = self.add_weight(name="gamma", shape=shape, initializer=start, autocast=False)
        self.beta = self.add_weight(name="beta", shape=shape, initializer="zeros", autocast=False)

    def call(self, x: tf.Tensor, share: tf.Tensor | None = None) -> tf.Tensor:
        """See the class."""
        x32, c = tf.cast(x, tf.float32), x.shape[-1]
        size = c // self.groups
        # Per-channel sums first: the only passes over the big tensor are two reductions and one multiply-add.
        if share is None:
            mean, square = tf.reduce_mean(x32, [1, 2]), tf.reduce_mean(x32 * x32, [1, 2])
        else:
            rows, columns = (inside(share[:, axis], tf.shape(x)[1 + axis]) for axis in (0, 1))
            weights = tf.reshape(rows[:, :, None] * columns[:, None], [tf.shape(x)[0], 1, -1])
            mean, square = (
                tf.matmul(weights, tf.reshape(y, [tf.shape(x)[0], -1, c]))[:, 0] for y in (x32, x32 * x32)
            )

        def over_group(per_channel: tf.Tensor) -> tf.Tensor:
            grouped = tf.reduce_mean(tf.reshape(per_channel, [-1, self.groups, size]), -1, keepdims=True)
            return tf.reshape(grouped * tf.ones([size]), [-1, c])

        mean, square = over_group(mean), over_group(square)
        scale = self.gamma * tf.math.rsqrt(tf.nn.relu(square - mean * mean) + self.epsilon)
        shift = self.beta - mean * scale
        return tf.cast(x32 * scale[:, None, None] + shift[:, None, None], x.dtype)

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        """The input's."""
        return tuple(input_shape)

    def get_config(self) -> dict:
        """The constructor's arguments."""
        own = {"groups": self.groups, "epsilon": self.epsilon, "gamma": self.initial_gamma}
        return {**super().get_config(), **own}


def inside(share: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
    """Equal weights, `[B, size]` with sum 1, for the first `share` `[B]` of `size` cells; one that is cut counts."""
    cells = tf.range(size, dtype=tf.float32)[None]
    # 1e-3: the product may lie a rounding above a whole number.
    chosen = tf.cast(cells + 1e-3 < share[:, None] * tf.cast(size, tf.float32), tf.float32)
    return chosen / tf.maximum(tf.reduce_sum(chosen, 1, keepdims=True), 1.0)
