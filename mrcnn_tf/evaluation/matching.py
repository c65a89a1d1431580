"""COCO's matching of detections and instances, fast enough for crowded pictures."""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from pycocotools.cocoeval import COCOeval

__all__ = ["Matching", "accumulate_quietly", "best_first", "overlaps_of", "rematch"]


class Matching(COCOeval):
    """COCOeval whose matching looks only at pairs that overlap enough.

    pycocotools walks over every pair of a detection and an instance at every threshold, in Python: a minute
    for pictures of hundreds of huddled cells, of which all but a few pairs do not touch. The outcome is the
    same.
    """

    def evaluateImg(self, imgId, catId, aRng, maxDet):  # noqa: N802, N803
        """Match one image's detections of one class; the arguments and the result are those of COCOeval."""
        truth, found = self._gts[imgId, catId], self._dts[imgId, catId]
        if not truth and not found:
            return None
        found = best_first(self, imgId, catId)[:maxDet]
        ignored = [bool(g["ignore"] or not aRng[0] <= g["area"] <= aRng[1]) for g in truth]
        ious = self.ious[imgId, catId]
        thresholds = self.params.iouThrs
        candidates: list[list[tuple[int, float]]] = [[] for _ in found]
        if truth and found:
            for d, g in zip(*np.nonzero(ious >= thresholds.min() - 1e-10), strict=True):
                candidates[d].append((int(g), float(ious[d, g])))
        for pairs in candidates:
            pairs.sort(
                key=lambda pair: ignored[pair[0]]
            )  # what counts before what is ignored, else in their order

        matched = np.zeros((len(thresholds), len(found)))
        matched_truth = np.zeros((len(thresholds), len(truth)))
        out = np.zeros((len(thresholds), len(found)), bool)
        for t, threshold in enumerate(thresholds):
            taken = set()
            for d, pairs in enumerate(candidates):
                best, choice = min(threshold, 1 - 1e-10), -1
                for g, iou in pairs:
                    if g in taken and not truth[g]["iscrowd"]:
                        continue
                    if choice >= 0 and ignored[g] and not ignored[choice]:
                        break
                    if iou >= best:
                        best, choice = iou, g
                if choice >= 0:
                    taken.add(choice)
                    matched[t, d], matched_truth[t, choice] = truth[choice]["id"], found[d]["id"]
                    out[t, d] = ignored[choice]
        outside = np.array([not aRng[0] <= d["area"] <= aRng[1] for d in found], bool)
        return {
            "image_id": imgId,
            "category_id": catId,
            "aRng": aRng,
            "maxDet": maxDet,
            "dtIds": [d["id"] for d in found],
            "gtIds": [g["id"] for g in truth],
            "dtMatches": matched,
            "gtMatches": matched_truth,
            "dtScores": [d["score"] for d in found],
            "gtIgnore": np.array(ignored, bool),
            "dtIgnore": out | ((matched == 0) & outside),
        }


def rematch(
    matching: Matching,
    *,
    thresholds: Sequence[float] | None = None,
    area_ranges: Sequence[tuple[float, float]] | None = None,
    images: Sequence[Any] | None = None,
    ious: Mapping[tuple[Any, Any], Any] | None = None,
) -> Matching:
    """Match and accumulate again under other settings, at the largest limit, from the overlaps there are.

    Args:
        matching: stays as it is.
        thresholds: on the IoU; by default those it has.
        area_ranges: smallest and largest area, both included; by default the first that it has: all.
        images: ids of those to look at; by default all.
        ious: other overlaps `[detections, instances]` for each image id and category id.
    """
    again = copy.copy(matching)
    params = again.params = copy.deepcopy(matching.params)
    params.maxDets = params.maxDets[-1:]
    params.areaRng = params.areaRng[:1] if area_ranges is None else [list(area) for area in area_ranges]
    params.areaRngLbl = [str(area) for area in params.areaRng]
    if thresholds is not None:
        params.iouThrs = np.asarray(thresholds, np.float64)
    if images is not None:
        params.imgIds = list(images)
    if ious is not None:
        again.ious = ious
    again._paramsEval = copy.deepcopy(params)
    again.evalImgs = [
        again.evaluateImg(image, category, area, params.maxDets[0])
        for category in params.catIds
        for area in params.areaRng
        for image in params.imgIds
    ]
    accumulate_quietly(again)
    return again


def accumulate_quietly(matching: Matching) -> None:
    """Accumulate without pycocotools' print-outs."""
    with contextlib.redirect_stdout(io.StringIO()):
        matching.accumulate()


def best_first(matching: Matching, image: Any, category: Any) -> list[dict[str, Any]]:
    """An image's detections of a class up to the largest limit, in the order of the rows of `matching.ious`."""
    found = matching._dts[image, category]
    order = np.argsort([-d["score"] for d in found], kind="mergesort")[: matching.params.maxDets[-1]]
    return [found[i] for i in order]


def overlaps_of(
    matching: Matching, found: Sequence[dict[str, Any]], instances: Sequence[dict[str, Any]]
) -> NDArray[np.float64]:
    """IoU `[detections, instances]` of an image's detections with its instances, whatever their classes.

    Of boxes or masks, whichever the matching measures. With a crowd region, it is the share of the detection that
    lies inside.
    """
    if not found or not instances:
        return np.zeros((len(found), len(instances)))
    key = "bbox" if matching.params.iouType == "bbox" else "segmentation"
    shapes: list[Any] = [[thing[key] for thing in things] for things in (found, instances)]
    if key == "bbox":
        shapes = [np.array(boxes, np.float64) for boxes in shapes]
    return np.asarray(coco_mask.iou(*shapes, [int(g["iscrowd"]) for g in instances]), np.float64)
