"""Tiles cover the image; what they cut comes out once and whole, and what they tell apart stays apart."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from mrcnn_tf.geometry.masks import to_rle
from mrcnn_tf.models.detections import Detections
from mrcnn_tf.tiling import Part, detect_tiled, stitch, tiles_of
from tests.numbered import Perfect, classes_of, draw_numbered
from tests.tiny import make_model

SIZE = (64, 100)
LEFT, RIGHT = (0, 0, 64, 60), (0, 40, 64, 100)  # they share columns 40 to 59
DISC, STAR = (1, 7, "disc"), (2, 90, "star")


def part(tile, y1, x1, y2, x2, score=0.9, label=DISC, holes=()) -> Part:
    """A rectangle in image coordinates, without the rectangles `holes`."""
    mask = np.zeros(SIZE, bool)
    mask[y1:y2, x1:x2] = True
    for a1, b1, a2, b2 in holes:
        mask[a1:a2, b1:b2] = False
    return Part(tile, (y1, x1, y2, x2), score, label, to_rle(mask, 0, 0, *SIZE))


def pixels(whole: Part) -> np.ndarray:
    return coco_mask.decode(whole.rle).astype(bool)


def rectangle(y1, x1, y2, x2) -> np.ndarray:
    mask = np.zeros(SIZE, bool)
    mask[y1:y2, x1:x2] = True
    return mask


@settings(max_examples=60, deadline=None)
@given(
    size=st.tuples(st.integers(1, 300), st.integers(1, 300)), tile=st.integers(32, 120), share=st.floats(0, 1)
)
def test_tiles_cover_the_image_and_share_the_overlap(size, tile, share):
    overlap = max(1, int(share * (tile - 1)))
    tiles = tiles_of(*size, tile, overlap)
    assert len(set(tiles)) == len(tiles)
    seen = np.zeros(size, int)
    for y1, x1, y2, x2 in tiles:
        assert (y2 - y1, x2 - x1) == (min(tile, size[0]), min(tile, size[1]))
        seen[y1:y2, x1:x2] += 1
    assert seen.min() >= 1
    for axis in (0, 1):
        spans = sorted({(t[axis], t[axis + 2]) for t in tiles})
        assert all(before[1] - after[0] >= overlap for before, after in zip(spans, spans[1:], strict=False))


def test_tiles_by_hand():
    assert tiles_of(50, 230, 100, 20) == [(0, 0, 50, 100), (0, 80, 50, 180), (0, 130, 50, 230)]
    assert tiles_of(100, 100, 100, 20) == [(0, 0, 100, 100)]
    assert tiles_of(10, 181, 100) == [(0, 0, 10, 100), (0, 75, 10, 175), (0, 81, 10, 181)]  # a quarter


def test_bad_arguments():
    image = np.zeros((100, 100, 3), np.uint8)
    for tile, overlap, message in (
        (31, 8, "a side of 32 pixels or more, not 31"),
        (64, 64, "overlap must be from 1 to 63, less than the tile, not 64"),
        (64, 0, "from 1 to 63, less than the tile, not 0"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            detect_tiled(Perfect(), image, tile=tile, overlap=overlap)
    for wrong in (image[..., :2], image[..., 0], image[0, 0], image.astype(float), image.tolist()):
        with pytest.raises(ValueError, match=r"an image must be uint8 \[height, width, 3\]"):
            detect_tiled(Perfect(), wrong, tile=64)
    for threshold in (0, 1.1):
        with pytest.raises(ValueError, match="iou_threshold must be in"):
            stitch([], SIZE, iou_threshold=threshold)

    class Boxes(Perfect):
        def detect(self, image, score_threshold=0.0):
            return Detections(image.shape[:2], [[1, 1, 9, 9]], [0.5], [1], [1], ["x"])

    with pytest.raises(ValueError, match="without a mask head"):
        detect_tiled(Boxes(), image, tile=64)


def test_an_instance_cut_by_a_border_is_joined():
    (whole,) = stitch([part(LEFT, 10, 20, 30, 60, 0.7), part(RIGHT, 10, 40, 30, 80, 0.8)], SIZE)
    assert whole == Part((0, 0, *SIZE), (10, 20, 30, 80), 0.8, DISC, whole.rle)
    np.testing.assert_array_equal(pixels(whole), rectangle(10, 20, 30, 80))


def test_a_tile_that_sees_it_whole_has_the_last_word():
    """Even where its score is lower, and the cut part bulges."""
    (whole,) = stitch([part(LEFT, 10, 20, 30, 50, 0.6), part(RIGHT, 8, 40, 30, 52, 0.9)], SIZE)
    assert (whole.box, whole.score) == ((10, 20, 30, 50), 0.9)
    np.testing.assert_array_equal(pixels(whole), rectangle(10, 20, 30, 50))
    # The image's own borders cut nothing.
    for whole, cut in (
        (part(LEFT, 0, 0, 64, 50, 0.6), part(RIGHT, 1, 40, 64, 52, 0.9)),
        (part(RIGHT, 0, 50, 64, 100, 0.6), part(LEFT, 1, 48, 64, 60, 0.9)),
    ):
        (found,) = stitch([whole, cut], SIZE)
        assert (found.box, found.score) == (whole.box, 0.9)
    # Whole in both: that of the higher score.
    (whole,) = stitch([part(LEFT, 10, 45, 30, 55, 0.6), part(RIGHT, 11, 45, 30, 55, 0.9)], SIZE)
    assert (whole.box, whole.score) == ((11, 45, 30, 55), 0.9)


def test_touching_instances_stay_apart():
    """Two of one class that touch within the strip; each is whole in one tile and cut in the other."""
    found = stitch(
        [
            part(LEFT, 10, 20, 30, 50, 0.9),
            part(LEFT, 10, 50, 30, 60, 0.6),
            part(RIGHT, 10, 40, 30, 50, 0.7),
            part(RIGHT, 10, 50, 30, 80, 0.8),
        ],
        SIZE,
    )
    assert [(p.box, p.score) for p in found] == [((10, 20, 30, 50), 0.9), ((10, 50, 30, 80), 0.8)]


def test_what_a_tile_tells_apart_stays_apart():
    """The right tile takes two neighbours for one; it goes to the one it shares more with, the other stays."""
    upper, lower = part(LEFT, 10, 20, 22, 60, 0.9), part(LEFT, 22, 20, 32, 60, 0.8)
    found = stitch([upper, lower, part(RIGHT, 10, 40, 32, 80, 0.7)], SIZE, iou_threshold=0.4)
    np.testing.assert_array_equal(pixels(found[0]), rectangle(10, 20, 22, 60) | rectangle(10, 40, 32, 80))
    assert [p.box for p in found] == [(10, 20, 32, 80), (22, 20, 32, 60)]


@pytest.mark.parametrize(("threshold", "count"), [(0.5, 1), (0.51, 2)])
def test_parts_agree_by_the_iou_within_what_both_tiles_see(threshold, count):
    """In the strip 20 x 20 against 20 x 10 pixels, IoU 0.5; beyond it, nothing of theirs can agree."""
    found = stitch(
        [part(LEFT, 10, 0, 30, 60), part(RIGHT, 10, 40, 30, 100, holes=[(10, 40, 20, 60)])],
        SIZE,
        iou_threshold=threshold,
    )
    assert len(found) == count


def test_other_classes_are_not_joined():
    """Cut in both tiles: two classes are two instances. Whole in one: what the other sees of it is left out."""
    assert len(stitch([part(LEFT, 10, 20, 30, 60), part(RIGHT, 10, 40, 30, 80, label=STAR)], SIZE)) == 2
    seen_whole = part(LEFT, 10, 20, 30, 50, 0.4)
    (found,) = stitch([seen_whole, part(RIGHT, 10, 40, 30, 50, 0.9, STAR)], SIZE)
    assert (found.label, found.score) == (DISC, 0.4)
    assert (
        len(stitch([part(LEFT, 10, 20, 20, 50), part(RIGHT, 10, 40, 30, 50, 0.9, STAR)], SIZE)) == 1
    )  # half
    # Where that tile found nothing, or something else at less than half of the pixels, it stays.
    assert len(stitch([part(LEFT, 40, 20, 60, 50), part(RIGHT, 10, 40, 30, 50, 0.9, STAR)], SIZE)) == 2
    assert len(stitch([part(LEFT, 10, 20, 19, 50), part(RIGHT, 10, 40, 30, 50, 0.9, STAR)], SIZE)) == 2
    # Two that are whole in both are the model's word.
    assert len(stitch([part(LEFT, 10, 45, 30, 55), part(RIGHT, 10, 45, 30, 55, label=STAR)], SIZE)) == 2


def test_empty_masks_and_nothing():
    empty = Part(LEFT, (10, 20, 30, 60), 0.9, DISC, to_rle(np.zeros((0, 0), bool), 0, 0, *SIZE))
    assert len(stitch([empty, part(RIGHT, 10, 40, 30, 80)], SIZE)) == 2
    assert stitch([], SIZE) == []
    found = detect_tiled(Perfect(), np.zeros((50, 70, 3), np.uint8), tile=32)
    assert len(found) == 0 and found.segmentations == [] and found.image_size == (50, 70)


def check(found: Detections, truth: list) -> None:
    """Every instance once, exactly, with its class; best first."""
    numbers = {rle["counts"].decode(): n for n, rle in enumerate(truth, 1)}
    got = [numbers.get(rle["counts"]) for rle in found.rles()]
    assert sorted(got) == list(range(1, len(truth) + 1))
    np.testing.assert_array_equal(found.class_ids, classes_of(got))
    np.testing.assert_array_equal(found.category_ids, found.class_ids * 10)
    x, y, w, h = coco_mask.toBbox([truth[n - 1] for n in got]).T
    np.testing.assert_array_equal(found.boxes, np.stack([y, x, y + h, x + w], -1))
    assert (np.diff(found.scores) <= 0).all()


@pytest.mark.parametrize(("tile", "overlap"), [(256, 48), (100, 30), (97, 40), (2000, 500)])
def test_a_perfect_model_gives_the_truth(tile, overlap):
    """Instances at borders and corners, touching ones, and some that span many tiles."""
    image, truth = draw_numbered(1500, 200, tile, overlap)
    check(detect_tiled(Perfect(), image, tile=tile, overlap=overlap), truth)


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 1000), tile=st.integers(40, 150), share=st.floats(0.1, 0.9))
def test_a_perfect_model_gives_the_truth_of_any_image(seed, tile, share):
    overlap = int(share * tile)
    image, truth = draw_numbered(300, 12, tile, overlap, seed=seed)
    check(detect_tiled(Perfect(), image, tile=tile, overlap=overlap), truth)


def test_only_tiles_are_read(tmp_path):
    """An image on disk; and scores below the threshold are left out."""
    image, truth = draw_numbered(400, 30, 128, 32)
    stored = np.memmap(tmp_path / "image", np.uint8, "w+", shape=image.shape)
    stored[:] = image
    sizes = []

    class Seeing(Perfect):
        def detect(self, image, score_threshold=0.0):
            assert type(image) is np.ndarray and image.flags["C_CONTIGUOUS"]
            sizes.append(image.shape)
            return super().detect(image, score_threshold)

    check(detect_tiled(Seeing(), stored, tile=128, overlap=32), truth)
    assert sizes == [(128, 128, 3)] * 16
    assert detect_tiled(Perfect(), image, tile=128, score_threshold=0.8).scores.min() > 0.8


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), order=st.randoms(use_true_random=False))
def test_the_order_of_tiles_and_parts_does_not_matter(seed, order):
    """Crowded rectangles that agree only more or less, many with equal scores."""
    rng = np.random.default_rng(seed)
    parts = []
    for tile in tiles_of(*SIZE, 40, 15):
        for _ in range(rng.integers(6)):
            y1, x1 = rng.integers(tile[:2], np.array(tile[2:]) - 6)
            y2, x2 = np.minimum(np.array([y1, x1]) + rng.integers(6, 30, 2), tile[2:])
            label = (DISC, DISC, STAR)[rng.integers(3)]
            parts.append(part(tile, int(y1), int(x1), int(y2), int(x2), rng.integers(1, 4) / 4, label))
    expected = stitch(parts, SIZE, iou_threshold=0.2)
    order.shuffle(parts)
    assert stitch(parts, SIZE, iou_threshold=0.2) == expected


def test_a_network_on_tiles():
    """One tile is the model on the image; more are its detections on each, where nothing lies on a border."""
    model = make_model(score_threshold=0.0)
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    alone, tiled = model.detect(image), detect_tiled(model, image, tile=64)
    assert len(alone) > 0
    best = np.lexsort((*alone.boxes.T[::-1], alone.class_ids, -alone.scores))
    np.testing.assert_array_equal(tiled.boxes, alone.boxes[best])
    assert tiled.rles() == alone.select(best).rles()
    assert tiled.class_names == alone.select(best).class_names
