"""Metrics of huddled and hidden instances: hand-made cases, parity with COCO's own, real sets."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from mrcnn_tf.evaluation.coco import evaluate_coco
from mrcnn_tf.evaluation.huddled import (
    evaluate_all,
    format_huddled,
    hidden_instances,
    huddled_metrics,
    neighbour_overlaps,
)

SIZE = 100
CATEGORIES = [{"id": 2, "name": "cat"}, {"id": 9, "name": "dog"}]
# At (10, 10) and (20, 10) two squares of 30: intersection 600, union 1200, IoU 0.5. At (60, 60) one that is alone.
PAIR, LONER = [(2, 10, 10, 30), (2, 20, 10, 30)], (2, 60, 60, 30)


def rle(mask):
    code = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    return {"size": code["size"], "counts": code["counts"].decode()}


def square(x, y, side):
    mask = np.zeros((SIZE, SIZE), np.uint8)
    mask[y : y + side, x : x + side] = 1
    return mask


def truth_of(*boxes, crowd=(), masks=None):
    """One image with squares `(category, x, y, side)`, or other masks in them."""
    annotations = []
    for i, (category, x, y, side) in enumerate(boxes):
        mask = square(x, y, side) if masks is None else masks[i]
        annotations.append(
            {"id": i, "image_id": 5, "category_id": category, "bbox": [x, y, side, side]}
            | {"area": int(mask.sum()), "iscrowd": int(i in crowd), "segmentation": rle(mask)}
        )
    images = [{"id": 5, "height": SIZE, "width": SIZE, "file_name": "a.png"}]
    return {"images": images, "categories": CATEGORIES, "annotations": annotations}


def result(category, x, y, side, score=0.9, mask=None):
    entry = {"image_id": 5, "category_id": category, "bbox": [x, y, side, side], "score": score}
    return entry | {"segmentation": rle(square(x, y, side) if mask is None else mask)}


class TestAp:
    def test_only_huddled_instances_count(self):
        truth = truth_of(*PAIR, LONER)
        # One of the pair is found, and the loner: 2 of 3 for COCO, but 1 of 2 here.
        results = [result(*PAIR[0]), result(*LONER)]
        metrics = evaluate_all(truth, results)
        assert metrics["bbox/AP50"] == pytest.approx(67 / 101)
        for key in ("same@0.1", "any@0.1", "same@0.3", "any@0.3"):
            assert metrics[f"huddled/{key}/instances"] == 2
            for iou_type in ("bbox", "segm"):
                assert metrics[f"huddled/{key}/{iou_type}/AP"] == pytest.approx(51 / 101), key

    def test_a_detection_on_another_instance_is_neither_right_nor_wrong(self):
        truth = truth_of(*PAIR, LONER)
        # The loner found first, twice, and once more so badly that it matches at no threshold (IoU 0.47). A plain
        # restriction of the truth would call these three wrong: AP 2 / 5 at full recall instead of 1.
        bad = [result(*LONER, 0.99), result(*LONER, 0.98), result(2, 66, 66, 30, 0.97)]
        metrics = huddled_metrics(truth, [*bad, result(*PAIR[0]), result(*PAIR[1])])
        assert metrics["huddled/same@0.1/bbox/AP"] == metrics["huddled/same@0.1/segm/AP"] == pytest.approx(1)
        truth["annotations"].pop()
        wrong = huddled_metrics(truth, [*bad, result(*PAIR[0]), result(*PAIR[1])])
        assert wrong["huddled/same@0.1/bbox/AP"] == pytest.approx(2 / 5)

    def test_a_duplicate_and_a_detection_of_nothing_are_wrong(self):
        truth = truth_of(*PAIR, LONER)
        right = [result(*PAIR[0]), result(*PAIR[1])]
        # right, wrong, right: precision 1 up to half the recall, 2/3 from there; and wrong, right, right.
        for wrong, value in (
            (result(*PAIR[0], 0.95), (51 + 50 * 2 / 3) / 101),
            (result(2, 70, 5, 20, 0.95), 2 / 3),
        ):
            metrics = huddled_metrics(truth, [wrong, *right])
            assert metrics["huddled/same@0.1/bbox/AP75"] == pytest.approx(value)

    def test_same_and_any_class(self):
        truth = truth_of((2, 10, 10, 30), (9, 20, 10, 30))
        metrics = huddled_metrics(truth, [result(2, 10, 10, 30)])
        assert metrics["huddled/same@0.1/instances"] == 0 and metrics["huddled/any@0.1/instances"] == 2
        assert metrics["huddled/same@0.1/bbox/AP"] == -1
        assert metrics["huddled/any@0.1/bbox/AP"] == pytest.approx(0.5)  # the mean of the two classes

    def test_a_class_without_huddles_is_not_in_the_mean(self):
        truth = truth_of(*PAIR, (9, 60, 60, 30))
        metrics = huddled_metrics(truth, [result(*PAIR[0]), result(*PAIR[1])])
        assert metrics["huddled/same@0.1/bbox/AP"] == pytest.approx(1)

    @pytest.mark.parametrize(("shift", "counts"), [(0, [2, 2]), (15, [2, 2]), (20, [2, 0]), (28, [0, 0])])
    def test_thresholds(self, shift, counts):
        # Squares of 30, apart by `shift`: IoU 1, 1/3, 1/5 and 1/29.
        truth = truth_of((2, 10, 10, 30), (2, 10 + shift, 10, 30))
        metrics = huddled_metrics(truth, [], overlaps=(0.1, 0.3))
        assert [metrics[f"huddled/same@{t}/instances"] for t in (0.1, 0.3)] == counts

    def test_the_threshold_itself_is_not_above(self):
        truth = truth_of((2, 10, 10, 30), (2, 20, 10, 30))
        assert huddled_metrics(truth, [], overlaps=(0.5,))["huddled/same@0.5/instances"] == 0
        assert huddled_metrics(truth, [], overlaps=(0.499,))["huddled/same@0.499/instances"] == 2

    def test_a_crowd_region_is_no_neighbour_and_not_wrong_to_find(self):
        truth = truth_of((2, 10, 10, 30), (2, 20, 10, 30), (2, 50, 50, 30), (2, 52, 50, 40), crowd=(3,))
        assert neighbour_overlaps(truth)["any"] == pytest.approx([0.5, 0.5, 0, 0])
        in_crowd = result(2, 82, 60, 9, 0.99)
        metrics = huddled_metrics(truth, [in_crowd, result(*PAIR[0]), result(*PAIR[1])])
        assert metrics["huddled/same@0.1/instances"] == 2
        assert metrics["huddled/same@0.1/bbox/AP"] == pytest.approx(1)

    def test_no_results_and_no_truth(self):
        metrics = huddled_metrics(truth_of(*PAIR), [])
        assert metrics["huddled/same@0.1/bbox/AP"] == metrics["huddled/same@0.1/segm/AP"] == 0
        metrics = huddled_metrics(truth_of(), [])
        assert metrics["huddled/same@0.1/instances"] == 0 and metrics["huddled/same@0.1/bbox/AP"] == -1
        assert metrics["huddled/occluded/recall"] == -1

    def test_boxes_alone(self):
        entry = result(*PAIR[0])
        entry.pop("segmentation")
        metrics = huddled_metrics(truth_of(*PAIR), [entry])
        assert metrics["huddled/same@0.1/bbox/AP"] == pytest.approx(51 / 101)
        assert not any("segm" in key or "occluded" in key for key in metrics)

    def test_inputs_stay_as_they_are(self):
        truth, results = truth_of(*PAIR, LONER), [result(*PAIR[0])]
        before = copy.deepcopy((truth, results))
        evaluate_all(truth, results)
        assert (truth, results) == before

    def test_more_detections_than_the_limit(self):
        found = [result(2, 70, 5, 20, 0.5 + i / 100) for i in range(4)] + [result(*PAIR[0], 0.4)]
        metrics = huddled_metrics(truth_of(*PAIR), found, max_detections=(1, 2, 4))
        assert metrics["huddled/same@0.1/bbox/AP"] == 0

    @pytest.mark.parametrize("seed", range(8))
    def test_equals_coco_where_every_instance_is_huddled(self, seed):
        rng = np.random.default_rng(seed)
        boxes = [(int(rng.choice([2, 9])), *map(int, rng.integers(0, 60, 2)), 30) for _ in range(5)]
        boxes = [(c, min(x + 3 * k, 69), y, s) for c, x, y, s in boxes for k in (0, 1)]  # each has a twin
        del boxes[5]
        truth, results = truth_of(*boxes, crowd=(4,)), []
        for category, x, y, side in boxes:
            for _ in range(rng.integers(0, 3)):
                x, y = (int(np.clip(v + rng.integers(-6, 7), 0, 70)) for v in (x, y))
                results.append(result(category, x, y, side, float(rng.random())))
        assert (np.delete(neighbour_overlaps(truth)["same"], 4) > 0.1).all()
        metrics = evaluate_all(truth, results)
        plain = evaluate_coco(truth, results)
        assert {k: metrics[k] for k in plain} == plain
        for iou_type in ("bbox", "segm"):
            for key in ("AP", "AP50", "AP75"):
                assert metrics[f"huddled/same@0.1/{iou_type}/{key}"] == plain[f"{iou_type}/{key}"]


def crops(*masks):
    out = []
    for mask in masks:
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        y, x = (rows[0], columns[0]) if rows.size else (0, 0)
        window = mask[y : rows[-1] + 1, x : columns[-1] + 1] if rows.size else mask[:0, :0]
        out.append((np.ascontiguousarray(window), int(y), int(x)))
    return out


class TestHidden:
    def test_a_corner_is_covered(self):
        front = square(30, 30, 30)
        behind = square(10, 10, 40) & ~front & 1
        # 400 of the square's 1600 pixels are gone; its hull keeps about half of them: 200 of 1400.
        assert hidden_instances(crops(behind, front)) == ["occluded", None]
        assert hidden_instances(crops(front, behind)) == [None, "occluded"]
        assert hidden_instances(crops(behind, front), min_hidden=0.2) == [None, None]

    def test_cut_in_two(self):
        bar = np.zeros((SIZE, SIZE), np.uint8)
        bar[40:60] = 1
        front = square(30, 20, 50)
        behind = bar & ~front & 1
        assert hidden_instances(crops(behind, front)) == ["separated", None]

    def test_crumbs_are_no_parts(self):
        mask = square(10, 10, 40)
        mask[80:82, 80:82] = 1  # 4 of 1604 pixels
        assert hidden_instances(crops(mask)) == [None]
        assert hidden_instances(crops(mask), min_part=0.001) == ["separated"]

    def test_corners_that_touch_are_one_part(self):
        assert hidden_instances(crops(square(10, 10, 20) | square(30, 30, 20))) == [None]

    def test_a_dent_that_nobody_fills(self):
        horseshoe = square(10, 10, 40) & ~square(20, 10, 20) & 1
        assert hidden_instances(crops(horseshoe)) == [None]
        assert hidden_instances(crops(horseshoe, square(60, 60, 20))) == [None, None]

    def test_neighbours_that_only_touch(self):
        assert hidden_instances(crops(square(10, 10, 20), square(30, 10, 20))) == [None, None]

    def test_shared_pixels_hide_nothing(self):
        assert hidden_instances(crops(square(10, 10, 40), square(20, 20, 10))) == [None, None]

    def test_known_limit_a_straight_cut(self):
        assert hidden_instances(crops(square(10, 10, 20), square(30, 0, 40))) == [None, None]

    def test_empty_masks(self):
        empty = np.zeros((SIZE, SIZE), np.uint8)
        assert hidden_instances([]) == []
        assert hidden_instances(crops(empty, square(1, 1, 5))) == [None, None]

    def test_recall(self):
        front, other = square(30, 30, 30), square(60, 60, 39)
        behind = square(10, 10, 40) & ~front & 1
        other[65:75, 60:] = 0
        other[75:, 70:75] = 0  # three parts
        truth = truth_of((2, 10, 10, 40), (2, 30, 30, 30), (9, 60, 60, 39), masks=[behind, front, other])
        found = [result(2, 10, 10, 40, 0.5, behind), result(9, 60, 60, 39, 0.5, other)]
        metrics = huddled_metrics(truth, found)
        assert (metrics["huddled/occluded/instances"], metrics["huddled/occluded/recall"]) == (1, 1)
        assert (metrics["huddled/separated/instances"], metrics["huddled/separated/recall"]) == (1, 1)
        # Without its dent the square has an IoU of 1200 / 1600 with the truth: exactly 0.75, which is enough.
        whole = [result(2, 10, 10, 40, 0.5)]
        assert huddled_metrics(truth, whole)["huddled/occluded/recall"] == 1
        assert huddled_metrics(truth, whole, mask_iou=0.76)["huddled/occluded/recall"] == 0
        assert huddled_metrics(truth, whole, score_threshold=0.51)["huddled/occluded/recall"] == 0
        assert huddled_metrics(truth, whole, score_threshold=0.5)["huddled/occluded/recall"] == 1
        # Another class, however good, does not help.
        other_class = [result(9, 10, 10, 40, 0.9, behind)]
        assert huddled_metrics(truth, other_class)["huddled/occluded/recall"] == 0


def test_coco_mini(data_dir):
    """Truth as prediction is perfect, whatever is looked at; without the huddled ones none of them is found."""
    path = data_dir / "coco_mini" / "annotations" / "instances_val2017.json"
    truth = json.loads(path.read_text())
    sizes = {image["id"]: (image["height"], image["width"]) for image in truth["images"]}
    nearest, results = neighbour_overlaps(truth)["any"], []
    for annotation in truth["annotations"]:
        size, segmentation = sizes[annotation["image_id"]], annotation["segmentation"]
        code = coco_mask.frPyObjects(segmentation, *size)
        code = coco_mask.merge(code) if isinstance(code, list) else code
        entry = {key: annotation[key] for key in ("image_id", "category_id", "bbox")}
        results.append(entry | {"segmentation": code, "score": 1.0})
    metrics = huddled_metrics(path, results)
    assert 0 < metrics["huddled/same@0.3/instances"] < metrics["huddled/any@0.1/instances"] < 604
    assert metrics["huddled/occluded/instances"] > 20 and metrics["huddled/separated/instances"] > 20
    assert all(v == pytest.approx(1) for k, v in metrics.items() if "instances" not in k)
    left = [entry for entry, iou in zip(results, nearest, strict=True) if iou <= 0.1]
    metrics = huddled_metrics(path, left)
    assert metrics["huddled/any@0.1/bbox/AP"] == metrics["huddled/any@0.1/segm/AP"] == 0
    assert metrics["huddled/any@0.1/instances"] == 604 - len(left)


def test_table():
    lines = format_huddled(evaluate_all(truth_of(*PAIR, LONER), [result(*PAIR[0])])).splitlines()
    assert lines[0].split() == [
        "huddled",
        "instances",
        "box",
        "AP",
        "AP50",
        "AP75",
        "mask",
        "AP",
        "AP50",
        "AP75",
    ]
    assert lines[1].split() == ["same", "class,", "IoU", ">", "0.1", "2"] + ["0.505"] * 6
    assert lines[-1].split() == ["separated", "0", "recall", "-"]
    assert len(lines) == 7 and max(map(len, lines)) <= 110


@pytest.mark.parametrize(
    "setting",
    [{"overlaps": (1.5,)}, {"score_threshold": -1}, {"mask_iou": 75}, {"min_part": float("nan")}],
)
def test_settings_out_of_range(setting):
    with pytest.raises(ValueError, match=f"{next(iter(setting))} must lie between 0 and 1, not"):
        huddled_metrics(truth_of(*PAIR), [], **setting)


def test_missing_file():
    with pytest.raises(FileNotFoundError, match=r"none\.json: no such file"):
        huddled_metrics("none.json", [])
