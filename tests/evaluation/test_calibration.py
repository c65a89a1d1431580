"""Calibration: hand-made cases, and a literal count."""

from __future__ import annotations

import pytest

from mrcnn_tf.evaluation.calibration import calibration
from mrcnn_tf.evaluation.coco import match_coco
from tests.evaluation.made import annotation, entry, messy, truth_of


def calibrated(truth, results, **settings):
    _, matchings = match_coco(truth, results, iou_types=["bbox"])
    return calibration(matchings["bbox"], **settings)


def squares(*scores, right):
    """Detections with these scores, of which the first `right` lie on an instance."""
    boxes = [[30 * (i % 6), 30 * (i // 6), 20, 20] for i in range(len(scores))]
    truth = truth_of([annotation(1, 10, box) for box in boxes[:right]], images=[1])
    return truth, [entry(1, 10, box, score) for box, score in zip(boxes, scores, strict=True)]


def test_by_hand():
    # 0.9 is right, 0.85 wrong (the instance is elsewhere); 0.2, 0.3 and 0.4 wrong.
    found = calibrated(*squares(0.9, 0.85, 0.2, 0.3, 0.4, right=1), bins=2)
    assert found["edges"] == [0, 0.5, 1] and found["counts"] == [3, 2]
    assert found["mean_score"] == pytest.approx([0.3, 0.875]) and found["precision"] == [0, 0.5]
    assert found["expected_error"] == pytest.approx((3 * 0.3 + 2 * 0.375) / 5)


def test_scores_that_say_the_truth():
    found = calibrated(*squares(1.0, 1.0, 0.0, 0.0, right=2))
    assert found["expected_error"] == 0 and found["counts"] == [2, *[0] * 8, 2]
    assert found["precision"] == [0, *[None] * 8, 1] and found["mean_score"] == found["precision"]


def test_an_edge_belongs_to_the_range_above():
    assert calibrated(*squares(0.25, 0.5, 1.0, right=0), bins=4)["counts"] == [0, 1, 1, 1]


@pytest.mark.parametrize("iou_threshold", [0.5, 0.8])
@pytest.mark.parametrize("seed", range(3))
def test_equals_a_literal_count(seed, iou_threshold):
    truth, results = messy(seed)
    found = calibrated(truth, results, iou_threshold=iou_threshold, bins=7)
    bins: list[list[tuple[float, bool]]] = [[] for _ in range(7)]
    taken = set()
    for r in sorted(results, key=lambda r: -r["score"]):
        best, best_iou = None, iou_threshold
        for a in truth["annotations"]:
            if (a["image_id"], a["category_id"]) != (r["image_id"], r["category_id"]) or a["id"] in taken:
                continue
            (x, y, w, h), (u, v, s, t) = a["bbox"], r["bbox"]
            both = max(min(x + w, u + s) - max(x, u), 0) * max(min(y + h, v + t) - max(y, v), 0)
            if both / (w * h + s * t - both) >= best_iou:
                best, best_iou = a["id"], both / (w * h + s * t - both)
        taken.add(best)
        bins[int(r["score"] * 7)].append((r["score"], best is not None))
    means = [[sum(values) / len(b) for values in zip(*b, strict=True)] for b in bins]
    assert found["counts"] == [len(b) for b in bins] and min(found["counts"]) > 0
    assert found["mean_score"] == pytest.approx([score for score, _ in means])
    assert found["precision"] == pytest.approx([share for _, share in means])
    error = sum(len(b) * abs(s - p) for b, (s, p) in zip(bins, means, strict=True)) / len(results)
    assert found["expected_error"] == pytest.approx(error)


def test_what_is_ignored_is_left_out():
    truth = truth_of([annotation(1, 10, [0, 0, 100, 100], crowd=1), annotation(1, 10, [120, 0, 20, 20])])
    results = [entry(1, 10, [10, 10, 20, 20], 0.3), entry(1, 10, [120, 0, 20, 20], 0.9)]
    found = calibrated(truth, results)
    assert sum(found["counts"]) == 1 and found["expected_error"] == pytest.approx(0.1)


def test_without_results():
    found = calibrated(messy(0)[0], [], bins=3)
    assert found["counts"] == [0] * 3 and found["precision"] == found["mean_score"] == [None] * 3
    assert found["expected_error"] == -1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bins": 0}, "bins must be 1 or more, not 0"),
        ({"iou_threshold": 0}, "iou_threshold must lie above 0 and at most at 1, not 0"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        calibrated(*messy(0), **settings)


def test_scores_that_are_no_probabilities():
    with pytest.raises(ValueError, match="scores from 0 to 1, but the results have 87.5"):
        calibrated(*squares(0.3, 87.5, right=1))
