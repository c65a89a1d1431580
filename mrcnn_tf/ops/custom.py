"""The compiled ops behind `roi_align` and `shape_aware_roi_align`, and their gradients."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from mrcnn_tf.ops import compile as compiled

DTYPES = (tf.float32, tf.bfloat16, tf.float16)
ATTRIBUTES = ("strides", "output_size", "sampling_ratio", "aligned")


@tf.autograph.experimental.do_not_convert
def pool(
    feature_maps: Sequence[tf.Tensor],
    boxes: tf.Tensor,
    probabilities: tf.Tensor | None,
    strides: Sequence[int],
    output_size: int,
    sampling_ratio: int,
    aligned: bool,
) -> tf.Tensor:
    """RoIAlign, or with probabilities Shape-aware RoIAlign, of all levels in one op.

    Args:
        feature_maps: `[B, H_l, W_l, C]`.
        boxes: float32 `[B, N, 4]`.
        probabilities: float32 `[B, N, Hp, Wp]`, or None.
        strides, output_size, sampling_ratio, aligned: those of `roi_align`.

    Returns:
        `[B, N, S, S, C]`; float32 for maps of a type that the op does not have.

    Raises:
        RuntimeError: the op cannot be built.
    """
    maps = [tf.convert_to_tensor(f) for f in feature_maps]
    return compiled.library().mrcnn_roi_align(
        features=[f if f.dtype in DTYPES else tf.cast(f, tf.float32) for f in maps],
        boxes=boxes,
        probabilities=[] if probabilities is None else [probabilities],
        strides=list(strides),
        output_size=output_size,
        sampling_ratio=sampling_ratio,
        aligned=aligned,
    )


@tf.RegisterGradient("MrcnnRoiAlign")
def _gradient(op, upstream: tf.Tensor) -> list[tf.Tensor | None]:
    levels = op.get_attr("levels")
    inputs = list(op.inputs)
    maps, boxes, probabilities = inputs[:levels], inputs[levels], inputs[levels + 1 :]
    options = {
        "features": maps,
        "boxes": boxes,
        "probabilities": probabilities,
        "upstream": upstream,
        **{name: op.get_attr(name) for name in ATTRIBUTES},
    }
    ops = compiled.library()
    gradients = [*ops.mrcnn_roi_align_grad(**options), None]
    if probabilities:
        gradients.append(ops.mrcnn_roi_align_map_grad(**options))
    return gradients
