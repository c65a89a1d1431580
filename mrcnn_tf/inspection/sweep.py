"""AP and duplicates against the threshold of non-maximum suppression, without running a network again and again."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mrcnn_tf.evaluation.coco import average_precisions, match_coco
from mrcnn_tf.evaluation.matching import Matching, accumulate_quietly, best_first
from mrcnn_tf.geometry.overlap import box_iou, mask_boxes, yxyx
from mrcnn_tf.inspection.overlaps import SCORE, by_image
from mrcnn_tf.postprocess import suppress

if TYPE_CHECKING:
    from mrcnn_tf.data.coco import CocoDataset
    from mrcnn_tf.models.mask_rcnn import MaskRCNN

__all__ = ["THRESHOLDS", "boxes_at", "nms_threshold_of", "sweep_model", "sweep_results"]

THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
# Differences of AP below this are not worth a change: of the thresholds so close to the best, the one with the fewest
# duplicates is suggested.
SAME_AP = 0.002
# Of detections per image, and of AP: how far duplicates may differ and still count as equal.
SAME_DUPLICATES = 0.05
# A threshold cuts the pairs of a class off: so many must lie in the last 0.05 below it, and half as many as in the 0.05
# before. Overlaps that nothing was taken from thin out on their own.
EVIDENCE = 10


def sweep_results(
    truth: dict[str, Any],
    results: Sequence[dict[str, Any]],
    *,
    thresholds: Sequence[float] = THRESHOLDS,
    max_detections: int = 100,
    score_threshold: float = SCORE,
) -> dict[str, Any]:
    """What non-maximum suppression by box IoU within each class makes of results.

    Results that were already suppressed change below their own threshold only; `current` says which that seems to be.

    Args:
        truth: annotations in COCO's format.
        results: entries in COCO's results format; without `bbox`, the boxes of the masks are suppressed.
        thresholds: IoUs above which the lower-scored of two detections of a class goes, in [0, 1].
        max_detections: of an image and class that AP takes, after suppression.
        score_threshold: detections below it are no duplicates.

    Returns:
        `rows`: for each threshold `threshold`, `AP`, `AP50` (of boxes, or of masks where there are no boxes), `mask_AP`
        and `mask_AP50` where masks can be measured, `detections` that are left, and `duplicates_per_image`: detections
        from `score_threshold` on that are wrong at IoU 0.5 because a better one has the instance of their class that
        they overlap by 0.5 or more. `as_is`: the same for the results as they are, without a threshold. `current`: the
        threshold that they seem to have been suppressed with, or None. `suggested`: see `suggested_threshold`.
        `measure`: `"box"`, whose IoU suppression takes.

    Raises:
        ValueError: as `match_coco`, or for a threshold outside [0, 1].
    """
    _check(thresholds)
    counts = Counter((entry["image_id"], entry["category_id"]) for entry in results)
    # IoUs are computed once, for all: detections that would be the 101st move up when others go.
    largest = max(max_detections, *counts.values(), 1)
    _, matchings = match_coco(truth, results, max_detections=(largest,))
    images = _overlaps(results)
    sweeps = {name: _Sweep(m, max_detections, score_threshold) for name, m in matchings.items()}

    def row(keep: NDArray[np.bool_]) -> dict[str, Any]:
        found = {name: sweep.figures(keep) for name, sweep in sweeps.items()}
        figures = found.get("bbox") or found["segm"]
        if len(found) == 2:
            figures |= {"mask_AP": found["segm"]["AP"], "mask_AP50": found["segm"]["AP50"]}
        return {**figures, "detections": int(keep.sum())}

    as_is = row(np.ones(len(results), bool))
    rows = [{"threshold": t, **row(_suppressed(images, len(results), t))} for t in sorted(thresholds)]
    current = nms_threshold_of(np.concatenate([np.zeros(0), *(iou[iou > 0] for _, iou in images)]))
    return {
        "rows": rows,
        "as_is": as_is,
        "current": current,
        "suggested": suggested_threshold(rows, current) if len(results) else None,
        "measure": "box",
    }


def sweep_model(
    model: MaskRCNN,
    dataset: CocoDataset,
    *,
    thresholds: Sequence[float] = THRESHOLDS,
    first: int | None = None,
    max_detections: int | None = None,
    score_threshold: float = SCORE,
    bar: str | None = None,
) -> dict[str, Any]:
    """What a model's detections would be at other `nms_threshold`s: the network runs once an image.

    Args:
        model: the model; nothing of it changes.
        dataset: whose classes the model knows.
        thresholds: in [0, 1]; the model's own is added.
        first: take this many of the first images only.
        max_detections: of an image and class that AP takes; by default 100, or as many as the model gives.
        score_threshold: detections below it are no duplicates.
        bar: text of a progress bar, if there is to be one.

    Returns:
        As `sweep_results`, of boxes only and without `as_is`; `current` is the model's own threshold.

    Raises:
        ValueError: the model does not know all classes of the data set, or a threshold is outside [0, 1].
    """
    _check(thresholds)
    wanted = sorted({*map(float, thresholds), float(model.nms_threshold)})
    limit = max_detections or max(100, model.max_detections)
    results, truth = boxes_at(model, dataset, wanted, first=first, bar=bar)
    rows = []
    for threshold, entries in zip(wanted, results, strict=True):
        _, matchings = match_coco(truth, entries, iou_types=("bbox",), max_detections=(limit,))
        sweep = _Sweep(matchings["bbox"], limit, score_threshold)
        figures = sweep.figures(np.ones(len(entries), bool))
        rows.append({"threshold": threshold, **figures, "detections": len(entries)})
    current = float(model.nms_threshold)
    return {
        "rows": rows,
        "current": current,
        "suggested": suggested_threshold(rows, current),
        "measure": "box",
    }


def suggested_threshold(rows: Sequence[dict[str, Any]], current: float | None) -> float | None:
    """Of the thresholds whose AP is within 0.002 of the best, the one with the fewest duplicates.

    Where these hardly differ, it is the one nearest to `current`, or to 0.5 if that is not known. None if the truth has
    nothing to find.
    """
    key = "mask_AP" if "mask_AP" in rows[0] else "AP"
    best = max(row[key] for row in rows)
    if best < 0:
        return None
    close = [row for row in rows if row[key] >= best - SAME_AP]
    fewest = min(row["duplicates_per_image"] for row in close)
    close = [row for row in close if row["duplicates_per_image"] <= fewest + SAME_DUPLICATES]
    usual = 0.5 if current is None else current
    return min((row["threshold"] for row in close), key=lambda t: (round(abs(t - usual), 6), t))


def nms_threshold_of(iou: NDArray[np.float64]) -> float | None:
    """The threshold, a multiple of 0.05, that results seem to have been suppressed with.

    Args:
        iou: of the pairs of detections of one image and class.

    Returns:
        The least such threshold that no pair is above, if there are pairs just below it; None if there are too few to
        tell, or if it would be 1.
    """
    # Coordinates are rounded in many files: an IoU may come out a little higher than it was.
    highest = float(np.max(iou, initial=0.0)) - 0.003
    threshold = round(float(np.ceil(highest / 0.05) * 0.05), 2)
    last, before = (int(((iou > threshold - d) & (iou <= threshold - d + 0.05)).sum()) for d in (0.05, 0.1))
    cut_off = last >= max(EVIDENCE, before / 2)
    return threshold if 0 < threshold <= 0.9 and cut_off else None


def boxes_at(
    model: MaskRCNN, dataset: CocoDataset, thresholds: Sequence[float], *, first: int | None, bar: str | None
) -> tuple[list[list[dict[str, Any]]], dict[str, Any]]:
    """What a model would find with each `nms_threshold`; arguments of `sweep_model`.

    Returns:
        For each threshold the entries in COCO's results format, with boxes only; and the truth of the images seen.
    """
    import tensorflow as tf  # results files are swept without it
    from tqdm import tqdm

    from mrcnn_tf.data.pipeline import evaluation_batches
    from mrcnn_tf.evaluation.run import category_ids

    ids = category_ids(model.class_names, dataset)
    wanted = np.array([False, *(number is not None for number in ids), False])  # 0 is background, -1 padding
    count = min(len(dataset), first or len(dataset))

    @tf.function(
        input_signature=[tf.TensorSpec(shape) for shape in ([None, None, None, 3], [None, 2], [None, 2])],
        autograph=False,
    )
    def detect(images: tf.Tensor, sizes: tf.Tensor, originals: tf.Tensor) -> list[dict[str, tf.Tensor]]:
        candidates = model.candidates({"images": images, "image_sizes": sizes})
        limits, found = model.limits(images, sizes), []
        for threshold in thresholds:
            limit = model.score_threshold, threshold
            boxes, scores, classes, row = model.select(
                *candidates[1:5], limits, limit, image_sizes=sizes, original_sizes=originals
            )
            kept = {"boxes": boxes, "scores": scores, "classes": classes}
            if model.selection.mask_nms_threshold is not None:
                masks = tf.sigmoid(model.masks_of(candidates, boxes, classes, row, False))
                kept = model.selection.masks({**kept, "masks": masks}, model.score_threshold)
            found.append({name: kept[name] for name in ("boxes", "scores", "classes")})
        return found

    batches = evaluation_batches(
        dataset,
        min_size=model.min_size,
        max_size=model.max_size,
        size_rule=model.size_rule,
        interpolation=model.interpolation,
        canvas=model.canvas,
        turn=False,
    ).take(count)
    results: list[list[dict[str, Any]]] = [[] for _ in thresholds]
    for batch in tqdm(batches, total=count, desc=bar, disable=bar is None, unit="image", leave=False):
        image_id = int(batch["image_ids"][0])
        original = batch["original_sizes"][0].numpy()
        scale = np.tile(original / batch["image_sizes"][0].numpy(), 2).astype(np.float32)
        originals = tf.cast(batch["original_sizes"], tf.float32)
        for entries, found in zip(
            results, detect(batch["images"], batch["image_sizes"], originals), strict=True
        ):
            boxes, scores, classes = (found[name][0].numpy() for name in ("boxes", "scores", "classes"))
            kept = wanted[classes]
            own = {
                "boxes": boxes[kept] * scale,
                "scores": scores[kept],
                "classes": classes[kept],
                "masks": None,
            }
            entries += model.results(own, tuple(original.tolist()), ids).to_coco(image_id)
    truth = dataset.ground_truth()
    seen = set(dataset.image_ids[:count])
    truth["images"] = [image for image in truth["images"] if image["id"] in seen]
    truth["annotations"] = [a for a in truth["annotations"] if a["image_id"] in seen]
    return results, truth


class _Sweep:
    """AP and duplicates of parts of the results of one matching, from the overlaps that it has."""

    def __init__(self, matching: Matching, max_detections: int, score_threshold: float):
        self.matching, self.score_threshold = matching, score_threshold
        self.part = copy.copy(matching)
        params = self.part.params = self.part._paramsEval = copy.deepcopy(matching.params)
        params.areaRng, params.areaRngLbl, params.maxDets = (
            params.areaRng[:1],
            params.areaRngLbl[:1],
            [max_detections],
        )
        keys = {key for things in (matching._gts, matching._dts) for key, values in things.items() if values}
        self.found = {key: best_first(matching, *key) for key in keys}
        self.ids = {key: np.array([d["id"] for d in found], int) for key, found in self.found.items()}
        # The outcome of each image and class: most thresholds leave most of them as they were.
        self.known: dict[Any, tuple[bytes, tuple[Any, int]]] = {}

    def figures(self, keep: NDArray[np.bool_]) -> dict[str, float]:
        """AP, AP50 and duplicates per image of the results `[N]` that are kept."""
        params = self.part.params
        outcomes = [self._match((i, c), keep) for c in params.catIds for i in params.imgIds]
        self.part.evalImgs = [result for result, _ in outcomes]
        accumulate_quietly(self.part)
        values = average_precisions(self.part)
        duplicates = sum(count for _, count in outcomes) / max(len(params.imgIds), 1)
        return {"AP": values["AP"], "AP50": values["AP50"], "duplicates_per_image": duplicates}

    def _match(self, key: tuple[Any, Any], keep: NDArray[np.bool_]) -> tuple[Any, int]:
        """COCO's record of an image and class, and its duplicates."""
        if key not in self.found:
            return None, 0
        kept = keep[self.ids[key] - 1]
        state = kept.tobytes()
        if key not in self.known or self.known[key][0] != state:
            rows, ious = np.flatnonzero(kept)[: self.part.params.maxDets[0]], self.matching.ious[key]
            self.part._dts = {key: [self.found[key][i] for i in rows]}
            self.part.ious = {key: ious[rows] if len(ious) else ious}
            result = self.part.evaluateImg(*key, self.part.params.areaRng[0], self.part.params.maxDets[0])
            self.known[key] = state, (result, _duplicates(self.part, key, result, self.score_threshold))
        return self.known[key][1]


def _duplicates(matching: Matching, key: tuple[Any, Any], result: Any, score_threshold: float) -> int:
    """Wrong detections of an image and class on an instance that a better one has, all at IoU 0.5."""
    if result is None or not len(matching.ious[key]):
        return 0
    counted = [not g["ignore"] for g in matching._gts[key]]
    overlap = matching.ious[key][:, counted].max(axis=1, initial=0.0)
    wrong = (result["dtMatches"][0] == 0) & ~result["dtIgnore"][0]
    return int((wrong & (np.array(result["dtScores"]) >= score_threshold) & (overlap >= 0.5)).sum())


def _overlaps(results: Sequence[dict[str, Any]]) -> list[tuple[NDArray[np.int64], NDArray[np.float64]]]:
    """For each image its results with area, best first, as indices `[n]`, and IoUs `[n, n]` of a class.

    Only those above the diagonal are not 0: of each with those that come after it.
    """
    images = []
    for entries in by_image([{**entry, "index": i} for i, entry in enumerate(results)]).values():
        boxes = (
            yxyx([e["bbox"] for e in entries])
            if "bbox" in entries[0]
            else mask_boxes([e["segmentation"] for e in entries])
        )
        classes = np.array([entry["category_id"] for entry in entries])
        order = suppress.best_first(boxes, [entry["score"] for entry in entries], classes)
        order = order[(boxes[order, 2:] > boxes[order, :2]).all(1)]
        boxes, classes = boxes[order], classes[order]
        iou = np.triu(box_iou(boxes, boxes) * (classes[:, None] == classes), 1)
        images.append((np.array([entry["index"] for entry in entries])[order], iou))
    return images


def _suppressed(
    images: list[tuple[NDArray[np.int64], NDArray[np.float64]]], count: int, threshold: float
) -> NDArray[np.bool_]:
    """Which of the results are left, bool `[count]`: `mrcnn_tf.postprocess.suppress` with IoUs that are known."""
    keep = np.zeros(count, bool)
    for indices, iou in images:
        above = iou > threshold
        left = np.ones(len(indices), bool)
        for i in np.flatnonzero(above.any(1)):
            if left[i]:
                left &= ~above[i]
        keep[indices] = left
    return keep


def _check(thresholds: Sequence[float]) -> None:
    if not thresholds or not all(0 <= t <= 1 for t in thresholds):
        raise ValueError(f"NMS thresholds must be numbers in [0, 1], not {tuple(thresholds)}")
