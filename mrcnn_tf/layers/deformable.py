"""Deformable convolution (Dai et al., 2017), and the modulated form (Zhu et al., 2019), in stock operations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from mrcnn_tf.layers.conv import Conv


@keras.saving.register_keras_serializable("mrcnn_tf")
class DeformableConv(Conv):
    """A convolution whose taps each lie where an ordinary convolution of the same input moves them.

    That convolution, `offset`, starts as zero: then version 1 is the plain convolution, and version 2, whose samples
    go through a sigmoid, half of it. It computes in float32 whatever the policy, as everything about places does.

    Args:
        filters, kernel_size, strides, norm, relu, use_bias, epsilon, gamma, kernel_initializer, groups: see `Conv`.
            The input has one set of offsets, whatever the groups.
        modulated: version 2: every sample is weighted, too.
    """

    def __init__(self, filters: int, modulated: bool = False, **kwargs):
        super().__init__(filters, **kwargs)
        if self.same_padding:
            raise ValueError("deformable convolutions are padded as in PyTorch; same_padding must be false")
        self.modulated = modulated
        self.offset = Conv(
            (3 if modulated else 2) * self.kernel_size**2,
            self.kernel_size,
            self.strides,
            kernel_initializer="zeros",
            dtype="float32",
            name="offset",
        )

    def build(self, input_shape: tuple) -> None:
        """Creates `Conv`'s weights, and a kernel and bias of `offset` with channels as in `deformable_conv2d`.

        With modulation, its last `kernel_size**2` channels are the logits of the modulation, as in Detectron2.
        """
        super().build(input_shape)
        self.offset.build(input_shape)

    def convolve(self, x: tf.Tensor, kernel: tf.Tensor, training: bool) -> tf.Tensor:
        """See `Conv`."""
        moved = self.offset(tf.cast(x, tf.float32), training=training)
        taps, modulation = self.kernel_size**2, None
        if self.modulated:
            moved, modulation = moved[..., : 2 * taps], tf.sigmoid(moved[..., 2 * taps :])
        return deformable_conv2d(x, moved, kernel, modulation, strides=self.strides, groups=self.groups)

    def get_config(self) -> dict:
        """The constructor's arguments."""
        return {**super().get_config(), "modulated": self.modulated}


def deformable_conv2d(
    x: tf.Tensor,
    offsets: tf.Tensor,
    kernel: tf.Tensor,
    modulation: tf.Tensor | None = None,
    *,
    strides: int = 1,
    groups: int = 1,
) -> tf.Tensor:
    """The convolution of bilinear samples, as `torchvision.ops.deform_conv2d` with one offset group.

    Where a convolution reads a cell, this one reads at the cell plus an offset; beyond the border lie zeros, so a
    sample between the border's cells and them is a share of the former. Gradients flow to all four tensors; those of
    the input are summed in a fixed order on a CPU.

    Args:
        x: `[B, H, W, C]`, of any floating type.
        offsets: `[B, H', W', 2 * k * k]` in cells: (dy, dx) for each tap, row by row. Float64 if `x` is, else float32.
            One that is NaN makes its sample NaN.
        kernel: `[k, k, C / groups, filters]`, of `x`'s dtype.
        modulation: `[B, H', W', k * k]`, factors of the samples, of the offsets' dtype.
        strides: in cells. The padding is `k // 2` all around.
        groups: see `Conv`.

    Returns:
        `[B, H', W', filters]` in `x`'s dtype, with `H' = ceil(H / strides)` for odd k.
    """
    size, channels, filters = kernel.shape[0], x.shape[-1], kernel.shape[-1]
    taps = size * size
    batch, height, width = tf.unstack(tf.shape(x)[:3])
    out_shape = tf.unstack(tf.shape(offsets)[:3])
    moved = tf.transpose(tf.reshape(offsets, [*out_shape, taps, 2]), [3, 4, 0, 1, 2])
    tap = tf.reshape(tf.range(taps), [-1, 1, 1, 1])
    rows = tf.reshape(tf.range(out_shape[1]) * strides, [-1, 1]) + tap // size - size // 2
    columns = tf.range(out_shape[2]) * strides + tap % size - size // 2
    at_y, share_y = _neighbours(rows, moved[:, 0], height)
    at_x, share_x = _neighbours(columns, moved[:, 1], width)
    first = tf.reshape(tf.range(batch) * height, [-1, 1, 1])
    cells = [(first + row) * width + column for row in at_y for column in at_x]
    shares = [of_row * of_column for of_row in share_y for of_column in share_x]
    if modulation is not None:
        factors = tf.transpose(modulation, [3, 0, 1, 2])
        shares = [share * factors for share in shares]
    out = _sample_and_multiply(
        tf.reshape(x, [-1, channels]),
        tf.reshape(tf.stack(cells, 1), [taps, 4, -1]),
        tf.reshape(tf.stack(shares, 1), [taps, 4, -1]),
        tf.transpose(tf.reshape(kernel, [taps, channels // groups, groups, filters // groups]), [0, 2, 1, 3]),
    )
    return tf.reshape(tf.cast(tf.transpose(out, [1, 0, 2]), x.dtype), [*out_shape, filters])


def _neighbours(
    cells: tf.Tensor, offset: tf.Tensor, size: tf.Tensor
) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
    """The two cells around `cells + offset` along one axis, and their shares of a bilinear sample.

    A cell outside the map's `size` has the share zero and the number of one inside.
    """
    # Beyond -1 and size nothing is read, and cell numbers might not fit an int32.
    at = tf.clip_by_value(tf.cast(cells, offset.dtype) + offset, -1.0, tf.cast(size, offset.dtype))
    before = tf.floor(at)
    share = at - before
    before = tf.cast(tf.where(tf.math.is_nan(before), tf.zeros_like(before), before), tf.int32)
    numbers, shares = [], []
    for number, value in ((before, 1.0 - share), (before + 1, share)):
        inside = (number >= 0) & (number < size)
        numbers.append(tf.clip_by_value(number, 0, size - 1))
        shares.append(tf.where(inside, value, tf.zeros_like(value)))
    return numbers, shares


# The gradient may use nothing but arguments: SavedModel keeps it, too. It samples again instead of keeping the samples,
# which would be k * k times the input.
@tf.custom_gradient
def _sample_and_multiply(table: tf.Tensor, cells: tf.Tensor, shares: tf.Tensor, kernel: tf.Tensor):
    """The sum over the taps of their samples times their part of the kernel.

    Args:
        table: `[M, C]`, all images' cells.
        cells: int32 `[taps, 4, N]`, which of them a sample is made of.
        shares: float32 or float64 `[taps, 4, N]`.
        kernel: `[taps, groups, C / groups, filters / groups]`, of the table's dtype.

    Returns:
        `[groups, N, filters / groups]` of the shares' dtype.
    """
    taps, groups, depth, filters = kernel.shape
    count, exact = tf.shape(cells)[2], shares.dtype

    def sample(tap: tf.Tensor) -> tuple[list[tf.Tensor], tf.Tensor]:
        """The samples' four cells, `[N, C]` each, and the samples, `[groups, N, C / groups]`."""
        corners = [tf.cast(tf.gather(table, cells[tap, i]), exact) for i in range(4)]
        out = tf.add_n([corner * shares[tap, i, :, None] for i, corner in enumerate(corners)])
        out = tf.transpose(tf.reshape(out, [-1, groups, depth]), [1, 0, 2])
        return corners, tf.cast(out, table.dtype)

    def loop(body: Callable[..., tuple], *state: Any) -> tuple:
        # One tap after the other: all at once would have k * k times as much in memory.
        return tf.while_loop(lambda tap, *_: tap < taps, body, (0, *state), parallel_iterations=1)[1:]

    def add(tap: tf.Tensor, out: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return tap + 1, out + tf.cast(tf.matmul(sample(tap)[1], kernel[tap]), exact)

    def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, None, tf.Tensor, tf.Tensor]:
        upstream = tf.cast(upstream, table.dtype)

        def back(tap: tf.Tensor, of_table: tf.Tensor, of_shares: Any, of_kernel: Any) -> tuple:
            corners, samples = sample(tap)
            of_sample = tf.transpose(tf.matmul(upstream, kernel[tap], transpose_b=True), [1, 0, 2])
            of_sample = tf.cast(tf.reshape(of_sample, [-1, groups * depth]), exact)
            products = [tf.reduce_sum(corner * of_sample, -1) for corner in corners]
            for i in range(4):
                # On a CPU the rows are added one by one: the same bits in every run.
                values = of_sample * shares[tap, i, :, None]
                of_table = tf.tensor_scatter_nd_add(of_table, cells[tap, i, :, None], values)
            product = tf.matmul(samples, upstream, transpose_a=True)
            return tap + 1, of_table, of_shares.write(tap, products), of_kernel.write(tap, product)

        of_table, of_shares, of_kernel = loop(
            back,
            tf.zeros(tf.shape(table), exact),
            tf.TensorArray(exact, taps),
            tf.TensorArray(kernel.dtype, taps),
        )
        return tf.cast(of_table, table.dtype), None, of_shares.stack(), of_kernel.stack()

    return loop(add, tf.zeros([groups, count, filters], exact))[0], gradient
