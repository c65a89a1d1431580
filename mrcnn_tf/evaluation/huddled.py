"""How well huddled instances are found: those whose box overlaps a neighbour's, and those that are partly hidden.

AP over a whole set says little about crowds, because most instances of most sets stand alone. The figures here
look at the others, for any truth and results in COCO's format.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from mrcnn_tf.evaluation.coco import average_precisions, coco_metrics, format_number, match_coco
from mrcnn_tf.evaluation.matching import Matching, accumulate_quietly
from mrcnn_tf.geometry.masks import rle_to_crop

__all__ = [
    "evaluate_all",
    "format_huddled",
    "hidden_instances",
    "huddled_metrics",
    "neighbour_overlaps",
    "restrict",
]

_NEIGHBOURS = {"same": "same class", "any": "any class"}
_ON_INSTANCE = 0.1  # IoU from which an unmatched detection is a bad one of an instance, not of the background
_SCORES = ("AP", "AP50", "AP75")

Crop = tuple[NDArray[np.uint8], int, int]


def huddled_metrics(
    ground_truth: dict[str, Any] | str | Path,
    results: Sequence[dict[str, Any]] | str | Path,
    *,
    iou_types: Sequence[str] = ("bbox", "segm"),
    max_detections: Sequence[int] = (1, 10, 100),
    overlaps: Sequence[float] = (0.1, 0.3),
    score_threshold: float = 0.3,
    mask_iou: float = 0.75,
    min_part: float = 0.05,
    min_hidden: float = 0.05,
) -> dict[str, float]:
    """AP of instances with a near neighbour, and recall of occluded and of separated instances.

    **Huddled AP** counts only the instances whose annotated box has an IoU above a threshold with the box of
    another instance, of the same class or of any class. Crowd regions are no neighbours. All other instances are
    ignored, as COCO ignores those out of an area range: a detection matched to one is neither right nor wrong. A
    detection that is matched to nothing belongs to the instance of its class that it overlaps most, by an IoU (of
    boxes or masks, whichever is measured) of 0.1 at least: if that instance is ignored, so is the detection, as
    COCO does by the detection's own area. All others are wrong: duplicates of and bad hits on huddled instances,
    and what lies on no instance of its class, wherever in the image. Classes without huddled instances do not
    enter the mean. If every instance is huddled, this is COCO's AP.

    **Recall of hidden instances** is the share of them that have a detection of their class with at least
    `score_threshold` and a mask IoU of at least `mask_iou`, at the values of Zhan et al. 2022 ("A Tri-Layer Plugin to
    Improve Occluded Detection"). Which instances those are is decided by `hidden_instances`, from the masks alone;
    the paper's Occluded COCO and Separated COCO are fixed lists, so figures on COCO are not those of the paper.

    Args:
        ground_truth, results, iou_types, max_detections: as for `evaluate_coco`; every figure takes the largest
            limit.
        overlaps: thresholds on the boxes' IoU, in [0, 1]; "above" excludes the threshold itself.
        score_threshold: in [0, 1].
        mask_iou: in [0, 1].
        min_part, min_hidden: see `hidden_instances`.

    Returns:
        For each neighbourhood such as `same@0.1` and `any@0.3`: `huddled/same@0.1/instances`, and
        `huddled/same@0.1/bbox/AP`, `AP50`, `AP75` and the same under `segm` if they can be measured. If masks can:
        `huddled/occluded/instances`, `huddled/occluded/recall`, `huddled/separated/instances`,
        `huddled/separated/recall`. Numbers in [0, 1], or -1 where there is no such instance.

    Raises:
        FileNotFoundError, ValueError: as `evaluate_coco`; ValueError too for a setting out of its range.
    """
    settings = {
        "score_threshold": score_threshold,
        "mask_iou": mask_iou,
        "min_part": min_part,
        "min_hidden": min_hidden,
    }
    for name, value in [*settings.items(), *(("overlaps", overlap) for overlap in overlaps)]:
        if not 0 <= value <= 1:
            raise ValueError(f"{name} must lie between 0 and 1, not {value}")
    truth, matchings = match_coco(ground_truth, results, iou_types=iou_types, max_detections=max_detections)
    return _metrics(truth, matchings, overlaps, **settings)


def evaluate_all(
    ground_truth: dict[str, Any] | str | Path,
    results: Sequence[dict[str, Any]] | str | Path,
    *,
    max_detections: Sequence[int] = (1, 10, 100),
) -> dict[str, Any]:
    """`evaluate_coco` and `huddled_metrics` in one dict, overlaps computed only once."""
    truth, matchings = match_coco(ground_truth, results, max_detections=max_detections)
    return {**coco_metrics(truth, matchings), **_metrics(truth, matchings)}


def format_huddled(metrics: dict[str, Any]) -> str:
    """Lay `huddled_metrics` out as text of up to 110 columns, with a dash for nothing to find."""
    types = [t for t in ("bbox", "segm") if any(k.startswith("huddled/") and f"/{t}/" in k for k in metrics)]
    titles = {"bbox": ("box AP", "AP50", "AP75"), "segm": ("mask AP", "AP50", "AP75")}
    lines = [f"{'huddled':<24}{'instances':>9}" + "".join(f"{c:>9}" for t in types for c in titles[t])]
    for key, count in metrics.items():
        prefix, _, last = key.rpartition("/")
        kind, _, overlap = prefix.removeprefix("huddled/").partition("@")
        if not prefix.startswith("huddled/") or last != "instances" or not overlap:
            continue
        cells = (format_number(metrics[f"{prefix}/{t}/{score}"]) for t in types for score in _SCORES)
        lines.append(
            f"{f'{_NEIGHBOURS[kind]}, IoU > {overlap}':<24}{count:>9}" + "".join(f"{c:>9}" for c in cells)
        )
    for kind in ("occluded", "separated"):
        if f"huddled/{kind}/recall" in metrics:
            count, recall = (metrics[f"huddled/{kind}/{k}"] for k in ("instances", "recall"))
            lines.append(f"{kind:<24}{count:>9}   recall {format_number(recall)}")
    return "\n".join(lines)


def neighbour_overlaps(truth: dict[str, Any]) -> dict[str, NDArray[np.float64]]:
    """How much each annotation's box overlaps its nearest neighbour's.

    Args:
        truth: annotations in COCO format.

    Returns:
        `"same"` and `"any"`: for each annotation, in the order of the file, the largest IoU with another instance of
        its class, or of any class. 0 without a neighbour, and for crowd regions, which are no neighbours either.
    """
    annotations = truth["annotations"]
    out = {kind: np.zeros(len(annotations)) for kind in _NEIGHBOURS}
    by_image = defaultdict(list)
    for index, annotation in enumerate(annotations):
        if not annotation.get("iscrowd"):
            by_image[annotation["image_id"]].append(index)
    for indices in by_image.values():
        boxes = np.array([annotations[i]["bbox"] for i in indices], np.float64)
        classes = np.array([annotations[i]["category_id"] for i in indices])
        ious = coco_mask.iou(boxes, boxes, [0] * len(boxes))
        np.fill_diagonal(ious, 0)
        out["any"][indices] = ious.max(axis=1)
        out["same"][indices] = np.where(classes[:, None] == classes, ious, 0).max(axis=1)
    return out


def hidden_instances(
    masks: Sequence[Crop], *, min_part: float = 0.05, min_hidden: float = 0.05
) -> list[str | None]:
    """Tell which instances of an image are separated or occluded, from their visible masks alone.

    *Separated*: the mask lies in two or more parts (pixels that touch by a corner are together) that each have
    `min_part` of its area or more; crumbs do not count. *Occluded*: it lies in one part, and the pixels of instances
    in front of it, those that it shares left out, fill `min_hidden` or more of its convex hull. Of two instances the
    one that reaches further into the other's convex hull is in front: what is covered has a dent there, which the
    other fills.

    Limits: an instance cut off along a straight line, or by something that is not annotated, is not noticed; a shape
    that is hollow by nature (a star, a horseshoe) is taken as occluded if a neighbour reaches into its hollow; and
    what comes in parts by nature, or is annotated so, counts as separated.

    Args:
        masks: for each instance its pixels as uint8 `[h, w]` of 0 and 1, and the row and column of the image that
            they start at.
        min_part: in [0, 1].
        min_hidden: in [0, 1].

    Returns:
        For each instance `"separated"`, `"occluded"` or None.
    """
    kinds: list[str | None] = [None] * len(masks)
    hulls = [(_convex_hull(mask), y0, x0) for mask, y0, x0 in masks]
    windows = np.array([(y, x, y + m.shape[0], x + m.shape[1]) for m, y, x in masks]).reshape(-1, 4)
    for i, mine in enumerate(masks):
        mask = mine[0]
        if not mask.any():
            continue
        count, _, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
        areas = stats[1:count, cv2.CC_STAT_AREA]
        if (areas >= min_part * areas.sum()).sum() > 1:
            kinds[i] = "separated"
            continue
        hidden = np.zeros_like(mask)
        near = (windows[:, :2] < windows[i, 2:]).all(1) & (windows[i, :2] < windows[:, 2:]).all(1)
        for j in np.flatnonzero(near).tolist():
            if j == i:
                continue
            dent, filling = _shared(hulls[i], masks[j])
            dent_there, filling_there = _shared(hulls[j], mine)
            if (dent & filling).sum() >= (dent_there & filling_there).sum():
                _shared((hidden, *mine[1:]), masks[j])[0][...] |= dent & filling
        hidden[mask > 0] = 0
        if hidden.sum() >= max(1, min_hidden * hulls[i][0].sum()):
            kinds[i] = "occluded"
    return kinds


def _convex_hull(mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The pixels of a mask's convex hull, as 1."""
    hull = np.zeros_like(mask)
    rows = np.flatnonzero(mask.any(axis=1))
    if rows.size:
        # The first and last pixel of each row have the hull of all of them, in a hundredth of the time.
        first = mask[rows].argmax(axis=1)
        last = mask.shape[1] - 1 - mask[rows, ::-1].argmax(axis=1)
        ends = np.stack([np.append(first, last), np.append(rows, rows)], axis=1).astype(np.int32)
        cv2.fillConvexPoly(hull, cv2.convexHull(ends), 1)
    return hull


def _shared(a: Crop, b: Crop) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The parts of two crops where both have pixels, as views; there must be such a part."""
    top, left = max(a[1], b[1]), max(a[2], b[2])
    bottom = min(a[1] + a[0].shape[0], b[1] + b[0].shape[0])
    right = min(a[2] + a[0].shape[1], b[2] + b[0].shape[1])
    first, second = (crop[top - y0 : bottom - y0, left - x0 : right - x0] for crop, y0, x0 in (a, b))
    return first, second


def _metrics(
    truth: dict[str, Any],
    matchings: dict[str, Matching],
    overlaps: Sequence[float] = (0.1, 0.3),
    *,
    score_threshold: float = 0.3,
    mask_iou: float = 0.75,
    min_part: float = 0.05,
    min_hidden: float = 0.05,
) -> dict[str, float]:
    metrics: dict[str, float] = {}
    neighbours = neighbour_overlaps(truth)
    for overlap in overlaps:
        for kind, nearest in neighbours.items():
            counted = nearest > overlap
            prefix = f"huddled/{kind}@{overlap:g}"
            metrics[f"{prefix}/instances"] = int(counted.sum())
            for iou_type, matching in matchings.items():
                for key, value in average_precisions(restrict(matching, counted)).items():
                    metrics[f"{prefix}/{iou_type}/{key}"] = value
    if "segm" in matchings:
        total = {"occluded": 0, "separated": 0}
        found = dict(total)
        for kind, best in _hidden_of(matchings["segm"], score_threshold, min_part, min_hidden):
            total[kind] += 1
            found[kind] += best >= mask_iou
        for kind, count in total.items():
            metrics[f"huddled/{kind}/instances"] = count
            metrics[f"huddled/{kind}/recall"] = found[kind] / count if count else -1.0
    return metrics


def restrict(matching: Matching, counted: NDArray[np.bool_]) -> Matching:
    """The matching with only some instances counted, as `huddled_metrics` says, from the overlaps that it has.

    Args:
        matching: stays as it is.
        counted: `[annotations of the truth]`, in the order of the file.
    """
    restricted = copy.copy(matching)
    params = restricted.params = copy.deepcopy(matching.params)
    params.areaRng, params.areaRngLbl = params.areaRng[:1], params.areaRngLbl[:1]
    params.maxDets = params.maxDets[-1:]
    restricted._paramsEval = copy.deepcopy(params)
    restricted._gts = defaultdict(list)
    classes = set()
    for key, instances in matching._gts.items():
        restricted._gts[key] = [
            {**g, "ignore": int(bool(g["ignore"]) or not counted[g["id"] - 1])} for g in instances
        ]
        if any(not g["ignore"] for g in restricted._gts[key]):
            classes.add(key[1])
    restricted.evalImgs = []
    for category in params.catIds:
        for image in params.imgIds:
            # A class that has nothing to find has no AP: its detections need no look.
            row = None
            if category in classes:
                row = restricted.evaluateImg(image, category, params.areaRng[0], params.maxDets[0])
            if row is not None:
                elsewhere = _on_others(matching, restricted, (image, category))
                row["dtIgnore"] |= (row["dtMatches"] == 0) & elsewhere
            restricted.evalImgs.append(row)
    accumulate_quietly(restricted)
    return restricted


def _on_others(matching: Matching, restricted: Matching, key: tuple[Any, Any]) -> NDArray[np.bool_]:
    """Which detections of an image and class, best first, overlap most an instance that does not count."""
    ious = np.asarray(matching.ious[key], np.float64)
    if not ious.size:
        return np.zeros(min(len(matching._dts[key]), restricted.params.maxDets[-1]), bool)
    real = np.array([not g["ignore"] for g in matching._gts[key]])
    counts = np.array([not g["ignore"] for g in restricted._gts[key]])
    best_counted = np.where(counts, ious, 0).max(axis=1)
    best_other = np.where(real & ~counts, ious, 0).max(axis=1)
    return (best_other >= _ON_INSTANCE) & (best_other > best_counted)


def _hidden_of(
    matching: Matching, score_threshold: float, min_part: float, min_hidden: float
) -> Iterator[tuple[str, float]]:
    """For each hidden instance its kind, and the best mask IoU of a good enough detection of its class."""
    params = matching.params
    for image in params.imgIds:
        instances, best, masks = [], [], []
        for category in params.catIds:
            key = (image, category)
            truth, ious = matching._gts[key], np.asarray(matching.ious[key])
            # Rows of the overlaps are the detections by falling score, up to the limit.
            scores = sorted(-d["score"] for d in matching._dts[key])
            taken = int(np.searchsorted(scores, -score_threshold, side="right"))
            for index, instance in enumerate(truth):
                if not instance["ignore"]:
                    instances.append(instance)
                    best.append(float(ious[:taken, index].max()) if ious.size and taken else 0.0)
        masks = [_crop(instance["segmentation"]) for instance in instances]
        kinds = hidden_instances(masks, min_part=min_part, min_hidden=min_hidden)
        yield from ((kind, iou) for kind, iou in zip(kinds, best, strict=True) if kind is not None)


def _crop(rle: dict[str, Any]) -> Crop:
    """The pixels of a mask within its tight box."""
    crop, y, x = rle_to_crop(rle)
    return np.ascontiguousarray(crop, np.uint8), y, x
