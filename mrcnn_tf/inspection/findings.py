"""What the numbers of an inspection mean: what is wrong, where it comes from, and what to set."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["findings"]

Report = Mapping[str, Any]
# Severity, weight within it, title, text, setting.
Found = tuple[str, float, str, str, str | None]

# Pairs above IoU 0.5 as a share of the detections that people look at: one in fifty can be seen on most pictures,
# one in ten on every one.
PAIRS_LOW, PAIRS_HIGH = 0.02, 0.1
# AP50 that one kind of error costs: what training with another seed changes, and what is worth a change.
LOSS_LOW, LOSS_HIGH = 0.03, 0.1
# AP, and duplicates an image, that another NMS threshold must bring: below that, it is noise.
SWEEP_GAIN, SWEEP_FEWER = 0.005, 0.1
# Recall of all proposals at IoU 0.5: a well trained RPN has 0.95, and no later stage finds what is lost here.
RECALL_LOW, RECALL_HIGH = 0.95, 0.85
# AP of a part of the instances, as a share of the AP of all, when it lags behind; and their share of all instances.
LAGS, MATTERS = 0.6, 0.1
# Mean distance of score and precision up to which scores can be read as probabilities.
CALIBRATION = 0.1
# Boundary AP as a share of mask AP. Mask R-CNN on COCO has about 0.6 (Cheng et al., "Boundary IoU", 2021).
BOUNDARY = 0.5
# Beginnings of the settings that need no training, see `mrcnn_tf.models.selection`.
ON_A_TRAINED_MODEL = ("nms_", "mask_nms_", "score_threshold", "class_score_thresholds")
# AP50 from which a detector of which nothing stands out is called good.
GOOD_AP50 = 0.5


def findings(report: Report) -> list[dict[str, Any]]:
    """Plain words for the numbers of a report, what weighs most first.

    Args:
        report: as `mrcnn_tf.inspection.inspect` makes it; parts that are None or missing say nothing.

    Returns:
        For each finding `severity` (`"high"`, `"low"` or `"good"`), `title`, `text` with the number that it rests on,
        `setting`, what helps, or None, and `how`: to `"set"` that on the trained model, to `"train"` with it, or to
        `"run"` it on the results file. Never empty.
    """
    found = [finding for rule in _RULES for finding in rule(report)] or [_nothing(report)]
    found.sort(key=lambda f: (("high", "low", "good").index(f[0]), -f[1]))
    return [
        {"severity": severity, "title": title, "text": text, "setting": setting, "how": _how(setting)}
        for severity, _, title, text, setting in found
    ]


def _own(report: Report, key: str, usual: str) -> Any:
    """The inspected model's own setting of its detections; `usual` for results, whose detector is not known."""
    return ((report.get("source") or {}).get("selection") or {}).get(key, usual)


def _how(setting: str | None) -> str | None:
    if setting is None or setting.startswith("mrcnn "):
        return setting and "run"
    keys = re.findall(r"model\.([\w.]+)=", setting)
    return "set" if all(key.startswith(ON_A_TRAINED_MODEL) for key in keys) else "train"


def _nothing(report: Report) -> Found:
    value = _metric(report, f"{_main(report)}/AP50")
    if value < 0:
        text = "The truth has no instance to compare detections with, so nothing can be said about them."
        return "low", 0.0, "Nothing to judge", text, None
    if value < GOOD_AP50:
        text = f"AP50 is {value:.3f}, but no single reason stands out: more training, or more data, is what is left."
        return "low", 0.0, "Low AP without a single reason", text, None
    text = f"AP50 is {value:.3f}; overlaps, duplicates, proposals and errors are all within the usual."
    return "good", 0.0, "Nothing stands out", text, None


def _no_detections(report: Report) -> list[Found]:
    source = report.get("source") or {}
    if source.get("detections", 1) or not source.get("instances"):
        return []
    text = f"None of the {source['instances']} instances is found: there is no detection at all."
    return [
        ("high", 100.0, "There are no detections", text, _set(report, model="model.score_threshold=0.01"))
    ]


def _nms(report: Report) -> list[Found]:
    """Overlapping detections of one class, and what the sweep says about the threshold."""
    share, pairs = _pairs(report.get("overlaps"), "same_class", of="boxes")
    told = f"{pairs} pairs of boxes of one class overlap by more than 0.5."
    sweep = report.get("sweep")
    if not sweep or sweep["suggested"] is None or _own(report, "nms_method", "hard") == "gaussian":
        return []
    within = "Suppression" if _own(report, "nms_groups", "class") != "class" else "Suppression within classes"
    rows = {row["threshold"]: row for row in sweep["rows"]}
    current, suggested = sweep["current"], sweep["suggested"]
    best = rows[suggested]
    now = sweep.get("as_is") or rows[current]
    key, name = ("mask_AP", "mask AP") if "mask_AP" in best else ("AP", "AP")
    gain = best[key] - now[key]
    fewer = now["duplicates_per_image"] - best["duplicates_per_image"]
    if current != suggested and (gain >= SWEEP_GAIN or fewer >= SWEEP_FEWER):
        text = (
            f"{told} {within} at {suggested:g} instead of {_known(current)} takes {name} from "
            f"{now[key]:.3f} to {best[key]:.3f}, and duplicates from {now['duplicates_per_image']:.2f} to "
            f"{best['duplicates_per_image']:.2f} an image."
        )
        high = gain >= LOSS_LOW or share >= PAIRS_HIGH
        title = f"The NMS threshold is too {'low' if current is not None and suggested > current else 'high'}"
        setting = _set(
            report,
            model=f"model.nms_threshold={suggested:g}",
            clean=f"--groups class --measure box --iou {suggested:g}",
        )
        return [("high" if high else "low", max(gain, share), title, text, setting)]
    if share >= PAIRS_LOW and _own(report, "nms_method", "hard") == "hard":
        text = (
            f"{told} But no other NMS threshold raises {name} ({now[key]:.3f}): instances of this set lie on each "
            "other, too. Soft suppression tells them from duplicates better than a threshold does."
        )
        setting = _set(report, model="model.nms_method=linear", clean="--groups class --nms linear")
        return [("low", share, "Detections of one class overlap, as instances do", text, setting)]
    return []


def _other_classes(report: Report) -> list[Found]:
    share, pairs = _pairs(report.get("overlaps"), "other_class")
    if share < PAIRS_LOW or _own(report, "nms_groups", "class") == "all":
        return []
    measure = report["overlaps"]["measure"]
    text = (
        f"{pairs} pairs of {_plural(measure)} of different classes overlap by more than 0.5, {share:.2f} for each "
        "detection: one thing has two names, and NMS within each class keeps both. Suppress over all classes, or over "
        "groups of those that cannot lie on each other. AP may fall all the same: a second name with a low score "
        "costs it nothing."
    )
    setting = _set(report, model="model.nms_groups=all", clean=f"--groups all --measure {measure} --iou 0.5")
    return [(_severity(share, PAIRS_HIGH), share, "One thing is found under two classes", text, setting)]


def _masks(report: Report) -> list[Found]:
    """Masks that overlap although their boxes do not."""
    overlaps = report.get("overlaps")
    if not overlaps or overlaps["measure"] != "mask":
        return []
    _, masks = _pairs(overlaps, "same_class")
    _, boxes = _pairs(overlaps, "same_class", of="boxes")
    share = (masks - boxes) / max(overlaps["detections"], 1)
    if share < PAIRS_LOW or masks < 2 * boxes:
        return []
    text = (
        f"{masks} pairs of masks of one class overlap by more than 0.5, but only {boxes} pairs of their boxes: the "
        "mask head paints one instance into several boxes, and suppression by boxes does not see it. Suppress by "
        "masks; a refining module (MR R-CNN) or more training of the mask head goes to the root."
    )
    setting = _set(
        report, model="model.mask_nms_threshold=0.5", clean="--groups class --measure mask --iou 0.5"
    )
    return [(_severity(share, PAIRS_HIGH), share, "Masks overlap where boxes do not", text, setting)]


def _proposals(report: Report) -> list[Found]:
    proposals, anchors = report.get("proposals"), report.get("anchors")
    last = proposals["recall"][-1] if proposals else None
    if not last or last["all50"] < 0 or last["all50"] >= RECALL_LOW:
        return []
    worst = min((s for s in ("small", "medium", "large") if last[s] >= 0), key=lambda s: last[s])
    text = (
        f"The best {last['at']} proposals of an image cover {last['all50']:.3f} of the instances at IoU 0.5, {worst} "
        "ones least. No later stage finds the others. "
    )
    setting = None
    if anchors and anchors["better"]:
        text += (
            f"Of the instances, {anchors['current']['recall50']:.3f} lie under an anchor: start with those."
        )
        setting = anchors["suggested"]["overrides"]
    elif anchors:
        text += (
            f"The anchors are not the reason ({anchors['current']['recall50']:.3f} of the instances lie under one at "
            "IoU 0.5): train the RPN longer, or let more of its proposals through."
        )
        setting = "'model.rpn.post_nms=[2000, 2000]'"
    loss = 1 - last["all50"]
    severity = "high" if last["all50"] < RECALL_HIGH else "low"
    return [(severity, loss, "Proposals miss instances", text, setting)]


def _anchors(report: Report) -> list[Found]:
    """Only of a model: what made a results file may have had other anchors and other image sizes."""
    anchors = report.get("anchors")
    if not anchors or not anchors["better"] or "model" not in (report.get("source") or {}):
        return []
    now, then = (anchors["held_out"][name] for name in ("current", "suggested"))
    gain = sum(then[k] - now[k] for k in ("recall50", "recall70")) / 2
    text = (
        f"The anchors overlap {now['recall50']:.3f} of the instances by 0.5 and {now['recall70']:.3f} by 0.7; anchors "
        f"fitted to the data {then['recall50']:.3f} and {then['recall70']:.3f}, on images that were not used for that. "
        "They take a new training, and are worth it where proposals miss instances."
    )
    return [("low", gain, "Other anchors would lie closer", text, anchors["suggested"]["overrides"])]


def _errors(report: Report) -> list[Found]:
    """The kinds of errors that cost most."""
    budget = (report.get("errors") or {}).get(_main(report))
    if not budget:
        return []
    small = (
        (report.get("anchors") or {})
        .get("current", {})
        .get("by_size", {})
        .get("small", {})
        .get("instances", 0)
    )
    share = small / max((report.get("source") or {}).get("instances", 0), 1)
    told = {
        "classification": (
            "Classes are confused",
            "Detections that lie on an instance of another class",
            "The confusion matrix shows which; merge classes that cannot be told apart, or show more of the rare ones.",
            None,
        ),
        "localisation": (
            "Boxes or masks do not fit",
            "Detections of the right class that overlap their instance by less than 0.5",
            "Train longer, or with a loss on overlaps, and look whether the annotations themselves are tight.",
            _set(report, model="model.box_loss=giou"),
        ),
        "both": (
            "Neither class nor place is right",
            "Detections that overlap only instances of other classes, by less than 0.5",
            "This goes with more training.",
            None,
        ),
        "duplicate": (
            "Instances are found twice",
            "Second detections of an instance",
            "The sweep over NMS thresholds shows what suppression can do about it.",
            None,
        ),
        "background": (
            "Things are found where nothing is annotated",
            "Detections on no instance",
            "See whether they are things that the annotations miss; if not, train with images without instances, too. "
            "A higher score threshold hides them, and does not change AP for the better.",
            _set(report, model="model.score_threshold=0.3", clean="--nms none --score-threshold 0.3"),
        ),
        "missed": (
            "Instances are missed",
            "Instances that no detection points at",
            f"{share:.0%} of the instances are under 32 x 32 pixels: larger input shows more of them."
            if share >= MATTERS
            else "Train longer; a lower score threshold shows what is found with little confidence.",
            _larger(report) if share >= MATTERS else _set(report, model="model.score_threshold=0.01"),
        ),
    }
    found = []
    for kind, loss in budget["main"].items():
        if loss >= LOSS_LOW:
            title, what, advice, setting = told[kind]
            count = budget["counts"][kind]
            text = f"{what} ({count}) cost {loss:.3f} of AP50, which is {budget['AP50']:.3f}. {advice}"
            found.append((_severity(loss, LOSS_HIGH), loss, title, text, setting))
    return found


def _small(report: Report) -> list[Found]:
    kind = _main(report)
    whole, small = _metric(report, f"{kind}/AP"), _metric(report, f"{kind}/APs")
    if min(whole, small) < 0 or small >= LAGS * whole:
        return []
    text = (
        f"AP of instances under 32 x 32 pixels is {small:.3f}, of all {whole:.3f}. Larger input, and smaller anchors "
        "with it, show the network more of them."
    )
    return [("low", whole - small, "Small instances lag behind", text, _larger(report))]


def _crowding(report: Report) -> list[Found]:
    kind = _main(report)
    rows = [
        row for row in report.get("by_crowding") or [] if "neighbour" in row["label"] and row["instances"]
    ]
    total = sum(row["instances"] for row in rows)
    rows = [row for row in rows if row["instances"] >= MATTERS * total]
    if len(rows) < 2:
        return []
    alone, huddled = rows[0], rows[-1]
    ap, lower = alone[f"{kind}/AP"], huddled[f"{kind}/AP"]
    if lower >= LAGS * ap:
        return []
    text = (
        f'AP of the instances in the row "{huddled["label"]}" ({huddled["instances"]} of {total}) is {lower:.3f}, of '
        f'those in "{alone["label"]}" {ap:.3f}. The refining module of MR R-CNN is made for these, and soft '
        "suppression keeps neighbours that hard suppression drops."
    )
    setting = (
        _set(report, model="model.nms_method=linear")
        if _own(report, "nms_method", "hard") == "hard"
        else None
    )
    return [("low", ap - lower, "Crowded instances lag behind", text, setting)]


def _calibration(report: Report) -> list[Found]:
    values = report.get("calibration")
    if not values or values["expected_error"] < CALIBRATION:
        return []
    columns = (values[key] for key in ("counts", "mean_score", "precision"))
    bins = [row for row in zip(*columns, strict=True) if row[0]]
    lean = sum(n * (score - precision) for n, score, precision in bins)
    text = (
        f"Scores differ from the share of detections that are right by {values['expected_error']:.3f} on average, and "
        f"are too {'high' if lean > 0 else 'low'} for the most part. AP does not mind, but a score of 0.5 does not "
        "mean one in two: choose thresholds on the calibration curve."
    )
    return [("low", values["expected_error"], "Scores are no probabilities", text, None)]


def _boundary(report: Report) -> list[Found]:
    values, whole = report.get("boundary"), _metric(report, "segm/AP")
    if not values or whole <= 0 or not 0 <= values["AP"] < BOUNDARY * whole:
        return []
    text = (
        f"Boundary AP is {values['AP']:.3f}, mask AP {whole:.3f}: masks are in the right place, but their outlines are "
        "coarse. Larger masks follow outlines better, after training with them."
    )
    setting = _set(report, model="model.mask_head.mask_size=56")
    return [("low", whole - values["AP"], "Outlines are coarse", text, setting)]


_RULES: tuple[Callable[[Report], list[Found]], ...] = (
    _no_detections,
    _nms,
    _other_classes,
    _masks,
    _proposals,
    _anchors,
    _errors,
    _small,
    _crowding,
    _calibration,
    _boundary,
)


def _pairs(overlaps: Report | None, which: str, of: str = "pairs") -> tuple[float, int]:
    """Pairs above IoU 0.5, as a share of the detections, and their number."""
    if not overlaps:
        return 0.0, 0
    count = next(row[which] for row in overlaps[of] if row["iou"] == 0.5)
    return count / max(overlaps["detections"], 1), count


def _larger(report: Report) -> str | None:
    """Images half as large again as the model has them."""
    sizes = report.get("anchors")
    if not sizes:
        return None
    shorter, longer = (round(1.5 * sizes[key]) for key in ("min_size", "max_size"))
    canvas = ", ".join(str(-(-side // 32) * 32) for side in (shorter, longer))
    return _set(report, model=f"model.min_size={shorter} model.max_size={longer} 'data.canvas=[{canvas}]'")


def _metric(report: Report, key: str) -> float:
    return (report.get("metrics") or {}).get(key, -1.0)


def _main(report: Report) -> str:
    """Masks, where they are measured; else boxes."""
    return "segm" if "segm/AP" in (report.get("metrics") or {}) else "bbox"


def _severity(value: float, high: float) -> str:
    return "high" if value >= high else "low"


def _known(threshold: float | None) -> str:
    return "what was used" if threshold is None else f"{threshold:g}"


def _plural(measure: str) -> str:
    return "masks" if measure == "mask" else "boxes"


def _set(report: Report, *, model: str, clean: str | None = None) -> str | None:
    """The model's setting, or what to run on a results file, whose detector is not ours to set."""
    results = (report.get("source") or {}).get("results")
    if results is None:
        return model
    return None if clean is None else f"mrcnn clean {shlex.quote(results)} --out clean.json {clean}"
