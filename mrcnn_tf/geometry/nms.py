"""Greedy non-maximum suppression of a batch: hard or soft, by boxes or masks, over all or within groups."""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

from mrcnn_tf.geometry.boxes import area, pairwise_iou

METHODS = ("hard", "linear", "gaussian")


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


def soft_nms(
    overlaps: Callable[[tf.Tensor], tf.Tensor],
    scores: tf.Tensor,
    *,
    method: str,
    iou_threshold: float | tf.Tensor,
    score_threshold: float | tf.Tensor,
    max_outputs: int,
    sigma: float = 0.5,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Takes the best again and again, and devalues what overlaps it (Bodla et al., "Soft-NMS", 2017).

    Args:
        overlaps: gives, for one index of each image, int32 `[B]`, the IoU of that candidate with all, `[B, N]`; 0
            with those that it may not suppress. See `box_overlaps`, `mask_overlaps`.
        scores: float32 `[B, N]`, not negative.
        method: of a candidate's score when one with an IoU of x to it is taken: `"hard"` drops it for x above
            `iou_threshold`; `"linear"` multiplies by 1 - x for x above `iou_threshold` (eq. 2); `"gaussian"` always
            multiplies by exp(-x^2 / sigma).
        iou_threshold: one for all, or float32 `[B]`; `"gaussian"` does not use it.
        score_threshold: candidates up to this score, at first or devalued, are never taken; one for all, or `[B, 1]` or
            `[B, N]`.
        max_outputs: how many an image keeps at most.
        sigma: of `"gaussian"`.

    Returns:
        indices: int32 `[B, max_outputs]` into N, in the order taken, which is that of falling scores; 0 where not
            valid.
        valid: bool `[B, max_outputs]`.
        scores: float32 `[B, max_outputs]`, as devalued; 0 where not valid.

    Raises:
        ValueError: there is no such method.
    """
    if method not in METHODS:
        raise ValueError(f"method is {method!r}; it must be one of {', '.join(METHODS)}")
    batch, count = tf.shape(scores)[0], tf.shape(scores)[1]
    iou_threshold = tf.broadcast_to(iou_threshold, [batch])[:, None]
    gone = -1.0

    def more(step: tf.Tensor, left: tf.Tensor, *_: tf.Tensor) -> tf.Tensor:
        return (step < max_outputs) & tf.reduce_any(left >= 0.0)

    def take(
        step: tf.Tensor, left: tf.Tensor, indices: tf.Tensor, kept: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
        best = tf.argmax(left, 1, output_type=tf.int32)
        here = tf.range(max_outputs)[None] == step
        indices = tf.where(here, best[:, None], indices)
        kept = tf.where(here, tf.reduce_max(left, 1, keepdims=True), kept)
        iou = overlaps(best)
        if method == "gaussian":
            factor = tf.exp(-tf.square(iou) / sigma)
        else:
            factor = tf.where(iou > iou_threshold, 1.0 - iou if method == "linear" else gone, 1.0)
        stays = (left >= 0.0) & (factor >= 0.0) & (left * factor > score_threshold)
        left = tf.where(stays, left * factor, gone)
        return step + 1, tf.where(tf.range(count)[None] == best[:, None], gone, left), indices, kept

    start = tf.where(scores > score_threshold, tf.cast(scores, tf.float32), gone)
    empty = tf.zeros([batch, max_outputs], tf.int32)
    state = (tf.zeros([], tf.int32), start, empty, tf.fill([batch, max_outputs], gone))
    _, _, indices, kept = tf.while_loop(more, take, state)
    valid = kept >= 0.0
    return tf.where(valid, indices, 0), valid, tf.where(valid, kept, 0.0)


def box_overlaps(boxes: tf.Tensor, groups: tf.Tensor | None) -> Callable[[tf.Tensor], tf.Tensor]:
    """For `soft_nms`: IoU of boxes `[B, N, 4]` within groups `[B, N]`; None: all are one group."""

    def of(index: tf.Tensor) -> tf.Tensor:
        one = tf.gather(boxes, index[:, None], batch_dims=1)
        return _within(pairwise_iou(one, boxes)[:, 0], groups, index)

    return of


def mask_overlaps(
    masks: tf.Tensor, boxes: tf.Tensor, groups: tf.Tensor | None
) -> Callable[[tf.Tensor], tf.Tensor]:
    """For `soft_nms`: IoU of small masks within groups, without pasting any of them on an image.

    Of two masks, the one with the smaller box has the finer grid: the other is interpolated at its cells' centres, and
    the cells where both are at least one half make the intersection.

    Args:
        masks: `[B, N, m, m]`, probabilities on a grid over their boxes.
        boxes: `[B, N, 4]` in pixels.
        groups: int32 `[B, N]`; None: all are one group.
    """
    cells = masks.shape[-1]
    inside = tf.cast(masks >= 0.5, tf.float32)
    sides = boxes[..., 2:] - boxes[..., :2]
    cell = tf.reduce_prod(sides, -1) / cells**2
    areas = tf.reduce_sum(inside, [2, 3]) * cell
    steps = (tf.range(cells, dtype=tf.float32) + 0.5) / cells

    def sampled(masks: tf.Tensor, boxes: tf.Tensor, at: tf.Tensor) -> tf.Tensor:
        """Whether masks `[B, N or 1, m, m]` cover the cells' centres of the boxes `at` `[B, N or 1, 4]`."""
        size = tf.maximum(boxes[..., 2:] - boxes[..., :2], 1e-6)
        points = at[..., None, :2] + steps[:, None] * (at[..., 2:] - at[..., :2])[..., None, :]
        where = (points - boxes[..., None, :2]) / size[..., None, :] * cells - 0.5
        weights = tf.nn.relu(1.0 - tf.abs(where[..., None, :] - tf.range(cells, dtype=tf.float32)[:, None]))
        values = tf.matmul(weights[..., 0] @ masks, weights[..., 1], transpose_b=True)
        return tf.cast(values >= 0.5, tf.float32)

    def of(index: tf.Tensor) -> tf.Tensor:
        mask, mine, box, size, area_ = (
            tf.gather(x, index[:, None], batch_dims=1) for x in (masks, inside, boxes, cell, areas)
        )
        on_mine = tf.reduce_sum(sampled(masks, boxes, box) * mine, [2, 3]) * size
        on_theirs = tf.reduce_sum(sampled(mask, box, boxes) * inside, [2, 3]) * cell
        both = tf.where(size <= cell, on_mine, on_theirs)
        # Interpolation may count a little more than there is.
        both = tf.minimum(both, tf.minimum(areas, area_))
        return _within(tf.math.divide_no_nan(both, areas + area_ - both), groups, index)

    return of


def _within(iou: tf.Tensor, groups: tf.Tensor | None, index: tf.Tensor) -> tf.Tensor:
    if groups is None:
        return iou
    return tf.where(groups == tf.gather(groups, index[:, None], batch_dims=1), iou, 0.0)


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
