"""Everything that the page shows, as numbers: for a model and a data set, or for a results file and its truth."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mrcnn_tf.evaluation.boundary import boundary_metrics
from mrcnn_tf.evaluation.calibration import calibration
from mrcnn_tf.evaluation.coco import class_names, coco_metrics, load_coco, match_coco
from mrcnn_tf.evaluation.confusion import confusion_matrix
from mrcnn_tf.evaluation.errors import error_budget
from mrcnn_tf.evaluation.matching import Matching
from mrcnn_tf.evaluation.slices import ap_by_crowding, ap_by_size
from mrcnn_tf.geometry.masks import rle_counts
from mrcnn_tf.inspection.anchors import anchor_report
from mrcnn_tf.inspection.findings import findings
from mrcnn_tf.inspection.overlaps import SCORE, overlapping_pairs
from mrcnn_tf.inspection.pictures import choose, images_of, make_pictures
from mrcnn_tf.inspection.proposals import ProposalReport
from mrcnn_tf.inspection.sweep import sweep_model, sweep_results

if TYPE_CHECKING:
    from mrcnn_tf.models.mask_rcnn import MaskRCNN

__all__ = ["inspect", "plain"]

_DRAWN = ("jpeg", "truth", "prediction")
_BEYOND = 1.0  # pixels that a box may reach beyond its image before that is told


def inspect(
    annotations: str | Path,
    *,
    images: str | Path | None = None,
    model: MaskRCNN | None = None,
    results: str | Path | None = None,
    first: int | None = None,
    score_threshold: float = SCORE,
    max_detections: tuple[int, int, int] = (1, 10, 100),
    pictures: int = 8,
    name: str | None = None,
) -> dict[str, Any]:
    """Find out what is wrong with a model's detections or with a results file.

    Args:
        annotations: the truth, a COCO JSON file.
        images: folder of the images; a model needs it. Without it there are no pictures.
        model: to run over the images, once, and once more for NMS at several thresholds; or
        results: a COCO results file, whoever made it. TensorFlow is not needed then.
        first: take the first so many images only.
        score_threshold: detections below count for AP only: they are in no picture, no confusion matrix, and neither
            overlapping nor duplicates. In [0, 1].
        max_detections: see `evaluate_coco`.
        pictures: how many to show of each of three groups, at most; 0 for none.
        name: of the model, for the page's heading; default: its own.

    Returns:
        `source` (what was inspected and its counts), `notes` (what is odd about the input), `findings`, `metrics`
        (see `coco_metrics`), `proposals`, `anchors`, `overlaps`, `sweep`, `errors` (`bbox`, `segm`), `confusion`,
        `boundary`, `calibration`, `by_size`, `by_crowding` and `pictures`: each what the function of that name in
        `mrcnn_tf.evaluation` and `mrcnn_tf.inspection` returns, None if it cannot be made. Confusion matrix,
        calibration and pictures are of masks if these can be matched, else of boxes.

    Raises:
        FileNotFoundError: if a file or folder does not exist.
        ValueError: for an argument out of range, and for what `match_coco` refuses: results of unknown images or
            classes, scores that are not finite, masks of another size or damaged. Names file and entry.
    """
    if (model is None) == (results is None):
        raise ValueError("give either a model or results to inspect")
    if pictures < 0:
        raise ValueError(f"pictures must be how many to show of each group, not {pictures}")
    if first is not None and first < 1:
        raise ValueError(f"first must be a number of images, at least 1, not {first}")
    if not 0 <= score_threshold <= 1:
        raise ValueError(f"score_threshold must lie between 0 and 1, not {score_threshold}")
    if images is not None and not Path(images).is_dir():
        raise FileNotFoundError(f"{images}: no such image folder")

    proposals = sweep = None
    settings: dict[str, Any] = {"score_threshold": score_threshold, "max_detections": max(max_detections)}
    if model is not None:
        if images is None:
            raise ValueError("a model needs images, the folder of the images")
        truth, entries, proposals, sweep = _run(model, annotations, images, first, settings)
        truth, matchings = match_coco(truth, entries, max_detections=max_detections)
    else:
        truth, entries = load_coco(annotations, str(results), first=first)
        truth, matchings = match_coco(truth, entries, max_detections=max_detections)
        sweep = sweep_results(truth, entries, **settings) if entries else None

    kind = "segm" if "segm" in matchings else "bbox"
    budgets = {iou_type: error_budget(truth, matching) for iou_type, matching in matchings.items()}
    kinds = {iou_type: budget.pop("kinds") for iou_type, budget in budgets.items()}
    notes = _notes(truth, entries, max(max_detections))

    def attempt(what: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any] | None:
        """A part that some input does not allow; the rest of the page does not need it."""
        try:
            return make()
        except ValueError as error:
            notes.append(f"Left out, {what}: {error}.")
            return None

    report: dict[str, Any] = {
        "source": {
            "annotations": str(annotations),
            **({"results": str(results)} if model is None else _source(model, name)),
            "images": len(truth["images"]),
            "instances": sum(not a.get("iscrowd") for a in truth["annotations"]),
            "detections": len(entries),
        },
        "notes": notes,
        "metrics": coco_metrics(truth, matchings),
        "proposals": proposals,
        "anchors": attempt("anchors", lambda: anchor_report(truth, model=model)),
        "overlaps": overlapping_pairs(truth, entries, score_threshold=score_threshold) if entries else None,
        "sweep": sweep,
        "errors": budgets,
        "confusion": {
            **confusion_matrix(truth, matchings[kind], score_threshold=score_threshold),
            "score_threshold": score_threshold,
        },
        "boundary": boundary_metrics(truth, matchings["segm"]) if "segm" in matchings else None,
        "calibration": attempt("calibration", lambda: calibration(matchings[kind])) if entries else None,
        "by_size": ap_by_size(truth, matchings),
        "by_crowding": ap_by_crowding(truth, matchings),
        "pictures": None,
    }
    if images is not None and pictures:
        report["pictures"] = _pictures(
            report, truth, entries, matchings[kind], kinds[kind], images, score_threshold, pictures
        )
        report["pictures"]["iou_type"] = kind
    report["findings"] = findings(report)
    return report


def _source(model: MaskRCNN, name: str | None) -> dict[str, Any]:
    """The model's name, and what makes detections of its candidates."""
    from mrcnn_tf.models.selection import SELECTION  # imports TensorFlow, which results do not need

    return {"model": name or model.name, "selection": {key: model.settings[key] for key in SELECTION}}


def plain(report: Mapping[str, Any]) -> dict[str, Any]:
    """The report without the drawn pictures, for a JSON file: which images they are of stays."""
    shown = report["pictures"]
    if shown:
        groups = [
            {
                **group,
                "items": [{k: v for k, v in item.items() if k not in _DRAWN} for item in group["items"]],
            }
            for group in shown["groups"]
        ]
        shown = {**shown, "groups": groups}
    return {**report, "pictures": shown}


def _run(
    model: MaskRCNN,
    annotations: str | Path,
    images: str | Path,
    first: int | None,
    settings: dict[str, Any],
) -> tuple[dict[str, Any], list[dict[str, Any]], dict[str, Any], dict[str, Any]]:
    """The truth, the model's results, its proposals' report and the sweep over NMS thresholds."""
    from mrcnn_tf.data.coco import CocoDataset
    from mrcnn_tf.evaluation.run import detections_of  # imports TensorFlow, which results do not need

    dataset = CocoDataset(annotations, images, first=first)
    entries: list[dict[str, Any]] = []
    proposals = ProposalReport()
    for i, found, boxes, _ in detections_of(model, dataset, bar="detecting"):
        instances = dataset.instances(i)
        proposals.update(boxes, instances.boxes, crowd=instances.crowd)
        entries += found.to_coco(dataset.image_ids[i])
    sweep = sweep_model(model, dataset, bar="NMS at other thresholds", **settings)
    return dataset.ground_truth(), entries, proposals.result(), sweep


def _notes(truth: Mapping[str, Any], entries: Sequence[Mapping[str, Any]], limit: int) -> list[str]:
    """What a person should know about the input; nothing of it stops the inspection."""
    sizes = {i["id"]: (i.get("width"), i.get("height")) for i in truth["images"]}
    beyond = flat = odd = empty = 0
    seen: Counter[tuple[Any, ...]] = Counter()
    for entry in entries:
        odd += not 0 <= entry["score"] <= 1
        if "bbox" in entry:
            seen[entry["image_id"], entry["category_id"], entry["score"], tuple(entry["bbox"])] += 1
            x, y, w, h = entry["bbox"]
            width, height = sizes[entry["image_id"]]
            flat += w <= 0 or h <= 0
            if width and height:
                beyond += min(x, y) < -_BEYOND or x + w > width + _BEYOND or y + h > height + _BEYOND
        if isinstance(entry.get("segmentation"), dict):
            empty += not rle_counts(entry["segmentation"])[1::2].any()
    per_image = Counter(entry["image_id"] for entry in entries)
    per_class = Counter((entry["image_id"], entry["category_id"]) for entry in entries)
    cut = len({image for (image, _), n in per_class.items() if n > limit})
    silent = sum(image["id"] not in per_image for image in truth["images"])
    annotated = {a["image_id"] for a in truth["annotations"]}
    blank = sum(image["id"] not in annotated for image in truth["images"])
    counts = {
        "Detections that reach beyond their image by more than a pixel": beyond,
        "Detections whose box has no area": flat,
        "Detections with an empty mask": empty,
        "Detections with a score outside 0 to 1": odd,
        "Entries that repeat another's image, class, score and box": sum(n - 1 for n in seen.values()),
        f"Images with more than {limit} detections of one class, of which AP takes the best {limit}": cut,
        "Images without a detection": silent,
        "Images without an annotated instance": blank,
    }
    return [f"{text}: {count:,}." for text, count in counts.items() if count]


def _pictures(
    report: Mapping[str, Any],
    truth: Mapping[str, Any],
    entries: Sequence[Mapping[str, Any]],
    matching: Matching,
    kinds: Sequence[str | None],
    folder: str | Path,
    score_threshold: float,
    count: int,
) -> dict[str, Any]:
    names = class_names(truth["categories"])
    shown = images_of(truth, entries, matching, kinds, score_threshold=score_threshold)
    per_image = (report["overlaps"] or {"per_image": {}})["per_image"]
    groups = choose(shown, entries, per_image, names, count=count)
    problems = make_pictures(groups, shown, folder, truth, entries, names)
    if problems:
        report["notes"].append(
            f"{len(problems)} of the chosen images could not be shown; the first: {problems[0]}"
        )
    return {"images": len(truth["images"]), "score_threshold": score_threshold, "groups": groups}
