"""Redundant masks of one image: which belong together, and one mask for each group.

Everything happens on run-length codes; the order of the input has no influence.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pycocotools import mask as coco_mask

from mrcnn_tf.geometry.masks import rle_counts
from mrcnn_tf.geometry.overlap import compressed, iou_with, mask_boxes
from mrcnn_tf.postprocess.suppress import Groups, best_first, group_numbers

__all__ = ["Merged", "group_masks", "merge_masks", "vote"]


class Merged(NamedTuple):
    """M instances made of N, best first.

    Attributes:
        masks: M run-length codes, compressed.
        scores: float64 `[M]`, the best of each group.
        class_ids: int64 `[M]`, that of the best of each group.
        sources: for each of the M the indices into the N that it is made of, best first.
    """

    masks: list[dict[str, Any]]
    scores: NDArray[np.float64]
    class_ids: NDArray[np.int64]
    sources: list[list[int]]


def group_masks(
    masks: Sequence[dict[str, Any]],
    scores: ArrayLike,
    class_ids: ArrayLike,
    *,
    iou_threshold: float = 0.5,
    rule: Literal["connected", "greedy"] = "connected",
    groups: Groups = "class",
) -> list[list[int]]:
    """Puts masks together that have an IoU above a threshold.

    Args:
        masks: N run-length codes of one image.
        scores: `[N]`, finite.
        class_ids: integers `[N]`.
        iou_threshold: in [0, 1].
        rule: `"connected"`: two masks above the threshold are in one group, and so is all that is linked through
            others. `"greedy"`: the best mask takes all that have such an IoU with itself, then the best of the
            others does, and so on; these are the groups that `suppress` keeps the best of.
        groups: whose masks can belong together: `"class"`, `"all"` or lists of class ids, as in `suppress`.

    Returns:
        Lists of indices that hold each of the N once; the best of a group is first, and groups are in the order of
        their best. Equal scores go by class and mask.

    Raises:
        ValueError: for lengths or sizes that differ, scores that are not finite, or settings that are not known.
    """
    if rule not in ("connected", "greedy"):
        raise ValueError(f"rule must be 'connected' or 'greedy', not {rule!r}")
    if not 0 <= iou_threshold <= 1:
        raise ValueError(f"iou_threshold must be in [0, 1], not {iou_threshold}")
    _same_size(masks)
    boxes = mask_boxes(masks)
    order = best_first(boxes, scores, class_ids, masks)
    members = group_numbers(class_ids, groups)
    left, found = order, []
    while left.size:
        group, left = [int(left[0])], left[1:]
        for index in group:  # grows meanwhile
            rivals = left[members[left] == members[index]]
            near = rivals[iou_with(index, rivals, boxes, masks) > iou_threshold]
            group += near.tolist()
            left = left[~np.isin(left, near)]
            if rule == "greedy":
                break
        found.append(group)
    rank = np.argsort(order)
    return [sorted(group, key=rank.__getitem__) for group in found]


def merge_masks(
    masks: Sequence[dict[str, Any]],
    scores: ArrayLike,
    class_ids: ArrayLike,
    *,
    keep: Literal["best", "union", "intersection", "vote"] = "best",
    iou_threshold: float = 0.5,
    rule: Literal["connected", "greedy"] = "connected",
    groups: Groups = "class",
) -> Merged:
    """Makes one instance of each group of redundant masks.

    Args:
        masks, scores, class_ids, iou_threshold, rule, groups: see `group_masks`.
        keep: the group's mask. `"best"`: that of the highest score; `"union"`: the pixels of any; `"intersection"`:
            those of all; `"vote"`: those whose masks have at least half of the group's scores (see `vote`). Where
            no pixel is left, as can be in a connected group, it is the best one's mask.

    Returns:
        The instances, best first, with the score and class of the group's best, and what they were made of.

    Raises:
        ValueError: as `group_masks`; for a vote with negative scores.
    """
    scores = np.asarray(scores, np.float64).reshape(-1)
    if keep not in ("best", "union", "intersection", "vote"):
        raise ValueError(f"keep must be 'best', 'union', 'intersection' or 'vote', not {keep!r}")
    class_ids = np.asarray(class_ids, np.int64).reshape(-1)
    sources = group_masks(masks, scores, class_ids, iou_threshold=iou_threshold, rule=rule, groups=groups)
    made = []
    for group in sources:
        parts = [compressed(masks[i]) for i in group]
        if keep == "best" or len(parts) == 1:
            one = parts[0]
        elif keep == "vote":
            one = vote(parts, scores[group])
        else:
            one = coco_mask.merge(parts, intersect=keep == "intersection")
        made.append(one if coco_mask.area(one) else parts[0])
    best = [group[0] for group in sources]
    return Merged(made, scores[best], class_ids[best], sources)


def vote(masks: Sequence[dict[str, Any]], weights: ArrayLike) -> dict[str, Any]:
    """The pixels that have at least half of all weight, as a run-length code.

    Args:
        masks: N >= 1 run-length codes of one image.
        weights: `[N]`, not negative; all zero means all equal.

    Raises:
        ValueError: for a negative weight, or sizes that differ.
    """
    weights = np.asarray(weights, np.float64).reshape(-1)
    if (weights < 0).any():
        raise ValueError("a vote needs scores that are not negative")
    _same_size(masks)
    if not weights.any():
        weights = np.ones_like(weights)
    # Between two places where some mask begins or ends, the weight does not change: no pixels are needed.
    height, width = masks[0]["size"]
    edges = [np.cumsum(rle_counts(rle)) for rle in masks]
    places = np.concatenate([[0], *edges, [height * width]])
    steps = np.concatenate(
        [[0.0], *(np.where(np.arange(len(e)) % 2, -w, w) for e, w in zip(edges, weights, strict=True)), [0.0]]
    )
    order = np.argsort(places, kind="stable")
    places, weight = places[order], np.cumsum(steps[order])
    lengths = np.diff(places)
    # Sums of floats: exactly half must not fail by their rounding.
    inside = weight[:-1][lengths > 0] >= (0.5 - 1e-9) * weights.sum()
    lengths = lengths[lengths > 0]
    starts = np.flatnonzero(np.diff(inside, prepend=False))
    counts = np.diff(np.concatenate([[0], np.cumsum(lengths)])[np.append(starts, len(lengths))], prepend=0)
    return coco_mask.frPyObjects({"size": [height, width], "counts": counts.tolist()}, height, width)


def _same_size(masks: Sequence[dict[str, Any]]) -> None:
    sizes = {tuple(rle["size"]) for rle in masks}
    if len(sizes) > 1:
        raise ValueError(f"masks of one image must have one size, not {sorted(sizes)}")
