"""Matching and sampling against hand-written values."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from mrcnn_tf.geometry import boxes, matching

# Three boxes, seven anchors.
IOU = np.array(
    [
        [0.90, 0.20, 0.10, 0.35, 0.00, 0.69, 0.70],
        [0.80, 0.10, 0.25, 0.40, 0.00, 0.30, 0.71],
        [0.05, 0.20, 0.10, 0.10, 0.00, 0.00, 0.00],
    ],
    np.float32,
)
VALID = np.ones([1, 3], bool)


def match(iou, valid=VALID, high=0.7, low=0.3, allow_low_quality=False):
    return matching.match(iou, valid, high=high, low=low, allow_low_quality=allow_low_quality).numpy()


def test_thresholds():
    # At `high` an anchor is matched, at `low` it is ignored, and the box of higher overlap wins.
    np.testing.assert_array_equal(match(IOU[None]), [[0, -1, -1, -2, -1, -2, 1]])
    np.testing.assert_array_equal(match(IOU[None], low=0.4), [[0, -1, -1, -2, -1, -2, 1]])
    np.testing.assert_array_equal(match(IOU[None], low=0.41), [[0, -1, -1, -1, -1, -2, 1]])
    np.testing.assert_array_equal(match(IOU[None], high=0.35, low=0.35), [[0, -1, -1, 1, -1, 0, 1]])


def test_low_quality_matches():
    # The third box's best overlap is 0.2, with anchor 1, which overlaps the first box as much: the first
    # takes it.
    np.testing.assert_array_equal(match(IOU[None], allow_low_quality=True), [[0, 0, -1, -2, -1, -2, 1]])
    # All anchors that share a box's best overlap are matched.
    iou = np.array([[[0.2, 0.1, 0.2, 0.0]]], np.float32)
    np.testing.assert_array_equal(match(iou, VALID[:, :1], allow_low_quality=True), [[0, -1, 0, -1]])


def test_box_without_overlap_takes_nothing():
    iou = np.zeros([1, 1, 3], np.float32)
    np.testing.assert_array_equal(match(iou, VALID[:, :1], allow_low_quality=True), [[-1, -1, -1]])


def test_low_quality_anchor_keeps_its_own_best_box():
    # Anchor 0 is the best of both boxes, and overlaps the second more.
    iou = np.array([[[0.4, 0.1], [0.5, 0.2]]], np.float32)
    np.testing.assert_array_equal(match(iou, VALID[:, :2], allow_low_quality=True), [[1, -1]])


def test_padding_and_images_without_boxes():
    valid = np.array([[True, False, True], [False, False, False]])
    out = match(np.stack([IOU, IOU]), valid, allow_low_quality=True)
    np.testing.assert_array_equal(out, [[0, 0, -1, -2, -1, -2, 0], [-1] * 7])
    np.testing.assert_array_equal(
        match(np.zeros([2, 0, 4], np.float32), np.zeros([2, 0], bool)), [[-1] * 4] * 2
    )


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.booleans(), st.booleans())
def test_match_boxes_equals_match_of_the_matrix(seed, allow_low_quality, shared):
    rng = np.random.default_rng(seed)
    corner = rng.integers(0, 20, (2, 40, 2))
    anchors = np.concatenate([corner, corner + rng.integers(0, 20, (2, 40, 2))], -1).astype(np.float32)
    truth, valid = anchors[:, :5] + rng.integers(-2, 3, (2, 5, 4)), rng.random((2, 5)) < 0.7
    truth = truth.astype(np.float32)
    options = dict(high=0.6, low=0.3, allow_low_quality=allow_low_quality)
    anchors = anchors[0] if shared else anchors
    expected = matching.match(boxes.pairwise_iou(truth, anchors), valid, **options)
    np.testing.assert_array_equal(matching.match_boxes(truth, valid, anchors, **options), expected)


def test_match_in_a_graph_of_unknown_shape():
    @tf.function(input_signature=[tf.TensorSpec([None, None, None]), tf.TensorSpec([None, None], tf.bool)])
    def graph(iou, valid):
        return matching.match(iou, valid, high=0.7, low=0.3, allow_low_quality=True)

    np.testing.assert_array_equal(graph(IOU[None], VALID), match(IOU[None], allow_low_quality=True))
    np.testing.assert_array_equal(graph(IOU[None, :1], VALID[:, :1]), [[0, -1, -1, -2, -1, -2, 0]])


def test_bad_thresholds():
    with pytest.raises(ValueError, match="low <= high, not low=0.5 and high=0.4"):
        match(IOU[None], high=0.4, low=0.5)


def sample(positive, negative, count, fraction, seed=0):
    seed = np.array([[seed, image] for image in range(len(positive))], np.int32)
    out = matching.sample(positive, negative, count=count, positive_fraction=fraction, seed=seed)
    return [t.numpy() for t in out]


def masks(positives, negatives, size=12):
    """One image for each pair of lists of indices."""
    out = np.zeros([2, len(positives), size], bool)
    for image, (p, n) in enumerate(zip(positives, negatives, strict=True)):
        out[0, image, p], out[1, image, n] = True, True
    return out[0], out[1]


def test_sample_takes_positives_first_and_fills_with_negatives():
    positive, negative = masks([[0, 3, 5], [7], []], [[1, 2, 4, 6, 8, 9], [0, 1, 2], [4, 5, 6, 7, 8, 9]])
    indices, is_positive, is_valid = sample(positive, negative, 6, 0.34)
    np.testing.assert_array_equal(is_positive, [[1, 1, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0], [0] * 6])
    np.testing.assert_array_equal(is_valid, [[1] * 6, [1, 1, 1, 1, 0, 0], [1] * 6])
    assert set(indices[0, :2]) < {0, 3, 5} and len(set(indices[0, :2])) == 2
    assert set(indices[0, 2:]) < {1, 2, 4, 6, 8, 9} and len(set(indices[0, 2:])) == 4
    assert indices[1, 0] == 7 and set(indices[1, 1:4]) == {0, 1, 2}
    np.testing.assert_array_equal(indices[1, 4:], [0, 0])
    assert set(indices[2]) == {4, 5, 6, 7, 8, 9}


def test_sample_with_fewer_anchors_than_slots():
    positive, negative = masks([[0]], [[1]], size=3)
    indices, is_positive, is_valid = sample(positive, negative, 8, 0.5)
    np.testing.assert_array_equal(indices, [[0, 1, 0, 0, 0, 0, 0, 0]])
    np.testing.assert_array_equal(is_positive, [[1, 0, 0, 0, 0, 0, 0, 0]])
    np.testing.assert_array_equal(is_valid, [[1, 1, 0, 0, 0, 0, 0, 0]])


def test_sample_all_or_no_positives():
    positive, negative = masks([[0, 1, 2, 3]], [[4, 5, 6, 7]])
    assert set(sample(positive, negative, 4, 1.0)[0][0]) == {0, 1, 2, 3}
    assert set(sample(positive, negative, 4, 0.0)[0][0]) == {4, 5, 6, 7}


def test_sample_depends_on_the_seed_of_its_image_alone():
    positive, negative = np.zeros([2, 500], bool), np.ones([2, 500], bool)
    first, again, other = (sample(positive, negative, 20, 0.5, seed)[0] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any() and (first[0] != first[1]).any()
    # As if the image were alone in the batch: splitting a batch over devices changes nothing.
    seed = np.array([[1, 1]], np.int32)
    alone = matching.sample(positive[1:], negative[1:], count=20, positive_fraction=0.5, seed=seed)[0]
    np.testing.assert_array_equal(alone[0], first[1])


def test_sample_is_uniform():
    candidates = np.zeros([2000, 10], bool)
    candidates[:, 2:] = True
    indices, _, _ = sample(candidates, ~candidates, 6, 0.5)
    drawn = np.bincount(indices[:, :3].ravel(), minlength=10)
    # Each of the eight is expected 750 times; the standard deviation is 22.
    assert (drawn[:2] == 0).all() and (abs(drawn[2:] - 750) < 110).all()


def test_sample_in_a_graph_of_unknown_shape():
    spec = tf.TensorSpec([None, None], tf.bool)

    @tf.function(input_signature=[spec, spec, tf.TensorSpec([None, 2], tf.int32)])
    def graph(positive, negative, seed):
        return matching.sample(positive, negative, count=6, positive_fraction=0.5, seed=seed)

    positive, negative = masks([[0, 3, 5], [7]], [[1, 2, 4, 6, 8, 9], [0, 1, 2]])
    out = graph(positive, negative, np.array([[0, 0], [0, 1]], np.int32))
    assert [t.shape for t in out] == [(2, 6)] * 3
    for a, b in zip(out, sample(positive, negative, 6, 0.5), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(("count", "fraction"), [(0, 0.5), (4, 1.5), (4, -0.1)])
def test_bad_sampling(count, fraction):
    with pytest.raises(ValueError, match="count >= 1 and positive_fraction in"):
        sample(*masks([[0]], [[1]]), count, fraction)
