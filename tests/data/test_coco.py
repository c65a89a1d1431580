"""The reader: every form that COCO annotations take, subsets, and what is wrong with broken ones."""

import json

import numpy as np
import pytest
from pycocotools.coco import COCO

from mrcnn_tf.data.coco import CocoDataset
from tests.data.helpers import annotation, coco, dense, rectangle, rle, write

MASK = np.zeros((20, 30), bool)
MASK[4:9, 3:12] = True
MASK[6, 5:7] = False


def content():
    """Ids with gaps and out of order, every kind of segmentation, an image without objects."""
    return coco(
        [(7, 20, 30), (3, 40, 25), (12, 20, 30)],
        [
            annotation(10, 7, (2, 1, 8, 11), 90, segmentation=rectangle(2, 1, 8, 11)),
            annotation(11, 7, (4, 3, 9, 12), 18, segmentation=rle(MASK)),
            annotation(12, 7, (4, 3, 9, 12), 18, segmentation=rle(MASK, compressed=False), iscrowd=1),
            annotation(13, 12, (-5, 10, 10, 40), 18),
            annotation(14, 12, (3, 3, 3, 9), 18, segmentation=rectangle(3, 3, 3, 9)),
            annotation(15, 12, (25, 3, 35, 9), 90, segmentation=rectangle(25, 3, 35, 9)),
            annotation(16, 12, (1, 1, 5, 5), 90, segmentation=[[1, 1, 5, 5]]),
        ],
        [(90, "nut"), (18, "dog"), (44, "bee")],
    )


@pytest.fixture
def dataset(tmp_path):
    return CocoDataset(*write(tmp_path, content()))


def test_classes_are_numbered_by_category_id(dataset):
    assert dataset.class_names == ("dog", "bee", "nut")
    assert dataset.category_ids == (18, 44, 90)
    assert dataset.image_ids == [7, 3, 12]
    assert len(dataset) == 3


def test_instances(dataset):
    first = dataset.instances(0)
    np.testing.assert_array_equal(first.boxes, [[2, 1, 8, 11], [4, 3, 9, 12], [4, 3, 9, 12]])
    assert first.boxes.dtype == np.float32
    assert first.classes.tolist() == [3, 1, 1]
    assert first.crowd.tolist() == [False, False, True]
    assert first.has_mask.all()
    assert first.annotation_ids.tolist() == [10, 11, 12]
    for segmentation in first.segmentations[1:]:  # both RLE forms
        np.testing.assert_array_equal(dense(segmentation, 20, 30), MASK)
    polygon = np.zeros((20, 30), bool)
    polygon[2:8, 1:11] = True
    np.testing.assert_array_equal(dense(first.segmentations[0], 20, 30), polygon)


def test_image_without_objects(dataset):
    empty = dataset.instances(1)
    assert len(empty) == 0
    assert empty.boxes.shape == (0, 4)
    assert dataset.size(1) == (40, 25)
    assert dataset.image(1).shape == (40, 25, 3)


def test_boxes_are_clipped_and_useless_ones_counted(dataset):
    last = dataset.instances(2)
    np.testing.assert_array_equal(last.boxes, [[0, 10, 10, 30], [1, 1, 5, 5]])
    assert last.has_mask.tolist() == [False, False]  # none given; a polygon of two points
    assert dict(dataset.dropped) == {"box without area": 1, "box outside the image": 1}


def test_missing_box_is_taken_from_the_mask():
    rows = [annotation(1, 1, (0, 0, 1, 1), segmentation=s) for s in (rle(MASK), rectangle(2, 1, 8, 11.5))]
    rows[1]["id"] = 2
    for row in rows:
        del row["bbox"]
    boxes = CocoDataset(coco([(1, 20, 30)], rows), None).instances(0).boxes
    np.testing.assert_allclose(boxes, [[4, 3, 9, 12], [2, 1, 8, 11.5]])


def test_ground_truth_is_the_files_and_fit_for_pycocotools(dataset):
    truth = dataset.ground_truth()
    assert [row["id"] for row in truth["annotations"]] == [10, 11, 12, 13, 14, 15, 16]  # dropped ones too
    by_id = {row["id"]: row for row in truth["annotations"]}
    assert by_id[11]["area"] == MASK.sum()
    assert by_id[10]["area"] == 60
    assert by_id[13]["area"] == 15 * 30  # the box, where there is no mask
    assert by_id[10]["bbox"] == [1, 2, 10, 6]
    assert "segmentation" not in by_id[13]
    assert "segmentation" not in by_id[16]  # pycocotools would take four numbers for a box
    assert {c["name"] for c in truth["categories"]} == {"dog", "bee", "nut"}


def test_ground_truth_has_no_id_zero():
    rows = [annotation(i, 1, (0, 0, 4, 4), segmentation=rectangle(0, 0, 4, 4)) for i in (0, 5)]
    truth = CocoDataset(coco([(1, 20, 30)], rows), None).ground_truth()
    assert [row["id"] for row in truth["annotations"]] == [1, 2]


def test_classes_subset(tmp_path):
    paths = write(tmp_path, content())
    dogs = CocoDataset(*paths, classes=["dog"])
    assert dogs.class_names == ("dog",)
    assert dogs.instances(0).classes.tolist() == [1, 1]
    assert len(dogs) == 3
    assert {row["category_id"] for row in dogs.ground_truth()["annotations"]} == {18}
    assert CocoDataset(*paths, classes=["dog"], keep_empty=False).image_ids == [7, 12]
    with pytest.raises(ValueError, match="no class 'dgo'; did you mean one of dog"):
        CocoDataset(*paths, classes=["dgo"])


def test_fraction_and_first():
    many = coco([(i, 10, 10) for i in range(100)], [])
    half = CocoDataset(many, None, fraction=0.5, seed=1)
    assert len(half) == 50
    assert half.image_ids == sorted(half.image_ids)
    assert half.image_ids == CocoDataset(many, None, fraction=0.5, seed=1).image_ids
    assert half.image_ids != CocoDataset(many, None, fraction=0.5, seed=2).image_ids
    assert set(CocoDataset(many, None, fraction=0.2, seed=1).image_ids) < set(half.image_ids)
    assert CocoDataset(many, None, first=7).image_ids == list(range(7))
    assert CocoDataset(many, None, fraction=0.5, seed=1, first=3).image_ids == half.image_ids[:3]
    assert len(CocoDataset(many, None, fraction=0.5, first=3).ground_truth()["images"]) == 3
    for bad in ({"fraction": 0.0}, {"fraction": 1.5}, {"first": 0}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            CocoDataset(many, None, **bad)


def test_truncated_json_names_file_and_position(tmp_path):
    path, images = write(tmp_path, content())
    path.write_text(path.read_text()[:200])
    with pytest.raises(
        ValueError, match=r"annotations\.json: not valid JSON at line 1 column \d+ .*copy it"
    ) as e:
        CocoDataset(path, images)
    assert "\n" not in str(e.value)


def test_missing_files_are_named(tmp_path):
    path, images = write(tmp_path, content())
    with pytest.raises(FileNotFoundError, match=r"nowhere\.json: no such annotation file"):
        CocoDataset(tmp_path / "nowhere.json", images)
    with pytest.raises(FileNotFoundError, match="nowhere: no such image folder"):
        CocoDataset(path, tmp_path / "nowhere")
    (images / "3.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 3 images are missing, the first is 3\.png"):
        CocoDataset(path, images)
    with pytest.raises(ValueError, match="no image folder was given"):
        CocoDataset(path, None).image(0)


def test_a_results_file_is_not_annotations(tmp_path):
    path = tmp_path / "results.json"
    path.write_text("[]")
    with pytest.raises(ValueError, match="a list is what a results file holds"):
        CocoDataset(path, None)


BROKEN = {
    "no image with this id": {"image_id": 99},
    "category 5 is not among": {"category_id": 5},
    "must be four finite numbers": {"bbox": [1, 2, 3]},
    "not \\[1, 2, nan, 4\\]": {"bbox": [1, 2, float("nan"), 4]},
    "an annotation needs an integer 'id'": {"id": None},
    "the id occurs twice": {"id": 2},
    "the RLE has size": {"segmentation": rle(np.ones((5, 5)))},
    "adds up to 30;": {"segmentation": {"size": [20, 30], "counts": [10, 20]}},
    "must add up to 600 pixels": {"segmentation": {"size": [20, 30], "counts": rle(MASK)["counts"][:-2]}},
    "breaks off": {"segmentation": {"size": [20, 30], "counts": rle(MASK)["counts"] + "o"}},
    "must be a list of polygons": {"segmentation": [1, 2, 3, 4, 5, 6]},
    "a polygon must be a flat list": {"segmentation": [[1, 2, 3, 4, 5, 6, 7]]},
    "flat list of finite numbers": {"segmentation": [[1, 2, 3, "x", 5, 6]]},
    "needs 'size' and 'counts'": {"segmentation": {"counts": [600]}},
}


@pytest.mark.parametrize("message", BROKEN)
def test_broken_annotations_are_named(message):
    rows = [annotation(i, 1, (0, 0, 4, 4), segmentation=rectangle(0, 0, 4, 4)) for i in (1, 2)]
    rows[0].update(BROKEN[message])
    with pytest.raises(ValueError, match=message) as error:
        CocoDataset(coco([(1, 20, 30)], rows), None)
    line = str(error.value)
    assert "\n" not in line
    assert "annotation 1" in line or "'id'" in line or "annotation 2" in line


@pytest.mark.parametrize(
    "message, change",
    [
        ("image 1: .* has the same id", lambda c: c["images"].append(dict(c["images"][0]))),
        ("category id 1 occurs twice", lambda c: c["categories"].append({"id": 1, "name": "other"})),
        ("'height' and 'width' must be positive", lambda c: c["images"][0].update(height=0)),
        ("needs an integer 'id' and a 'file_name'", lambda c: c["images"][0].pop("file_name")),
        ("'categories' must be a list", lambda c: c.pop("categories")),
        ("has no categories", lambda c: c["categories"].clear()),
        ("no image left of 0", lambda c: c["images"].clear()),
    ],
)
def test_broken_records_are_named(message, change):
    broken = coco([(1, 20, 30)], [])
    change(broken)
    with pytest.raises(ValueError, match=message):
        CocoDataset(broken, None)


def test_coco_mini(data_dir):
    folder = data_dir / "coco_mini"
    path = folder / "annotations" / "instances_val2017.json"
    dataset = CocoDataset(path, folder / "val2017")
    official = COCO(path)
    assert dataset.num_classes == 80
    assert dataset.category_ids[-1] == 90
    assert int(dataset.instance_counts.sum()) == 604
    assert not dataset.dropped
    i = int(np.argmax(dataset.instance_counts))
    height, width = dataset.size(i)
    for key, segmentation in zip(
        dataset.instances(i).annotation_ids, dataset.instances(i).segmentations, strict=True
    ):
        np.testing.assert_array_equal(
            dense(segmentation, height, width), official.annToMask(official.anns[int(key)]).astype(bool)
        )
    # Nothing is lost on the way back.
    written = {row["id"]: row for row in json.loads(path.read_text())["annotations"]}
    for row in dataset.ground_truth()["annotations"]:
        assert row == written[row["id"]]
