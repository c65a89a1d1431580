"""Every loss by name.

All compute in float32, element by element, and reduce nothing beyond the axis they are about: whoever calls
them knows which elements count, weights them and sums. A dictionary for each kind maps the names of the
configuration to functions; `lookup` reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import tensorflow as tf

from mrcnn_tf.geometry.boxes import giou, iou


def cross_entropy(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Softmax cross-entropy.

    Args:
        labels: integers `[...]`, 0 to C - 1; a negative label has no loss.
        logits: `[..., C]`.

    Returns:
        float32 `[...]`.
    """
    loss = tf.nn.sparse_softmax_cross_entropy_with_logits(
        labels=tf.maximum(labels, 0), logits=tf.cast(logits, tf.float32)
    )
    return tf.where(labels >= 0, loss, 0.0)


def sigmoid_focal(labels: tf.Tensor, logits: tf.Tensor, alpha: float = 0.25, gamma: float = 2.0) -> tf.Tensor:
    """Focal loss (Lin et al., 2017, equation 5) of one sigmoid for each foreground class.

    Args:
        labels: integers `[...]`; 0 is background, 1 to C - 1 foreground; a negative label has no loss.
        logits: `[..., C]`; the background's logit is not used.
        alpha: weight of the label's own class; the others have 1 - alpha.
        gamma: how strongly easy examples are weighted down; 0 is cross-entropy.

    Returns:
        float32 `[...]`, summed over the foreground classes.
    """
    num_classes = tf.shape(logits)[-1]
    targets = tf.one_hot(labels - 1, num_classes - 1)
    loss = tf.reduce_sum(binary_focal(targets, logits[..., 1:], alpha, gamma), axis=-1)
    return tf.where(labels >= 0, loss, 0.0)


def binary_focal(labels: tf.Tensor, logits: tf.Tensor, alpha: float = 0.25, gamma: float = 2.0) -> tf.Tensor:
    """Focal loss (Lin et al., 2017, equation 5) of single logits, for objectness.

    Args:
        labels: 0 or 1, `[...]`; a negative label has no loss.
        logits: `[...]`.
        alpha: weight of label 1; label 0 has 1 - alpha.
        gamma: how strongly easy examples are weighted down.

    Returns:
        float32 `[...]`.
    """
    targets, logits = tf.cast(labels, tf.float32), tf.cast(logits, tf.float32)
    # log(1 - p_t) is exact where p_t is close to 1, and exp() of it has a finite gradient everywhere.
    sign = 1.0 - 2.0 * targets
    modulator = tf.exp(gamma * tf.math.log_sigmoid(sign * logits))
    weight = alpha * targets + (1.0 - alpha) * (1.0 - targets)
    return tf.where(targets >= 0.0, weight * modulator * binary_cross_entropy(targets, logits), 0.0)


def binary_cross_entropy(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Sigmoid cross-entropy of single logits, for objectness.

    Args:
        labels: in [0, 1], `[...]`; a negative label has no loss.
        logits: `[...]`.

    Returns:
        float32 `[...]`.
    """
    targets = tf.cast(labels, tf.float32)
    loss = tf.nn.sigmoid_cross_entropy_with_logits(
        labels=tf.maximum(targets, 0.0), logits=tf.cast(logits, tf.float32)
    )
    return tf.where(targets >= 0.0, loss, 0.0)


def l1(predictions: tf.Tensor, targets: tf.Tensor) -> tf.Tensor:
    """Absolute difference of deltas `[..., 4]`, summed over the four: float32 `[...]`."""
    return tf.reduce_sum(tf.abs(tf.cast(predictions, tf.float32) - tf.cast(targets, tf.float32)), axis=-1)


def smooth_l1(predictions: tf.Tensor, targets: tf.Tensor, beta: float = 1.0) -> tf.Tensor:
    """L1 with a quadratic bottom (Girshick, 2015) on deltas `[..., 4]`.

    Args:
        predictions, targets: `[..., 4]`.
        beta: up to this difference the loss is `d^2 / (2 beta)`, above `|d| - beta / 2`; 0 is plain L1.

    Returns:
        float32 `[...]`, summed over the four.
    """
    if beta <= 0.0:
        return l1(predictions, targets)
    d = tf.abs(tf.cast(predictions, tf.float32) - tf.cast(targets, tf.float32))
    return tf.reduce_sum(tf.where(d < beta, tf.square(d) * (0.5 / beta), d - 0.5 * beta), axis=-1)


def iou_loss(predictions: tf.Tensor, targets: tf.Tensor) -> tf.Tensor:
    """`1 - IoU` of boxes `[..., 4]` in pixels: float32 `[...]` in [0, 1]; flat where they do not touch."""
    return 1.0 - iou(predictions, targets)


def giou_loss(predictions: tf.Tensor, targets: tf.Tensor) -> tf.Tensor:
    """`1 - GIoU` (Rezatofighi et al., 2019) of boxes `[..., 4]` in pixels: float32 `[...]` in [0, 2]."""
    return 1.0 - giou(predictions, targets)


def mask_binary_cross_entropy(targets: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Sigmoid cross-entropy of masks (He et al., 2017), averaged over the pixels.

    Args:
        targets: `[..., m, m]` in [0, 1], any type.
        logits: `[..., m, m]`.

    Returns:
        float32 `[...]`.
    """
    return tf.reduce_mean(binary_cross_entropy(targets, logits), axis=[-2, -1])


def dice(targets: tf.Tensor, logits: tf.Tensor, smooth: float = 1.0) -> tf.Tensor:
    """One minus the Dice coefficient with squares in the denominator (Milletari et al., 2016) of masks.

    Args:
        targets: `[..., m, m]` in [0, 1], any type.
        logits: `[..., m, m]`.
        smooth: added above and below, so that two empty masks agree.

    Returns:
        float32 `[...]` in [0, 1].
    """
    targets, p = tf.cast(targets, tf.float32), tf.sigmoid(tf.cast(logits, tf.float32))
    both = tf.reduce_sum(p * targets, axis=[-2, -1])
    each = tf.reduce_sum(tf.square(p) + tf.square(targets), axis=[-2, -1])
    return 1.0 - (2.0 * both + smooth) / (each + smooth)


# (labels [...], logits [..., C]) -> [...]
CLASSIFICATION = {"cross_entropy": cross_entropy, "sigmoid_focal": sigmoid_focal}
# (labels [...], logits [...]) -> [...]
OBJECTNESS = {"cross_entropy": binary_cross_entropy, "sigmoid_focal": binary_focal}
# (predictions [..., 4], targets [..., 4]) -> [...]; those in ON_BOXES compare decoded boxes, the others
# deltas.
BOX = {"smooth_l1": smooth_l1, "l1": l1, "iou": iou_loss, "giou": giou_loss}
ON_BOXES = frozenset({"iou", "giou"})
# (targets [..., m, m], logits [..., m, m]) -> [...]
MASK = {"binary_cross_entropy": mask_binary_cross_entropy, "dice": dice}


def lookup(table: Mapping[str, Callable[..., tf.Tensor]], name: str) -> Callable[..., tf.Tensor]:
    """The loss of that name in `CLASSIFICATION`, `OBJECTNESS`, `BOX` or `MASK`.

    Raises:
        ValueError: there is none; the message lists those there are.
    """
    if name not in table:
        raise ValueError(f"unknown loss {name!r}: choose one of {', '.join(table)}")
    return table[name]
