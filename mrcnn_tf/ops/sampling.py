"""Which pyramid level a box is pooled from, and which cells of that level its samples touch."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from mrcnn_tf.geometry.boxes import area


def assign_levels(
    boxes: tf.Tensor, strides: Sequence[int], canonical_size: float = 224.0, canonical_level: int = 4
) -> tf.Tensor:
    """The pyramid level that a box is pooled from (Lin et al., 2017, equation 1).

    Args:
        boxes: `[..., 4]` in image pixels.
        strides: of the levels, powers of two, each twice the one before.
        canonical_size: a square box of this side, in pixels, belongs to level `canonical_level`; half the
            side, one level less.
        canonical_level: log2 of that level's stride.

    Returns:
        int32 `[...]`, index into `strides`.
    """
    first = int(strides[0]).bit_length() - 1
    sizes = area(boxes)
    level = tf.zeros(tf.shape(sizes), tf.int32)
    for index in range(1, len(strides)):
        # floor(log2) as a comparison of areas: no rounding where a box is exactly on a threshold.
        side = canonical_size * 2.0 ** (first + index - canonical_level)
        level += tf.cast(sizes >= side * side, tf.int32)
    return level


def grid(
    low: tf.Tensor, high: tf.Tensor, stride: tf.Tensor, points: int, aligned: bool
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Samples of boxes along one axis, in cells of the map whose centres are the integers.

    Args:
        low, high: float32 `[...]`, the boxes' ends in pixels.
        stride: float32 `[...]` or scalar.
        points: samples along a side.
        aligned: that of `roi_align`.

    Returns:
        float32 `[...]`: a whole cell near the box, the first sample's distance from it, and the distance from
        one sample to the next. Far from the origin, float32 could not hold the sum as exactly.
    """
    low, high = low / stride, high / stride
    cell = tf.floor(low)
    step = high - low if aligned else tf.maximum(high - low, 1.0)
    step /= points
    return cell, low - cell - (0.5 if aligned else 0.0) + 0.5 * step, step


def cell_weights(
    low: tf.Tensor, high: tf.Tensor, stride: tf.Tensor, size: tf.Tensor, points: int, aligned: bool
) -> tuple[tf.Tensor, tf.Tensor]:
    """The two cells on the sides of every sample along one axis, and their weights.

    Args:
        low, high, stride, points, aligned: those of `grid`.
        size: int32 `[...]` or scalar, cells of the map along this axis.

    Returns:
        int32 and float32 `[..., points, 2]`; the weights are zero for a sample out of reach.
    """
    cell, start, step = grid(low, high, stride, points, aligned)
    # expand_dims, not [..., None], which LiteRT does not know.
    at = tf.expand_dims(start, -1) + tf.expand_dims(step, -1) * tf.range(points, dtype=tf.float32)
    return _neighbours(at, tf.expand_dims(cell, -1), tf.expand_dims(size, -1))


def adaptive_cell_weights(
    low: tf.Tensor, high: tf.Tensor, stride: float, size: tf.Tensor, bins: int, aligned: bool
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """`cell_weights` where each box has as many samples a bin as a bin is cells long, rounded up.

    Args:
        low, high: float32 `[n]`, the boxes' ends in pixels.
        stride, size, aligned: those of `cell_weights`.
        bins: of a box along this axis.

    Returns:
        int32 `[n]`, samples a bin, at least 1; then cells, int32, and weights, float32, `[n, bins, 2 * most]` with
        `most` the largest of those numbers: a bin's own come first, the others weigh nothing. The weights of a
        bin add up to 1, or less at the border; to 0 in a box without length.
    """
    length = (high - low) / stride
    length = length if aligned else tf.maximum(length, 1.0)
    samples = tf.maximum(tf.math.ceil(length / bins), 1.0)
    cell, start, step = grid(low, high, tf.constant(stride), bins * samples, aligned)
    most = tf.reduce_max(tf.concat([samples, [1.0]], 0))
    sample = tf.range(most)
    index = tf.range(bins, dtype=tf.float32)[None, :, None] * samples[:, None, None] + sample
    at = start[:, None, None] + step[:, None, None] * index
    cells, weights = _neighbours(at, cell[:, None, None], size)
    own = (sample < samples[:, None]) & (length[:, None] > 0.0)
    weights *= tf.where(own, 1.0 / samples[:, None], 0.0)[:, None, :, None]
    shape = [tf.shape(low)[0], bins, 2 * tf.cast(most, tf.int32)]
    return tf.cast(samples, tf.int32), tf.reshape(cells, shape), tf.reshape(weights, shape)


def _neighbours(at: tf.Tensor, cell: tf.Tensor, size: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The two cells beside each sample, which lies at `at + cell` of `size` cells, and their weights, `[..., 2]`."""
    before = tf.floor(at)
    share = at - before
    before = tf.cast(before + cell, tf.int32)
    outside = (before < -1) | (before > size) | ((before == size) & (share > 0.0))
    share = tf.where((before < 0) | (before >= size - 1), 0.0, share)
    inside = tf.where(outside, 0.0, 1.0)
    before = tf.clip_by_value(before, 0, size - 1)
    after = tf.minimum(before + 1, size - 1)
    return tf.stack([before, after], -1), tf.stack([(1.0 - share) * inside, share * inside], -1)
