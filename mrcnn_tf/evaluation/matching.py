"""COCO's matching of detections and instances, fast enough for crowded pictures."""

from __future__ import annotations

import numpy as np
from pycocotools.cocoeval import COCOeval

__all__ = ["Matching"]


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
        order = np.argsort([-d["score"] for d in found], kind="mergesort")[:maxDet]
        found = [found[i] for i in order]
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
