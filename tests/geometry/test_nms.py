"""Non-maximum suppression against hand-written values and a literal reference."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from mrcnn_tf.geometry.nms import nms

# IoU of 0 and 1 is 0.9, of 2 and 3 is 1/3.
BOXES = np.array(
    [[0, 0, 10, 10], [0, 0, 10, 9], [50, 50, 60, 60], [55, 50, 65, 60], [20, 20, 20, 30], [80, 80, 90, 90]],
    np.float32,
)
SCORES = np.array([0.5, 0.6, 0.9, 0.8, 0.99, 0.05], np.float32)


def run(boxes=BOXES, scores=SCORES, groups=None, iou=0.5, score=0.1, count=6):
    """One image's kept indices; checks the padding on the way."""
    groups = None if groups is None else np.asarray(groups, np.int32)[None]
    indices, valid = nms(
        boxes[None], scores[None], groups, iou_threshold=iou, score_threshold=score, max_outputs=count
    )
    assert indices.shape == valid.shape == (1, count) and indices.dtype == tf.int32
    kept = int(valid.numpy().sum())
    assert valid.numpy()[0, :kept].all() and not indices.numpy()[0, kept:].any()
    return list(indices.numpy()[0, :kept])


def reference(boxes, scores, groups, iou, score, count):
    """Greedy, as the textbook has it."""
    kept: list[int] = []
    for i in np.argsort(-scores, kind="stable"):
        y1, x1, y2, x2 = boxes[i].astype(np.float64)
        if scores[i] <= score or y2 <= y1 or x2 <= x1 or len(kept) == count:
            continue
        overlaps = []
        for j in kept:
            b = boxes[j].astype(np.float64)
            both = max(min(y2, b[2]) - max(y1, b[0]), 0) * max(min(x2, b[3]) - max(x1, b[1]), 0)
            union = (y2 - y1) * (x2 - x1) + (b[2] - b[0]) * (b[3] - b[1]) - both
            overlaps.append(groups[i] == groups[j] and both / union > iou)
        if not any(overlaps):
            kept.append(int(i))
    return kept


def test_by_hand():
    assert run() == [2, 3, 1]
    assert run(iou=0.3) == [2, 1]
    assert run(iou=0.95) == [2, 3, 1, 0]
    assert run(score=0.0) == [2, 3, 1, 5]
    assert run(score=0.6) == [2, 3]
    assert run(count=2) == [2, 3]


def test_boxes_without_area_are_never_kept():
    assert 4 not in run(score=-1e9, iou=1.0)
    inverted = BOXES.copy()
    inverted[2] = [60, 60, 50, 50]
    assert run(boxes=inverted) == [3, 1]


def test_groups_do_not_suppress_each_other():
    assert run(groups=[0, 1, 2, 2, 0, 0], iou=0.3) == [2, 1, 0]
    assert run(groups=[7, 7, 2, 3, 0, 0], iou=0.3) == [2, 3, 1]


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [1, 0, 3, 2]])
def test_groups_far_from_the_origin(order):
    # Of 80 groups side by side the last would lie 100 000 pixels away, where float32 knows 1/128 of a pixel.
    boxes = [[1000, 1300, 1000.5, 1300.5], [1000, 1300.2, 1000.5, 1300.7], [0, 0, 1333, 1333]]
    boxes = np.array(boxes, np.float32)[:, order]
    scores = np.array([0.9, 0.8, 0.7], np.float32)
    # The IoU of the first two is 3/7, or 0.4286.
    assert run(boxes, scores, [80, 80, 0], iou=0.431) == [0, 1, 2]
    assert run(boxes, scores, [80, 80, 0], iou=0.426) == [0, 2]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0.3, 0.5, 0.7]), st.integers(1, 5))
def test_equals_reference(seed, iou, groups):
    rng = np.random.default_rng(seed)
    corner = rng.uniform(-20, 60, (40, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(-2, 40, (40, 2))], -1).astype(np.float32)
    scores, of = rng.random(40).astype(np.float32), rng.integers(0, groups, 40)
    assert run(boxes, scores, of, iou, 0.2, 20) == reference(boxes, scores, of, iou, 0.2, 20)


def test_batch_of_unknown_size():
    @tf.function(input_signature=[tf.TensorSpec([None, None, 4]), tf.TensorSpec([None, None])])
    def graph(boxes, scores):
        return nms(boxes, scores, None, iou_threshold=0.5, score_threshold=0.1, max_outputs=4)

    indices, valid = graph(np.stack([BOXES, BOXES]), np.stack([SCORES, SCORES[::-1]]))
    # The second image's scores: 0.05, 0.99, 0.8, 0.9, 0.6 (no area), 0.5.
    np.testing.assert_array_equal(indices, [[2, 3, 1, 0], [1, 3, 2, 5]])
    np.testing.assert_array_equal(valid, [[True, True, True, False], [True] * 4])
    assert not graph(BOXES[None, :0], SCORES[None, :0])[1].numpy().any()
    assert graph(np.zeros([0, 6, 4]), np.zeros([0, 6]))[0].shape == (0, 4)


@pytest.mark.parametrize("dtype", [tf.float16, tf.bfloat16])
def test_half_precision(dtype):
    indices, valid = nms(
        tf.cast(BOXES, dtype)[None],
        tf.cast(SCORES, dtype)[None],
        tf.zeros([1, 6], tf.int32),
        iou_threshold=0.5,
        score_threshold=0.1,
        max_outputs=4,
    )
    np.testing.assert_array_equal(indices[valid], [2, 3, 1])
