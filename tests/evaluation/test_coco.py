"""COCO metrics: the published figures, hand-made cases and bad input."""

import copy
import json

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from mrcnn_tf.evaluation.coco import evaluate_coco, format_table, load_coco

KEYS = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"]
PUBLISHED = {
    "bbox": ".504581 .696973 .572982 .585626 .519400 .501398 .386813 .593680 .595353 .639811 .566421 .564291",
    "segm": ".319545 .562288 .298927 .387374 .310183 .326934 .268230 .415449 .416839 .469450 .376759 .381472",
}


def square(x, y, side, size=(100, 100)):
    mask = np.zeros(size, np.uint8, order="F")
    mask[y : y + side, x : x + side] = 1
    rle = coco_mask.encode(mask)
    return {"size": rle["size"], "counts": rle["counts"].decode()}


def truth_of(*boxes, **more):
    """One image of 100 x 100 with squares `(category, x, y, side)`; annotation ids from 0, as some have."""
    annotations = [
        {"id": i, "image_id": 5, "category_id": c, "bbox": [x, y, s, s], "area": s * s, "iscrowd": 0}
        | {"segmentation": [[x, y, x + s, y, x + s, y + s, x, y + s]]}
        for i, (c, x, y, s) in enumerate(boxes)
    ]
    return {
        "images": [{"id": 5, "height": 100, "width": 100, "file_name": "a.png"}],
        "categories": [{"id": 2, "name": "cat"}, {"id": 9, "name": "dog"}],
        "annotations": annotations,
        **more,
    }


def result(category, x, y, side, score=0.9):
    entry = {"image_id": 5, "category_id": category, "bbox": [x, y, side, side], "score": score}
    return entry | {"segmentation": square(x, y, side)}


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_published_figures_to_six_digits(data_dir, iou_type):
    folder = data_dir / "cocoapi_fake100"
    metrics = evaluate_coco(
        folder / "instances_val2014_100.json",
        str(folder / f"instances_val2014_fake{iou_type}100_results.json"),
        iou_types=[iou_type],
    )
    got = {key: f"{metrics[f'{iou_type}/{key}']:.6f}" for key in KEYS}
    assert got == dict(zip(KEYS, (f"0{v}" for v in PUBLISHED[iou_type].split()), strict=True))


def test_truth_as_prediction_is_perfect_on_coco_mini(data_dir):
    path = data_dir / "coco_mini" / "annotations" / "instances_val2017.json"
    truth = json.loads(path.read_text())
    sizes = {image["id"]: (image["height"], image["width"]) for image in truth["images"]}
    results = []
    for annotation in truth["annotations"]:
        segmentation, size = annotation["segmentation"], sizes[annotation["image_id"]]
        if isinstance(segmentation, list):
            segmentation = coco_mask.merge(coco_mask.frPyObjects(segmentation, *size))
        elif isinstance(segmentation["counts"], list):
            segmentation = coco_mask.frPyObjects(segmentation, *size)
        results.append({key: annotation[key] for key in ("image_id", "category_id", "bbox")})
        results[-1] |= {"score": 1.0, "segmentation": segmentation}
    assert any(a["iscrowd"] for a in truth["annotations"])
    metrics = evaluate_coco(path, results)
    for key in KEYS[:6]:
        assert metrics[f"bbox/{key}"] == metrics[f"segm/{key}"] == pytest.approx(1.0, abs=1e-12), key


class TestHandMade:
    def test_half_of_the_classes_found(self):
        metrics = evaluate_coco(truth_of((2, 10, 10, 40), (9, 60, 60, 20)), [result(2, 10, 10, 40)])
        assert metrics["bbox/AP"] == metrics["segm/AP"] == pytest.approx(0.5)
        assert metrics["per_class"]["cat"] == {
            "instances": 1,
            **{f"{t}/{k}": pytest.approx(1.0) for t in ("bbox", "segm") for k in ("AP", "AP50", "AP75")},
        }
        assert metrics["per_class"]["dog"]["segm/AP"] == 0
        assert metrics["bbox/APl"] == -1  # there is no large instance to find
        assert metrics["bbox/APm"] == pytest.approx(1.0)
        assert metrics["bbox/APs"] == 0

    def test_a_shifted_box_counts_up_to_its_overlap(self):
        # 40 x 40 shifted by 8: IoU 32 / 48 = 0.667, so right at 0.50, 0.55, 0.60 and 0.65: four of ten
        # thresholds.
        metrics = evaluate_coco(truth_of((2, 10, 10, 40)), [result(2, 18, 10, 40)])
        for iou_type in ("bbox", "segm"):
            assert metrics[f"{iou_type}/AP"] == pytest.approx(0.4)
            assert metrics[f"{iou_type}/AP50"] == pytest.approx(1.0)
            assert metrics[f"{iou_type}/AP75"] == 0

    def test_crowd_regions_are_neither_missed_nor_wrong(self):
        truth = truth_of((2, 10, 10, 20), (2, 50, 50, 40))
        truth["annotations"][1] |= {"iscrowd": 1, "segmentation": square(50, 50, 40)}
        inside = [result(2, 55, 55, 10, 0.99), result(2, 70, 70, 12, 0.98)]  # two detections within the crowd
        for results in ([result(2, 10, 10, 20)], inside + [result(2, 10, 10, 20)]):
            metrics = evaluate_coco(truth, results)
            assert metrics["bbox/AP"] == metrics["segm/AP"] == pytest.approx(1.0)
        outside = evaluate_coco(truth, [result(2, 35, 5, 10, 0.99), result(2, 10, 10, 20)])
        assert outside["bbox/AP"] == pytest.approx(0.5)  # one wrong one before the right one
        assert outside["per_class"]["cat"]["instances"] == 1

    def test_annotations_without_mask_are_ignored_for_masks_only(self):
        truth = truth_of((2, 10, 10, 20), (2, 50, 50, 40), (2, 10, 70, 20))
        truth["annotations"][1]["segmentation"] = []
        truth["annotations"][2].pop("segmentation")
        metrics = evaluate_coco(truth, [result(2, 10, 10, 20), result(2, 52, 52, 30, 0.95)])
        assert metrics["segm/AP"] == pytest.approx(1.0)
        assert metrics["bbox/AP"] < 0.7

    def test_mask_size_is_the_masks_own(self):
        # The box is large (100 x 100), the mask of 20 x 20 is small; unmatched detections of other sizes do
        # not count.
        truth = truth_of((2, 10, 10, 20))
        wrong = result(2, 60, 60, 20, 0.99) | {"bbox": [0, 0, 100, 100]}
        metrics = evaluate_coco(truth, [wrong, result(2, 10, 10, 20)])
        assert metrics["segm/APs"] == pytest.approx(0.5)  # a small wrong mask
        assert metrics["bbox/APs"] == pytest.approx(1.0)  # a large wrong box

    def test_no_results_at_all(self):
        metrics = evaluate_coco(truth_of((2, 10, 10, 20)), [])
        assert metrics["bbox/AP"] == metrics["segm/AP"] == metrics["bbox/AR100"] == 0

    def test_truth_without_instances(self):
        metrics = evaluate_coco(truth_of(), [result(2, 10, 10, 20)])
        assert metrics["bbox/AP"] == metrics["segm/AP"] == -1

    def test_boxes_alone_or_masks_alone(self):
        truth = truth_of((2, 10, 10, 20))
        boxes = [{k: v for k, v in result(2, 10, 10, 20).items() if k != "segmentation"}]
        masks = [{k: v for k, v in result(2, 10, 10, 20).items() if k != "bbox"}]
        assert "segm/AP" not in evaluate_coco(truth, boxes)
        assert evaluate_coco(truth, boxes)["bbox/AP"] == pytest.approx(1.0)
        assert "bbox/AP" not in evaluate_coco(truth, masks)
        for annotation in truth["annotations"]:
            annotation.pop("segmentation")
        assert "segm/AP" not in evaluate_coco(truth, [result(2, 10, 10, 20)])

    def test_other_limits_apply_to_ap_as_well(self):
        boxes = [(2, x, y, 8) for y in range(0, 90, 9) for x in range(0, 99, 9)]  # 110 instances
        results = [result(2, x, y, 8, 0.5 + i / 1000) for i, (_, x, y, _) in enumerate(boxes)]
        usual = evaluate_coco(truth_of(*boxes), results)
        more = evaluate_coco(truth_of(*boxes), results, max_detections=(1, 50, 500))
        assert usual["bbox/AP"] < 0.95
        assert more["bbox/AP"] == more["bbox/AR500"] == pytest.approx(1.0)
        assert more["bbox/AR50"] == pytest.approx(50 / 110)
        assert "bbox/AR100" not in more

    def test_nothing_is_printed_and_nothing_changed(self, capfd):
        truth, results = truth_of((2, 10, 10, 20), (9, 40, 40, 20)), [result(2, 10, 10, 20)]
        before = copy.deepcopy((truth, results))
        evaluate_coco(truth, results)
        assert (truth, results) == before
        assert capfd.readouterr() == ("", "")

    def test_equal_class_names_stay_apart(self):
        truth = truth_of(
            (2, 10, 10, 20), (9, 40, 40, 20), categories=[{"id": 2, "name": "a"}, {"id": 9, "name": "a"}]
        )
        per_class = evaluate_coco(truth, [result(9, 40, 40, 20)])["per_class"]
        assert per_class["a (2)"]["bbox/AP"] == 0
        assert per_class["a (9)"]["bbox/AP"] == pytest.approx(1.0)


class TestBadInput:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"image_id": 77}, r"r\.json: entry 1 has image_id 77, which is not in .*t\.json"),
            ({"category_id": 1}, r"r\.json: entry 1 has category_id 1, which is not in .*t\.json"),
            ({"score": float("nan")}, r"r\.json: entry 1 has score nan"),
            ({"score": "high"}, r"r\.json: entry 1 has score high"),
            ({"score": None}, r"r\.json: entry 1 has no 'score'"),
            ({"image_id": None}, r"r\.json: entry 1 has no 'image_id'"),
            ({"bbox": [1, 2, 3]}, r"r\.json: entry 1 has bbox \[1, 2, 3\]"),
            ({"bbox": None}, r"r\.json: entry 1 has no 'bbox', but others have one"),
            ({"segmentation": None}, r"r\.json: entry 1 has no 'segmentation', but others"),
            (
                {"segmentation": [[0, 0, 9, 0, 9, 9]]},
                r"r\.json: entry 1 has a segmentation that is not an RLE",
            ),
            (
                {"segmentation": square(1, 1, 5, (50, 60))},
                r"entry 1 has a mask of size \[50, 60\], but its image 5",
            ),
        ],
    )
    def test_entries(self, tmp_path, change, message):
        good = result(2, 10, 10, 20)
        bad = {key: value for key, value in (good | change).items() if value is not None}
        (tmp_path / "t.json").write_text(json.dumps(truth_of((2, 10, 10, 20))))
        (tmp_path / "r.json").write_text(json.dumps([good, bad]))
        with pytest.raises(ValueError, match=message) as caught:
            evaluate_coco(tmp_path / "t.json", tmp_path / "r.json")
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ('[{"image_id": 5, "cat', r"r\.json: not valid JSON"),
            ('{"annotations": []}', r"r\.json: COCO results must be a list of entries, not a dict"),
            ("[3]", r"r\.json: entry 0 is not an object"),
        ],
    )
    def test_result_files(self, tmp_path, text, message):
        (tmp_path / "r.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            evaluate_coco(truth_of((2, 10, 10, 20)), tmp_path / "r.json")

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"image_id": 6}, "ground truth: annotation 0 has image_id 6"),
            ({"category_id": 3}, "ground truth: annotation 0 has category_id 3"),
            ({"bbox": [0, 0, float("inf"), 1]}, "ground truth: annotation 0 needs a bbox"),
        ],
    )
    def test_annotations(self, change, message):
        truth = truth_of((2, 10, 10, 20))
        truth["annotations"][0] |= change
        with pytest.raises(ValueError, match=message):
            evaluate_coco(truth, [result(2, 10, 10, 20)])

    def test_truth_that_is_not_coco(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"no\.json: no such file"):
            evaluate_coco(tmp_path / "no.json", [])
        with pytest.raises(ValueError, match="ground truth: has no list 'annotations'"):
            evaluate_coco({"images": []}, [])
        truth = truth_of((2, 10, 10, 20), images=[{"id": 5}])
        with pytest.raises(ValueError, match="image 5 has no height and width"):
            evaluate_coco(truth, [result(2, 10, 10, 20)])

    def test_settings(self):
        with pytest.raises(ValueError, match="iou_types must hold"):
            evaluate_coco(truth_of(), [], iou_types=["keypoints"])
        with pytest.raises(ValueError, match="max_detections must be positive"):
            evaluate_coco(truth_of(), [], max_detections=[0, 10])


class TestTable:
    def test_numbers_and_dashes(self):
        metrics = evaluate_coco(truth_of((2, 10, 10, 40)), [result(2, 18, 10, 40)])
        lines = format_table(metrics).splitlines()
        assert lines[0].split() == KEYS
        assert lines[1].split()[:7] == ["box", "0.400", "1.000", "0.000", "-", "0.400", "-"]
        assert lines[2].split()[0] == "mask"
        assert lines[-1].split() == ["cat", "1", "0.400", "1.000", "0.000", "0.400", "1.000", "0.000"]
        assert max(map(len, lines)) <= 110
        assert len({len(line) for line in lines[:3]}) == 1

    def test_without_classes_and_without_metrics(self):
        metrics = evaluate_coco(truth_of((2, 10, 10, 40)), [result(2, 18, 10, 40)], iou_types=["segm"])
        assert [line.split()[0] for line in format_table(metrics, per_class=False).splitlines()] == [
            "AP",
            "mask",
        ]
        with pytest.raises(ValueError, match="no metrics"):
            format_table({"loss": 3.0})


def test_truth_of_wrong_types_is_named(tmp_path):
    def truth(**changes):
        image, category = {"id": 1, "height": 9, "width": 9}, {"id": 1, "name": "a"}
        row = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 4, 4], "area": 16}
        return {"images": [image], "categories": [category], "annotations": [row]} | changes

    (row,) = truth()["annotations"]
    for changes, message in (
        ({"images": [5]}, "'images' holds '5'"),
        ({"categories": [{"id": "x"}]}, "one of the categories has the id 'x'"),
        ({"annotations": [row | {"area": None}]}, "annotation 1 has area None"),
        ({"annotations": [row | {"image_id": [1]}]}, r"annotation 1 has image_id \[1\]"),
        ({"annotations": [row | {"segmentation": {"size": [9, 9], "counts": "%%%"}}]}, "damaged mask"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate_coco(truth(**changes), [])
    assert evaluate_coco(truth(), [])["bbox/AP"] == 0


def test_load_coco_takes_the_first_images_of_both():
    images = [{"id": i, "height": 9, "width": 9} for i in (4, 2)]
    rows = [{"id": i, "image_id": i, "category_id": 1, "bbox": [0, 0, 4, 4]} for i in (2, 4)]
    entries = [{"image_id": i, "category_id": 1, "bbox": [0, 0, 4, 4], "score": 0.5} for i in (2, 4)]
    truth = {"images": images, "categories": [{"id": 1, "name": "a"}], "annotations": rows}
    kept, found = load_coco(truth, entries, first=1)
    assert kept["images"] == images[:1] and kept["annotations"] == rows[1:] and found == entries[1:]
    assert load_coco(truth, entries) == (truth, entries)
