"""Mask paste, run-length codes and cropped targets against references written out in full."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from mrcnn_tf.geometry import masks


def dense_paste(mask, box, height, width):
    """detectron2's paste in float64, pixel by pixel: bilinear at the pixel's centre, zeros outside."""
    mask, (y1, x1, y2, x2) = np.asarray(mask, np.float64), (float(v) for v in box)
    cells_y, cells_x = mask.shape
    out = np.zeros((height, width))
    for i in range(height):
        for j in range(width):
            y = (i + 0.5 - y1) / (y2 - y1) * cells_y - 0.5
            x = (j + 0.5 - x1) / (x2 - x1) * cells_x - 0.5
            for p in (int(np.floor(y)), int(np.floor(y)) + 1):
                for q in (int(np.floor(x)), int(np.floor(x)) + 1):
                    if 0 <= p < cells_y and 0 <= q < cells_x:
                        out[i, j] += mask[p, q] * (1 - abs(y - p)) * (1 - abs(x - q))
    return out


def place(crop, y0, x0, height, width):
    dense = np.zeros((height, width), crop.dtype)
    dense[y0 : y0 + crop.shape[0], x0 : x0 + crop.shape[1]] = crop
    return dense


@st.composite
def crops(draw):
    """A random crop somewhere on a small image, often touching its borders or filling it."""
    height, width = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    h, w = draw(st.integers(0, height)), draw(st.integers(0, width))
    y0, x0 = draw(st.integers(0, height - h)), draw(st.integers(0, width - w))
    bits = draw(st.lists(st.booleans(), min_size=h * w, max_size=h * w))
    return np.array(bits, bool).reshape(h, w), y0, x0, height, width


CORNERS = [
    (np.zeros((0, 0), bool), 0, 0, 4, 5),  # no crop at all
    (np.zeros((2, 2), bool), 1, 1, 4, 5),  # an empty one
    (np.ones((4, 5), bool), 0, 0, 4, 5),  # the whole image: one run over all columns
    (np.ones((1, 1), bool), 0, 0, 4, 5),  # the first pixel
    (np.ones((1, 1), bool), 3, 4, 4, 5),  # the last pixel
    (np.ones((1, 1), bool), 2, 2, 4, 5),
    (np.ones((1, 1), bool), 0, 0, 1, 1),  # an image of one pixel
    (np.ones((4, 2), bool), 0, 1, 4, 5),  # full columns
    (
        np.array([[0, 1], [0, 1], [1, 0], [1, 0]], bool),
        0,
        3,
        4,
        5,
    ),  # a run from one column's bottom to the next top
]


class TestPaste:
    def test_golden_values(self):
        # Two by two cells on a 4 x 4 box: cell centres at 1 and 3, pixel centres at 0.5, 1.5, ...
        crop, y0, x0 = masks.paste([[1.0, 0.0], [0.0, 0.0]], [1.0, 1.0, 5.0, 5.0], 6, 6)
        column = np.array([0.25, 0.75, 0.75, 0.25, 0.0, 0.0])
        np.testing.assert_allclose(place(crop, y0, x0, 6, 6), np.outer(column, column), atol=1e-7)

    def test_one_cell_per_pixel_is_a_copy(self):
        mask = np.random.default_rng(0).random((5, 7)).astype(np.float32)
        crop, y0, x0 = masks.paste(mask, [2, 3, 7, 10], 20, 20)
        np.testing.assert_array_equal(place(crop, y0, x0, 20, 20)[2:7, 3:10], mask)
        assert np.count_nonzero(place(crop, y0, x0, 20, 20)) == 35

    @pytest.mark.parametrize(
        "box",
        [
            [2.3, 3.1, 9.8, 14.6],
            [-4.0, -3.5, 6.5, 8.25],  # across the top left corner
            [5.5, 9.5, 31.0, 40.0],  # across the bottom right corner
            [-20.0, -20.0, 40.0, 50.0],  # larger than the image
            [6.2, 7.1, 6.4, 7.2],  # within one pixel, without its centre
            [3.5, 3.5, 4.5, 4.5],  # edges on pixel centres
            [40.0, 40.0, 50.0, 50.0],  # outside
            [2.0, 2.0, 3.0, 15.0],
        ],
    )
    @pytest.mark.parametrize("shape", [(28, 28), (3, 3), (1, 1), (4, 6)])
    @pytest.mark.parametrize("order", ["F", "C"])
    def test_equals_the_reference(self, box, shape, order):
        mask = np.random.default_rng(1).random(shape)
        crop, y0, x0 = masks.paste(mask, box, 12, 17, order)
        want = dense_paste(mask, box, 12, 17)
        np.testing.assert_allclose(place(crop, y0, x0, 12, 17), want, atol=2e-6)
        assert crop.dtype == np.float32
        assert crop.flags[f"{order}_CONTIGUOUS"]

    def test_what_lies_outside_the_box_is_below_one_half(self):
        crop, y0, x0 = masks.paste(np.ones((2, 2)), [4.0, 4.0, 12.0, 12.0], 16, 16)
        dense = place(crop, y0, x0, 16, 16)
        assert dense[3, 8] > 0  # interpolated against the zeros around the mask
        dense[4:12, 4:12] = 0
        assert dense.max() < 0.5

    @pytest.mark.parametrize("box", [[3, 3, 3, 9], [5, 5, 4, 9], [np.nan, 0, 4, 4], [0, 0, np.inf, 4]])
    def test_boxes_without_area_give_nothing(self, box):
        assert masks.paste(np.ones((4, 4)), box, 10, 10)[0].shape == (0, 0)


class TestRunLengthCodes:
    @pytest.mark.parametrize("case", CORNERS)
    def test_corner_cases_equal_pycocotools(self, case):
        dense = place(*case).astype(np.uint8)
        assert masks.to_rle(*case) == coco_mask.encode(np.asfortranarray(dense))
        np.testing.assert_array_equal(masks.rle_to_mask(masks.to_rle(*case)), dense.astype(bool))

    @settings(max_examples=150, deadline=None)
    @given(crops())
    def test_equals_pycocotools_and_comes_back(self, case):
        dense = place(*case)
        rle = masks.to_rle(*case)
        assert rle == coco_mask.encode(np.asfortranarray(dense.astype(np.uint8)))
        np.testing.assert_array_equal(masks.rle_to_mask(rle), dense)

    def test_long_runs_use_several_characters(self):
        dense = np.zeros((700, 900), np.uint8)
        dense[5:690, 400] = 1
        dense[::3, 600:800] = 1
        rle = coco_mask.encode(np.asfortranarray(dense))
        assert masks.to_rle(dense.astype(bool), 0, 0, 700, 900) == rle
        np.testing.assert_array_equal(masks.rle_to_mask(rle), dense)

    def test_every_spelling_is_read(self):
        uncompressed = {"size": [2, 3], "counts": [1, 2, 2, 1]}
        compressed = coco_mask.frPyObjects(uncompressed, 2, 3)
        text = {"size": [2, 3], "counts": compressed["counts"].decode()}
        for rle in (uncompressed, compressed, text):
            np.testing.assert_array_equal(masks.rle_to_mask(rle), [[0, 1, 0], [1, 0, 1]])

    def test_crop_of_rle(self):
        dense = np.random.default_rng(2).random((11, 13)) < 0.4
        rle = coco_mask.encode(np.asfortranarray(dense.astype(np.uint8)))
        for y0, x0, y1, x1 in [(0, 0, 11, 13), (2, 3, 9, 10), (0, 12, 11, 13), (4, 4, 4, 4)]:
            np.testing.assert_array_equal(masks.crop_of_rle(rle, y0, x0, y1, x1), dense[y0:y1, x0:x1])

    @settings(max_examples=100, deadline=None)
    @given(crops())
    def test_the_tight_crop_of_a_code(self, case):
        dense = place(*case)
        crop, y0, x0 = masks.rle_to_crop(masks.to_rle(*case))
        np.testing.assert_array_equal(place(crop, y0, x0, *dense.shape), dense)
        assert crop.size == 0 or (crop[0].any() and crop[-1].any() and crop[:, 0].any() and crop[:, -1].any())

    def test_runs_of_no_length_are_no_pixels(self):
        rle = {"size": [4, 5], "counts": [2, 0, 5, 2, 1, 0, 10, 0]}
        crop, y0, x0 = masks.rle_to_crop(rle)
        np.testing.assert_array_equal(place(crop, y0, x0, 4, 5), masks.rle_to_mask(rle))
        assert (y0, x0, crop.shape) == (0, 1, (4, 2))

    @pytest.mark.parametrize(
        ("rle", "message"),
        [
            ({"size": [2, 3], "counts": [1, 2]}, "must add up to 6 pixels, but adds up to 3"),
            ({"size": [2, 3], "counts": [8, -2]}, "must add up to 6 pixels"),
            ({"size": [2, 3], "counts": b"\x01!"}, "characters"),
            ({"size": [2, 3], "counts": ""}, "breaks off"),
        ],
    )
    def test_damaged_codes(self, rle, message):
        with pytest.raises(ValueError, match=message):
            masks.rle_to_mask(rle)

    def test_a_crop_outside_the_image(self):
        with pytest.raises(ValueError, match="not inside an image of 4x4"):
            masks.to_rle(np.ones((3, 3), bool), 2, 0, 4, 4)
        with pytest.raises(ValueError, match="not inside the mask's size"):
            masks.crop_of_rle({"size": [2, 2], "counts": [4]}, 0, 0, 3, 2)


class TestRasterize:
    def test_polygon_golden(self):
        # The left half of the box, then a triangle over the box's upper left half.
        left = masks.rasterize([[10, 10, 20, 10, 20, 30, 10, 30]], [10, 10, 30, 30], 4, 50, 50)
        np.testing.assert_array_equal(left, [[1, 1, 0, 0]] * 4)
        triangle = masks.rasterize([[10, 10, 50, 10, 10, 50]], [10, 10, 50, 50], 100, 60, 60)
        want = np.add.outer(np.arange(100), np.arange(100)) < 99
        assert np.mean(triangle != want) < 0.015  # the diagonal's cells may fall either way

    def test_small_objects_keep_their_shape(self):
        # A right triangle of three pixels has 56 x 56 cells, not a staircase of three.
        target = masks.rasterize([[0, 0, 3, 0, 0, 3]], [0, 0, 3, 3], 56, 10, 10)
        assert abs(target.mean() - 0.5) < 0.02
        assert len(np.unique(target.sum(axis=1))) > 50

    def test_rle_golden_cells_and_covered_share(self):
        dense = np.zeros((8, 8), np.uint8)
        dense[2:6, 2:4] = 1
        rle = coco_mask.encode(np.asfortranarray(dense))
        np.testing.assert_array_equal(masks.rasterize(rle, [2, 2, 6, 6], 4, 8, 8), [[1, 1, 0, 0]] * 4)
        np.testing.assert_array_equal(masks.rasterize(rle, [2, 2, 6, 6], 2, 8, 8), [[1, 0]] * 2)
        # Cells of two pixels, one of them covered: half is enough. A third of a cell is not.
        np.testing.assert_array_equal(masks.rasterize(rle, [2, 1, 6, 5], 2, 8, 8), [[1, 1]] * 2)
        np.testing.assert_array_equal(masks.rasterize(rle, [2, 3, 6, 6], 1, 8, 8), [[0]])

    def test_rle_equals_the_literal_covered_area(self):
        rng = np.random.default_rng(3)
        dense = rng.random((17, 19)) < 0.5
        rle = coco_mask.encode(np.asfortranarray(dense.astype(np.uint8)))
        y1, x1, y2, x2 = box = [1.3, -2.2, 15.9, 18.4]
        want = np.zeros((5, 5))
        for i in range(5):
            for j in range(5):
                top, left = y1 + (y2 - y1) * i / 5, x1 + (x2 - x1) * j / 5
                for p in range(17):
                    for q in range(19):
                        h = max(0, min(p + 1, top + (y2 - y1) / 5) - max(p, top))
                        w = max(0, min(q + 1, left + (x2 - x1) / 5) - max(q, left))
                        want[i, j] += dense[p, q] * h * w
        want /= (y2 - y1) * (x2 - x1) / 25
        assert np.abs(want - 0.5).min() > 1e-3  # no cell is a matter of rounding
        np.testing.assert_array_equal(masks.rasterize(rle, box, 5, 17, 19), want >= 0.5)

    @settings(max_examples=50, deadline=None)
    @given(crops())
    def test_a_target_pasted_back_is_the_mask(self, case):
        crop, y0, x0, height, width = case
        box = [y0, x0, y0 + crop.shape[0], x0 + crop.shape[1]]
        target = masks.rasterize(masks.to_rle(*case), box, 112, height, width)
        pasted, y, x = masks.paste(target, box, height, width)
        np.testing.assert_array_equal(place(pasted >= 0.5, y, x, height, width), place(*case))

    @pytest.mark.parametrize(
        ("segmentation", "box"),
        [
            ([], [0, 0, 4, 4]),
            ([[1, 1, 3, 3]], [0, 0, 4, 4]),  # two points have no area; pycocotools would read a box
            ([[1, 1, 3, 1, 3, 3]], [2, 2, 2, 4]),  # a box without area
            ({"size": [9, 9], "counts": [81]}, [0, 0, 4, 4]),
            ({"size": [9, 9], "counts": [0, 81]}, [20, 20, 24, 24]),  # a box outside the image
        ],
    )
    def test_nothing_to_see_is_all_zeros(self, segmentation, box):
        np.testing.assert_array_equal(masks.rasterize(segmentation, box, 3, 9, 9), np.zeros((3, 3)))

    @pytest.mark.parametrize(
        ("segmentation", "message"),
        [
            ({"size": [5, 5], "counts": [25]}, r"size \[5, 5\], its image \[9, 9\]"),
            ([[0, 0, float("nan"), 1, 2, 2]], "not a finite number"),
            ([0, 0, 4, 0, 4, 4], "not flat numbers"),
        ],
    )
    def test_bad_segmentations(self, segmentation, message):
        with pytest.raises(ValueError, match=message):
            masks.rasterize(segmentation, [0, 0, 4, 4], 3, 9, 9)


@pytest.mark.parametrize(
    ("file", "least"),
    [
        ("dsb2018/annotations/instances_val.json", 0.998),
        ("coco_mini/annotations/instances_val2017.json", 0.85),
    ],
)
def test_real_targets_pasted_back(data_dir, file, least):
    """Targets of 112 cells, pasted at the annotated box, are the annotated masks."""
    truth = json.loads((data_dir / file).read_text())
    sizes = {image["id"]: (image["height"], image["width"]) for image in truth["images"]}
    for annotation in truth["annotations"][:200]:
        size = sizes[annotation["image_id"]]
        x, y, w, h = annotation["bbox"]
        box = [y, x, y + h, x + w]
        target = masks.rasterize(annotation["segmentation"], box, 112, *size)
        crop, y0, x0 = masks.paste(target, box, *size)
        want = annotation["segmentation"]
        if isinstance(want, list):
            want = coco_mask.merge(coco_mask.frPyObjects(want, *size))
        elif isinstance(want["counts"], list):
            want = coco_mask.frPyObjects(want, *size)
        iou = coco_mask.iou([masks.to_rle(crop >= 0.5, y0, x0, *size)], [want], [0])[0, 0]
        assert iou > least, annotation["id"]
