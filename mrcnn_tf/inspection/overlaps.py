"""Detections that lie on each other: how many pairs, of one class or of two, and on which images."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mrcnn_tf.geometry.overlap import box_iou, mask_iou, yxyx

__all__ = ["SCORE", "by_image", "overlapping_pairs"]

# Detections below it are not counted: nobody looks at them, and AP's long tail of them is meant to overlap.
SCORE = 0.3
THRESHOLDS = (0.3, 0.5, 0.7)


def overlapping_pairs(
    truth: dict[str, Any],
    results: Sequence[dict[str, Any]],
    *,
    score_threshold: float = SCORE,
) -> dict[str, Any]:
    """Pairs of detections of one image that overlap, by masks where all results have one, else by boxes.

    Args:
        truth: annotations in COCO's format, for the images.
        results: entries in COCO's results format, as `match_coco` accepts them.
        score_threshold: both of a pair must have at least this score.

    Returns:
        `measure`: `"mask"` or `"box"`, whose IoU it is; `pairs`: for each of the IoUs 0.3, 0.5 and 0.7 the number of
        pairs above it, `same_class` and `other_class`; `boxes`: the same by box IoU, for comparison (`pairs` itself if
        there are no masks); `per_image`: pairs above 0.5 for each image id that has any, most first; `images` of the
        truth; `detections` that reach `score_threshold`, and `score_threshold`.
    """
    rows = [entry for entry in results if entry["score"] >= score_threshold]
    measure = "mask" if rows and all("segmentation" in entry for entry in rows) else "box"
    with_boxes = all("bbox" in entry for entry in rows)
    masks, boxes = np.zeros((len(THRESHOLDS), 2), np.int64), np.zeros((len(THRESHOLDS), 2), np.int64)
    per_image = {}
    for image_id, entries in by_image(rows).items():
        classes = np.array([entry["category_id"] for entry in entries])
        first, second = np.triu_indices(len(entries), 1)
        other = classes[first] != classes[second]
        counts = {}
        if with_boxes:
            found = yxyx([entry["bbox"] for entry in entries])
            counts["box"] = _count(box_iou(found, found)[first, second], other)
            boxes += counts["box"]
        if measure == "mask":
            codes = [entry["segmentation"] for entry in entries]
            counts["mask"] = _count(mask_iou(codes, codes)[first, second], other)
            masks += counts["mask"]
        at_half = int(counts[measure][THRESHOLDS.index(0.5)].sum())
        if at_half:
            per_image[image_id] = at_half
    pairs = _rows(masks if measure == "mask" else boxes)
    return {
        "measure": measure,
        "pairs": pairs,
        "boxes": _rows(boxes) if with_boxes else pairs,
        "images": len(truth["images"]),
        "detections": len(rows),
        "score_threshold": score_threshold,
        "per_image": dict(sorted(per_image.items(), key=lambda item: -item[1])),
    }


def by_image(entries: Sequence[dict[str, Any]]) -> dict[Any, list[dict[str, Any]]]:
    """Results entries by image id."""
    images: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for entry in entries:
        images[entry["image_id"]].append(entry)
    return images


def _count(iou: NDArray[np.float64], other: NDArray[np.bool_]) -> NDArray[np.int64]:
    """`[T, 2]`: pairs above each threshold, of one class and of two."""
    above = iou > np.array(THRESHOLDS)[:, None]
    return np.stack([(above & ~other).sum(1), (above & other).sum(1)], 1)


def _rows(counts: NDArray[np.int64]) -> list[dict[str, Any]]:
    return [
        {"iou": iou, "same_class": int(same), "other_class": int(other)}
        for iou, (same, other) in zip(THRESHOLDS, counts, strict=True)
    ]
