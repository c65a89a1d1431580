"""Box arithmetic against hand-written values."""

from __future__ import annotations

import math

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from mrcnn_tf.geometry import boxes

A = np.array([[0, 0, 10, 10], [0, 0, 10, 20], [5, 5, 5, 9]], np.float32)
B = np.array([[0, 0, 10, 10], [5, 5, 15, 15], [20, 20, 30, 30], [5, 5, 5, 9]], np.float32)


def random_boxes(seed: int, count: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    corner = rng.uniform(-50, 500, (count, 2))
    return np.concatenate([corner, corner + rng.uniform(5, 300, (count, 2))], -1).astype(np.float32)


def test_area():
    given_boxes = [[0, 0, 3, 4], [-1.5, 2, 0.5, 4], [5, 5, 5, 9], [4, 4, 2, 2]]
    np.testing.assert_array_equal(boxes.area(tf.constant(given_boxes, tf.float32)), [12, 4, 0, 0])


def test_clip_to_each_image():
    box = np.array([[-5, -5, 700, 90], [10, 20, 30, 40], [200, 200, 210, 210]], np.float32)
    out = boxes.clip(np.stack([box, box]), np.array([[600, 80], [100, 100]], np.int32))
    expected = [
        [[0, 0, 600, 80], [10, 20, 30, 40], [200, 80, 210, 80]],
        [[0, 0, 100, 90], [10, 20, 30, 40], [100, 100, 100, 100]],
    ]
    np.testing.assert_array_equal(out, expected)


def test_pairwise_iou():
    expected = [[1, 25 / 175, 0, 0], [0.5, 50 / 250, 0, 0], [0, 0, 0, 0]]
    np.testing.assert_allclose(boxes.pairwise_iou(A, B), expected, rtol=1e-6)
    # In a graph, as it is used: its optimiser has been seen to lose new axes of slices.
    batched = tf.function(boxes.pairwise_iou)(np.stack([A, A[::-1]]), B)
    np.testing.assert_allclose(batched, [expected, expected[::-1]], rtol=1e-6)


def test_pairwise_ioa_is_a_share_of_the_first():
    expected = [[1, 0.25, 0, 0], [0.5, 0.25, 0, 0], [0, 0, 0, 0]]
    np.testing.assert_allclose(boxes.pairwise_ioa(A, B), expected, rtol=1e-6)


def test_elementwise_iou_is_the_diagonal():
    a, b = random_boxes(0, 50), random_boxes(1, 50)
    np.testing.assert_allclose(boxes.iou(a, b), np.diag(boxes.pairwise_iou(a, b)), rtol=1e-6)


def test_giou_by_hand():
    # 10 x 10 boxes: side by side with a gap of 10; diagonal neighbours; nested.
    a = np.array([[0, 0, 10, 10], [0, 0, 10, 10], [0, 0, 10, 10]], np.float32)
    b = np.array([[0, 20, 10, 30], [5, 5, 15, 15], [2, 2, 7, 7]], np.float32)
    expected = [-100 / 300, 25 / 175 - 50 / 225, 0.25]
    np.testing.assert_allclose(boxes.giou(a, b), expected, rtol=1e-6)


def test_encode_by_hand():
    anchor = np.array([[0, 0, 10, 20]], np.float32)
    target = np.array([[5, 5, 25, 15]], np.float32)
    # Centres (5, 10) and (15, 10); sides 10 x 20 and 20 x 10.
    expected = [[1.0, 0.0, math.log(2), -math.log(2)]]
    np.testing.assert_allclose(boxes.encode(target, anchor), expected, atol=1e-6)
    weighted = boxes.encode(target, anchor, (10.0, 20.0, 5.0, 2.0))
    np.testing.assert_allclose(weighted, np.multiply(expected, [10, 20, 5, 2]), atol=1e-5)


def test_decode_by_hand():
    anchor = np.array([[0, 0, 10, 20]], np.float32)
    deltas = np.array([[10.0, 0.0, 5 * math.log(2), -5 * math.log(2)]], np.float32)
    np.testing.assert_allclose(
        boxes.decode(deltas, anchor, (10.0, 10.0, 5.0, 5.0)), [[5, 5, 25, 15]], atol=1e-5
    )


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.tuples(*[st.sampled_from([1.0, 2.0, 5.0, 10.0])] * 4))
def test_decode_inverts_encode(seed, weights):
    target, anchor = random_boxes(seed, 20), random_boxes(seed + 1, 20)
    out = boxes.decode(boxes.encode(target, anchor, weights), anchor, weights)
    np.testing.assert_allclose(out, target, atol=5e-3)


def test_decode_bounds_the_size():
    out = boxes.decode(np.array([[0, 0, 1e4, 50]], np.float32), np.array([[0, 0, 16, 32]], np.float32))
    np.testing.assert_allclose(out, [[8 - 500, 16 - 1000, 8 + 500, 16 + 1000]], rtol=1e-5)


@pytest.mark.parametrize("function", [boxes.iou, boxes.giou, boxes.encode])
def test_zero_area_has_finite_values_and_gradients(function):
    degenerate = np.array([[0, 0, 0, 0], [5, 5, 5, 5], [3, 3, 3, 9], [0, 0, 10, 10]], np.float32)
    for other in (degenerate, np.zeros_like(degenerate), np.tile(A[:1], (4, 1))):
        a, b = tf.Variable(degenerate), tf.Variable(other)
        with tf.GradientTape() as tape:
            out = function(a, b)
        assert np.isfinite(out).all()
        assert all(np.isfinite(g).all() for g in tape.gradient(out, [a, b]))


def test_half_precision_input_is_computed_in_float32():
    # In float16 the areas of these boxes would overflow.
    a = tf.constant([[0, 0, 1000, 1000]], tf.float16)
    b = tf.constant([[0, 0, 1000, 500]], tf.float16)
    for out in (boxes.iou(a, b), boxes.giou(a, b), boxes.pairwise_iou(a, b), boxes.pairwise_ioa(b, a) / 2):
        assert out.dtype == tf.float32
        np.testing.assert_allclose(out, 0.5 * np.ones_like(out), rtol=1e-6)
    assert boxes.decode(boxes.encode(a, b), b).dtype == tf.float32
