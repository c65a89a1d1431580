"""The anchors' ceiling against all anchors listed, and suggestions on planted sets."""

import json

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from mrcnn_tf.config import load_config
from mrcnn_tf.geometry.anchors import pyramid_anchors
from mrcnn_tf.inspection.anchor_fit import STRIDES, Anchors, best_overlaps
from mrcnn_tf.inspection.anchors import anchor_report, anchors_of, truths_of
from mrcnn_tf.layers.fpn import FPN
from tests.conftest import ROOT
from tests.tiny import make_model


def _truth(boxes_of_images, sizes, crowd=()):
    """COCO annotations of `[y1, x1, y2, x2]` boxes; `crowd` numbers the annotations that are crowd regions."""
    annotations = []
    for image_id, boxes in enumerate(boxes_of_images, start=1):
        for y1, x1, y2, x2 in boxes:
            number = len(annotations)
            bbox = [float(v) for v in (x1, y1, x2 - x1, y2 - y1)]
            annotations.append(
                {
                    "id": number + 1,
                    "image_id": image_id,
                    "category_id": 1,
                    "bbox": bbox,
                    "iscrowd": int(number in crowd),
                }
            )
    images = [{"id": i, "height": h, "width": w} for i, (h, w) in enumerate(sizes, start=1)]
    return {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "thing"}]}


def _random_boxes(rng, count, height, width, largest):
    corner = rng.uniform(-5, 1, (count, 2)) + rng.uniform(0, 1, (count, 2)) * (height, width)
    return np.concatenate([corner, corner + rng.uniform(2, largest, (count, 2))], 1)


def _brute_force(boxes, anchors):
    best = []
    for y1, x1, y2, x2 in boxes:
        high = np.minimum(anchors[:, 2], y2) - np.maximum(anchors[:, 0], y1)
        wide = np.minimum(anchors[:, 3], x2) - np.maximum(anchors[:, 1], x1)
        shared = np.maximum(high, 0) * np.maximum(wide, 0)
        areas = (anchors[:, 2] - anchors[:, 0]) * (anchors[:, 3] - anchors[:, 1])
        best.append(float((shared / (areas + (y2 - y1) * (x2 - x1) - shared)).max()))
    return np.array(best)


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    height=st.integers(20, 150),
    width=st.integers(20, 150),
    offset=st.sampled_from([0.0, 0.5]),
    rounding=st.sampled_from([None, "torchvision", "detectron"]),
)
def test_equals_all_anchors_listed(seed, height, width, offset, rounding):
    rng = np.random.default_rng(seed)
    anchors = Anchors(((6, 9), (12, 20), (24, 40), (50, 80), (100, 160)), (0.4, 1.0, 2.2), offset, rounding)
    min_size = int(rng.integers(40, 120))
    boxes = _random_boxes(rng, 25, height, width, 100)
    truths = truths_of(_truth([boxes], [(height, width)]), min_size=min_size, max_size=160)
    canvas = truths.canvas[0] if len(truths) else np.array([32, 32])
    listed = pyramid_anchors(
        [tuple(int(-(-side // s)) for side in canvas) for s in STRIDES],
        STRIDES,
        anchors.sizes,
        anchors.aspect_ratios,
        offset=offset,
        rounding=rounding,
        canvas=tuple(int(s) for s in canvas) if rounding == "torchvision" else None,
    )
    want = _brute_force(truths.boxes, tf.concat(listed, 0).numpy().astype(np.float64))
    np.testing.assert_allclose(best_overlaps(truths, anchors), want, atol=1e-5)


def test_the_anchors_are_those_of_the_model():
    assert FPN.strides == STRIDES
    model = make_model(min_size=96, max_size=160)
    truth = _truth([[[5, 5, 40, 30], [50, 20, 90, 70]]], [(96, 110)])
    truths = truths_of(truth, min_size=model.min_size, max_size=model.max_size)
    assert truths.canvas.tolist() == [[96, 128]] * 2
    features = model.pyramid(tf.zeros([1, 96, 128, 3]), tf.constant([[96.0, 110.0]]))
    listed = tf.concat(model.rpn.anchors(features), 0).numpy().astype(np.float64)
    np.testing.assert_allclose(
        best_overlaps(truths, anchors_of(model)), _brute_force(truths.boxes, listed), atol=1e-6
    )
    report = anchor_report(truth, model=model)
    assert report["current"]["sizes"] == [[12], [20], [32], [48], [64]]
    assert (report["min_size"], report["max_size"]) == (96, 160)


def test_instances_as_the_network_sees_them():
    # Half the size of the image asked for: everything doubles; one box is cut, one lies outside, one is a crowd region.
    boxes = [[10, 10, 20, 30], [-5, 40, 5, 60], [60, 60, 70, 70], [0, 0, 40, 40]]
    truths = truths_of(_truth([boxes], [(50, 60)], crowd=[3]), min_size=100, max_size=1000)
    assert truths.boxes.tolist() == [[20, 20, 40, 60], [0, 80, 10, 120]]
    assert truths.canvas.tolist() == [[128, 128]] * 2
    assert truths.sizes.tolist() == [0, 0]
    fixed = truths_of(_truth([boxes[:1]], [(50, 60)]), min_size=100, max_size=1000, canvas=(64, 64))
    assert fixed.canvas.tolist() == [[64, 64]]
    assert fixed.boxes[0].tolist() == pytest.approx([10 * 53 / 50, 10 * 64 / 60, 20 * 53 / 50, 30 * 64 / 60])


def test_golden():
    # On a grid place of stride 32: the anchor of 128 fits one box exactly, and covers half of the other (IoU 0.5).
    truth = _truth([[[64, 64, 192, 192]], [[64, 64, 192, 128]]], [(256, 256)] * 2)
    anchors = Anchors(((8,), (8,), (8,), (128,), (8,)), (1.0,))
    current = anchor_report(truth, anchors=anchors, min_size=256, max_size=256)["current"]
    assert (current["recall50"], current["recall70"], current["mean_best_iou"]) == (1.0, 0.5, 0.75)
    assert current["by_size"]["large"] == {
        "instances": 1,
        "recall50": 1.0,
        "recall70": 1.0,
        "mean_best_iou": 1.0,
    }
    assert current["by_size"]["medium"] == {
        "instances": 1,
        "recall50": 1.0,
        "recall70": 0.0,
        "mean_best_iou": 0.5,
    }
    assert current["by_size"]["small"] == {
        "instances": 0,
        "recall50": -1.0,
        "recall70": -1.0,
        "mean_best_iou": -1.0,
    }
    assert current["overrides"] == (
        "'model.rpn.anchor_sizes=[[8], [8], [8], [128], [8]]' 'model.rpn.aspect_ratios=[1]'"
    )


def test_better_anchors_are_found_where_the_present_ones_do_not_fit():
    rng = np.random.default_rng(0)
    images = []
    for _ in range(30):
        corner = rng.uniform(0, 200, (8, 2))
        side = rng.uniform(14, 22, (8, 1))
        images.append(
            np.concatenate([corner, corner + side * (1, 3)], 1)
        )  # small, and three times as wide as high
    truth = _truth(images, [(260, 260)] * 30)
    report = anchor_report(truth, min_size=260, max_size=260)
    assert report["better"]
    assert report["suggested"]["per_place"] <= report["current"]["per_place"] == 3
    held = report["held_out"]
    assert held["images"] == 15 and held["instances"] == 120
    assert held["suggested"]["recall70"] > held["current"]["recall70"] + 0.3
    assert report["suggested"]["overrides"] in report["text"]
    # The figures are those of the anchors that are named.
    suggested = Anchors(
        tuple(tuple(level) for level in report["suggested"]["sizes"]),
        tuple(report["suggested"]["aspect_ratios"]),
    )
    best = best_overlaps(truths_of(truth, min_size=260, max_size=260), suggested)
    assert report["suggested"]["recall70"] == pytest.approx((best >= 0.7).mean())
    assert min(suggested.aspect_ratios) < 0.45 and list(suggested.sizes) == sorted(suggested.sizes)


def test_the_default_stays_where_it_fits():
    rng = np.random.default_rng(1)
    images = []
    for _ in range(12):  # of the sizes and ratios of the default anchors, on their grid
        size = 2.0 ** rng.integers(5, 9, (6, 1))
        root = np.sqrt(rng.choice([0.5, 1.0, 2.0], (6, 1)))
        centre = rng.integers(4, 12, (6, 2)) * 64
        sides = np.concatenate([size * root, size / root], 1)
        images.append(np.concatenate([centre - sides / 2, centre + sides / 2], 1))
    report = anchor_report(_truth(images, [(1024, 1024)] * 12), min_size=1024, max_size=1024)
    assert report["current"]["mean_best_iou"] > 0.99
    assert not report["better"]
    assert report["suggested"] == report["current"]
    assert "better choice" in report["text"]


def test_what_is_suggested_is_read_as_settings():
    overrides = Anchors(((8, 12.5), (20, 24), (32, 40), (64, 80), (128, 160)), (0.5, 1.1)).overrides()
    config = load_config(ROOT / "configs/base.yaml", [part.strip("'") for part in overrides.split("' '")])
    assert list(config.model.rpn.anchor_sizes[0]) == [8, 12.5]
    assert list(config.model.rpn.aspect_ratios) == [0.5, 1.1]


def test_real_sets(data_dir):
    """What docs/anchors.md says of dsb2018's validation set."""
    truth = json.loads((data_dir / "dsb2018/annotations/instances_val.json").read_text())
    report = anchor_report(truth, min_size=384, max_size=768)
    assert report["better"]
    assert report["held_out"]["suggested"]["recall50"] > report["held_out"]["current"]["recall50"] + 0.3


def test_nothing_and_too_little_and_bad_input():
    empty = anchor_report(_truth([[]], [(64, 64)]))
    assert empty["current"]["recall50"] == -1 and not empty["better"]
    assert "no instances" in empty["text"]
    one = anchor_report(_truth([[[0, 0, 30, 30]]], [(64, 64)]))
    assert not one["better"] and "one image" in one["text"]
    truth = _truth([[[0, 0, 30, 30]]], [(64, 64)])
    del truth["images"][0]["height"]
    with pytest.raises(ValueError, match="image 1 has no height and width"):
        anchor_report(truth)
