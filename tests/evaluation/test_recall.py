"""Recall of proposals against hand-computed values and an exhaustive reference."""

import numpy as np
import pytest

from mrcnn_tf.evaluation.recall import ProposalRecall, proposal_recall

TRUTH = np.array([[0, 0, 10, 10], [20, 20, 40, 40]], np.float32)


def test_golden():
    # The first instance is found exactly at rank 2, the second with IoU 0.6 at rank 1; thresholds 0.5, 0.55,
    # ... 0.95.
    proposals = [[20, 20, 40, 32], [0, 0, 10, 10], [50, 50, 60, 60]]
    got = proposal_recall([proposals], [TRUTH], at=(1, 2))
    assert got == {
        "recall@1": pytest.approx(0.5 * 3 / 10),
        "recall50@1": pytest.approx(0.5),
        "recall@2": pytest.approx((1 + 3 / 10) / 2),
        "recall50@2": pytest.approx(1.0),
    }


def test_a_proposal_serves_one_instance():
    truth = [[0, 0, 10, 10], [0, 1, 10, 11]]  # two huddled instances, one proposal that fits both
    assert proposal_recall([[[0, 0, 10, 10]]], [truth], at=(10,))["recall50@10"] == pytest.approx(0.5)
    two = proposal_recall([[[0, 0, 10, 10], [0, 0, 10, 10]]], [truth], at=(10,))
    assert two["recall50@10"] == pytest.approx(1.0)


def test_images_add_up_scores_sort_and_crowds_and_padding_are_left_out():
    recall = ProposalRecall(at=(1,))
    # The better proposal comes second, but with the higher score.
    recall.update([[50, 50, 60, 60], [0, 0, 10, 10]], TRUTH, scores=[0.1, 0.9], crowd=[False, True])
    assert recall.result()["recall@1"] == pytest.approx(1.0)
    recall.update([[0, 0, 0, 0], [0, 0, 10, 10]], TRUTH)  # padding does not take the only place
    assert recall.result()["recall@1"] == pytest.approx(2 / 3)
    recall.update(np.zeros((0, 4)), TRUTH[:1])  # an image without proposals
    recall.update([[0, 0, 5, 5]], np.zeros((0, 4)))  # one without instances
    assert recall.result()["recall@1"] == pytest.approx(2 / 4)


def test_equals_the_exhaustive_reference():
    rng = np.random.default_rng(0)
    corner = rng.random((60, 2)) * 50
    proposals = np.concatenate([corner, corner + rng.random((60, 2)) * 30 + 2], axis=1)
    truth = proposals[rng.permutation(60)[:25]] + rng.normal(0, 1.5, (25, 4))
    iou = np.zeros((60, 25))
    for i, a in enumerate(proposals):
        for j, b in enumerate(truth):
            h, w = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
            inter = max(h, 0) * max(w, 0)
            iou[i, j] = inter / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter)
    for limit in (5, 60):
        rest, best = iou[:limit].copy(), []
        for _ in range(min(limit, 25)):
            i, j = np.unravel_index(rest.argmax(), rest.shape)
            best.append(rest[i, j])
            rest[i], rest[:, j] = -1, -1
        want = np.mean([np.sum(np.array(best) >= t) / 25 for t in np.arange(0.5, 1.0, 0.05)])
        assert proposal_recall([proposals], [truth], at=(limit,))[f"recall@{limit}"] == pytest.approx(want)


def test_nothing_to_find_and_bad_input():
    assert proposal_recall([], []) == {
        f"recall{kind}@{n}": -1.0 for n in (100, 300, 1000) for kind in ("", "50")
    }
    with pytest.raises(ValueError, match="positive numbers"):
        ProposalRecall(at=(0, 5))
    with pytest.raises(ValueError, match="of 1 images, but the truth is of 0"):
        proposal_recall([TRUTH], [])
