"""Losses against hand-written values and tensorflow-addons 0.23.0 (tests/golden/make_tfa_golden.py)."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from mrcnn_tf import losses

GOLDEN = json.loads((Path(__file__).parent / "golden" / "tfa_losses.json").read_text())


def value_and_gradient(function, first, second, by: int):
    """Of the sum, by argument number `by`."""
    tensors = [tf.convert_to_tensor(first), tf.convert_to_tensor(second)]
    with tf.GradientTape() as tape:
        tape.watch(tensors[by])
        loss = function(*tensors)
        total = tf.reduce_sum(loss)
    return loss.numpy(), tape.gradient(total, tensors[by]).numpy()


@pytest.mark.parametrize("case", GOLDEN["focal"], ids=lambda c: f"alpha {c['alpha']} gamma {c['gamma']}")
def test_focal_equals_tensorflow_addons(case):
    logits = np.array(case["logits"], np.float32)
    # The background has a logit here, which must not matter.
    logits = np.concatenate([np.full([8, 1], 3.0, np.float32), logits], -1)
    out = losses.sigmoid_focal(np.array(case["labels"]), logits, case["alpha"], case["gamma"])
    np.testing.assert_allclose(out, case["loss"], rtol=1e-5)
    targets = np.eye(5)[case["labels"]][:, 1:]
    binary = losses.binary_focal(targets, logits[:, 1:], case["alpha"], case["gamma"])
    np.testing.assert_allclose(tf.reduce_sum(binary, -1), case["loss"], rtol=1e-5)


@pytest.mark.parametrize(
    ("function", "key"), [(losses.giou_loss, "giou_loss"), (losses.iou_loss, "iou_loss")]
)
def test_box_losses_equal_tensorflow_addons(function, key):
    golden = GOLDEN["giou"]
    out = function(np.array(golden["first"], np.float32), np.array(golden["second"], np.float32))
    np.testing.assert_allclose(out, golden[key], rtol=1e-5, atol=1e-6)


def test_focal_by_hand():
    # p = 1/2: (1/2)^2 log 2, times 1/4 or 3/4.
    out = losses.binary_focal([1, 0, -1], [0.0, 0.0, 0.0])
    np.testing.assert_allclose(out, [math.log(2) / 16, 3 * math.log(2) / 16, 0], rtol=1e-6)
    # One class of two, both at 1/2.
    out = losses.sigmoid_focal(tf.constant([2, 0, -1]), tf.zeros([3, 3]))
    np.testing.assert_allclose(out, [math.log(2) / 4, 3 * math.log(2) / 8, 0], rtol=1e-6)


def test_cross_entropy_by_hand():
    logits = np.log(np.array([[0.2, 0.3, 0.5], [0.2, 0.3, 0.5], [0.2, 0.3, 0.5]], np.float32))
    loss, gradient = value_and_gradient(losses.cross_entropy, np.array([0, 2, -1]), logits, 1)
    np.testing.assert_allclose(loss, [-math.log(0.2), -math.log(0.5), 0], rtol=1e-6)
    np.testing.assert_allclose(gradient, [[-0.8, 0.3, 0.5], [0.2, 0.3, -0.5], [0, 0, 0]], atol=1e-6)


def test_binary_cross_entropy_by_hand():
    labels, logits = np.array([1, 0, -1]), np.array([math.log(3), math.log(3), 5.0], np.float32)
    loss, gradient = value_and_gradient(losses.binary_cross_entropy, labels, logits, 1)
    np.testing.assert_allclose(loss, [-math.log(0.75), -math.log(0.25), 0], rtol=1e-6)
    np.testing.assert_allclose(gradient, [-0.25, 0.75, 0], atol=1e-6)


def test_smooth_l1_and_l1_by_hand():
    targets = np.zeros([2, 4], np.float32)
    deltas = np.array([[0.05, -0.05, 0, 0], [1, -2, 0.1, 0]], np.float32)
    loss, gradient = value_and_gradient(lambda p, t: losses.smooth_l1(p, t, beta=0.1), deltas, targets, 0)
    np.testing.assert_allclose(loss, [2 * 0.0025 / 0.2, 0.95 + 1.95 + 0.05], rtol=1e-5)
    np.testing.assert_allclose(gradient, [[0.5, -0.5, 0, 0], [1, -1, 1, 0]], rtol=1e-5)
    np.testing.assert_allclose(losses.smooth_l1(deltas, targets), [0.0025, 0.5 + 1.5 + 0.005], rtol=1e-5)
    np.testing.assert_allclose(losses.l1(deltas, targets), [0.1, 3.1], rtol=1e-5)
    np.testing.assert_allclose(losses.smooth_l1(deltas, targets, beta=0.0), [0.1, 3.1], rtol=1e-5)


def test_mask_losses_by_hand():
    targets = np.array([[[1, 0], [1, 0]], [[0, 0], [0, 0]]], np.uint8)
    logits = np.array([[[0, 0], [0, 0]], [[-50, -50], [-50, -50]]], np.float32)
    out = losses.mask_binary_cross_entropy(targets, logits)
    np.testing.assert_allclose(out, [math.log(2), 0], atol=1e-6)
    # First: 2 * 1 + 1 over 4 / 4 + 2 + 1; second: two empty masks agree.
    np.testing.assert_allclose(losses.dice(targets, logits), [1 - 3 / 4, 0], atol=1e-6)
    perfect = np.where(targets == 1, 50.0, -50.0).astype(np.float32)
    np.testing.assert_allclose(losses.dice(targets, perfect), [0, 0], atol=1e-6)
    np.testing.assert_allclose(losses.dice(targets[0], -perfect[0]), 1 - 1 / 5, atol=1e-6)


EXTREME = np.array([[-1e4, 1e4, 0.0], [1e4, -1e4, 1e4]], np.float32)


@pytest.mark.parametrize("name", losses.CLASSIFICATION)
def test_classification_is_finite_for_extreme_logits(name):
    loss, gradient = value_and_gradient(losses.CLASSIFICATION[name], np.array([1, 2]), EXTREME, 1)
    assert np.isfinite(loss).all() and np.isfinite(gradient).all() and (loss >= 0).all()


@pytest.mark.parametrize("name", losses.OBJECTNESS)
def test_objectness_is_finite_for_extreme_logits(name):
    labels = np.array([[1, 0, -1], [1, 0, 1]])
    loss, gradient = value_and_gradient(losses.OBJECTNESS[name], labels, EXTREME, 1)
    assert np.isfinite(loss).all() and np.isfinite(gradient).all() and (loss >= 0).all()
    assert loss[0, 2] == gradient[0, 2] == 0


@pytest.mark.parametrize("name", losses.MASK)
def test_masks_are_finite_for_extreme_logits(name):
    targets = np.array([[[1, 0, 1], [1, 0, 1]]], np.uint8)
    loss, gradient = value_and_gradient(losses.MASK[name], targets, EXTREME[None], 1)
    assert np.isfinite(loss).all() and np.isfinite(gradient).all()


@pytest.mark.parametrize("name", losses.BOX)
def test_boxes_are_best_at_the_target_and_finite_on_padding(name):
    target = np.array([[2, 3, 12, 9], [0, 0, 0, 0]], np.float32)
    function = losses.BOX[name]
    loss, gradient = value_and_gradient(function, target, target, 0)
    assert loss[0] == pytest.approx(0, abs=1e-6)
    assert np.isfinite(loss).all() and np.isfinite(gradient).all()
    moved, gradient = value_and_gradient(function, target + np.float32([1, 0, 1, 0]), target, 0)
    assert moved[0] > 0.1
    # A step against the gradient moves the box back up.
    assert gradient[0, 0] + gradient[0, 2] > 0


@pytest.mark.parametrize("dtype", [tf.float16, tf.bfloat16])
def test_half_precision_logits_are_computed_in_float32(dtype):
    logits = tf.cast([[1.0, 2.0, 3.0]], dtype)
    assert losses.cross_entropy(tf.constant([1]), logits).dtype == tf.float32
    np.testing.assert_allclose(
        losses.cross_entropy(tf.constant([1]), logits),
        losses.cross_entropy(tf.constant([1]), tf.cast(logits, tf.float32)),
    )
    # 784 pixels of 1 would round in bfloat16, and 70 000 overflow float16.
    ones, high = tf.ones([1, 300, 300], dtype), tf.fill([1, 300, 300], tf.cast(20.0, dtype))
    for name in losses.MASK:
        np.testing.assert_allclose(losses.MASK[name](ones, high), [0.0], atol=1e-5)
    for name in losses.BOX:
        box = tf.constant([[0, 0, 600, 600]], dtype)
        assert losses.BOX[name](box, box).dtype == tf.float32


def test_lookup():
    assert losses.lookup(losses.BOX, "giou") is losses.giou_loss
    with pytest.raises(ValueError, match="unknown loss 'ciou': choose one of smooth_l1, l1, iou, giou"):
        losses.lookup(losses.BOX, "ciou")
    assert set(losses.BOX) >= losses.ON_BOXES
