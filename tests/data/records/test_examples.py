"""One image as an example: what other readers see, and what comes back."""

import hashlib

import cv2
import numpy as np
import pytest

from mrcnn_tf.data.records.examples import read_example, to_example
from tests.data.helpers import annotation, dense, rectangle, rle
from tests.data.records import foreign

MASK = np.zeros((20, 30), bool)
MASK[4:9, 3:12] = True
MASK[6, 5:7] = False
RECORD = {"id": 7, "file_name": "söme.png", "height": 20, "width": 30, "license": 3}
ROWS = [
    annotation(10, 7, (2, 1.1, 8.3, 11), 90, segmentation=rectangle(2, 1, 8, 11), area=60, note="ours"),
    annotation(11, 7, (4, 3, 9, 12), 18, segmentation=rle(MASK)),
    annotation(12, 7, (4, 3, 9, 12), 18, segmentation=rle(MASK, compressed=False), iscrowd=1),
    annotation(13, 7, (-5, 10, 10, 40), 18),
    annotation(14, 7, (3, 3, 3, 9), 18, segmentation=rectangle(3, 3, 3, 9)),
    annotation(15, 7, (25, 3, 35, 9), 90, segmentation=rectangle(25, 3, 35, 9)),
]
IMAGE = cv2.imencode(".png", np.full((20, 30, 3), 80, np.uint8))[1].tobytes()


def made(masks="png", rows=ROWS):
    return to_example(RECORD, rows, IMAGE, class_names={18: "dog", 90: "nut"}, masks=masks)


def test_what_other_readers_see():
    found = foreign.decode(made())
    assert (found["height"], found["width"]) == (20, 30)
    assert found["source_id"] == b"7"
    assert found["filename"].decode() == "söme.png"
    assert found["format"] == b"png"
    assert found["encoded"] == IMAGE
    assert found["key/sha256"].decode() == hashlib.sha256(IMAGE).hexdigest()
    boxes = np.array([[2, 1.1, 8.3, 11], [4, 3, 9, 12], [4, 3, 9, 12], [0, 10, 10, 30]])
    np.testing.assert_allclose(found["boxes"], boxes / [20, 30, 20, 30], rtol=1e-6)
    assert found["class/label"].tolist() == [90, 18, 18, 18]
    assert found["class/text"].tolist() == [b"nut", b"dog", b"dog", b"dog"]
    assert found["is_crowd"].tolist() == [0, 0, 1, 0]
    np.testing.assert_allclose(found["area"], [60, MASK.sum(), MASK.sum(), 15 * 30])
    assert len(found["masks"]) == 4
    np.testing.assert_array_equal(found["masks"][0], dense(rectangle(2, 1, 8, 11), 20, 30))
    np.testing.assert_array_equal(found["masks"][1], MASK)
    np.testing.assert_array_equal(found["masks"][2], MASK)
    assert found["masks"][3].shape == (20, 30) and not found["masks"][3].any()


def test_run_length_codes_for_other_readers():
    found = foreign.decode(made("rle"))
    assert not len(found["mask"])
    counts = found["mask_counts"].tolist()
    masks = [dense({"size": [20, 30], "counts": code}, 20, 30) for code in counts[:3]]
    np.testing.assert_array_equal(masks, [dense(rectangle(2, 1, 8, 11), 20, 30), MASK, MASK])
    assert counts[3] == b""
    assert len(made("none")) < len(made("rle")) < len(made("png"))


@pytest.mark.parametrize("masks", ["png", "rle", "none"])
def test_the_annotations_come_back_as_they_were(masks):
    features, record, rows = read_example(made(masks), "here")
    assert features["image/encoded"] == [IMAGE]
    assert record == RECORD
    assert rows == ROWS


def test_an_image_without_objects():
    data = made(rows=[])
    assert read_example(data, "here")[2] == []
    assert foreign.decode(data)["boxes"].shape == (0, 4)


def example(**changes):
    """A Model Garden example with features changed, or left out where None."""
    image = np.full((20, 30, 3), 9, np.uint8)
    objects = [(18, "dog", (4, 3, 9, 12), MASK, 0), (90, "nut", (0, 0, 5, 5), np.zeros_like(MASK), 1)]
    features = foreign.features(7, image, objects)
    features.update({name: value for name, value in changes.items() if value is not None})
    kept = {name: value for name, value in features.items() if changes.get(name, 0) is not None}
    return foreign.tf.train.Example(features=foreign.tf.train.Features(feature=kept)).SerializeToString()


def test_foreign_examples():
    _, record, rows = read_example(example(), "here")
    assert record == {"id": "7", "file_name": "7.png", "height": 20, "width": 30}
    assert [row["category_id"] for row in rows] == [18, 90]
    assert [row["iscrowd"] for row in rows] == [0, 1]
    np.testing.assert_allclose([row["bbox"] for row in rows], [[3, 4, 9, 5], [0, 0, 5, 5]], atol=1e-5)
    np.testing.assert_array_equal(dense(rows[0]["segmentation"], 20, 30), MASK)
    assert rows[1]["segmentation"] is None  # all zeros


def test_foreign_examples_that_lack_what_may_be_lacking():
    left_out = (
        "image/height",
        "image/filename",
        "image/object/is_crowd",
        "image/object/area",
        "image/object/mask",
    )
    _, record, rows = read_example(example(**dict.fromkeys(left_out)), "here")
    assert record == {"id": "7", "file_name": "7", "height": 20, "width": 30}  # the size is that of the image
    assert all("segmentation" not in row and "area" not in row and row["iscrowd"] == 0 for row in rows)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image/encoded": None}, "has no feature 'image/encoded'"),
        ({"image/height": None, "image/encoded": foreign.texts(b"no image")}, "not a whole, readable image"),
        (
            {"image/object/bbox/xmin": foreign.floats(0.1)},
            r"has 2 class labels, but \[2, 1, 2, 2\] ymin, xmin",
        ),
        ({"image/object/is_crowd": foreign.ints(0)}, "has 1 values of image/object/is_crowd for 2 objects"),
        (
            {"image/object/mask": foreign.floats(*MASK.ravel().astype(float))},
            r"has 600 values of .* \(masks must be one PNG for each",
        ),
        (
            {"image/object/mask": foreign.texts(foreign.png(np.zeros((5, 6), np.uint8)), b"")},
            "the mask of object 0 is 5 high and 6 wide, its image 20 high and 30 wide",
        ),
        ({"image/object/mask": foreign.texts(b"?", b"")}, "the mask of object 0 is not a readable PNG"),
    ],
)
def test_examples_that_do_not_agree(changes, message):
    with pytest.raises(ValueError, match=f"^here: {message}"):
        read_example(example(**changes), "here")


def test_masks_are_decoded_on_demand():
    broken = example(**{"image/object/mask": foreign.texts(b"?", b"")})
    assert len(read_example(broken, "here", masks=False)[2]) == 2
