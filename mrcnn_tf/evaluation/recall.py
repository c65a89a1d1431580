"""How many instances the proposals cover: the bound that the first stage sets for the second."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mrcnn_tf.geometry.overlap import box_iou

__all__ = ["ProposalRecall", "assign", "mean_recall", "proposal_recall", "with_area"]

_THRESHOLDS = np.linspace(0.5, 0.95, 10)


class ProposalRecall:
    """Class-agnostic recall of proposals, image by image; keeps one number per instance and per limit.

    Every instance is given a proposal of its own, best overlaps first, as COCO's average recall for proposals
    (Hosang et al., "What makes for effective detection proposals?", 2015) has it.

    Args:
        at: how many of the best proposals of each image to take.

    Raises:
        ValueError: if `at` is empty or holds a number below 1.
    """

    def __init__(self, at: Sequence[int] = (100, 300, 1000)):  # noqa: D107
        if not at or min(at) < 1:
            raise ValueError(f"proposal recall needs positive numbers of proposals, not {tuple(at)}")
        self._overlaps: dict[int, list[NDArray[np.float64]]] = {int(limit): [] for limit in sorted(at)}

    def update(
        self,
        proposals: ArrayLike,
        boxes: ArrayLike,
        *,
        scores: ArrayLike | None = None,
        crowd: ArrayLike | None = None,
    ) -> None:
        """Add one image.

        Args:
            proposals: `[N, 4]`, `[y1, x1, y2, x2]`; highest score first unless `scores` are given. Proposals
                without area, such as padding, are dropped.
            boxes: `[M, 4]` of the truth, in the same pixels.
            scores: `[N]`, to sort the proposals by.
            crowd: bool `[M]`; crowd regions need not be found.
        """
        found = np.asarray(proposals, np.float32).reshape(-1, 4)
        wanted = np.asarray(boxes, np.float32).reshape(-1, 4)
        if scores is not None:
            found = found[np.argsort(-np.asarray(scores).reshape(-1), kind="stable")]
        found = with_area(found)
        if crowd is not None:
            wanted = wanted[~np.asarray(crowd, bool).reshape(-1)]
        iou = box_iou(found[: max(self._overlaps)], wanted)
        for limit, overlaps in self._overlaps.items():
            overlaps.append(assign(iou[:limit]))

    def extend(self, other: ProposalRecall) -> None:
        """Add the images of another one with the same limits."""
        for limit, overlaps in self._overlaps.items():
            overlaps += other._overlaps[limit]

    def result(self) -> dict[str, float]:
        """Recall so far, in [0, 1]; -1 if there was no instance.

        Returns:
            For each limit n, `"recall@n"`: the mean over the IoU thresholds 0.50, 0.55, ..., 0.95 (COCO's
            AR), and `"recall50@n"`: at IoU 0.50.
        """
        result: dict[str, float] = {}
        for limit, parts in self._overlaps.items():
            mean, at_50 = mean_recall(np.concatenate([np.zeros(0), *parts]))
            result |= {f"recall@{limit}": mean, f"recall50@{limit}": at_50}
        return result


def proposal_recall(
    proposals: Sequence[ArrayLike], boxes: Sequence[ArrayLike], at: Sequence[int] = (100, 300, 1000)
) -> dict[str, float]:
    """Recall of proposals over a set of images; see `ProposalRecall`, which takes them one at a time.

    Args:
        proposals: per image `[N, 4]`, highest score first.
        boxes: per image `[M, 4]`, the truth without crowd regions.
        at: how many of the best proposals of each image to take.

    Returns:
        `{"recall@100": ..., "recall50@100": ..., ...}`.

    Raises:
        ValueError: if the two do not have the same number of images.
    """
    if len(proposals) != len(boxes):
        raise ValueError(
            f"proposals are of {len(proposals)} images, but the truth is of {len(boxes)}; give one per image"
        )
    recall = ProposalRecall(at)
    for found, wanted in zip(proposals, boxes, strict=True):
        recall.update(found, wanted)
    return recall.result()


def mean_recall(overlaps: NDArray[np.float64]) -> tuple[float, float]:
    """Share of the instances whose overlap `[M]` reaches a threshold: mean over 0.50, 0.55, ..., 0.95, and at 0.50.

    -1 for both if there is no instance.
    """
    if not overlaps.size:
        return -1.0, -1.0
    # Half of float32's rounding, so that an overlap of exactly 0.7 counts at 0.7.
    recalls = (overlaps[:, None] >= _THRESHOLDS - 1e-6).mean(axis=0)
    return float(recalls.mean()), float(recalls[0])


def with_area(boxes: NDArray[np.float32]) -> NDArray[np.float32]:
    """The boxes `[N, 4]` without those that have no area, such as padding."""
    return boxes[(boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])]


def assign(iou: NDArray[np.float64]) -> NDArray[np.float64]:
    """Overlap `[M]` of every instance with its own proposal: again and again, the best pair is taken out."""
    count, instances = iou.shape
    overlaps = np.zeros(instances)
    if not count:
        return overlaps
    iou = iou.copy()
    best = iou.argmax(axis=0)
    value = iou[best, np.arange(instances)]
    for _ in range(min(count, instances)):
        instance = int(value.argmax())
        overlaps[instance] = value[instance]
        taken = best[instance]
        iou[taken] = -1
        iou[:, instance] = value[instance] = -1
        # Only those that wanted the same proposal have to choose again.
        again = np.flatnonzero((best == taken) & (value >= 0))
        best[again] = iou[:, again].argmax(axis=0)
        value[again] = iou[best[again], again]
    return overlaps
