"""Drawing: what is where on the picture, and labels that leave each other alone."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from mrcnn_tf.models.detections import Detections
from mrcnn_tf.visualize import color, draw
from mrcnn_tf.visualize.labels import font, write_labels

GREY = np.full((200, 300, 3), 90, np.uint8)
SQUARE = [50, 60, 100, 120]


def as_segmentations():
    """The same square of 50 x 60 pixels in every form of a mask."""
    dense = np.zeros((200, 300), np.uint8, order="F")
    dense[50:100, 60:120] = 1
    rle = coco_mask.encode(dense)
    return {
        "polygon": [[60, 50, 120, 50, 120, 100, 60, 100]],
        "array": [np.array([60, 50, 120, 50, 120, 100, 60, 100], np.float32)],
        "rle": rle,
        "text": {"size": rle["size"], "counts": rle["counts"].decode()},
        "uncompressed": {
            "size": [200, 300],
            "counts": [60 * 200 + 50] + [50, 150] * 59 + [50, 179 * 200 + 300],
        },
        "crop": (np.ones((50, 60), bool), 50, 60),
    }


def test_colors_are_stable_distinct_and_bright():
    colors = np.array([color(i) for i in range(60)])
    assert color(3) == tuple(colors[3])
    for window in range(54):
        near = colors[window : window + 6].astype(float)
        for a, b in itertools.combinations(near, 2):
            assert np.abs(a - b).sum() > 60
    assert (colors @ [0.299, 0.587, 0.114]).min() > 90  # visible on a night picture


@pytest.mark.parametrize("form", list(as_segmentations()))
@pytest.mark.parametrize("size", [300, 900, 150])
def test_masks_are_filled_where_they_are(form, size):
    truth = SimpleNamespace(boxes=[SQUARE], class_names=["a"], segmentations=[as_segmentations()[form]])
    picture = draw(GREY, truth, size=size, labels=False, boxes=False, alpha=0.5)
    assert picture.shape == (size * 2 // 3, size, 3)
    factor = size / 300
    changed = (picture != 90).any(axis=2)
    rows, columns = np.flatnonzero(changed.any(axis=1)), np.flatnonzero(changed.any(axis=0))
    got = np.array([rows[0], columns[0], rows[-1] + 1, columns[-1] + 1]) / factor
    np.testing.assert_allclose(
        got, SQUARE, atol=1.5 / factor + 1e-9
    )  # the outline may lie half a line outside
    inside = picture[int(75 * factor), int(90 * factor)]
    np.testing.assert_allclose(inside, 45 + np.array(color(0)) / 2, atol=1)


def test_boxes_alone():
    found = Detections((200, 300), [SQUARE], [0.9], [1], [1], ["a"])
    picture = draw(GREY, found, size=300, labels=False)
    assert (picture[50, 60:120] != 90).any(axis=1).all()
    assert (picture[50:100, 119] != 90).any(axis=1).all()
    assert (picture[52:98, 62:118] == 90).all()
    assert (draw(GREY, found, size=300, labels=False, boxes=False) == GREY).all()


def test_the_image_is_not_changed_and_small_ones_are_enlarged():
    image = np.random.default_rng(0).integers(0, 255, (96, 128, 3), np.uint8)
    before = image.copy()
    truth = SimpleNamespace(boxes=[[10, 10, 60, 70]], class_names=["cat"])
    picture = draw(image, truth)
    np.testing.assert_array_equal(image, before)
    assert picture.shape == (480, 640, 3)
    many = SimpleNamespace(boxes=np.tile([[10, 10, 60, 70]], (20, 1)), class_names=["cat"] * 20)
    assert draw(image, many).shape == (768, 1024, 3)
    assert draw(np.zeros((700, 1200, 3), np.uint8), truth).shape == (700, 1200, 3)


def test_nothing_to_draw_leaves_the_picture_alone():
    empty = SimpleNamespace(boxes=np.zeros((0, 4)), class_names=[])
    np.testing.assert_array_equal(draw(GREY, empty, size=300), GREY)


def test_strange_boxes_do_not_matter():
    boxes = [[-50, -50, 400, 400], [10, 10, 10, 10], [500, 500, 600, 600], [199.5, 299.5, 200, 300]]
    picture = draw(
        GREY,
        SimpleNamespace(
            boxes=boxes, class_names=["a long name"] * 4, segmentations=[None, [], [[1, 2, 3, 4]], None]
        ),
    )
    assert picture.shape == (427, 640, 3)


def test_crowd_regions_are_grey():
    truth = SimpleNamespace(
        boxes=[SQUARE], class_names=["a"], crowd=[True], segmentations=[as_segmentations()["rle"]]
    )
    picture = draw(GREY, truth, size=300, labels=False)
    assert (picture.max(axis=2) == picture.min(axis=2)).all()
    assert (picture != GREY).any()


class TestLabels:
    def write(self, boxes, texts, owner=None, size=(300, 400), **more):
        """The rectangles that labels take, found by drawing each in a colour of its own on black."""
        owner = np.zeros(size, np.int32) if owner is None else owner
        picture = np.zeros((*owner.shape, 3), np.uint8)
        return write_labels(
            picture,
            owner,
            np.array(boxes, float),
            [color(i) for i in range(len(boxes))],
            texts,
            range(len(boxes)),
            **more,
        )

    def area_of(self, text, size=11):
        ascent, descent = font(size).getmetrics()
        return (round(font(size).getlength(text)) + 5) * (ascent + descent)

    def test_a_label_stands_above_its_box(self):
        picture = self.write([[100, 50, 200, 150]], [["cat 0.97"]])
        drawn = picture.any(axis=2)
        rows, columns = np.flatnonzero(drawn.any(axis=1)), np.flatnonzero(drawn.any(axis=0))
        assert rows[-1] == 99
        assert columns[0] == 50
        assert drawn.sum() == pytest.approx(self.area_of("cat 0.97"), rel=0.15)  # but for the black letters

    def test_labels_do_not_overlap(self):
        boxes = [[100 + i, 100 + i, 160 + i, 180 + i] for i in range(6)]
        texts = [[f"cat {i}"] for i in range(6)]
        whole = self.write(boxes, texts).any(axis=2).sum()
        alone = sum(
            self.write([box], [text]).any(axis=2).sum() for box, text in zip(boxes, texts, strict=True)
        )
        assert whole == pytest.approx(alone, rel=0.05)

    def test_without_room_the_shorter_text_or_none_is_written(self):
        owner = np.zeros((300, 400), np.int32)
        boxes = []
        for i, (y, x) in enumerate(itertools.product(range(0, 300, 20), range(0, 400, 40))):
            owner[y : y + 20, x : x + 40] = i + 1
            boxes.append([y, x, y + 20, x + 40])
        first = self.write(boxes, [["nucleus 0.98", "0.98"]] + [[]] * (len(boxes) - 1), owner=owner)
        assert first.any(axis=2).sum() < self.area_of("nucleus 0.98") * 0.75
        none = self.write(boxes, [["nucleus 0.98", "a nucleus 0.98"]] + [[]] * (len(boxes) - 1), owner=owner)
        assert not none.any()
        # The same label is welcome on an instance that it hides only a little of.
        large = self.write(
            [boxes[0], [0, 0, 300, 400]], [["nucleus 0.98"], []], owner=np.full((300, 400), 2, np.int32)
        )
        assert large.any()

    def test_one_name_for_many_of_one_class(self):
        boxes = [[y, x, y + 8, x + 8] for y in range(5, 190, 30) for x in range(5, 290, 30)]
        few = draw(
            GREY, SimpleNamespace(boxes=boxes[:20], class_names=["nucleus"] * 20), size=300, boxes=False
        )
        many = draw(
            GREY, SimpleNamespace(boxes=boxes, class_names=["nucleus"] * len(boxes)), size=300, boxes=False
        )
        assert (few != GREY).any(axis=2)[:150].any()
        written = (many != GREY).any(axis=2)
        assert not written[:180].any()  # no label at any instance
        assert written[180:, :90].any()  # their number and name in the corner


def test_bad_input():
    one = SimpleNamespace(boxes=[SQUARE], class_names=["a"])
    with pytest.raises(ValueError, match="uint8 images"):
        draw(GREY.astype(np.float32), one)
    with pytest.raises(ValueError, match="uint8 images"):
        draw(GREY[..., 0], one)
    with pytest.raises(ValueError, match="has 2 for 1 boxes"):
        draw(GREY, one, ["a", "b"])
