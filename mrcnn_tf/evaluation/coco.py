"""COCO's box and mask metrics, from files or from Python objects.

pycocotools matches and accumulates. What is done here is what it leaves to its users: results are checked
before they are believed, masks are measured by their own area, ids that start at 0 count, empty results are
results, and the metrics come as numbers instead of print-outs.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
from collections import Counter
from collections.abc import Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from mrcnn_tf.data.results import Known, check_entry, is_box
from mrcnn_tf.evaluation.matching import Matching
from mrcnn_tf.geometry.masks import rle_counts

__all__ = [
    "average_precisions",
    "class_names",
    "coco_metrics",
    "evaluate_coco",
    "format_number",
    "format_table",
    "load_coco",
    "match_coco",
]

_AREAS = ("", "s", "m", "l")  # the order of pycocotools' area ranges: all, small, medium, large
_TITLES = {"bbox": "box", "segm": "mask"}


def evaluate_coco(
    ground_truth: dict[str, Any] | str | Path,
    results: Sequence[dict[str, Any]] | str | Path,
    *,
    iou_types: Sequence[str] = ("bbox", "segm"),
    max_detections: Sequence[int] = (1, 10, 100),
) -> dict[str, Any]:
    """Compute COCO's twelve metrics for boxes and for masks, and AP per class.

    Args:
        ground_truth: annotations in COCO format, a dict or the path of its JSON. Crowd regions (`iscrowd`)
            are neither to be found nor wrong to find. An annotation without a mask counts as such a region,
            the size of its box, when masks are measured.
        results: entries in COCO's results format, a list or the path of its JSON: `image_id`, `category_id`,
            `score` and `bbox` (`[x, y, w, h]`), `segmentation` (RLE) or both. An empty list is a result: AP
            0.
        iou_types: what to measure; `"bbox"` and `"segm"` are left out where the results do not have that key.
        max_detections: how many of an image's best detections per class to take for `AR1`, `AR10`, ...; every
            other metric takes the largest number.

    Returns:
        `{"bbox/AP": ..., "segm/AP": ...}` with `AP, AP50, AP75, APs, APm, APl, AR1, AR10, AR100, ARs, ARm,
        ARl` for each type (the numbers after AR are those of `max_detections`), in [0, 1], or -1 where the
        truth has nothing to find (COCO's convention); and `"per_class"`, `{name: {"instances": n, "bbox/AP":
        ..., "bbox/AP50": ...}}`. Neither input is changed.

    Raises:
        FileNotFoundError: if a file does not exist.
        ValueError: for JSON that is damaged, and for entries with unknown image or category ids, missing
            keys, scores or boxes that are not finite, or masks of another size than their image. The message
            names file and entry.
    """
    return coco_metrics(
        *match_coco(ground_truth, results, iou_types=iou_types, max_detections=max_detections)
    )


def match_coco(
    ground_truth: dict[str, Any] | str | Path,
    results: Sequence[dict[str, Any]] | str | Path,
    *,
    iou_types: Sequence[str] = ("bbox", "segm"),
    max_detections: Sequence[int] = (1, 10, 100),
) -> tuple[dict[str, Any], dict[str, Matching]]:
    """Check truth and results and match them: the costly part of `evaluate_coco`, whose arguments and errors it has.

    Returns:
        The truth as read, and for each IoU type that can be measured its `Matching`. The annotation at index i of
        the truth has the id i + 1 there.
    """
    unknown = set(iou_types) - set(_TITLES)
    if unknown or not iou_types:
        raise ValueError(f"iou_types must hold 'bbox', 'segm' or both, not {sorted(iou_types)}")
    limits = sorted({int(n) for n in max_detections})
    if not limits or limits[0] < 1:
        raise ValueError(f"max_detections must be positive numbers, not {tuple(max_detections)}")
    truth, entries = load_coco(ground_truth, results)
    name = str(results) if isinstance(results, (str, Path)) else "results"
    types = _measurable(iou_types, truth, entries, name)
    return truth, {iou_type: _accumulate(truth, entries, iou_type, limits) for iou_type in types}


def load_coco(
    ground_truth: dict[str, Any] | str | Path,
    results: Sequence[dict[str, Any]] | str | Path,
    *,
    first: int | None = None,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Truth and results, read and checked; arguments and errors are those of `evaluate_coco`.

    Args:
        ground_truth, results: see there.
        first: of both, only those of the truth's first so many images.
    """
    truth, truth_name = _load(ground_truth, "ground truth", dict)
    entries, results_name = _load(results, "results", list)
    _check_truth(truth, truth_name)
    _check_results(entries, results_name, truth, truth_name)
    if first is not None and first < len(truth["images"]):
        kept = {image["id"] for image in truth["images"][:first]}
        truth = {
            **truth,
            "images": truth["images"][:first],
            "annotations": [a for a in truth["annotations"] if a["image_id"] in kept],
        }
        entries = [entry for entry in entries if entry["image_id"] in kept]
    return truth, entries


def coco_metrics(truth: dict[str, Any], matchings: dict[str, Matching]) -> dict[str, Any]:
    """What `evaluate_coco` returns, from what `match_coco` returned."""
    names = class_names(truth["categories"])
    instances = Counter(a["category_id"] for a in truth["annotations"] if not a.get("iscrowd"))
    metrics: dict[str, Any] = {}
    per_class: dict[str, dict[str, float]] = {
        name: {"instances": instances[category]} for category, name in names.items()
    }
    for iou_type, matching in matchings.items():
        for key, value in _summary(matching).items():
            metrics[f"{iou_type}/{key}"] = value
        for index, category in enumerate(matching.params.catIds):
            for key, value in average_precisions(matching, index).items():
                per_class[names[category]][f"{iou_type}/{key}"] = value
    return {**metrics, "per_class": per_class}


def format_table(metrics: dict[str, Any], *, per_class: bool = True) -> str:
    """Lay the metrics of `evaluate_coco` out as text of up to 110 columns, with a dash for nothing to find.

    Args:
        metrics: what `evaluate_coco` returned.
        per_class: add a line for each class that has instances.

    Returns:
        The table, lines joined by newlines, without one at the end.
    """
    types = [t for t in _TITLES if f"{t}/AP" in metrics]
    if not types:
        raise ValueError("there are no metrics to print: neither 'bbox/AP' nor 'segm/AP' is among the keys")
    keys = [key.split("/")[1] for key in metrics if key.startswith(f"{types[0]}/")]
    lines = [" " * 6 + "".join(f"{key:>7}" for key in keys)]
    for t in types:
        lines.append(
            f"{_TITLES[t]:<6}" + "".join(f"{format_number(metrics[t + '/' + key]):>7}" for key in keys)
        )
    classes = {name: row for name, row in metrics.get("per_class", {}).items() if row["instances"]}
    if per_class and classes:
        width = min(max(len(name) for name in (*classes, "class")), 32)
        columns = [(f"{t}/{key}", f"{_TITLES[t]} {key}") for t in types for key in ("AP", "AP50", "AP75")]
        lines += [
            "",
            f"{'class':<{width}}{'instances':>11}" + "".join(f"{title:>11}" for _, title in columns),
        ]
        for name, row in classes.items():
            cells = "".join(f"{format_number(row[key]):>11}" for key, _ in columns)
            lines.append(f"{name[:width]:<{width}}{row['instances']:>11}{cells}")
    return "\n".join(lines)


def format_number(value: float) -> str:
    """Three digits, or a dash for COCO's -1."""
    return "-" if value < 0 else f"{value:.3f}"


def _load(source: Any, what: str, kind: type) -> tuple[Any, str]:
    """The data and the name that messages call it by."""
    if not isinstance(source, (str, Path)):
        data, name = (list(source) if kind is list and not isinstance(source, dict) else source), what
    else:
        name = str(source)
        try:
            data = json.loads(Path(source).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise FileNotFoundError(f"{name}: no such file; give the path of a COCO {what} JSON") from None
        except ValueError as error:
            raise ValueError(f"{name}: not valid JSON ({error}); is the file complete?") from None
    if not isinstance(data, kind):
        wanted = "a list of entries" if kind is list else "an object with images, annotations and categories"
        raise ValueError(f"{name}: COCO {what} must be {wanted}, not a {type(data).__name__}")
    return data, name


def _check_truth(truth: dict[str, Any], name: str) -> None:
    for key in ("images", "annotations", "categories"):
        if not isinstance(truth.get(key), list):
            raise ValueError(f"{name}: has no list '{key}'; give annotations in COCO format")
        for row in truth[key]:
            if not isinstance(row, dict):
                raise ValueError(f"{name}: '{key}' holds {str(row)[:40]!r}; it must be a list of objects")
    for key, kinds in (("images", (Integral, str)), ("categories", Integral)):
        for row in truth[key]:
            if not isinstance(row.get("id"), kinds):
                raise ValueError(
                    f"{name}: one of the {key} has the id {row.get('id')!r}; it must be a whole number"
                )
    images = {image["id"] for image in truth["images"]}
    categories = {category["id"] for category in truth["categories"]}
    for annotation in truth["annotations"]:
        where = f"{name}: annotation {annotation.get('id')}"
        area = annotation.get("area", 0)
        if not isinstance(area, Real) or not math.isfinite(area):
            raise ValueError(f"{where} has area {area}; it must be a finite number, or left out")
        if isinstance(annotation.get("segmentation"), dict):
            try:
                rle_counts(annotation["segmentation"])
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(f"{where} has a damaged mask ({error})") from None
        for key, known in (("image_id", images), ("category_id", categories)):
            value = annotation.get(key)
            if not isinstance(value, (Integral, str)) or value not in known:
                raise ValueError(f"{where} has {key} {annotation.get(key)}, which the file does not define")
        if not is_box(annotation.get("bbox")):
            raise ValueError(f"{where} needs a bbox of four finite numbers, not {annotation.get('bbox')}")


def _check_results(entries: list[Any], name: str, truth: dict[str, Any], truth_name: str) -> None:
    known = Known(
        path=truth_name,
        sizes={image["id"]: [image.get("height"), image.get("width")] for image in truth["images"]},
        categories={category["id"]: str(category.get("name")) for category in truth["categories"]},
    )
    sizes: dict[Any, list[int]] = {}
    for index, entry in enumerate(entries):
        check_entry(entry, f"{name}: entry {index}", sizes, known)
        if "segmentation" in entry and None in known.sizes[entry["image_id"]]:
            raise ValueError(
                f"{truth_name}: image {entry['image_id']} has no height and width; masks need them"
            )


def _measurable(
    iou_types: Sequence[str], truth: dict[str, Any], entries: list[dict[str, Any]], name: str
) -> list[str]:
    """The requested types that truth and results have; all entries must agree on which keys they have."""
    measurable = []
    for iou_type, key in (("bbox", "bbox"), ("segm", "segmentation")):
        having = sum(key in entry for entry in entries)
        if 0 < having < len(entries):
            first = next(i for i, entry in enumerate(entries) if key not in entry)
            raise ValueError(
                f"{name}: entry {first} has no '{key}', but others have one; give it to all or to none"
            )
        annotations = truth["annotations"]
        with_truth = iou_type == "bbox" or not annotations or any(map(_has_mask, annotations))
        if iou_type in iou_types and with_truth and (having or not entries):
            measurable.append(iou_type)
    if not measurable:
        raise ValueError(
            f"{name}: nothing to measure: no {' and no '.join(iou_types)} in both results and truth"
        )
    return measurable


def class_names(categories: list[dict[str, Any]]) -> dict[Any, str]:
    """Names by category id; a name that occurs twice gets its id added."""
    names = {category["id"]: str(category.get("name", category["id"])) for category in categories}
    often = Counter(names.values())
    return {i: name if often[name] == 1 else f"{name} ({i})" for i, name in names.items()}


def _has_mask(annotation: dict[str, Any]) -> bool:
    segmentation = annotation.get("segmentation")
    return isinstance(segmentation, dict) or any(len(polygon) >= 6 for polygon in segmentation or [])


def _accumulate(
    truth: dict[str, Any], entries: list[dict[str, Any]], iou_type: str, limits: list[int]
) -> Matching:
    """Run pycocotools on copies: it writes into what it is given, and prints."""
    annotations = []
    for number, annotation in enumerate(truth["annotations"], start=1):
        # pycocotools marks the unmatched with id 0: ids must start at 1, whatever the file's do.
        copy = {**annotation, "id": number, "iscrowd": int(bool(annotation.get("iscrowd", 0)))}
        copy.setdefault("area", copy["bbox"][2] * copy["bbox"][3])
        if iou_type == "segm" and not _has_mask(annotation):
            x, y, w, h = annotation["bbox"]
            copy |= {"iscrowd": 1, "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]]}
        elif iou_type == "segm" and isinstance(annotation["segmentation"], list):
            # Two points have no area; alone, pycocotools would take their four numbers for a box.
            copy["segmentation"] = [polygon for polygon in annotation["segmentation"] if len(polygon) >= 6]
        annotations.append(copy)
    detections = []
    for number, entry in enumerate(entries, start=1):
        copy = {"id": number, "iscrowd": 0, **{k: entry[k] for k in ("image_id", "category_id", "score")}}
        # Small, medium and large are what is measured: a mask's own area for masks, not that of its box.
        if iou_type == "bbox":
            copy |= {"bbox": list(entry["bbox"]), "area": entry["bbox"][2] * entry["bbox"][3]}
        else:
            copy["segmentation"] = entry["segmentation"]
            copy["area"] = _area(entry["segmentation"])
        detections.append(copy)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = Matching(_index(truth, annotations), _index(truth, detections), iou_type)
        evaluation.params.maxDets = limits
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation


def _area(rle: dict[str, Any]) -> float:
    if isinstance(rle["counts"], list):
        rle = coco_mask.frPyObjects(rle, *rle["size"])
    return float(coco_mask.area(rle))


def _index(truth: dict[str, Any], annotations: list[dict[str, Any]]) -> COCO:
    coco = COCO()
    coco.dataset = {"images": truth["images"], "categories": truth["categories"], "annotations": annotations}
    coco.createIndex()
    return coco


def average_precisions(evaluation: Matching, category: int | None = None) -> dict[str, float]:
    """AP, AP50 and AP75 of an accumulated matching in its first area range, at its largest limit.

    pycocotools' own summary takes AP at 100 detections whatever the settings, so it is not used.

    Args:
        evaluation: the matching.
        category: index of a class; None for the mean over the classes that have instances.
    """
    # [IoU, recall, class, area range, limit]
    precision = evaluation.eval["precision"][..., 0, -1]
    precision = precision if category is None else precision[:, :, category]
    thresholds = evaluation.params.iouThrs
    values = {"AP": _mean(precision)}
    for percent in (50, 75):
        values[f"AP{percent}"] = _mean(precision[int(np.argmin(np.abs(thresholds - percent / 100)))])
    return values


def _summary(evaluation: Matching) -> dict[str, float]:
    """COCO's twelve numbers, over all classes."""
    # [IoU, recall, class, area range, limit] and [IoU, class, area range, limit]
    precision, recall = evaluation.eval["precision"], evaluation.eval["recall"]
    summary = average_precisions(evaluation)
    summary |= {f"AP{size}": _mean(precision[..., i, -1]) for i, size in enumerate(_AREAS) if size}
    summary |= {f"AR{n}": _mean(recall[..., 0, i]) for i, n in enumerate(evaluation.params.maxDets)}
    summary |= {f"AR{size}": _mean(recall[..., i, -1]) for i, size in enumerate(_AREAS) if size}
    return summary


def _mean(values: np.ndarray) -> float:
    """Mean over what the truth has; -1 if it has nothing."""
    values = values[values > -1]
    return float(values.mean()) if values.size else -1.0
