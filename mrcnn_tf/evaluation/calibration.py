"""Whether a score means what it says: how often detections of that score are right."""

from __future__ import annotations

from typing import Any

import numpy as np

from mrcnn_tf.evaluation.matching import Matching, rematch

__all__ = ["calibration"]


def calibration(matching: Matching, *, iou_threshold: float = 0.5, bins: int = 10) -> dict[str, Any]:
    """Compare the scores of detections with the share of them that is right.

    A detection is right if COCO's matching gives it an instance of its class. Those matched to crowd regions and those
    beyond the matching's largest limit are left out.

    Args:
        matching: of boxes or of masks, as `match_coco` returned it.
        iou_threshold: IoU from which a detection is right, in (0, 1].
        bins: into how many ranges of equal width the scores are sorted.

    Returns:
        `"edges"`: of the ranges, `bins + 1` from 0 to 1; the lower one belongs to a range, and 1 to the last;
        `"counts"`: detections; `"mean_score"` and `"precision"`: of each range, None where it is empty;
        `"expected_error"`: the mean difference of the two, each range weighted by its detections (the expected
        calibration error of Naeini et al. 2015, "Obtaining Well Calibrated Probabilities Using Bayesian Binning"),
        or -1 if there is no detection.

    Raises:
        ValueError: for settings out of their range, and for scores that do not lie in [0, 1].
    """
    if not 0 < iou_threshold <= 1:
        raise ValueError(f"iou_threshold must lie above 0 and at most at 1, not {iou_threshold}")
    if bins < 1:
        raise ValueError(f"bins must be 1 or more, not {bins}")
    rows = [row for row in rematch(matching, thresholds=[iou_threshold]).evalImgs if row is not None]
    counted = np.concatenate([np.zeros(0, bool), *(~row["dtIgnore"][0] for row in rows)])
    scores = np.concatenate([np.zeros(0), *(row["dtScores"] for row in rows)])[counted]
    right = np.concatenate([np.zeros(0, bool), *(row["dtMatches"][0] > 0 for row in rows)])[counted]
    outside = scores[(scores < 0) | (scores > 1)]
    if outside.size:
        raise ValueError(f"calibration needs scores from 0 to 1, but the results have {outside[0]:g}")

    edges = np.linspace(0, 1, bins + 1)
    place = np.clip(np.searchsorted(edges, scores, side="right") - 1, 0, bins - 1)
    counts = np.bincount(place, minlength=bins)
    sums = [np.bincount(place, weights=values, minlength=bins) for values in (scores, right)]
    mean_score, precision = (
        [float(s / n) if n else None for s, n in zip(total, counts, strict=True)] for total in sums
    )
    error = np.abs(sums[0] - sums[1]).sum() / scores.size if scores.size else -1.0
    return {
        "edges": edges.tolist(),
        "counts": counts.tolist(),
        "mean_score": mean_score,
        "precision": precision,
        "expected_error": float(error),
    }
