"""The generated set: exact, deterministic, and crowded as the dial says."""

import json

import cv2
import numpy as np
import pytest

from mrcnn_tf.data.coco import CocoDataset
from mrcnn_tf.data.scene import SHAPE_CLASSES, draw_scene
from mrcnn_tf.data.shapes import generate_shapes
from tests.data.helpers import dense


def scenes(count, crowding, size=128):
    return [draw_scene(np.random.default_rng([7, i]), size, crowding) for i in range(count)]


def masks_of(rows, size=128):
    return [dense(row["segmentation"], size, size) for row in rows]


def box_iou(a, b):
    low, high = np.maximum(a[:2], b[:2]), np.minimum(a[:2] + a[2:], b[:2] + b[2:])
    common = np.prod(np.maximum(high - low, 0))
    return common / (np.prod(a[2:]) + np.prod(b[2:]) - common)


def crowded_share(crowding):
    """Share of shapes whose box overlaps one of their class at IoU 0.3 or more."""
    found = []
    for _, rows in scenes(40, crowding):
        boxes = np.array([row["bbox"] for row in rows])
        kinds = [row["category_id"] for row in rows]
        for i in range(len(rows)):
            same = [j for j in range(len(rows)) if j != i and kinds[i] == kinds[j]]
            found.append(any(box_iou(boxes[i], boxes[j]) >= 0.3 for j in same))
    return np.mean(found)


@pytest.mark.parametrize("crowding", [0, 0.5, 1])
def test_boxes_and_areas_are_those_of_the_visible_masks(crowding):
    for _, rows in scenes(8, crowding):
        whole = np.zeros((128, 128), int)
        for row, mask in zip(rows, masks_of(rows), strict=True):
            ys, xs = np.nonzero(mask)
            x, y, w, h = row["bbox"]
            exact = isinstance(row["segmentation"], dict)
            # pycocotools rasterises corners of polygons in its own way.
            assert np.abs(
                np.array([ys.min() - y, xs.min() - x, ys.max() + 1 - y - h, xs.max() + 1 - x - w])
            ).max() <= (0 if exact else 1)
            assert mask.sum() == row["area"] if exact else abs(mask.sum() - row["area"]) <= 0.04 * row["area"]
            assert row["area"] >= 20
            whole += mask if exact else 0
        assert whole.max() <= 1  # no pixel belongs to two shapes


def test_without_crowding_all_are_apart():
    for _, rows in scenes(20, 0):
        near = sum(cv2.dilate(mask.astype(np.uint8), np.ones((3, 3))) for mask in masks_of(rows))
        assert near.max() == 1
        assert 3 <= len(rows) <= 6


def test_the_dial_crowds():
    apart, half, heavy = (crowded_share(crowding) for crowding in (0, 0.5, 1))
    assert apart == 0
    assert 0.02 < half < heavy
    assert heavy > 0.35
    assert (
        np.mean([len(rows) for _, rows in scenes(20, 1)])
        > np.mean([len(rows) for _, rows in scenes(20, 0)]) + 3
    )


def test_all_classes_occur_and_both_kinds_of_segmentation():
    rows = [row for _, rows in scenes(40, 0.5) for row in rows]
    assert {row["category_id"] for row in rows} == set(range(1, len(SHAPE_CLASSES) + 1))
    assert {type(row["segmentation"]) for row in rows} == {dict, list}


def test_a_shape_differs_from_what_is_around_it():
    """Its mean colour, or it could not be learned; the rim and touching shapes are left out."""
    contrasts = []
    for image, rows in scenes(10, 0):
        masks = masks_of(rows)
        ground = np.median(image[~np.any(masks, axis=0)], axis=0)
        contrasts += [np.linalg.norm(image[mask].mean(axis=0) - ground) for mask in masks]
    assert np.quantile(contrasts, 0.1) > 40


def test_golden_boxes():
    """Any change of the drawing must raise `VERSION`."""
    _, rows = draw_scene(np.random.default_rng([0, 0]), 128, 0.5)
    assert [(row["category_id"], *row["bbox"], row["area"]) for row in rows] == GOLDEN


def test_folder_is_a_coco_data_set_and_deterministic(tmp_path):
    paths = [generate_shapes(tmp_path / name, num_images=4, crowding=0.7, seed=3) for name in "ab"]
    first, second = (CocoDataset(*p) for p in paths)
    assert paths[0][0].read_bytes() == paths[1][0].read_bytes()
    assert len(first) == 4
    assert first.class_names == SHAPE_CLASSES
    assert not first.dropped
    for i in range(4):
        assert first.image(i).shape == (128, 128, 3)
        np.testing.assert_array_equal(first.image(i), second.image(i))
    other = generate_shapes(tmp_path / "c", num_images=4, crowding=0.7, seed=4)
    assert other[0].read_bytes() != paths[0][0].read_bytes()


def test_a_larger_set_starts_with_the_smaller(tmp_path):
    small, large = (generate_shapes(tmp_path / str(n), num_images=n) for n in (2, 4))
    rows = json.loads(large[0].read_text())["annotations"]
    assert json.loads(small[0].read_text())["annotations"] == [row for row in rows if row["image_id"] <= 2]


def test_a_set_is_kept_or_made_anew(tmp_path):
    annotations, images = generate_shapes(tmp_path / "s", num_images=3)
    before = annotations.stat().st_mtime_ns
    generate_shapes(tmp_path / "s", num_images=3)
    assert annotations.stat().st_mtime_ns == before
    (images / "000001.png").unlink()  # broken off
    generate_shapes(tmp_path / "s", num_images=3)
    assert annotations.stat().st_mtime_ns != before
    assert len(list(images.iterdir())) == 3
    generate_shapes(tmp_path / "s", num_images=2)  # other arguments
    assert len(CocoDataset(annotations, images)) == len(list(images.iterdir())) == 2


def test_broken_off_generation_is_begun_anew(tmp_path, monkeypatch):
    from mrcnn_tf.data import shapes

    def interrupted(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shapes, "draw_scene", interrupted)
        with pytest.raises(KeyboardInterrupt):
            generate_shapes(tmp_path / "set", num_images=2, size=64)
    assert not list(tmp_path.iterdir())
    annotations, images = generate_shapes(tmp_path / "set", num_images=2, size=64)
    assert annotations.exists() and len(list(images.iterdir())) == 2


def test_a_foreign_folder_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="not empty and not a generated set"):
        generate_shapes(tmp_path, num_images=1)
    assert (tmp_path / "thesis.txt").exists()


@pytest.mark.parametrize("bad", [{"num_images": 0}, {"size": 32}, {"crowding": 1.5}, {"crowding": -0.1}])
def test_arguments_out_of_range(tmp_path, bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        generate_shapes(tmp_path / "s", **{"num_images": 1, **bad})


GOLDEN = [
    (5, 0.0, 68.0, 26.0, 30.0, 315),
    (5, 16.0, 85.0, 27.0, 27.0, 309),
    (5, 9.0, 56.0, 33.0, 35.0, 463),
    (2, 95.0, 92.0, 25.0, 21.0, 299),
    (2, 78.0, 105.0, 20.0, 20.0, 226),
    (2, 67.0, 93.0, 24.0, 27.0, 358),
]
