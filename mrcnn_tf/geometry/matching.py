"""Which ground truth an anchor or proposal answers for, and which are trained on (Ren et al., 2015)."""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

from mrcnn_tf.geometry.boxes import area

NEGATIVE = -1
IGNORED = -2


def match(
    iou: tf.Tensor, gt_valid: tf.Tensor, *, high: float, low: float, allow_low_quality: bool
) -> tf.Tensor:
    """Gives every anchor the ground-truth box that it overlaps most.

    Args:
        iou: `[B, G, A]`, overlap of ground truth and anchors.
        gt_valid: bool `[B, G]`; false on padding.
        high: an anchor is matched from this IoU on.
        low: an anchor is negative below this IoU; between the two it is ignored.
        allow_low_quality: also match every anchor that, of all anchors, has the highest overlap with some
            box, if that is above zero, so that no box goes without. Such an anchor, too, gets the box that it
            overlaps most itself (as in detectron2 and torchvision), which may be another one.

    Returns:
        int32 `[B, A]`: index of the box where matched, -1 where negative, -2 where ignored. All negative in
        an image without boxes.

    Raises:
        ValueError: `low` is above `high`.
    """
    iou = tf.cast(iou, tf.float32)
    shape = tf.gather(tf.shape(iou), [0, 2])
    return _match(lambda g: iou[:, g], shape, gt_valid, high, low, allow_low_quality)


def match_boxes(
    gt_boxes: tf.Tensor,
    gt_valid: tf.Tensor,
    anchors: tf.Tensor,
    *,
    high: float,
    low: float,
    allow_low_quality: bool,
) -> tf.Tensor:
    """`match` of `boxes.pairwise_iou(gt_boxes, anchors)` without ever holding that matrix.

    A large image has 270 000 anchors: with 100 boxes the matrix and its parts take a gigabyte for every
    image.

    Args:
        gt_boxes: `[B, G, 4]` in pixels.
        gt_valid: bool `[B, G]`; false on padding.
        anchors: `[A, 4]` or `[B, A, 4]` in pixels.
        high, low, allow_low_quality: those of `match`.

    Returns:
        int32 `[B, A]` as `match`.

    Raises:
        ValueError: `low` is above `high`.
    """
    gt_boxes, gt_area = tf.cast(gt_boxes, tf.float32), area(gt_boxes)
    y1, x1, y2, x2 = tf.unstack(tf.cast(anchors, tf.float32), axis=-1)
    anchor_area = area(anchors)

    def row(g: tf.Tensor) -> tf.Tensor:
        box = gt_boxes[:, g]
        height = tf.maximum(tf.minimum(y2, box[:, 2, None]) - tf.maximum(y1, box[:, 0, None]), 0.0)
        width = tf.maximum(tf.minimum(x2, box[:, 3, None]) - tf.maximum(x1, box[:, 1, None]), 0.0)
        both = height * width
        return tf.math.divide_no_nan(both, gt_area[:, g, None] + anchor_area - both)

    shape = tf.stack([tf.shape(gt_boxes)[0], tf.shape(anchors)[-2]])
    return _match(row, shape, gt_valid, high, low, allow_low_quality)


def sample(
    positive: tf.Tensor,
    negative: tf.Tensor,
    *,
    count: int,
    positive_fraction: float,
    seed: tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Draws up to `count` anchors of each image without replacement, positives first, the rest negatives.

    Args:
        positive, negative: bool `[B, A]`, never both true; an anchor with neither is not drawn.
        count: how many in all.
        positive_fraction: at most `int(count * positive_fraction)` are positive. Negatives fill what
            positives leave.
        seed: int32 `[B, 2]`, one for each image; equal seeds give equal draws.

    Returns:
        indices: int32 `[B, count]` into the anchors; 0 where not valid.
        is_positive: bool `[B, count]`; true from slot 0 on, without gaps.
        is_valid: bool `[B, count]`; false where there were too few to draw from, at the end.

    Raises:
        ValueError: `count` is not positive or `positive_fraction` is outside [0, 1].
    """
    if count < 1 or not 0.0 <= positive_fraction <= 1.0:
        raise ValueError(
            f"sampling needs count >= 1 and positive_fraction in [0, 1], not {count} and {positive_fraction}"
        )
    anchors = tf.shape(positive)[1:]
    keys = tf.map_fn(
        lambda one: tf.random.stateless_uniform(anchors, one), seed, fn_output_signature=tf.float32
    )
    positives, num_positive = _draw(positive, keys, int(count * positive_fraction))
    # The two sets share no anchor, so one set of keys serves both.
    negatives, num_negative = _draw(negative, keys, count)

    slot = tf.range(count)[None, :]
    is_positive = slot < num_positive
    is_valid = slot < num_positive + num_negative
    positives = tf.pad(positives, [[0, 0], [0, count - tf.shape(positives)[1]]])
    negatives = tf.gather(negatives, tf.maximum(slot - num_positive, 0), batch_dims=1)
    indices = tf.where(is_positive, positives, negatives)
    return tf.where(is_valid, indices, 0), is_positive, is_valid


def _match(
    row: Callable[[tf.Tensor], tf.Tensor],
    shape: tf.Tensor,
    gt_valid: tf.Tensor,
    high: float,
    low: float,
    allow_low_quality: bool,
) -> tf.Tensor:
    """One pass over the boxes; `row(g)` is the overlap of box g of every image; both have `shape` [B, A]."""
    if low > high:
        raise ValueError(f"matching needs low <= high, not low={low} and high={high}")

    def step(g: tf.Tensor, best: tf.Tensor, index: tf.Tensor, forced: tf.Tensor) -> tuple:
        iou = tf.where(gt_valid[:, g, None], row(g), 0.0)
        if allow_low_quality:
            forced |= (iou > 0.0) & (iou >= tf.reduce_max(iou, axis=1, keepdims=True))
        return g + 1, tf.maximum(iou, best), tf.where(iou > best, g, index), forced

    count = tf.shape(gt_valid)[1]
    start = [0, tf.zeros(shape), tf.zeros(shape, tf.int32), tf.zeros(shape, tf.bool)]
    _, best, index, forced = tf.while_loop(lambda g, *_: g < count, step, start)
    # An anchor that touches no box is negative whatever `low` is, and has no box to be matched with.
    unmatched = tf.where((best < low) | (best <= 0.0), NEGATIVE, IGNORED)
    return tf.where(((best >= high) & (best > 0.0)) | forced, index, unmatched)


def _draw(candidates: tf.Tensor, keys: tf.Tensor, count: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Indices `[B, count]` of the candidates with the highest keys, padded; how many are real, `[B, 1]`."""
    k = tf.minimum(count, tf.shape(candidates)[1])
    _, indices = tf.math.top_k(tf.where(candidates, keys, -1.0), k)
    indices = tf.pad(indices, [[0, 0], [0, count - k]])
    found = tf.reduce_sum(tf.cast(candidates, tf.int32), axis=1, keepdims=True)
    return indices, tf.minimum(found, count)
