"""Which candidates become detections: thresholds, sizes and suppression, as a model's settings say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf

from mrcnn_tf.geometry import boxes as box_ops
from mrcnn_tf.geometry.nms import METHODS, box_overlaps, mask_overlaps, nms, soft_nms

SIZE_UNITS = ("pixels", "share")
# The arguments of a model that are those of `Selection`.
SELECTION = (
    "score_threshold",
    "class_score_thresholds",
    "nms_threshold",
    "nms_groups",
    "nms_method",
    "nms_sigma",
    "mask_nms_threshold",
    "min_detection",
    "max_detection",
    "detection_unit",
    "max_detections",
)


class Selection:
    """Takes detections from candidates.

    Args:
        class_names: of the classes 1..K.
        score_threshold: candidates up to this score are dropped.
        class_score_thresholds: for some classes, by name, a higher one.
        nms_threshold: of boxes, the IoU above which the lower-scored one is dropped or devalued.
        nms_groups: who can suppress whom: `"class"`, instances of one class; `"all"`; or lists of class names: classes
            of one list, and a class in no list for itself.
        nms_method, nms_sigma: `"hard"`, `"linear"` or `"gaussian"`, see `mrcnn_tf.geometry.nms.soft_nms`.
        mask_nms_threshold: if given, the masks of what the boxes' NMS left are suppressed in turn, by the IoU of the
            masks. `nms_method` is then that of the masks, and boxes are suppressed hard; a high `nms_threshold` leaves
            it to the masks.
        min_detection, max_detection: bounds, themselves allowed, of a detection's size: the side of the square that
            has the area of its box.
        detection_unit: of these: `"pixels"` of the original image, or `"share"`, of the side of the square that has
            the image's area.
        max_detections: an image has at most.

    Raises:
        ValueError: for a method or unit that does not exist, names that are not classes or are in two groups, and
            thresholds out of range.
    """

    def __init__(
        self,
        class_names: Sequence[str],
        *,
        score_threshold: float,
        class_score_thresholds: Mapping[str, float] | None,
        nms_threshold: float,
        nms_groups: str | Sequence[Sequence[str]],
        nms_method: str,
        nms_sigma: float,
        mask_nms_threshold: float | None,
        min_detection: float | None,
        max_detection: float | None,
        detection_unit: str,
        max_detections: int,
    ):
        for name, value, allowed in (
            ("nms_method", nms_method, METHODS),
            ("detection_unit", detection_unit, SIZE_UNITS),
        ):
            if value not in allowed:
                raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(allowed)}")
        floors = dict(class_score_thresholds or {})
        _known(floors, class_names, "class_score_thresholds")
        shares: dict[str, float] = {"score_threshold": score_threshold, "nms_threshold": nms_threshold}
        shares |= {f"class_score_thresholds of {name}": floor for name, floor in floors.items()}
        if mask_nms_threshold is not None:
            shares["mask_nms_threshold"] = mask_nms_threshold
        for key, share in shares.items():
            if not 0 <= share <= 1:
                raise ValueError(f"{key} is {share}; it must be in [0, 1]")
        if not 0 < nms_sigma < float("inf"):
            raise ValueError(f"nms_sigma is {nms_sigma}; it must be above 0")
        if max_detections < 1:
            raise ValueError(f"max_detections is {max_detections}; it must be 1 or more")
        low, high = 0.0 if min_detection is None else min_detection, max_detection
        if not (low >= 0 and (high is None or high >= low)):
            raise ValueError(
                f"min_detection is {min_detection} and max_detection {max_detection}; the second must be the larger, "
                "neither below 0"
            )
        self.method, self.sigma = nms_method, float(nms_sigma)
        self.mask_nms_threshold = None if mask_nms_threshold is None else float(mask_nms_threshold)
        self.sizes, self.unit = (min_detection, max_detection), detection_unit
        self.max_detections = int(max_detections)
        self.groups = group_numbers(class_names, nms_groups)
        self.class_floors = [float(floors.get(name, 0.0)) for name in class_names]

    def boxes(
        self,
        boxes: tf.Tensor,
        scores: tf.Tensor,
        *,
        image_sizes: tf.Tensor,
        original_sizes: tf.Tensor,
        score_threshold: float | tf.Tensor,
        iou_threshold: float | tf.Tensor,
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
        """Takes boxes.

        Args:
            boxes: `[B, N, K, 4]` in pixels, each class's.
            scores: `[B, N, K]`.
            image_sizes: `[B, 2]`, of the images that the boxes lie in.
            original_sizes: `[B, 2]`, of the images before they were resized.
            score_threshold, iou_threshold: used instead of the settings; one for all, or `[B]`.

        Returns:
            Boxes `[B, D, 4]`, scores, falling, and classes `[B, D]` (1..K, -1 beyond the last), and `[B, D]`, which
            candidate each came from. Zeros beyond the last.
        """
        batch, k = tf.shape(boxes)[0], boxes.shape[2]
        scores = self._of_size(boxes, scores, image_sizes, original_sizes)
        if any(self.class_floors):
            scores = tf.where(scores > tf.constant(self.class_floors), scores, -1.0)
        boxes, scores = tf.reshape(boxes, [batch, -1, 4]), tf.reshape(scores, [batch, -1])
        classes = tf.range(tf.shape(boxes)[1]) % k
        groups = self._groups(tf.broadcast_to(classes[None], tf.shape(scores)))
        limits: dict[str, Any] = {
            "iou_threshold": tf.cast(iou_threshold, tf.float32),
            "max_outputs": self.max_detections,
        }
        floor = tf.cast(score_threshold, tf.float32)
        if self.method == "hard" or self.mask_nms_threshold is not None:
            keep, found = nms(boxes, scores, groups, score_threshold=floor, **limits)
            scores = tf.gather(scores, keep, batch_dims=1)
        else:
            scores = tf.where(box_ops.area(boxes) > 0.0, scores, -1.0)
            keep, found, scores = soft_nms(
                box_overlaps(boxes, groups),
                scores,
                method=self.method,
                sigma=self.sigma,
                score_threshold=self._floors(floor, tf.broadcast_to(classes[None], tf.shape(scores))),
                **limits,
            )
        boxes = tf.where(found[..., None], tf.gather(boxes, keep, batch_dims=1), 0.0)
        classes = tf.where(found, keep % k + 1, -1)
        return boxes, tf.where(found, scores, 0.0), classes, keep // k

    def masks(self, found: dict[str, tf.Tensor], score_threshold: float | tf.Tensor) -> dict[str, tf.Tensor]:
        """Takes masks: `boxes [B, D, 4]`, `scores`, `classes [B, D]` and `masks [B, D, m, m]` of the same form."""
        if self.mask_nms_threshold is None:
            return found
        classes = tf.maximum(found["classes"] - 1, 0)
        groups = self._groups(classes)
        keep, valid, scores = soft_nms(
            mask_overlaps(found["masks"], found["boxes"], groups),
            tf.where(found["classes"] > 0, found["scores"], -1.0),
            method=self.method,
            sigma=self.sigma,
            iou_threshold=self.mask_nms_threshold,
            score_threshold=self._floors(tf.cast(score_threshold, tf.float32), classes),
            max_outputs=self.max_detections,
        )
        boxes, classes, masks = (
            tf.gather(found[name], keep, batch_dims=1) for name in ("boxes", "classes", "masks")
        )
        return {
            "boxes": tf.where(valid[..., None], boxes, 0.0),
            "scores": scores,
            "classes": tf.where(valid, classes, -1),
            "masks": masks,
        }

    def _floors(self, score_threshold: tf.Tensor, classes: tf.Tensor) -> tf.Tensor:
        """Up to which score each candidate is dropped, `[B, N]`: that of all, one or `[B]`, or its class's own."""
        own = tf.gather(tf.constant(self.class_floors), classes)
        return tf.maximum(tf.reshape(score_threshold, [-1, 1]), own)

    def _groups(self, classes: tf.Tensor) -> tf.Tensor | None:
        """Groups of classes that are counted from 0; None if there is one only."""
        return None if self.groups is None else tf.gather(tf.constant(self.groups, tf.int32), classes)

    def _of_size(
        self, boxes: tf.Tensor, scores: tf.Tensor, image_sizes: tf.Tensor, original_sizes: tf.Tensor
    ) -> tf.Tensor:
        """The scores, below every threshold where a box is too small or too large."""
        low, high = self.sizes
        if low is None and high is None:
            return scores
        area, whole = box_ops.area(boxes), tf.reduce_prod(image_sizes, -1)[:, None, None]
        if self.unit == "pixels":
            area *= tf.reduce_prod(original_sizes, -1)[:, None, None]
        side = tf.sqrt(area / whole)
        right = (side >= (low or 0.0)) & (side <= (side.dtype.max if high is None else high))
        return tf.where(right, scores, -1.0)


def group_numbers(class_names: Sequence[str], groups: str | Sequence[Sequence[str]]) -> list[int] | None:
    """The group of each class; None if all are in one. See `Selection` for `groups` and what is raised."""
    if groups == "all":
        return None
    if groups == "class":
        return list(range(len(class_names)))
    if not isinstance(groups, (list, tuple)) or any(not isinstance(group, (list, tuple)) for group in groups):
        raise ValueError(f"nms_groups is {groups!r}; it must be 'class', 'all' or lists of class names")
    named = [name for group in groups for name in group]
    _known(named, class_names, "nms_groups")
    twice = sorted({name for name in named if named.count(name) > 1})
    if twice:
        raise ValueError(f"nms_groups has {', '.join(twice)} twice; a class can be in one group only")
    number = {name: i for i, group in enumerate(groups) for name in group}
    return [number.get(name, len(groups) + i) for i, name in enumerate(class_names)]


def _known(names: Mapping[str, float] | Sequence[str], class_names: Sequence[str], key: str) -> None:
    unknown = sorted(set(names) - set(class_names))
    if unknown:
        raise ValueError(f"{key} names {', '.join(unknown)}; the classes are {', '.join(class_names)}")
