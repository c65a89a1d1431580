"""AP by size and by crowding: equal to pycocotools' area ranges, to AP on part of the images, to huddled AP."""

from __future__ import annotations

import contextlib
import io
from collections import Counter

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mrcnn_tf.evaluation.coco import evaluate_coco, match_coco
from mrcnn_tf.evaluation.huddled import huddled_metrics
from mrcnn_tf.evaluation.slices import ap_by_crowding, ap_by_size
from tests.evaluation.made import annotation, entry, messy, truth_of

SCORES = ("bbox/AP", "bbox/AP50", "bbox/AP75", "segm/AP", "segm/AP50", "segm/AP75")


def scores_of(metrics):
    return [metrics[key] for key in SCORES]


def by_pycocotools(truth, results, iou_type, areas):
    """AP in a range of areas as COCOeval itself has it."""
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = truth | {"annotations": [{**a, "id": a["id"] + 1} for a in truth["annotations"]]}
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes([dict(r) for r in results]), iou_type)
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [areas], ["all"]
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][..., 0, -1]
    return precision[precision > -1].mean() if (precision > -1).any() else -1


class TestSize:
    @pytest.mark.parametrize("seed", range(3))
    def test_equals_pycocotools_area_ranges(self, seed):
        truth, results = messy(seed, crowds=0.1)
        rows = ap_by_size(*match_coco(truth, results))
        edges = [0, 16, 32, 64, 96, 1000]
        areas = [a["area"] for a in truth["annotations"] if not a["iscrowd"]]
        assert [row["instances"] for row in rows] == np.histogram(np.sqrt(areas), edges)[0].tolist()
        for row, low, high in zip(rows, edges[:-1], edges[1:], strict=True):
            for iou_type in ("bbox", "segm"):
                expected = by_pycocotools(truth, results, iou_type, [low**2, high**2 - 0.5])
                assert row[f"{iou_type}/AP"] == pytest.approx(expected, abs=1e-9)
        assert 0 < rows[1]["bbox/AP"] < 1 and scores_of(rows[4]) == [-1] * 6

    def test_every_instance_is_in_one_range(self):
        sides = (4, 15, 16, 31, 32, 63, 64, 95, 96, 150)
        annotations = [annotation(image, 10, [0, 0, side, side]) for image, side in enumerate(sides)]
        found = [entry(a["image_id"], 10, a["bbox"], 0.9) for a in annotations]
        rows = ap_by_size(*match_coco(truth_of(annotations, classes=1), found[:4]))
        assert [row["instances"] for row in rows] == [2] * 5
        assert [row["segm/AP50"] for row in rows] == pytest.approx([1, 1, 0, 0, 0])
        assert rows[0]["label"] == "under 16 px" and rows[4]["label"] == "96 px and more"

    def test_without_areas_the_boxes_count(self):
        truth, results = messy(0)
        expected = ap_by_size(*match_coco(truth, results))
        for a in truth["annotations"]:
            del a["area"]
        assert ap_by_size(*match_coco(truth, results)) == expected


class TestCrowding:
    @pytest.mark.parametrize("seed", range(2))
    def test_instances_in_the_image(self, seed):
        truth, results = messy(seed, images=20, crowds=0.1)
        rows = ap_by_crowding(*match_coco(truth, results))[:5]
        counts = Counter(a["image_id"] for a in truth["annotations"] if not a["iscrowd"])
        for row, low, high in zip(rows, (1, 2, 5, 10, 20), (1, 4, 9, 19, 999), strict=True):
            images = {i for i, n in counts.items() if low <= n <= high}
            assert row["instances"] == sum(counts[i] for i in images)
            if not images:
                assert scores_of(row) == [-1] * 6
                continue
            part = {
                **truth,
                "images": [i for i in truth["images"] if i["id"] in images],
                "annotations": [a for a in truth["annotations"] if a["image_id"] in images],
            }
            expected = evaluate_coco(part, [r for r in results if r["image_id"] in images])
            assert scores_of(row) == pytest.approx(scores_of(expected), abs=1e-12)
        assert all(row["instances"] for row in rows[:3])

    def test_nearest_neighbour(self):
        truth, results = messy(5, images=20, crowds=0.1)
        rows = ap_by_crowding(*match_coco(truth, results))[5:]
        assert sum(row["instances"] for row in rows) == sum(not a["iscrowd"] for a in truth["annotations"])
        assert all(row["instances"] for row in rows[:4])
        huddled = huddled_metrics(truth, results, overlaps=(0.3,))
        above = [
            row for row in rows if row["label"] in {"neighbour's IoU 0.3 to 0.5", "neighbour's IoU above 0.5"}
        ]
        assert sum(row["instances"] for row in above) == huddled["huddled/any@0.3/instances"]

    def test_only_the_slice_in_which_something_is_wrong_suffers(self):
        # Two squares of IoU 1/3, two of 1/19, and one alone; of the first pair, one is not found.
        boxes = [[0, 0, 40, 40], [20, 0, 40, 40], [0, 100, 40, 40], [36, 100, 40, 40], [150, 150, 20, 20]]
        truth = truth_of([annotation(1, 10, box) for box in boxes], classes=1)
        results = [entry(1, 10, box, 0.9) for box in boxes[1:]]
        rows = ap_by_crowding(*match_coco(truth, results))
        assert [row["instances"] for row in rows] == [0, 0, 5, 0, 0, 1, 2, 0, 2, 0]
        found = [row["segm/AP"] for row in rows]
        assert found == pytest.approx([-1, -1, 81 / 101, -1, -1, 1, 1, -1, 51 / 101, -1])

    def test_the_last_slice_is_huddled_ap(self):
        boxes = [[0, 0, 40, 40], [10, 0, 40, 40], [100, 100, 20, 20]]
        truth = truth_of([annotation(1, 10, box) for box in boxes], classes=1)
        results = [entry(1, 10, box, score) for box, score in zip(boxes[1:], (0.5, 0.9), strict=True)]
        row = ap_by_crowding(*match_coco(truth, results))[-1]
        huddled = huddled_metrics(truth, results, overlaps=(0.5,))
        assert row["instances"] == 2
        assert scores_of(row) == [huddled[f"huddled/any@0.5/{key}"] for key in SCORES]


def test_only_what_was_matched():
    truth, matchings = match_coco(*messy(0), iou_types=["bbox"])
    for rows in (ap_by_size(truth, matchings), ap_by_crowding(truth, matchings)):
        assert all(set(row) == {"label", "instances", *SCORES[:3]} for row in rows)
