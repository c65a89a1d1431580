"""Non-maximum suppression against hand-written values and a literal reference."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from mrcnn_tf.geometry.boxes import pairwise_iou
from mrcnn_tf.geometry.masks import paste
from mrcnn_tf.geometry.nms import box_overlaps, mask_overlaps, nms, soft_nms

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


def soft_reference(overlap, scores, groups, method, iou, score, count, sigma):
    """Soft-NMS as the paper's figure 2 has it: the best leaves the set, and the others' scores decay."""
    scores = scores.astype(np.float64).copy()
    left, kept = [i for i in range(len(scores)) if scores[i] > score], []
    while left and len(kept) < count:
        best = max(left, key=lambda i: scores[i])
        left.remove(best)
        kept.append((best, scores[best]))
        for i in list(left):
            x = overlap[best, i] if groups[best] == groups[i] else 0.0
            if method == "gaussian":
                scores[i] *= np.exp(-(x**2) / sigma)
            elif x > iou:
                scores[i] *= 0.0 if method == "hard" else 1 - x
            if scores[i] <= score or (method == "hard" and x > iou):
                left.remove(i)
    return kept


def random_boxes(rng, count):
    corner = rng.uniform(0, 30, (count, 2))
    return np.concatenate([corner, corner + rng.uniform(2, 25, (count, 2))], 1).astype(np.float32)


@pytest.mark.parametrize("method", ["hard", "linear", "gaussian"])
@given(seed=st.integers(0, 10**6), iou=st.sampled_from([0.0, 0.3, 0.7]), score=st.sampled_from([0.0, 0.3]))
@settings(max_examples=15, deadline=None)
def test_soft_nms_is_the_papers(method, seed, iou, score):
    rng = np.random.default_rng(seed)
    boxes, scores = random_boxes(rng, 12), rng.uniform(0, 1, 12).astype(np.float32)
    groups = rng.integers(0, 3, 12).astype(np.int32)
    overlap = pairwise_iou(boxes, boxes).numpy()
    wanted = soft_reference(overlap, scores, groups, method, iou, score, 8, 0.4)
    # Two images at once, the second turned round, with a threshold of its own.
    two = [np.stack([x, x[::-1]]) for x in (boxes, scores, groups)]
    indices, valid, kept = soft_nms(
        box_overlaps(tf.constant(two[0]), tf.constant(two[2])),
        tf.constant(two[1]),
        method=method,
        iou_threshold=tf.constant([iou, iou]),
        score_threshold=score,
        max_outputs=8,
        sigma=0.4,
    )
    for row, place in ((0, lambda i: i), (1, lambda i: 11 - i)):
        count = int(valid[row].numpy().sum())
        assert [place(i) for i in indices[row, :count].numpy()] == [i for i, _ in wanted]
        np.testing.assert_allclose(kept[row, :count], [s for _, s in wanted], rtol=1e-5)
        assert not kept[row, count:].numpy().any() and not indices[row, count:].numpy().any()
    if method == "hard":
        assert run(boxes, scores, groups, iou, score, 8) == [i for i, _ in wanted]


def test_soft_nms_by_hand():
    """The second overlaps the first by 0.9, the famous error being to drop it or to leave it at 0.5."""
    overlaps = box_overlaps(tf.constant(BOXES[None, :2]), None)
    settings = {"iou_threshold": 0.5, "score_threshold": 0.01, "max_outputs": 2}
    linear = soft_nms(overlaps, tf.constant(SCORES[None, :2]), method="linear", **settings)
    np.testing.assert_array_equal(linear[0], [[1, 0]])
    np.testing.assert_allclose(linear[2], [[0.6, 0.5 * 0.1]], rtol=1e-5)
    gaussian = soft_nms(overlaps, tf.constant(SCORES[None, :2]), method="gaussian", sigma=0.5, **settings)
    np.testing.assert_allclose(gaussian[2], [[0.6, 0.5 * np.exp(-0.81 / 0.5)]], rtol=1e-5)
    with pytest.raises(ValueError, match="'soft'.*hard, linear, gaussian"):
        soft_nms(overlaps, tf.constant(SCORES[None, :2]), method="soft", **settings)


def test_mask_overlaps_by_hand():
    """Boxes that are the same, masks that share a quarter; a small mask inside a large one; another group."""
    m = 28
    left, upper, full = np.zeros((m, m)), np.zeros((m, m)), np.ones((m, m))
    left[:, : m // 2] = 1
    upper[: m // 2] = 1
    masks = np.stack([left, upper, full, full]).astype(np.float32)[None]
    boxes = np.array([[[0, 0, 56, 56], [0, 0, 56, 56], [4, 4, 18, 18], [4, 4, 18, 18]]], np.float32)
    groups = tf.constant([[0, 0, 0, 1]])
    of = mask_overlaps(tf.constant(masks), tf.constant(boxes), groups)
    quarter = 28 * 28 / (2 * 56 * 28 - 28 * 28)
    np.testing.assert_allclose(of(tf.constant([0])), [[1, quarter, 14 * 14 / (56 * 28), 0]], atol=1e-6)
    alone = mask_overlaps(tf.constant(masks), tf.constant(boxes), None)
    np.testing.assert_allclose(alone(tf.constant([3])), [[0.125, 0.125, 1, 1]], atol=1e-6)


@given(seed=st.integers(0, 10**6))
@settings(max_examples=10, deadline=None)
def test_mask_overlaps_are_near_those_of_pixels(seed):
    """Blobs pasted at ten times the size, and their IoU counted."""
    rng = np.random.default_rng(seed)
    boxes = random_boxes(rng, 6)
    y, x = np.mgrid[:28, :28] / 27 * 2 - 1
    masks = np.stack(
        [1 / (1 + np.exp(9 * (y**2 / a + x**2 / b - 0.8))) for a, b in rng.uniform(0.5, 1, (6, 2))]
    )
    dense = np.zeros((6, 600, 600), bool)
    for one, mask, box in zip(dense, masks, boxes * 10, strict=True):
        crop, y0, x0 = paste(mask, box, 600, 600)
        one[y0 : y0 + crop.shape[0], x0 : x0 + crop.shape[1]] = crop >= 0.5
    both = (dense[:, None] & dense).sum((2, 3))
    wanted = both / (dense[:, None] | dense).sum((2, 3))
    of = mask_overlaps(tf.constant(masks[None], tf.float32), tf.constant(boxes[None]), None)
    got = np.concatenate([of(tf.constant([i])) for i in range(6)])
    np.testing.assert_allclose(got, wanted, atol=0.03)
    np.testing.assert_allclose(got, got.T, atol=1e-6)
