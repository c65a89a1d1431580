"""Forms of masks: from each to each, against pycocotools and literal distances; what is damaged is refused."""

import base64
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from mrcnn_tf.geometry import forms, masks
from tests.geometry.test_masks import CORNERS, crops, place

EXACT = ["rle", "rle-uncompressed", "polygons", "packed-bits"]
BITS = {"size": [4, 5], "packed_bits": base64.b64encode(b"\xf0").decode(), "window": [1, 1, 2, 2]}
BOX = {
    "size": [4, 5],
    "box_mask": base64.b64encode(b"\xff" * 4).decode(),
    "shape": [2, 2],
    "bbox": [1, 1, 2, 2],
}


def dense_of(segmentation, height, width):
    """The dense mask, after a trip through JSON."""
    crop, y0, x0 = forms.decode(json.loads(json.dumps(segmentation)), image_size=(height, width))
    assert crop.size == 0 or (crop[0].any() and crop[-1].any() and crop[:, 0].any() and crop[:, -1].any())
    return place(crop, y0, x0, height, width)


class TestRoundTrips:
    @settings(max_examples=100, deadline=None)
    @given(crops(), st.lists(st.sampled_from(EXACT), min_size=1, max_size=4))
    def test_exact_forms_give_the_same_pixels_in_any_order(self, case, chain):
        crop, y0, x0, height, width = case
        segmentation = forms.encode((crop, y0, x0), chain[0], (height, width))
        for form in chain[1:]:
            segmentation = forms.convert(segmentation, form, image_size=(height, width))
        assert forms.form_of(segmentation) == chain[-1]
        np.testing.assert_array_equal(dense_of(segmentation, height, width), place(*case))
        code = forms.convert(segmentation, "rle", image_size=(height, width))
        want = coco_mask.encode(np.asfortranarray(place(*case).astype(np.uint8)))
        assert code == {"size": want["size"], "counts": want["counts"].decode()}

    @pytest.mark.parametrize("form", EXACT)
    @pytest.mark.parametrize("case", CORNERS)
    def test_corner_cases(self, case, form):
        crop, y0, x0, height, width = case
        segmentation = forms.encode((crop, y0, x0), form, (height, width))
        np.testing.assert_array_equal(dense_of(segmentation, height, width), place(*case))

    @settings(max_examples=50, deadline=None)
    @given(crops(), st.sampled_from([28, 56]))
    def test_small_masks_with_many_cells_a_pixel_are_exact(self, case, cells):
        crop, y0, x0, height, width = case
        segmentation = forms.encode((crop, y0, x0), "box-mask", (height, width), mask_size=cells)
        assert forms.form_of(segmentation) == "box-mask"
        np.testing.assert_array_equal(dense_of(segmentation, height, width), place(*case))

    def test_uncompressed_counts_are_those_of_pycocotools(self):
        crop = np.random.default_rng(0).random((6, 7)) < 0.5
        uncompressed = forms.encode((crop, 1, 2), "rle-uncompressed", (9, 11))
        code = coco_mask.encode(np.asfortranarray(place(crop, 1, 2, 9, 11).astype(np.uint8)))
        assert coco_mask.frPyObjects(uncompressed, 9, 11) == code

    def test_packed_bits_are_numpy_s(self):
        segmentation = forms.encode((np.array([[1, 1, 0], [0, 1, 1]], bool), 1, 2), "packed-bits", (4, 5))
        assert segmentation["window"] == [2, 1, 3, 2]
        assert base64.b64decode(segmentation["packed_bits"]) == bytes([0b11001100])

    def test_polygons_take_the_tolerance(self):
        yy, xx = np.mgrid[:60, :60]
        disc = np.hypot(yy - 30, xx - 30) < 28
        exact, rough = (forms.encode((disc, 0, 0), "polygons", (60, 60), tolerance=t)[0] for t in (0.0, 2.0))
        assert len(rough) < len(exact) / 4


class TestBoxMasks:
    def test_are_what_is_pasted(self):
        rng = np.random.default_rng(1)
        for box in ([3.25, 4.5, 30.75, 22.0], [-6.5, -3.0, 12.5, 9.25], [20, 20, 45, 60]):
            mask = rng.random((28, 28))
            mask[np.abs(mask - 0.5) < 0.02] = 0
            crop, y0, x0 = masks.paste(np.rint(mask * 255).astype(np.float32) / 255, box, 40, 50, "C")
            got = dense_of(forms.to_box_mask(mask, box, (40, 50)), 40, 50)
            np.testing.assert_array_equal(got, place(crop >= 0.5, y0, x0, 40, 50))

    def test_one_half_stays_on_its_side(self):
        mask = np.array([[0.5, np.nextafter(0.5, 0)], [1.0, 0.0]])
        back = dense_of(forms.to_box_mask(mask, [1, 1, 3, 3], (4, 4)), 4, 4)
        np.testing.assert_array_equal(back[1:3, 1:3], [[1, 0], [1, 0]])

    def test_cells_hold_the_covered_share(self):
        # Two columns of three are covered: of two cells the first by all, the second by a third.
        crop = np.array([[1, 1, 0], [1, 1, 0], [1, 1, 1]], bool)
        segmentation = forms.encode((crop, 0, 0), "box-mask", (3, 3), mask_size=2)
        cells = np.frombuffer(base64.b64decode(segmentation["box_mask"]), np.uint8).reshape(2, 2)
        np.testing.assert_array_equal(cells, np.rint(255 * np.array([[1, 0.75 / 2.25], [1, 1.75 / 2.25]])))
        assert segmentation["bbox"] == [0, 0, 3, 3]

    @pytest.mark.parametrize("mask", [np.full((2, 2), np.nan), np.full((2, 2), 1.5), -np.ones((2, 2)), [1.0]])
    def test_bad_probabilities(self, mask):
        with pytest.raises(ValueError, match="probabilities in"):
            forms.to_box_mask(mask, [0, 0, 2, 2], (4, 4))

    def test_bad_box(self):
        with pytest.raises(ValueError, match="a box must be four finite numbers"):
            forms.to_box_mask(np.ones((2, 2)), [0, 0, math.nan, 2], (4, 4))


class TestCompare:
    @settings(max_examples=60, deadline=None)
    @given(crops(), st.integers(0, 2**32 - 1))
    def test_equals_the_literal_distances(self, case, seed):
        crop, y0, x0, height, width = case
        one, other = place(*case), np.random.default_rng(seed).random((height, width)) < 0.4
        iou, deviation = forms.compare((crop, y0, x0), (other, 0, 0))
        if not one.any() or not other.any():
            assert (iou, deviation) == ((1, 0) if one.any() == other.any() else (0, math.inf))
            return
        assert iou == pytest.approx((one & other).sum() / (one | other).sum())
        edges = []
        for dense in (np.pad(one, 1), np.pad(other, 1)):
            inner = dense[:-2, 1:-1] & dense[2:, 1:-1] & dense[1:-1, :-2] & dense[1:-1, 2:]
            edges.append(np.argwhere(dense[1:-1, 1:-1] & ~inner).astype(float))
        apart = np.linalg.norm(edges[0][:, None] - edges[1][None], axis=2)
        assert deviation == pytest.approx(max(apart.min(axis=0).max(), apart.min(axis=1).max()), abs=1e-4)

    def test_a_lost_part_and_a_lost_hole_show(self):
        dense = np.zeros((30, 30), bool)
        dense[2:22, 2:22] = True
        dense[10, 10] = False
        dense[28, 28] = True
        without_part, without_hole = dense.copy(), dense.copy()
        without_part[28, 28], without_hole[10, 10] = False, True
        assert forms.compare((dense, 0, 0), (without_part, 0, 0))[1] == pytest.approx(math.hypot(7, 7))
        # The pixel above the hole, row 9, is seven from row 2, where the other's boundary is.
        assert forms.compare((dense, 0, 0), (without_hole, 0, 0))[1] == pytest.approx(8)


class TestMeasure:
    def test_counts_bytes_and_errors(self):
        crop = (np.ones((3, 4), bool), 2, 2)
        rle = forms.measure(crop, "rle", (9, 9))
        code = forms.encode(crop, "rle", (9, 9))
        assert rle["json_bytes"] == len(json.dumps(code))
        assert rle["raw_bytes"] == len(code["counts"])
        assert (rle["iou"], rle["deviation"]) == (1, 0)
        assert forms.measure(crop, "rle-uncompressed", (9, 9))["raw_bytes"] == 4 * 9
        assert forms.measure(crop, "polygons", (9, 9))["raw_bytes"] == 4 * 8
        assert forms.measure(crop, "packed-bits", (9, 9))["raw_bytes"] == 2 + 16
        assert forms.measure(crop, "box-mask", (9, 9), mask_size=3)["raw_bytes"] == 9 + 16

    def test_a_coarse_mask_shows_its_error(self):
        crop = np.eye(20, dtype=bool)
        row = forms.measure((crop, 0, 0), "box-mask", (20, 20), mask_size=2)
        assert row["iou"] < 0.5
        assert row["deviation"] > 0


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ("text", "is no segmentation"),
        (None, "is no segmentation"),
        ({"size": [4, 5]}, "is no segmentation"),
        ({"size": [4, 5], "counts": "\x01!"}, "characters"),
        ({"size": [4, 5], "counts": [3, 4]}, "must add up to 20 pixels"),
        ({"size": [4, 5], "counts": [3, 4.5, 12.5]}, "whole numbers"),
        ({"size": [4, 5], "counts": [3, math.nan, 17]}, "whole numbers"),
        ({"size": [4, 5], "counts": [3, 10**30]}, "whole numbers"),
        ({"size": [4, 5], "counts": {"a": 1}}, "whole numbers"),
        ({"size": [5, 4], "counts": [20]}, r"has size \[5, 4\], but its image \[4, 5\]"),
        ({"size": [4], "counts": [20]}, "'size' must be 2 whole numbers"),
        ({"counts": [20]}, "'size' must be 2 whole numbers"),
        ([[9, 9, 12, 9, 12, 12]], "outside its image"),
        ([[0, 0, math.nan, 0, 3, 3]], "finite numbers"),
        ({**BITS, "packed_bits": "###"}, "not base64"),
        ({**BITS, "packed_bits": 7}, "not base64"),
        ({**BITS, "packed_bits": "////"}, "must hold 1 bytes, but holds 3"),
        ({**BITS, "window": [1, 1, 2, -2]}, "'window' must be 4 whole numbers"),
        ({**BITS, "window": [4, 1, 2, 2]}, r"window \[4, 1, 2, 2\] is not inside an image of 4 x 5"),
        ({**BOX, "shape": [2, 3]}, "must hold 6 bytes, but holds 4"),
        ({**BOX, "shape": None}, "'shape' must be 2 whole numbers"),
        ({**BOX, "bbox": [1, 1, math.inf, 2]}, "'bbox' must be 4 finite numbers"),
    ],
)
def test_damaged_segmentations(segmentation, message):
    with pytest.raises(ValueError, match=message):
        forms.decode(segmentation, image_size=(4, 5))


def test_the_undamaged_ones():
    want = np.zeros((4, 5), bool)
    want[1:3, 1:3] = True
    for segmentation in (BITS, BOX):
        np.testing.assert_array_equal(dense_of(segmentation, 4, 5), want)


def test_bad_settings():
    crop = (np.ones((2, 2), bool), 0, 0)
    with pytest.raises(ValueError, match="no form 'png'; choose one of rle, rle-uncompressed"):
        forms.encode(crop, "png", (4, 4))
    with pytest.raises(ValueError, match="at least 1 cell"):
        forms.encode(crop, "box-mask", (4, 4), mask_size=0)
    with pytest.raises(ValueError, match="tolerance"):
        forms.encode(crop, "polygons", (4, 4), tolerance=-1)
    for form in forms.FORMS:
        with pytest.raises(ValueError, match="not inside an image of 1x1"):
            forms.encode(crop, form, (1, 1))
    with pytest.raises(ValueError, match="do not tell the image's size"):
        forms.decode([[0, 0, 3, 0, 3, 3]])
