"""Shape-aware RoIAlign (Ding et al., "Mask Refining R-CNN", equations 3 to 5) over a feature pyramid."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from mrcnn_tf.ops import custom
from mrcnn_tf.ops.roi_align import choose, finite, roi_align, shaped


def shape_aware_roi_align(
    feature_maps: Sequence[tf.Tensor],
    boxes: tf.Tensor,
    probabilities: tf.Tensor,
    *,
    strides: Sequence[int],
    output_size: int,
    sampling_ratio: int = 2,
    aligned: bool = True,
    backend: str = "auto",
) -> tf.Tensor:
    """RoIAlign in which every sample counts as much as its box's mask says that the object is there.

    The value of a sample is multiplied with the probability map's value at the same place, read bilinearly (the
    map covers the box; cell j has its centre at j + 0.5, beyond the outermost centres the border's value holds);
    a bin is the mean of its samples. With a map of ones this is `roi_align`, exactly. Gradients flow to the
    feature maps and to the probabilities, not to the boxes.

    Args:
        feature_maps: a list of `[B, H_l, W_l, C]`, one for each stride.
        boxes: `[B, N, 4]` in image pixels, as in `roi_align`.
        probabilities: `[B, N, Hp, Wp]`, usually in [0, 1]; one map for each box, of any size.
        strides, output_size, sampling_ratio, aligned, backend: those of `roi_align`. With `aligned=False` the
            map covers the box as it is pooled, that is at least one cell.

    Returns:
        `[B, N, output_size, output_size, C]` in the dtype of the feature maps.

    Raises:
        ValueError: unknown backend, maps and strides that differ in number, or a sampling ratio of 0.
        RuntimeError: backend `"custom"` where it cannot be built.
    """
    if sampling_ratio < 1:
        raise ValueError(
            "Shape-aware RoIAlign needs a sampling_ratio of 1 or more: the map is read on one grid of samples"
        )
    backend = choose(backend, sampling_ratio)
    if len(feature_maps) != len(strides):
        raise ValueError(
            f"RoIAlign needs one stride for each map, not {len(strides)} for {len(feature_maps)}"
        )
    boxes, probabilities = finite(boxes), tf.cast(probabilities, tf.float32)
    if backend == "custom":
        out = custom.pool(feature_maps, boxes, probabilities, strides, output_size, sampling_ratio, aligned)
        return shaped(out, feature_maps, boxes, output_size)

    # All samples of a box lie on one regular grid: they are the bins of a finer RoIAlign, and the map at them
    # is one bilinear resize.
    points = output_size * sampling_ratio
    samples = roi_align(
        [tf.cast(f, tf.float32) for f in feature_maps],
        boxes,
        strides=strides,
        output_size=points,
        sampling_ratio=1,
        aligned=aligned,
        backend=backend,
    )
    shape = tf.shape(probabilities)
    flat = tf.reshape(probabilities, [-1, shape[2], shape[3], 1])
    weights = tf.image.resize(flat, [points, points])
    channels = feature_maps[0].shape[-1]
    weighted = tf.reshape(samples, [-1, points, points, channels]) * weights
    if sampling_ratio > 1:
        weighted = tf.nn.avg_pool2d(weighted, sampling_ratio, sampling_ratio, "VALID")
    return shaped(weighted, feature_maps, boxes, output_size)
