"""The confusion matrix: hand-made cases, and a literal count."""

from __future__ import annotations

import pytest

from mrcnn_tf.evaluation.coco import match_coco
from mrcnn_tf.evaluation.confusion import confusion_matrix
from tests.evaluation.made import annotation, entry, messy, truth_of


def confusion(truth, results, iou_type="bbox", **settings):
    truth, matchings = match_coco(truth, results, iou_types=[iou_type])
    return confusion_matrix(truth, matchings[iou_type], **settings)


def literal(truth, results, iou_threshold, score_threshold):
    """The same for boxes, pair by pair."""

    def shared(a, b):
        width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
        height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
        return max(width, 0) * max(height, 0)

    names = [c["id"] for c in truth["categories"]]
    matrix = [[0] * (len(names) + 1) for _ in range(len(names) + 1)]
    for image in truth["images"]:
        things = [a for a in truth["annotations"] if a["image_id"] == image["id"]]
        taken = set()
        for r in sorted(results, key=lambda r: -r["score"]):
            if r["image_id"] != image["id"] or r["score"] < score_threshold:
                continue
            best, best_iou, in_crowd = None, iou_threshold, False
            for a in things:
                both, area = shared(r["bbox"], a["bbox"]), r["bbox"][2] * r["bbox"][3]
                if a["iscrowd"]:
                    in_crowd |= both / area >= iou_threshold and a["category_id"] == r["category_id"]
                elif a["id"] not in taken and both / (area + a["area"] - both) >= best_iou:
                    best, best_iou = a, both / (area + a["area"] - both)
            column = names.index(r["category_id"])
            if best is not None:
                taken.add(best["id"])
                matrix[names.index(best["category_id"])][column] += 1
            elif not in_crowd:
                matrix[-1][column] += 1
        for a in things:
            if a["id"] not in taken and not a["iscrowd"]:
                matrix[names.index(a["category_id"])][-1] += 1
    return matrix


@pytest.mark.parametrize("thresholds", [(0.5, 0.5), (0.3, 0.0), (0.75, 0.2)])
@pytest.mark.parametrize("seed", range(3))
def test_equals_a_literal_count(seed, thresholds):
    truth, results = messy(seed, crowds=0.2)
    iou_threshold, score_threshold = thresholds
    settings = {"iou_threshold": iou_threshold, "score_threshold": score_threshold}
    expected = literal(truth, results, iou_threshold, score_threshold)
    for iou_type in ("bbox", "segm"):
        found = confusion(truth, results, iou_type, **settings)
        assert found == {"classes": ["class 1", "class 2", "class 3"], "matrix": expected}
    wrong_class = sum(expected[i][j] for i in range(3) for j in range(3) if i != j)
    assert wrong_class and sum(expected[-1]) and sum(row[-1] for row in expected)


def test_each_cell():
    truth = truth_of(
        [
            annotation(1, 10, [0, 0, 40, 40]),
            annotation(1, 10, [100, 0, 40, 40]),
            annotation(1, 20, [0, 100, 40, 40]),
        ]
    )
    results = [
        entry(1, 10, [0, 0, 40, 40], 0.9),  # right
        entry(1, 20, [100, 0, 40, 40], 0.8),  # class 1 taken for class 2
        entry(1, 10, [100, 0, 40, 40], 0.7),  # too late
        entry(1, 20, [0, 100, 40, 40], 0.4),  # below the threshold
    ]
    assert confusion(truth, results)["matrix"] == [[1, 1, 0, 0], [0, 0, 0, 1], [0, 0, 0, 0], [1, 0, 0, 0]]


def test_its_own_class_is_taken_where_two_overlap_the_same():
    same = [annotation(1, 10, [0, 0, 40, 40]), annotation(1, 20, [0, 0, 40, 40])]
    for truth in (same, same[::-1]):
        found = confusion(truth_of(truth, classes=2), [entry(1, 20, [0, 0, 40, 40], 0.9)])
        assert found["matrix"] == [[0, 0, 1], [0, 1, 0], [0, 0, 0]]


def test_in_a_crowd_of_its_class_a_detection_does_not_count():
    truth = truth_of([annotation(1, 10, [0, 0, 100, 100], crowd=1)], classes=2)
    results = [entry(1, 10, [10, 10, 20, 20], 0.9), entry(1, 20, [50, 50, 20, 20], 0.9)]
    assert confusion(truth, results)["matrix"] == [[0, 0, 0], [0, 0, 0], [0, 1, 0]]


def test_without_results_everything_is_missed():
    truth, _ = messy(0)
    matrix = confusion(truth, [])["matrix"]
    wanted = [sum(a["category_id"] == c["id"] for a in truth["annotations"]) for c in truth["categories"]]
    assert [row[-1] for row in matrix] == [*wanted, 0] and sum(map(sum, matrix)) == sum(wanted)


@pytest.mark.parametrize("threshold", [0, 1.5, float("nan")])
def test_a_threshold_out_of_range(threshold):
    with pytest.raises(ValueError, match="iou_threshold must lie above 0"):
        confusion(*messy(0), iou_threshold=threshold)
