"""What the proposals cover: recall by their number and by size, and how close the best one comes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mrcnn_tf.evaluation.recall import assign, mean_recall, with_area
from mrcnn_tf.geometry.overlap import box_iou

__all__ = ["BINS", "SIZES", "ProposalReport", "size_of"]

SIZES = ("small", "medium", "large")
BINS = 20  # of the histogram: 0.05 of IoU each


class ProposalReport:
    """Class-agnostic recall of proposals by number and size, image by image; keeps a few numbers per instance.

    Recall is that of `mrcnn_tf.evaluation.recall.ProposalRecall`: every instance gets a proposal of its own, best
    pairs first. The histogram is of each instance's best proposal, whatever others it serves.

    Args:
        at: how many of the best proposals of each image to take, in this order.

    Raises:
        ValueError: if `at` is empty or holds a number below 1.
    """

    def __init__(self, at: Sequence[int] = (10, 100, 300, 1000)):  # noqa: D107
        if not at or min(at) < 1:
            raise ValueError(f"proposal recall needs positive numbers of proposals, not {tuple(at)}")
        self._own: dict[int, list[NDArray[np.float64]]] = {int(limit): [] for limit in sorted(set(at))}
        self._best: list[NDArray[np.float64]] = []
        self._sizes: list[NDArray[np.int64]] = []

    def update(self, proposals: ArrayLike, boxes: ArrayLike, *, crowd: ArrayLike | None = None) -> None:
        """Add one image.

        Args:
            proposals: `[N, 4]`, `[y1, x1, y2, x2]`, best first, in pixels of the original image. Proposals without
                area, such as padding, are dropped.
            boxes: `[M, 4]` of the truth, in the same pixels.
            crowd: bool `[M]`; crowd regions need not be found and are left out.
        """
        found = with_area(np.asarray(proposals, np.float32).reshape(-1, 4))
        wanted = np.asarray(boxes, np.float32).reshape(-1, 4)
        if crowd is not None:
            wanted = wanted[~np.asarray(crowd, bool).reshape(-1)]
        iou = box_iou(found, wanted)
        for limit, overlaps in self._own.items():
            overlaps.append(assign(iou[:limit]))
        self._best.append(iou.max(axis=0, initial=0.0))
        self._sizes.append(size_of(wanted))

    def result(self) -> dict[str, Any]:
        """What was added so far.

        Returns:
            `instances`: how many there are, `all` and by size; `recall`: for each number of proposals `at`, the mean
            over the IoU thresholds 0.50, 0.55, ..., 0.95 for `all` and by size, and `all50`, at IoU 0.50, in [0, 1] or
            -1 where there is no such instance; `best_iou`: `edges` `[21]` and `counts` `[20]` of the histogram, the
            last bin with its upper edge.
        """
        sizes = np.concatenate([np.zeros(0, np.int64), *self._sizes])
        rows = []
        for limit, parts in self._own.items():
            overlaps = np.concatenate([np.zeros(0), *parts])
            mean, at_50 = mean_recall(overlaps)
            by_size = {name: mean_recall(overlaps[sizes == i])[0] for i, name in enumerate(SIZES)}
            rows.append({"at": limit, "all": mean, "all50": at_50, **by_size})
        best = np.concatenate([np.zeros(0), *self._best])
        # Rounding must not lift a perfect proposal over the last edge.
        counts, edges = np.histogram(np.minimum(best, 1.0), bins=BINS, range=(0.0, 1.0))
        instances = {name: int((sizes == i).sum()) for i, name in enumerate(SIZES)}
        return {
            "instances": {"all": len(sizes), **instances},
            "recall": rows,
            "best_iou": {"edges": [round(float(e), 10) for e in edges], "counts": counts.tolist()},
        }


def size_of(boxes: NDArray[np.floating]) -> NDArray[np.int64]:
    """Index into `SIZES` of each box `[N, 4]`, by COCO's bounds on its area: 32^2 and 96^2 pixels.

    COCO counts a box of exactly 32^2 pixels as small and as medium; here it is medium, and one of 96^2 large.
    """
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return np.digitize(area, [32.0**2, 96.0**2])
