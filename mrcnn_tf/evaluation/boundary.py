"""Boundary AP: mask AP that looks at outlines, where mask IoU forgives large instances much."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from mrcnn_tf.evaluation.coco import average_precisions
from mrcnn_tf.evaluation.matching import Matching, best_first, rematch
from mrcnn_tf.geometry.masks import rle_to_crop, to_rle

__all__ = ["boundary_metrics", "boundary_of"]


def boundary_metrics(
    truth: dict[str, Any], matching_of_masks: Matching, *, dilation: float = 0.02
) -> dict[str, float]:
    """AP with the smaller of mask IoU and Boundary IoU in the place of mask IoU.

    The definition is that of Cheng et al. 2021, "Boundary IoU: Improving Object-Centric Image Segmentation
    Evaluation": Boundary IoU is the IoU of the two masks' inner rims, which `boundary_of` makes. Crowd regions are
    measured by mask IoU alone, as in the authors' code.

    Args:
        truth: as `match_coco` returned it, with the matching.
        matching_of_masks: the one under `"segm"`.
        dilation: width of the rim as a share of the image's diagonal, above 0.

    Returns:
        `"AP"`, `"AP50"` and `"AP75"` in [0, 1], or -1 if there is nothing to find.

    Raises:
        ValueError: for a matching of boxes, or a dilation out of its range.
    """
    if matching_of_masks.params.iouType != "segm":
        raise ValueError("boundary_metrics needs the matching of masks, 'segm', not that of boxes")
    if not 0 < dilation <= 1:
        raise ValueError(f"dilation must lie above 0 and at most at 1, not {dilation}")
    ious = {key: _with_boundaries(matching_of_masks, key, dilation) for key in matching_of_masks.ious}
    return average_precisions(rematch(matching_of_masks, ious=ious))


def boundary_of(rle: dict[str, Any], *, dilation: float = 0.02) -> dict[str, Any]:
    """The inner rim of a mask: its pixels within a distance of its edge.

    Args:
        rle: a compressed COCO run-length code.
        dilation: the distance as a share of the image's diagonal; it is rounded to whole pixels, at least 1, and
            counts diagonal steps as one.

    Returns:
        The rim as a compressed run-length code. What lies outside the image is outside the mask.
    """
    height, width = rle["size"]
    distance = max(1, round(dilation * float(np.hypot(height, width))))
    crop, y0, x0 = rle_to_crop(rle)
    # A ring of zeros stands for all that lies outside, the image's border included.
    ringed = np.pad(crop.astype(np.uint8), 1)
    inside = cv2.distanceTransform(ringed, cv2.DIST_C, 3)[1:-1, 1:-1] > distance
    return to_rle(crop & ~inside, y0, x0, height, width)


def _with_boundaries(matching: Matching, key: tuple[Any, Any], dilation: float) -> Any:
    """The overlaps of an image and class, those that can be matched lowered to Boundary IoU."""
    ious = matching.ious[key]
    instances = matching._gts[key]
    if not len(ious) or not instances:
        return ious
    ious = np.array(ious, np.float64)
    real = np.array([not g["iscrowd"] for g in instances])
    # What mask IoU does not match, the smaller of two does not either.
    close = (ious >= matching.params.iouThrs.min() - 1e-10) & real
    rows, columns = np.flatnonzero(close.any(axis=1)), np.flatnonzero(close.any(axis=0))
    if rows.size:
        found = best_first(matching, *key)
        rims = [
            [boundary_of(thing["segmentation"], dilation=dilation) for thing in things]
            for things in ([found[d] for d in rows], [instances[g] for g in columns])
        ]
        block = np.ix_(rows, columns)
        ious[block] = np.minimum(ious[block], coco_mask.iou(*rims, [0] * columns.size))
    return ious
