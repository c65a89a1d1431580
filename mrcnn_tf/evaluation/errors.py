"""What costs average precision: the six kinds of errors of TIDE, and what AP50 would be without each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mrcnn_tf.evaluation.matching import Matching, best_first, overlaps_of, rematch

__all__ = ["error_budget"]

_OF_DETECTIONS = ("classification", "localisation", "both", "duplicate", "background")
_CLASSIFICATION, _LOCALISATION, _BOTH, _DUPLICATE, _BACKGROUND = range(5)
_RIGHT, _IGNORED = -1, -2


@dataclass
class _Table:
    """Arrays `[detections]`, each class best first within an image, and arrays `[classes]`."""

    ids: NDArray[np.int64]
    scores: NDArray[np.float64]
    classes: NDArray[np.int64]
    kinds: NDArray[np.int64]  # index into _OF_DETECTIONS, or _RIGHT or _IGNORED
    fixed_class: NDArray[np.int64]  # of the instance that it finds once its error is fixed, -1 if none
    instances: NDArray[np.int64]
    found: NDArray[np.int64]
    missed: NDArray[np.int64]
    recalls: NDArray[np.float64]  # at which precision is taken


def error_budget(
    truth: dict[str, Any], matching: Matching, *, foreground: float = 0.5, background: float = 0.1
) -> dict[str, Any]:
    """Sort the errors into those of TIDE, and tell how much AP50 each kind costs.

    The definitions are those of Bolya et al. 2020, "TIDE: A General Toolbox for Identifying Object Detection
    Errors", in the order in which the authors' code asks. A wrong detection is the first that fits of

    - *localisation*: IoU from `background` to `foreground` with an instance of its class;
    - *classification*: `foreground` or more with an instance of another class;
    - *duplicate*: `foreground` or more with an instance of its class that a better detection has found;
    - *background*: no more than `background` with any instance;
    - *both*: what is left, neither class nor place right.

    An instance is *missed* if it is not found and no classification or localisation error points at it, by the
    detection's highest IoU. The kinds are fixed one at a time, starting from the results as they are: a wrong class or
    place is put right if the instance is not found yet, by the best of the detections that point at it; all others
    of the kind are taken away, and missed instances are no longer asked for. The gains do not add up to 1 - AP50.

    Detections matched to crowd regions are ignored, and those beyond the matching's largest limit are left out.

    Args:
        truth, matching: of boxes or of masks, as `match_coco` returned them.
        foreground: IoU from which a detection is right.
        background: IoU up to which it lies on nothing; 0 < background < foreground <= 1.

    Returns:
        `"AP50"`: AP at `foreground` (at 0.5 that of `evaluate_coco`), or -1 if there is nothing to find; `"main"`:
        the gain in AP50 for each of the six kinds, 0 or more; `"special"`: the gain without any `"false_positive"`,
        and without any `"false_negative"`, that is if no instance were asked for that is not found; `"counts"`: how
        many errors of each of these eight; `"kinds"`: for each entry of the results its kind, or None if it is right,
        ignored or left out.

    Raises:
        ValueError: for thresholds out of their range.
    """
    if not 0 < background < foreground <= 1:
        raise ValueError(
            f"error_budget needs 0 < background < foreground <= 1, not background {background} and "
            f"foreground {foreground}"
        )
    found = _sort_out(rematch(matching, thresholds=[foreground]), foreground, background)
    kinds: list[str | None] = [None] * len(matching.cocoDt.anns)
    for number, kind in zip(found.ids.tolist(), found.kinds.tolist(), strict=True):
        if kind >= 0:
            kinds[number - 1] = _OF_DETECTIONS[kind]

    counts = {name: int((found.kinds == kind).sum()) for kind, name in enumerate(_OF_DETECTIONS)}
    counts["missed"] = int(found.missed.sum())
    counts["false_positive"] = int((found.kinds >= 0).sum())
    counts["false_negative"] = int((found.instances - found.found).sum())

    ap = _mean_ap(found)
    fixed = {name: _mean_ap(found, fix=kind) for kind, name in enumerate(_OF_DETECTIONS)}
    fixed["missed"] = _mean_ap(found, instances=found.instances - found.missed)
    special = {
        "false_positive": _mean_ap(found, only_right=True),
        "false_negative": _mean_ap(found, instances=found.found),
    }
    return {
        "AP50": ap,
        # No fix can cost anything, but rounding can.
        "main": {name: max(value - ap, 0.0) for name, value in fixed.items()},
        "special": {name: max(value - ap, 0.0) for name, value in special.items()},
        "counts": counts,
        "kinds": kinds,
    }


def _sort_out(matching: Matching, foreground: float, background: float) -> _Table:
    """The kind of each detection, from a matching at the one threshold `foreground`."""
    params = matching.params
    detections: list[dict[str, Any]] = []
    instances: list[dict[str, Any]] = []
    # [image, class, outcome] of each detection, and [image, class, is found] of each instance.
    of_detections, of_instances = [np.zeros((3, 0), np.int64)], [np.zeros((3, 0), np.int64)]
    for index, row in enumerate(matching.evalImgs):
        if row is None:
            continue
        k, i = divmod(index, len(params.imgIds))
        key = params.imgIds[i], params.catIds[k]
        detections += best_first(matching, *key)
        of_detections.append(_with_place(i, k, _outcome(row)))
        real = np.flatnonzero(~row["gtIgnore"])
        instances += [matching._gts[key][j] for j in real]
        of_instances.append(_with_place(i, k, row["gtMatches"][0, real] > 0))
    images, classes, kinds = np.concatenate(of_detections, axis=1)
    instance_images, instance_classes, found = np.concatenate(of_instances, axis=1)

    scores = np.array([d["score"] for d in detections], np.float64)
    fixed_class, pointed_at = np.full(len(kinds), -1), np.zeros(len(found), bool)
    wrong = np.flatnonzero(kinds == _BACKGROUND)
    groups = (_by_image(images[wrong], len(params.imgIds)), _by_image(instance_images, len(params.imgIds)))
    for here, there in zip(*groups, strict=True):
        here = wrong[here]
        if not here.size or not there.size:
            continue
        ious = overlaps_of(matching, [detections[d] for d in here], [instances[g] for g in there])
        same = classes[here, None] == instance_classes[there]
        kinds[here], target = _kinds(ious, same, foreground, background)
        # An instance that is still to be found goes to the best of those that point at it.
        pointing = np.flatnonzero((target >= 0) & (found[there[target]] == 0))
        pointing = pointing[np.argsort(-scores[here[pointing]], kind="stable")]
        targets, first = np.unique(target[pointing], return_index=True)
        pointed_at[there[targets]] = True
        fixed_class[here[pointing[first]]] = instance_classes[there[targets]]

    def count(which: NDArray[np.bool_]) -> NDArray[np.int64]:
        return np.bincount(instance_classes[which], minlength=len(params.catIds))

    return _Table(
        ids=np.array([d["id"] for d in detections], np.int64),
        scores=scores,
        classes=classes,
        kinds=kinds,
        fixed_class=fixed_class,
        instances=count(found >= 0),
        found=count(found > 0),
        missed=count((found == 0) & ~pointed_at),
        recalls=params.recThrs,
    )


def _with_place(image: int, category: int, values: NDArray[Any]) -> NDArray[np.int64]:
    return np.stack([np.full(len(values), image), np.full(len(values), category), values])


def _by_image(images: NDArray[np.int64], count: int) -> list[NDArray[np.int64]]:
    """For each image the indices of its own, in their order."""
    ends = np.cumsum(np.bincount(images, minlength=count))
    return np.split(np.argsort(images, kind="stable"), ends[:-1])


def _outcome(row: dict[str, Any]) -> NDArray[np.int64]:
    """Right, ignored, or wrong: background, until it is compared with the instances."""
    matched = np.where(row["dtMatches"][0] > 0, _RIGHT, _BACKGROUND)
    return np.where(row["dtIgnore"][0], _IGNORED, matched)


def _kinds(
    ious: NDArray[np.float64], same: NDArray[np.bool_], foreground: float, background: float
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Kinds of wrong detections and the instances that they point at (or -1), from `[detections, instances]`."""
    of_class, of_other = np.where(same, ious, 0), np.where(same, 0, ious)
    best, best_other = of_class.max(axis=1), of_other.max(axis=1)
    kinds = np.select(
        [
            (background <= best) & (best <= foreground),
            best_other >= foreground,
            best >= foreground,
            np.maximum(best, best_other) <= background,
        ],
        [_LOCALISATION, _CLASSIFICATION, _DUPLICATE, _BACKGROUND],
        _BOTH,
    )
    target = np.full(len(ious), -1)
    target = np.where(kinds == _LOCALISATION, of_class.argmax(axis=1), target)
    return kinds, np.where(kinds == _CLASSIFICATION, of_other.argmax(axis=1), target)


def _mean_ap(
    found: _Table,
    *,
    fix: int | None = None,
    instances: NDArray[np.int64] | None = None,
    only_right: bool = False,
) -> float:
    """Mean AP of the classes that have instances, one kind of errors fixed, -1 without such classes."""
    instances = found.instances if instances is None else instances
    right = found.kinds == _RIGHT
    kept = right | (found.kinds >= 0) & (not only_right)
    classes = found.classes
    if fix is not None:
        of_kind = found.kinds == fix
        put_right = of_kind & (found.fixed_class >= 0)
        right, kept = right | put_right, kept & (~of_kind | put_right)
        classes = np.where(put_right, found.fixed_class, classes)
    # By class, then falling score, then as pycocotools has equal ones.
    order = np.lexsort((-found.scores, classes))
    order = order[kept[order]]
    ends = np.searchsorted(classes[order], np.arange(len(instances) + 1))
    values = [
        _ap(right[order[ends[k] : ends[k + 1]]], int(instances[k]), found.recalls)
        for k in np.flatnonzero(found.instances).tolist()
    ]
    return float(np.mean(values)) if values else -1.0


def _ap(right: NDArray[np.bool_], instances: int, recalls: NDArray[np.float64]) -> float:
    """COCO's AP of detections, best first: the mean precision at the recalls."""
    if not instances:  # a fix took the last one away: perfect, unless there are detections of nothing
        return float(not right.size)
    true = np.cumsum(right)
    precision = true / np.arange(1, true.size + 1)
    precision = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0)
    reached = np.searchsorted(true / instances, recalls, side="left")
    return float(precision[reached].mean())
