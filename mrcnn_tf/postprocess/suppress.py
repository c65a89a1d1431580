"""Non-maximum suppression of one image's results: hard or soft, on boxes or masks, by class, by groups or over all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mrcnn_tf.geometry.overlap import compressed, iou_with, mask_boxes

__all__ = ["best_first", "group_numbers", "suppress", "wanted"]

Groups = Literal["class", "all"] | Sequence[Sequence[int]]


def suppress(
    boxes: ArrayLike,
    scores: ArrayLike,
    class_ids: ArrayLike,
    *,
    masks: Sequence[dict[str, Any]] | None = None,
    iou_threshold: float = 0.5,
    measure: Literal["box", "mask"] = "box",
    groups: Groups = "class",
    method: Literal["hard", "linear", "gaussian"] = "hard",
    sigma: float = 0.5,
    score_threshold: float | Mapping[int, float] = 0.0,
    min_size: float | None = None,
    max_size: float | None = None,
    size_unit: Literal["pixels", "share"] = "pixels",
    image_size: tuple[int, int] | None = None,
    max_detections: int | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Takes the best instance again and again, and drops or devalues those that overlap it.

    Soft suppression is that of Bodla et al., "Soft-NMS", ICCV 2017, eq. 2 (linear) and section 3 (Gaussian): scores
    decay, the next instance is the best by its decayed score, and what decays to the score threshold is dropped.

    Args:
        boxes: `[N, 4]`, `[y1, x1, y2, x2]` in pixels.
        scores: `[N]`, finite; not negative for soft suppression.
        class_ids: integers `[N]`.
        masks: N run-length codes of one image, for `measure="mask"`, and because empty ones are left out.
        iou_threshold: in [0, 1]; `"hard"` drops, and `"linear"` devalues, what has an IoU above this with a better
            one. `"gaussian"` does not use it.
        measure: `"box"` or `"mask"`, whose IoU it is.
        groups: who can suppress whom. `"class"`: instances of one class; `"all"`: all; lists of class ids, such as
            `[[1, 2], [5, 6]]`: classes of one list, and a class in no list for itself.
        method: `"hard"`; `"linear"`: times 1 - IoU; `"gaussian"`: times exp(-IoU^2 / sigma).
        sigma: of `"gaussian"`, above 0; the smaller, the stronger.
        score_threshold: instances up to this score, at first or decayed, are left out: a number, or one by class id (0
            for classes not named; a `defaultdict` tells another one).
        min_size, max_size: bounds, themselves allowed, of an instance's size: the side of the square that has the
            area of its box.
        size_unit: `"pixels"`; or `"share"`, of the side of the square that has the area of the image: 0.1 is a
            hundredth of the image's area.
        image_size: `(height, width)`, needed for `"share"`.
        max_detections: how many to return at most; None for all.

    Returns:
        indices: int64 `[M]` into N, best first. Equal scores go by class, box and mask, so that the outcome
            does not depend on the order of the input. Boxes without area are never among them, nor are empty masks.
        scores: float64 `[M]`, the decayed ones.

    Raises:
        ValueError: for lengths that differ, scores or boxes that are not finite, a class in two groups, and settings
            outside their range.
    """
    boxes, scores, class_ids = _arrays(boxes, scores, class_ids, masks)
    if method not in ("hard", "linear", "gaussian"):
        raise ValueError(f"method must be 'hard', 'linear' or 'gaussian', not {method!r}")
    if measure not in ("box", "mask") or (measure == "mask" and masks is None):
        raise ValueError(f"measure must be 'box', or 'mask' with masks given, not {measure!r}")
    if not 0 <= iou_threshold <= 1:
        raise ValueError(f"iou_threshold must be in [0, 1], not {iou_threshold}")
    if not sigma > 0:
        raise ValueError(f"sigma must be above 0, not {sigma}")
    if max_detections is not None and max_detections < 1:
        raise ValueError(f"max_detections must be at least 1, not {max_detections}")
    thresholds = _thresholds(score_threshold, class_ids)
    chosen = wanted(
        boxes,
        scores,
        class_ids,
        masks=masks,
        score_threshold=score_threshold,
        min_size=min_size,
        max_size=max_size,
        size_unit=size_unit,
        image_size=image_size,
    )
    if method != "hard" and (scores[chosen] < 0).any():
        raise ValueError("soft suppression needs scores that are not negative")
    members = group_numbers(class_ids, groups)
    outlines = mask_boxes(masks) if measure == "mask" and masks is not None else boxes
    compared = masks if measure == "mask" else None
    order = best_first(boxes, scores, class_ids, masks)
    left = order[chosen[order]]
    decayed = scores.copy()
    kept: list[int] = []
    while left.size and (max_detections is None or len(kept) < max_detections):
        place = int(np.argmax(decayed[left]))  # the first of equals
        best = int(left[place])
        kept.append(best)
        left = np.delete(left, place)
        rivals = left[members[left] == members[best]]
        iou = iou_with(best, rivals, outlines, compared)
        if method == "hard":
            decayed[rivals[iou > iou_threshold]] = -np.inf
        elif method == "linear":
            decayed[rivals] *= np.where(iou > iou_threshold, 1 - iou, 1)
        else:
            decayed[rivals] *= np.exp(-(iou**2) / sigma)
        left = left[decayed[left] > thresholds[left]]
    return np.array(kept, np.int64), decayed[kept]


def wanted(
    boxes: ArrayLike,
    scores: ArrayLike,
    class_ids: ArrayLike,
    *,
    masks: Sequence[dict[str, Any]] | None = None,
    score_threshold: float | Mapping[int, float] = 0.0,
    min_size: float | None = None,
    max_size: float | None = None,
    size_unit: Literal["pixels", "share"] = "pixels",
    image_size: tuple[int, int] | None = None,
) -> NDArray[np.bool_]:
    """Which instances have the score and the size that are asked for, bool `[N]`; arguments of `suppress`."""
    boxes, scores, class_ids = _arrays(boxes, scores, class_ids, masks)
    if size_unit not in ("pixels", "share"):
        raise ValueError(f"size_unit must be 'pixels' or 'share', not {size_unit!r}")
    if size_unit == "share" and image_size is None:
        raise ValueError(
            "sizes as a share of the image need image_size, its height and width; of a file without masks, "
            "annotations that tell them"
        )
    sizes = np.sqrt((boxes[:, 2:] - boxes[:, :2]).clip(0).prod(axis=1))
    chosen = (scores > _thresholds(score_threshold, class_ids)) & (sizes > 0)
    if masks is not None:
        chosen &= (mask_boxes(masks)[:, 2:] > 0).all(axis=1)
    if size_unit == "share" and image_size is not None:
        sizes /= np.sqrt(float(image_size[0]) * image_size[1])
    if min_size is not None:
        chosen &= sizes >= min_size
    if max_size is not None:
        chosen &= sizes <= max_size
    return chosen


def best_first(
    boxes: ArrayLike, scores: ArrayLike, class_ids: ArrayLike, masks: Sequence[dict[str, Any]] | None = None
) -> NDArray[np.int64]:
    """Indices `[N]` by falling score; equal scores by class id, box and mask, and never by their place."""
    boxes, scores, class_ids = _arrays(boxes, scores, class_ids, masks)
    codes = [_code(rle) for rle in masks] if masks is not None else [b""] * len(scores)
    keys = list(zip((-scores).tolist(), class_ids.tolist(), boxes.tolist(), codes, strict=True))
    return np.array(sorted(range(len(keys)), key=keys.__getitem__), np.int64)


def group_numbers(class_ids: ArrayLike, groups: Groups) -> NDArray[np.int64]:
    """A number `[N]` for each instance, equal where `groups` (see `suppress`) puts their classes together.

    Raises:
        ValueError: if groups is something else, or names a class twice.
    """
    class_ids = np.asarray(class_ids, np.int64).reshape(-1)
    if isinstance(groups, str):
        if groups not in ("class", "all"):
            raise ValueError(f"groups must be 'class', 'all' or lists of class ids, not {groups!r}")
        return class_ids if groups == "class" else np.zeros_like(class_ids)
    leaders: dict[int, int] = {}
    for group in groups:
        for class_id in group:
            if class_id in leaders:
                raise ValueError(f"groups: class {class_id} is named twice; a class belongs to one group")
            leaders[class_id] = group[0]
    return np.array([leaders.get(i, i) for i in class_ids.tolist()], np.int64)


def _arrays(
    boxes: ArrayLike, scores: ArrayLike, class_ids: ArrayLike, masks: Sequence[dict[str, Any]] | None
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
    scores = np.asarray(scores, np.float64).reshape(-1)
    class_ids = np.asarray(class_ids, np.int64).reshape(-1)
    lengths = {len(boxes), len(scores), len(class_ids), len(scores if masks is None else masks)}
    if len(lengths) > 1:
        raise ValueError(
            f"there are {len(boxes)} boxes, {len(scores)} scores, {len(class_ids)} class_ids"
            + ("" if masks is None else f" and {len(masks)} masks")
            + "; give as many of each"
        )
    if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
        raise ValueError("boxes and scores must be finite numbers")
    return boxes, scores, class_ids


def _thresholds(
    score_threshold: float | Mapping[int, float], class_ids: NDArray[np.int64]
) -> NDArray[np.float64]:
    if not isinstance(score_threshold, Mapping):
        return np.full(class_ids.shape, score_threshold, np.float64)
    thresholds = []
    for class_id in class_ids.tolist():
        try:
            thresholds.append(
                score_threshold[class_id]
            )  # and not get(): a defaultdict has a default of its own
        except KeyError:
            thresholds.append(0.0)
    return np.array(thresholds, np.float64)


def _code(rle: dict[str, Any]) -> bytes:
    counts = compressed(rle)["counts"]
    return counts.encode("ascii", "replace") if isinstance(counts, str) else counts
