"""Polygons of masks: exact ones against pycocotools, simplified ones against literal distances and pixels."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from mrcnn_tf.geometry.masks import rle_to_mask
from mrcnn_tf.geometry.polygons import polygons_to_rle, to_polygons
from tests.geometry.test_masks import CORNERS, crops, place


def filled(polygons, height, width):
    """What pycocotools fills, dense."""
    if not polygons:
        return np.zeros((height, width), bool)
    return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))).astype(bool)


def to_segments(points, ring):
    """Distance of each point to a closed ring, float64, segment by segment."""
    best = np.full(len(points), np.inf)
    for a, b in zip(ring, np.roll(ring, -1, axis=0), strict=True):
        line = b - a
        if not line.any():
            continue
        share = np.clip((points - a) @ line / (line @ line), 0, 1)
        best = np.minimum(best, np.linalg.norm(points - a - share[:, None] * line, axis=1))
    return best


def along(ring, step=0.1):
    """Points along a closed ring, at most `step` apart."""
    parts = []
    for a, b in zip(ring, np.roll(ring, -1, axis=0), strict=True):
        count = int(np.ceil(np.linalg.norm(b - a) / step)) + 1
        parts.append(a + np.linspace(0, 1, count)[:, None] * (b - a))
    return np.concatenate(parts)


@st.composite
def blobs(draw):
    """Noise of some grain, with many parts and holes, or discs that may overlap; up to 40 pixels a side."""
    h, w = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    grain = draw(st.sampled_from([0, 1, 2, 5]))
    if grain:
        coarse = rng.random((-(-h // grain), -(-w // grain)))
        return np.kron(coarse, np.ones((grain, grain)))[:h, :w] < draw(st.sampled_from([0.3, 0.6, 0.9]))
    yy, xx = np.mgrid[:h, :w]
    discs = rng.random((3, 3)) * [h, w, 12]
    return np.any([np.hypot(yy - y, xx - x) < radius for y, x, radius in discs], axis=0)


def test_square_and_empty():
    polygon = np.reshape(to_polygons(np.ones((2, 3), bool), 4, 5), (-1, 2))
    assert {tuple(p) for p in polygon} == {(5, 4), (8, 4), (8, 6), (5, 6)}
    assert to_polygons(np.zeros((2, 3), bool), 4, 5) == []


@settings(max_examples=150, deadline=None)
@given(crops())
def test_pycocotools_rasterises_them_to_the_same_pixels(case):
    crop, y0, x0, height, width = case
    np.testing.assert_array_equal(filled(to_polygons(crop, y0, x0), height, width), place(*case))


@pytest.mark.parametrize("case", CORNERS)
def test_corner_cases_come_back(case):
    crop, y0, x0, height, width = case
    rle = polygons_to_rle(to_polygons(crop, y0, x0), height, width)
    np.testing.assert_array_equal(rle_to_mask(rle), place(*case))


def test_holes_survive():
    crop = np.ones((7, 9), bool)
    crop[2:4, 2:4] = crop[5, 6:8] = False
    polygons = to_polygons(crop, 1, 1)
    assert len(polygons) == 1
    np.testing.assert_array_equal(filled(polygons, 9, 12), place(crop, 1, 1, 9, 12))


class TestTolerance:
    @settings(max_examples=60, deadline=None)
    @given(blobs(), st.sampled_from([0.5, 1.0, 2.0, 5.0]))
    def test_outlines_keep_the_distance_both_ways(self, crop, tolerance):
        exact, short = to_polygons(crop, 3, 2), to_polygons(crop, 3, 2, tolerance=tolerance)
        assert len(exact) == len(short)
        for one, other in zip(exact, short, strict=True):
            one, other = np.reshape(one, (-1, 2)), np.reshape(other, (-1, 2))
            assert {tuple(p) for p in other} <= {tuple(p) for p in one}
            # A point that comes twice is a hole's bridge, which may run elsewhere: compared where there is none.
            if all(len(np.unique(ring, axis=0)) == len(ring) for ring in (one, other)):
                assert to_segments(along(one), other).max() <= tolerance + 1e-6
                assert to_segments(along(other), one).max() <= tolerance + 1e-6

    @settings(max_examples=30, deadline=None)
    @given(blobs(), st.sampled_from([1.0, 2.0]))
    def test_pixels_deeper_than_the_tolerance_keep_their_value(self, crop, tolerance):
        dense = np.pad(crop, 6)
        back = filled(to_polygons(crop, 6, 6, tolerance=tolerance), *dense.shape)
        # Literally: the nearest edge between a pixel of the mask and one outside. One pixel more for the rounding of
        # slanted edges in pycocotools.
        edges = [(y + 1, x + 0.5) for y, x in np.argwhere(dense[1:] != dense[:-1])]
        edges += [(y + 0.5, x + 1) for y, x in np.argwhere(dense[:, 1:] != dense[:, :-1])]
        for pixel in np.argwhere(back != dense) + 0.5:
            assert np.hypot(*(np.array(edges) - pixel).T).min() <= tolerance + 1.0

    @pytest.mark.parametrize("tolerance", [0.5, 1.0, 3.0, 20.0, 1e6])
    def test_no_part_and_no_hole_vanishes(self, tolerance):
        crop = np.zeros((40, 60), bool)
        crop[2:30, 2:30] = True
        crop[10, 10] = False  # a hole of one pixel
        crop[18:26, 18:22] = False  # and a larger one
        crop[5, 40] = True  # parts of one pixel, of two, and of a line
        crop[9:11, 50] = True
        crop[35, 5:55] = True
        polygons = to_polygons(crop, 0, 0, tolerance=tolerance)
        assert len(polygons) == 4
        back = filled(polygons, 40, 60)
        assert not back[10, 10]
        assert back[5, 40]
        assert back[9:11, 50].any()
        assert back[35, 5:55].mean() >= 0.5
        assert not back[18:26, 18:22].all()

    def test_where_opencv_alone_exceeds_the_tolerance(self):
        """An annotated outline that `approxPolyDP` with 1.5 brings 1.71 pixels away from itself."""
        x = "29 29 20 20 18 18 19 19 16 16 13 13 12 12 13 13 14 14 15 15 13 13 1 1 0 0 42 42 56 56 47 47 39 39 38 38"
        y = "0 1 1 2 2 3 3 4 4 5 5 6 6 7 7 8 8 9 9 10 10 9 9 55 55 65 65 64 64 1 1 2 2 1 1 0"
        ring = np.array([x.split(), y.split()], float).T
        crop = filled([ring.reshape(-1).tolist()], 66, 57)
        short = np.reshape(to_polygons(crop, 0, 0, tolerance=1.5)[0], (-1, 2))
        assert len(short) < len(ring) / 2
        assert to_segments(ring, short).max() <= 1.5

    @pytest.mark.parametrize(
        "crop",
        [
            # A triangle along this corner is near enough, but pycocotools fills one pixel of three.
            np.array([[1, 1], [0, 1]], bool),
            # Cell 7486 of dsb2018 between two rows: a triangle has half the pixels, but others.
            np.array([[1] * 22, [0] * 7 + [1, 1] + [0] * 13], bool),
        ],
    )
    def test_thin_parts_keep_half(self, crop):
        back = filled(to_polygons(crop, 1, 1, tolerance=1.0), 5, 25)
        want = place(crop, 1, 1, 5, 25)
        assert (back & want).sum() / (back | want).sum() >= 0.5

    def test_points_go(self):
        yy, xx = np.mgrid[:101, :101]
        disc = np.hypot(yy - 50, xx - 50) <= 48
        points = [len(to_polygons(disc, 0, 0, tolerance=t)[0]) // 2 for t in (0, 1, 2, 4)]
        assert points[0] > 150
        assert points[1] < 60
        assert points[1:] == sorted(points[1:], reverse=True)

    def test_below_half_a_stair_nothing_changes(self):
        crop = np.random.default_rng(0).random((20, 20)) < 0.6
        assert to_polygons(crop, 0, 0, tolerance=0.3) == to_polygons(crop, 0, 0)

    @pytest.mark.parametrize("tolerance", [-1, float("nan"), float("inf")])
    def test_bad_tolerances(self, tolerance):
        with pytest.raises(ValueError, match="tolerance must be a number of pixels"):
            to_polygons(np.ones((2, 2), bool), 0, 0, tolerance=tolerance)


class TestFilling:
    def test_equals_pycocotools(self):
        rng = np.random.default_rng(1)
        for _ in range(20):
            polygons = [(rng.random(2 * rng.integers(3, 9)) * 30).tolist() for _ in range(3)]
            np.testing.assert_array_equal(
                rle_to_mask(polygons_to_rle(polygons, 25, 28)), filled(polygons, 25, 28)
            )

    def test_less_than_three_points_have_no_area(self):
        assert not rle_to_mask(polygons_to_rle([[1, 1, 5, 5], [2, 2]], 9, 9)).any()
        assert not rle_to_mask(polygons_to_rle([], 9, 9)).any()

    def test_what_reaches_out_is_cut(self):
        back = rle_to_mask(polygons_to_rle([[-3, -3, 4, -3, 4, 1e7, -3, 1e7]], 6, 8))
        want = np.zeros((6, 8), bool)
        want[:, :4] = True
        np.testing.assert_array_equal(back, want)

    @pytest.mark.parametrize(
        ("polygons", "message"),
        [
            ([[0, 0, 4, 0, 4]], "polygon 0 must be a flat list of finite numbers in pairs"),
            ([[0, 0, 4, 0, 4, 4], [0, 0, 1, 0, float("nan"), 2]], "polygon 1 must be"),
            ([[[0, 0], [4, 0], [4, 4]]], "polygon 0 must be"),
            ([["a", 0, 4, 0, 4, 4]], "polygon 0 must be"),
            ([0, 0, 4, 0, 4, 4], "list of lists"),
            ("rle", "list of lists"),
            ([[10, 10, 14, 10, 14, 14]], r"x 10 to 14 and y 10 to 14 lies outside its image of 9 x 9"),
            ([[-5, 0, -1, 0, -1, 4]], "outside its image"),
        ],
    )
    def test_bad_polygons(self, polygons, message):
        with pytest.raises(ValueError, match=message):
            polygons_to_rle(polygons, 9, 9)
