"""Boxes `[y1, x1, y2, x2]`: area, clipping, overlap, and the deltas that a network regresses.

Coordinates are absolute pixels and continuous: pixel i covers [i, i + 1), so a height is `y2 - y1`. Every
function computes in float32 whatever it is given.
"""

from __future__ import annotations

import math

import tensorflow as tf

# exp() of a wild prediction must not overflow. A box may grow to 1000 / 16 times its anchor, as in Detectron.
MAX_LOG_SCALE = math.log(1000.0 / 16.0)


def area(boxes: tf.Tensor) -> tf.Tensor:
    """Area of boxes `[..., 4]` in square pixels, float32 `[...]`; 0 where a box is inverted."""
    y1, x1, y2, x2 = tf.unstack(tf.cast(boxes, tf.float32), axis=-1)
    return tf.maximum(y2 - y1, 0.0) * tf.maximum(x2 - x1, 0.0)


def clip(boxes: tf.Tensor, image_sizes: tf.Tensor) -> tf.Tensor:
    """Moves every coordinate into its image.

    Args:
        boxes: `[B, N, 4]` in pixels.
        image_sizes: `[B, 2]`, height and width in pixels.

    Returns:
        float32 `[B, N, 4]`; a box that lies wholly outside becomes one of zero area on the border.
    """
    limits = tf.tile(tf.cast(image_sizes, tf.float32), [1, 2])[:, None, :]
    return tf.clip_by_value(tf.cast(boxes, tf.float32), 0.0, limits)


def pairwise_iou(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
    """Intersection over union of every box of `a` `[..., N, 4]` with every one of `b` `[..., M, 4]`.

    Returns:
        float32 `[..., N, M]` in [0, 1]; 0 where both boxes have no area.
    """
    intersection = _pairwise_intersection(a, b)
    union = area(a)[..., :, None] + area(b)[..., None, :] - intersection
    return tf.math.divide_no_nan(intersection, union)


def pairwise_ioa(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
    """Share of each box of `a` `[..., N, 4]` that lies in each box of `b` `[..., M, 4]`.

    COCO compares detections with crowd regions by this measure.

    Returns:
        float32 `[..., N, M]` in [0, 1]; 0 where the box of `a` has no area.
    """
    return tf.math.divide_no_nan(_pairwise_intersection(a, b), area(a)[..., :, None])


def iou(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
    """Intersection over union of `a` and `b`, both `[..., 4]`, box by box: float32 `[...]` in [0, 1]."""
    intersection, union, _ = _overlap(a, b)
    return tf.math.divide_no_nan(intersection, union)


def giou(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
    """Generalised IoU (Rezatofighi et al., 2019, algorithm 1) of `a` and `b`, both `[..., 4]`, box by box.

    Returns:
        float32 `[...]` in [-1, 1]: IoU less the share of the smallest enclosing box that neither box covers.
    """
    intersection, union, hull = _overlap(a, b)
    return tf.math.divide_no_nan(intersection, union) - tf.math.divide_no_nan(hull - union, hull)


def encode(
    boxes: tf.Tensor, anchors: tf.Tensor, weights: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)
) -> tf.Tensor:
    """The deltas that move and scale `anchors` onto `boxes` (Girshick et al., 2014, appendix C).

    Args:
        boxes: `[..., 4]` targets.
        anchors: `[..., 4]`, of a shape that broadcasts with `boxes`.
        weights: factors of `(ty, tx, th, tw)`; Detectron's box head has `(10, 10, 5, 5)`.

    Returns:
        float32 `[..., 4]`: `(ty, tx, th, tw)`. Boxes or anchors without area give finite, meaningless values.
    """
    y, x, h, w = _centre_form(boxes)
    ya, xa, ha, wa = _centre_form(anchors)
    # A padded row must not turn the loss into NaN, nor its gradient, even when its weight is zero.
    h, w, ha, wa = (tf.maximum(side, 1e-6) for side in (h, w, ha, wa))
    wy, wx, wh, ww = weights
    return tf.stack(
        [wy * (y - ya) / ha, wx * (x - xa) / wa, wh * tf.math.log(h / ha), ww * tf.math.log(w / wa)], axis=-1
    )


def decode(
    deltas: tf.Tensor, anchors: tf.Tensor, weights: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)
) -> tf.Tensor:
    """The boxes that `deltas` make of `anchors`: the inverse of `encode`.

    Args:
        deltas: `[..., 4]`: `(ty, tx, th, tw)`.
        anchors: `[..., 4]`, of a shape that broadcasts with `deltas`.
        weights: those of `encode`.

    Returns:
        float32 `[..., 4]` boxes, at most 62.5 times the anchor's sides and not clipped to any image.
    """
    ty, tx, th, tw = tf.unstack(tf.cast(deltas, tf.float32), axis=-1)
    ya, xa, ha, wa = _centre_form(anchors)
    wy, wx, wh, ww = weights
    y, x = ty / wy * ha + ya, tx / wx * wa + xa
    half_h = 0.5 * ha * tf.exp(tf.minimum(th / wh, MAX_LOG_SCALE))
    half_w = 0.5 * wa * tf.exp(tf.minimum(tw / ww, MAX_LOG_SCALE))
    return tf.stack([y - half_h, x - half_w, y + half_h, x + half_w], axis=-1)


def _centre_form(boxes: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
    """Centre y, centre x, height, width."""
    y1, x1, y2, x2 = tf.unstack(tf.cast(boxes, tf.float32), axis=-1)
    return 0.5 * (y1 + y2), 0.5 * (x1 + x2), y2 - y1, x2 - x1


def _pairwise_intersection(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
    a, b = tf.cast(a, tf.float32), tf.cast(b, tf.float32)
    ay1, ax1, ay2, ax2 = tf.unstack(a[..., :, None, :], axis=-1)
    by1, bx1, by2, bx2 = tf.unstack(b[..., None, :, :], axis=-1)
    height = tf.maximum(tf.minimum(ay2, by2) - tf.maximum(ay1, by1), 0.0)
    width = tf.maximum(tf.minimum(ax2, bx2) - tf.maximum(ax1, bx1), 0.0)
    return height * width


def _overlap(a: tf.Tensor, b: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Areas of the intersection, the union and the smallest enclosing box of boxes `[..., 4]`."""
    ay1, ax1, ay2, ax2 = tf.unstack(tf.cast(a, tf.float32), axis=-1)
    by1, bx1, by2, bx2 = tf.unstack(tf.cast(b, tf.float32), axis=-1)
    height = tf.maximum(tf.minimum(ay2, by2) - tf.maximum(ay1, by1), 0.0)
    width = tf.maximum(tf.minimum(ax2, bx2) - tf.maximum(ax1, bx1), 0.0)
    intersection = height * width
    hull = (tf.maximum(ay2, by2) - tf.minimum(ay1, by1)) * (tf.maximum(ax2, bx2) - tf.minimum(ax1, bx1))
    return intersection, area(a) + area(b) - intersection, hull
