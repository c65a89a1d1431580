"""Which classes are taken for which."""

from __future__ import annotations

from typing import Any

import numpy as np

from mrcnn_tf.evaluation.coco import class_names
from mrcnn_tf.evaluation.matching import Matching, best_first, overlaps_of

__all__ = ["confusion_matrix"]


def confusion_matrix(
    truth: dict[str, Any], matching: Matching, *, iou_threshold: float = 0.5, score_threshold: float = 0.5
) -> dict[str, Any]:
    """Count which class was predicted for instances of which class.

    Detections and instances of an image are matched whatever their classes: each detection, highest score first, takes
    the free instance that it overlaps most, one of its own class where two are equal. As COCO has it, crowd regions
    are not to be found, and a detection without an instance that lies in one of its class is not counted.

    Args:
        truth, matching: of boxes or of masks, as `match_coco` returned them.
        iou_threshold: least IoU of a match, in (0, 1]; for crowd regions, of the share of the detection inside.
        score_threshold: detections from this score on are taken, up to the matching's largest limit.

    Returns:
        `"classes"`: K names, in the order of the file; `"matrix"`: K + 1 rows, the truth, of K + 1 numbers, the
        predictions. The last row holds detections of nothing, the last column what was missed; their corner is 0.

    Raises:
        ValueError: for an IoU threshold out of its range.
    """
    if not 0 < iou_threshold <= 1:
        raise ValueError(f"iou_threshold must lie above 0 and at most at 1, not {iou_threshold}")
    names = class_names(truth["categories"])
    place = {category: index for index, category in enumerate(names)}
    nothing = len(names)
    matrix = np.zeros((nothing + 1, nothing + 1), np.int64)
    threshold = min(iou_threshold, 1 - 1e-10)  # as pycocotools, for rounding
    for image in matching.params.imgIds:
        found = [d for k in names for d in best_first(matching, image, k) if d["score"] >= score_threshold]
        found.sort(key=lambda d: -d["score"])
        instances = [g for k in names for g in matching._gts.get((image, k), [])]
        ious = overlaps_of(matching, found, instances)
        wanted = np.array([place[g["category_id"]] for g in instances], np.int64)
        free = np.array([not g["ignore"] for g in instances], bool)
        crowd = ~free
        for detection, overlap in zip(found, ious, strict=True):
            predicted = place[detection["category_id"]]
            fitting = np.flatnonzero(free & (overlap >= threshold))
            if fitting.size:
                best = max(fitting, key=lambda g: (overlap[g], wanted[g] == predicted))  # noqa: B023
                free[best] = False
                matrix[wanted[best], predicted] += 1
            elif not (crowd & (wanted == predicted) & (overlap >= threshold)).any():
                matrix[nothing, predicted] += 1
        np.add.at(matrix[:, nothing], wanted[free], 1)
    return {"classes": list(names.values()), "matrix": matrix.tolist()}
