"""What each anchor and each RoI should learn: matching, sampling and mask targets. No weights, no gradients."""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from mrcnn_tf.geometry import boxes, matching

CROWD_OVERLAP = 0.5


class Truth(NamedTuple):
    """Ground truth of a batch, cut to the longest list in it.

    `boxes [B, G, 4]`, `classes [B, G]` (-1 is padding), `crowd [B, G]`, `has_mask [B, G]`, `masks [B, G, m, m]` in
    {0, 1}, cropped to their boxes; `valid [B, G]`: neither padding nor crowd.
    """

    boxes: tf.Tensor
    classes: tf.Tensor
    crowd: tf.Tensor
    has_mask: tf.Tensor
    masks: tf.Tensor
    valid: tf.Tensor


def truth_of(batch: dict[str, tf.Tensor]) -> Truth:
    """Takes the `gt_*` entries of a training batch.

    The padding that no image of the batch needs is cut off here: the IoU with every anchor is the largest tensor
    of a training step, and most images have few instances.
    """
    present = batch["gt_classes"] > 0
    longest = tf.reduce_max(tf.reduce_sum(tf.cast(present, tf.int32), 1))
    # One row at least: tf.gather and argmax need something to point at.
    keep = tf.maximum(longest, 1)
    crowd = batch["gt_crowd"][:, :keep]
    return Truth(
        batch["gt_boxes"][:, :keep],
        batch["gt_classes"][:, :keep],
        crowd,
        batch["gt_has_mask"][:, :keep],
        batch["gt_masks"][:, :keep],
        present[:, :keep] & ~crowd,
    )


def seeds(step: tf.Tensor, image_ids: tf.Tensor, salt: int) -> tf.Tensor:
    """`[B, 2]` seeds that depend on step and image alone, and so not on how a batch is split over replicas."""
    first = tf.cast(step, tf.int64) * 3 + salt
    return tf.cast(tf.stack([tf.broadcast_to(first, tf.shape(image_ids)), image_ids], 1), tf.int32)


def in_crowd(candidates: tf.Tensor, truth: Truth) -> tf.Tensor:
    """`[B, N]`: whether more than half of a box lies in a crowd region, where it is neither right nor wrong."""
    marked = truth.crowd & (truth.classes > 0)

    def overlap() -> tf.Tensor:
        share = boxes.pairwise_ioa(candidates, truth.boxes)
        return tf.reduce_any((share > CROWD_OVERLAP) & marked[:, None, :], -1)

    shape = tf.stack([tf.shape(truth.boxes)[0], tf.shape(candidates)[-2]])
    return tf.cond(tf.reduce_any(marked), overlap, lambda: tf.zeros(shape, tf.bool))


def anchor_targets(
    anchors: tf.Tensor,
    truth: Truth,
    *,
    fg_iou: float,
    bg_iou: float,
    count: int,
    positive_fraction: float,
    seed: tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
    """Samples anchors for the RPN's losses.

    Args:
        anchors: `[A, 4]`.
        truth: the ground truth.
        fg_iou, bg_iou: anchors at or above the first are positive, below the second negative; an instance
            that no anchor reaches takes its best ones.
        count: anchors sampled per image.
        positive_fraction: share of positives at most.
        seed: `[B, 2]`.

    Returns:
        `index [B, count]` into the anchors, `positive [B, count]`, `valid [B, count]`, and `matched [B, count]`,
        the instance of a positive one (0 elsewhere).
    """
    # A large image has 270 000 anchors: their IoU with every instance is better never held as a matrix.
    match = matching.match_boxes(
        truth.boxes, truth.valid, anchors, high=fg_iou, low=bg_iou, allow_low_quality=True
    )
    negative = (match == -1) & ~in_crowd(anchors[None], truth)
    index, positive, valid = matching.sample(
        match >= 0, negative, count=count, positive_fraction=positive_fraction, seed=seed
    )
    matched = tf.maximum(tf.gather(match, index, batch_dims=1), 0)
    return index, positive, valid, matched


class RoIs(NamedTuple):
    """Sampled RoIs `boxes [B, N, 4]`, positives first; `positive`, `valid [B, N]`; `matched [B, N]`: the instance
    of a positive one, 0 elsewhere; `classes [B, N]`: its class, 0 for background; `index [B, N]`: which candidate."""

    boxes: tf.Tensor
    positive: tf.Tensor
    valid: tf.Tensor
    matched: tf.Tensor
    classes: tf.Tensor
    index: tf.Tensor


def roi_targets(
    proposals: tf.Tensor,
    proposal_valid: tf.Tensor,
    truth: Truth,
    *,
    source: str,
    min_proposals: int,
    fg_iou: float,
    bg_iou: float,
    count: int,
    positive_fraction: float,
    seed: tf.Tensor,
) -> RoIs:
    """Chooses the RoIs that the heads are trained on.

    Args:
        proposals: `[B, P, 4]`, best first, and `proposal_valid [B, P]`.
        truth: the ground truth.
        source: `"rpn"`: proposals alone; `"rpn+truth"`: and the true boxes (Detectron); `"truth"`: the true boxes,
            filled up from the best proposals to `min_proposals`, and proposals alone where an image has no
            instances (the course report's recipe).
        min_proposals: with `"truth"`, how many candidates an image has at least.
        fg_iou, bg_iou: RoIs at or above the first are positive, below the second background.
        count, positive_fraction, seed: as in `anchor_targets`.
    """
    candidates, usable = proposals, proposal_valid
    if source == "truth":
        true_count = tf.reduce_sum(tf.cast(truth.valid, tf.int32), 1, keepdims=True)
        rank = tf.range(tf.shape(proposals)[1])[None]
        usable &= (rank < min_proposals - true_count) | (true_count == 0)
    if source != "rpn":
        candidates = tf.concat([proposals, truth.boxes], 1)
        usable = tf.concat([usable, truth.valid], 1)
    iou = boxes.pairwise_iou(truth.boxes, candidates)
    match = matching.match(iou, truth.valid, high=fg_iou, low=bg_iou, allow_low_quality=False)
    negative = (match == -1) & usable & ~in_crowd(candidates, truth)
    index, positive, valid = matching.sample(
        (match >= 0) & usable, negative, count=count, positive_fraction=positive_fraction, seed=seed
    )
    matched = tf.maximum(tf.gather(match, index, batch_dims=1), 0)
    classes = tf.where(positive, tf.gather(truth.classes, matched, batch_dims=1), 0)
    chosen = tf.where(valid[..., None], tf.gather(candidates, index, batch_dims=1), 0.0)
    return RoIs(chosen, positive, valid, matched, classes, index)


def mask_targets(rois: tf.Tensor, matched: tf.Tensor, truth: Truth, size: int) -> tf.Tensor:
    """The true masks as seen through the RoIs.

    Args:
        rois: `[B, N, 4]`.
        matched: `[B, N]`, the instance of each.
        truth: the ground truth.
        size: height and width of the targets.

    Returns:
        float32 `[B, N, size, size]` in {0, 1}.
    """
    b, g = tf.shape(truth.masks)[0], tf.shape(truth.masks)[1]
    m = truth.masks.shape[2]
    own = tf.gather(truth.boxes, matched, batch_dims=1)
    scale = m / tf.maximum(own[..., 2:] - own[..., :2], 1e-6)
    # A ring of zeros, so that a mask fades over its box's border as if the rest of the image were there.
    masks = tf.pad(tf.cast(tf.reshape(truth.masks, [b * g, m, m]), tf.float32), [[0, 0], [1, 1], [1, 1]])
    step = (rois[..., 2:] - rois[..., :2]) / size
    first = (rois[..., :2] + step / 2 - own[..., :2]) * scale + 0.5
    last = first + step * (size - 1) * scale
    # crop_and_resize puts its first and last sample on the ends of the box that it is given.
    crop = tf.concat([first, last], -1) / (m + 1)
    image = tf.range(b)[:, None] * g + matched
    out = tf.image.crop_and_resize(
        masks[..., None], tf.reshape(crop, [-1, 4]), tf.reshape(image, [-1]), [size, size]
    )
    return tf.cast(tf.reshape(out, [b, -1, size, size]) >= 0.5, tf.float32)
