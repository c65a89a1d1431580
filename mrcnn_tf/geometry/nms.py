"""Greedy non-maximum suppression of a batch, over all boxes or within groups."""

from __future__ import annotations

import tensorflow as tf

from mrcnn_tf.geometry.boxes import area


def nms(
    boxes: tf.Tensor,
    scores: tf.Tensor,
    groups: tf.Tensor | None,
    *,
    iou_threshold: float | tf.Tensor,
    score_threshold: float | tf.Tensor,
    max_outputs: int,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Keeps the best boxes that do not overlap a better one of their group.

    Args:
        boxes: `[B, N, 4]` in pixels.
        scores: `[B, N]`.
        groups: int32 `[B, N]`, not negative (a class or a pyramid level); boxes of different groups do not
            suppress each other. None: all are one group.
        iou_threshold: a box is dropped if its IoU with a kept one is above this; one for all, or float32 `[B]`.
        score_threshold: boxes up to this score are never kept, nor are boxes without area; one for all, or `[B]`.
        max_outputs: how many an image keeps at most, over all groups.

    Returns:
        indices: int32 `[B, max_outputs]` into N, best score first; 0 where not valid.
        valid: bool `[B, max_outputs]`.
    """
    boxes, scores = tf.cast(boxes, tf.float32), tf.cast(scores, tf.float32)
    # Below every threshold a caller can mean: the kernel takes scores above the threshold only.
    scores = tf.where(area(boxes) > 0.0, scores, scores.dtype.min)
    if groups is not None:
        boxes = _spread(boxes, groups)
    score_threshold = tf.maximum(score_threshold, scores.dtype.min)
    thresholds = [tf.broadcast_to(t, tf.shape(boxes)[:1]) for t in (iou_threshold, score_threshold)]

    def one_image(image: tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
        kept = tf.raw_ops.NonMaxSuppressionV4(
            boxes=image[0],
            scores=image[1],
            max_output_size=max_outputs,
            iou_threshold=image[2],
            score_threshold=image[3],
            pad_to_max_output_size=True,
        )
        return kept.selected_indices, kept.valid_outputs

    if boxes.shape[0] == 1:
        indices, count = one_image((boxes[0], scores[0], thresholds[0][0], thresholds[1][0]))
        indices, count = indices[None], count[None]
    else:
        indices, count = tf.map_fn(
            one_image, (boxes, scores, *thresholds), fn_output_signature=(tf.int32, tf.int32)
        )
    indices = tf.ensure_shape(indices, [boxes.shape[0], max_outputs])
    valid = tf.range(max_outputs)[None, :] < count[:, None]
    return tf.where(valid, indices, 0), valid


def _spread(boxes: tf.Tensor, groups: tf.Tensor) -> tf.Tensor:
    """Moves every group to a place of its own, so that one pass treats all groups.

    The places form a square, not a row: with 80 classes on a row, float32 would leave coordinates of a
    1333-pixel image only 1/128 of a pixel.
    """
    span = tf.reduce_max(boxes) - tf.minimum(tf.reduce_min(boxes), 0.0) + 1.0
    groups = tf.cast(groups, tf.int32)
    side = tf.cast(tf.math.ceil(tf.sqrt(tf.cast(tf.reduce_max(groups) + 1, tf.float32))), tf.int32)
    side = tf.maximum(side, 1)
    shift = tf.cast(tf.stack([groups // side, groups % side], axis=-1), tf.float32) * span
    return boxes + tf.concat([shift, shift], axis=-1)
