"""Which candidates become detections, against the same rules on results (`mrcnn_tf.postprocess`) and by hand."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import settings as example_settings
from hypothesis import strategies as st

from mrcnn_tf.models.mask_rcnn import MaskRCNN
from mrcnn_tf.models.mask_refining_rcnn import MaskRefiningRCNN
from mrcnn_tf.models.selection import Selection, group_numbers
from mrcnn_tf.postprocess.suppress import suppress
from mrcnn_tf.training.checkpoints import load_model
from tests.tiny import CLASSES, make_model

NAMES = ["cat", "dog", "car"]


def make(**settings) -> Selection:
    own = {
        "score_threshold": 0.05,
        "class_score_thresholds": None,
        "nms_threshold": 0.5,
        "nms_groups": "class",
        "nms_method": "hard",
        "nms_sigma": 0.5,
        "mask_nms_threshold": None,
        "min_detection": None,
        "max_detection": None,
        "detection_unit": "pixels",
        "max_detections": 10,
    }
    return Selection(NAMES, **{**own, **settings})


def take(selection, boxes, scores, image=(40, 50), original=(40, 50), score=0.05, iou=0.5):
    """Of one image."""
    found = selection.boxes(
        tf.constant(boxes[None]),
        tf.constant(scores[None]),
        image_sizes=tf.constant([image], tf.float32),
        original_sizes=tf.constant([original], tf.float32),
        score_threshold=score,
        iou_threshold=iou,
    )
    count = int((found[2][0].numpy() > 0).sum())
    assert not found[1][0, count:].numpy().any() and (found[2][0, count:].numpy() == -1).all()
    return [x[0, :count].numpy() for x in found]


@pytest.mark.parametrize("method", ["hard", "linear", "gaussian"])
@pytest.mark.parametrize("groups", ["class", "all", [["cat", "car"]]])
@given(seed=st.integers(0, 10**6))
@example_settings(max_examples=5, deadline=None)
def test_model_and_results_files_have_the_same_rules(method, groups, seed):
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 20, (6, 3, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(3, 20, (6, 3, 2))], -1).astype(np.float32)
    scores = rng.uniform(0, 1, (6, 3)).astype(np.float32)
    floors = {"cat": 0.3}
    settings = {"min_size": 5.0, "max_size": 30.0, "max_detections": 10}
    indices, kept = suppress(
        boxes.reshape(-1, 4) * 2,
        scores.reshape(-1),
        np.tile([1, 2, 3], 6),
        iou_threshold=0.4,
        groups=[[1, 3]] if isinstance(groups, list) else groups,
        method=method,
        score_threshold={1: 0.3, 2: 0.05, 3: 0.05},
        **settings,
    )
    selection = make(
        nms_groups=groups,
        nms_method=method,
        min_detection=5.0,
        max_detection=30.0,
        class_score_thresholds=floors,
    )
    found = take(selection, boxes, scores, (40, 40), (80, 80), iou=0.4)
    np.testing.assert_array_equal(found[3] * 3 + found[2] - 1, indices)
    np.testing.assert_allclose(found[1], kept, rtol=1e-5)
    np.testing.assert_allclose(found[0], boxes.reshape(-1, 4)[indices])

    # A class's own threshold holds before suppression: what is below it suppresses nothing.
    floored = take(make(nms_groups=groups, class_score_thresholds=floors), boxes, scores, iou=0.4)
    low = np.where(np.array([0.3, 0.0, 0.0]) >= scores, np.float32(0), scores)
    for one, other in zip(floored, take(make(nms_groups=groups), boxes, low, iou=0.4), strict=True):
        np.testing.assert_array_equal(one, other)


def test_sizes_are_of_the_original_image():
    boxes = np.array([[[0, 0, 4, 4]], [[20, 0, 30, 10]], [[0, 20, 20, 40]]], np.float32)
    boxes = np.repeat(boxes, 3, 1)
    scores = np.array([[0.9, 0, 0], [0.8, 0, 0], [0.7, 0, 0]], np.float32)

    def sides(**settings):
        found = take(make(**settings), boxes, scores, (40, 50), (80, 100))
        return [float(box[2] - box[0]) for box in found[0]]

    assert sides() == [4, 10, 20]
    assert sides(min_detection=8) == [4, 10, 20]  # 4 pixels of the resized image are 8 of the original
    assert sides(min_detection=9, max_detection=40) == [10, 20]
    assert sides(max_detection=39) == [4, 10]
    # The side of a square of the image's area is 44.7 on the canvas.
    assert sides(min_detection=0.1, max_detection=0.3, detection_unit="share") == [10]


def test_masks_by_hand():
    """Two boxes that are the same: as boxes they overlap wholly, as masks hardly, or wholly too."""
    m = 14
    left, right, full = np.zeros((m, m)), np.zeros((m, m)), np.ones((m, m))
    left[:, :7], right[:, 7:] = 1, 1
    found = {
        "boxes": tf.constant([[[0.0, 0, 10, 10]] * 3 + [[0.0] * 4]]),
        "scores": tf.constant([[0.9, 0.8, 0.7, 0.0]]),
        "classes": tf.constant([[1, 1, 1, -1]]),
        "masks": tf.constant(np.stack([left, full, right, full])[None], tf.float32),
    }
    out = make(mask_nms_threshold=0.4, max_detections=4).masks(found, 0.05)
    np.testing.assert_allclose(
        out["scores"], [[0.9, 0.7, 0, 0]]
    )  # the half and the whole have an IoU of one half
    np.testing.assert_array_equal(out["classes"], [[1, 1, -1, -1]])
    np.testing.assert_array_equal(out["masks"][0, 1], right)
    out = make(mask_nms_threshold=0.6, max_detections=4).masks(found, 0.05)
    np.testing.assert_allclose(out["scores"], [[0.9, 0.8, 0.7, 0]])
    out = make(mask_nms_threshold=0.4, nms_method="linear", max_detections=4).masks(found, 0.05)
    np.testing.assert_allclose(out["scores"], [[0.9, 0.7, 0.8 * 0.5 * 0.5, 0]], rtol=1e-5)
    assert make().masks(found, 0.05) is found


def test_group_numbers():
    assert group_numbers(NAMES, "class") == [0, 1, 2]
    assert group_numbers(NAMES, "all") is None
    numbers = group_numbers(NAMES, [["car", "cat"]])
    assert numbers[0] == numbers[2] != numbers[1]


@pytest.mark.parametrize(
    "settings,message",
    [
        ({"nms_groups": "classes"}, "nms_groups is 'classes'.*'class', 'all' or lists"),
        ({"nms_groups": [["cat", "cow"]]}, "nms_groups names cow; the classes are cat, dog, car"),
        ({"nms_groups": [["cat", "dog"], ["dog"]]}, "nms_groups has dog twice"),
        ({"nms_method": "soft"}, "nms_method is 'soft'.*hard, linear, gaussian"),
        ({"nms_sigma": 0.0}, "nms_sigma is 0.0"),
        ({"detection_unit": "metres"}, "detection_unit is 'metres'.*pixels, share"),
        ({"class_score_thresholds": {"cow": 0.5}}, "class_score_thresholds names cow"),
        ({"class_score_thresholds": {"cat": 7}}, "class_score_thresholds of cat is 7"),
        ({"score_threshold": float("nan")}, "score_threshold is nan"),
        ({"nms_threshold": 5.0}, "nms_threshold is 5.0"),
        ({"mask_nms_threshold": -1}, "mask_nms_threshold is -1"),
        ({"max_detections": 0}, "max_detections is 0"),
        ({"min_detection": 50, "max_detection": 10}, "min_detection is 50 and max_detection 10"),
        ({"min_detection": -1}, "min_detection is -1"),
        ({"nms_groups": None}, "nms_groups is None"),
        ({"nms_groups": ["cat", "dog"]}, r"nms_groups is \['cat', 'dog'\]"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        make(**settings)


@pytest.mark.parametrize("kind", [MaskRCNN, MaskRefiningRCNN])
def test_in_a_model(kind, tmp_path):
    """Every setting reaches `detect`, is saved, and does what it says."""
    image = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    plain = make_model(kind, score_threshold=0.0)
    before = plain.detect(image)
    middle, first = float(np.median(sides(before))), before.class_names[0]
    settings = {
        "nms_groups": [CLASSES[:2]],
        "nms_method": "gaussian",
        "nms_threshold": 0.9,
        "mask_nms_threshold": 0.3,
        "class_score_thresholds": {first: 0.99},
        "min_detection": middle,
        "max_detection": 1000.0,
    }
    model = make_model(kind, score_threshold=0.0, **settings)
    model.set_weights(plain.get_weights())
    found = model.detect(image)
    assert len(found) and first not in found.class_names
    assert sides(found).min() >= middle - 1e-3 and sides(before).min() < middle
    assert (np.diff(found.scores) <= 1e-7).all()
    model.save(tmp_path / "m.keras")
    again = load_model(tmp_path / "m.keras")
    assert {k: again.settings[k] for k in settings} == settings
    np.testing.assert_allclose(again.detect(image).boxes, found.boxes, atol=1e-3)


def sides(found):
    return np.sqrt(np.prod(found.boxes[:, 2:] - found.boxes[:, :2], axis=1))


def test_other_settings_of_a_trained_model():
    image = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    model = make_model(score_threshold=0.0)
    before = model.detect(image)
    model.set_selection(max_detections=3, nms_groups="all", score_threshold=0.01)
    found = model.detect(image)
    assert len(found) == 3 < len(before) and model.settings["max_detections"] == 3
    np.testing.assert_array_equal(found.boxes[0], before.boxes[0])
    same = make_model(max_detections=3, nms_groups="all", score_threshold=0.01)
    same.set_weights(model.get_weights())
    np.testing.assert_allclose(found.boxes, same.detect(image).boxes, atol=1e-4)
    with pytest.raises(ValueError, match=r"min_size cannot be set on a trained model; what can is score_thr"):
        model.set_selection(min_size=3)
    with pytest.raises(ValueError, match="nms_groups names cow"):
        model.set_selection(nms_groups=[["cow"]])
    assert model.settings["nms_groups"] == "all"
    # Whole numbers are numbers, NumPy's too.
    model.set_selection(score_threshold=0, nms_threshold=1, nms_method="linear", max_detections=np.int64(5))
    assert len(model.detect(image)) == 5
    model.set_selection(mask_nms_threshold=1, nms_method="hard")
    assert len(model.detect(image)) == 5


def test_sizes_on_a_canvas_are_those_of_the_image():
    """As in Model Garden, where boxes end with the canvas and not with the image."""
    image = np.random.default_rng(0).integers(0, 256, (64, 32, 3), np.uint8)
    model = make_model(score_threshold=0.0, canvas=(128, 128), max_detections=50)
    middle = float(np.median(sides(model.detect(image))))
    many = make_model(score_threshold=0.0, canvas=(128, 128), max_detections=50, min_detection=middle)
    many.set_weights(model.get_weights())
    found = sides(many.detect(image))
    assert len(found) >= 25 and found.min() >= middle - 1e-3
