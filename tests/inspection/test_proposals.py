"""The report on proposals: against `ProposalRecall` on parts of the truth, and hand-computed values."""

import numpy as np
import pytest

from mrcnn_tf.evaluation.recall import ProposalRecall
from mrcnn_tf.inspection.proposals import ProposalReport


def _boxes(rng, count, largest=150.0):
    corner = rng.uniform(0, 200, (count, 2))
    return np.concatenate([corner, corner + rng.uniform(4, largest, (count, 2))], 1)


def test_golden():
    # 20 x 20 (small) found exactly at rank 2; 40 x 40 (medium) by a proposal of IoU 0.6 at rank 1; a crowd region.
    truth = [[0, 0, 20, 20], [100, 100, 140, 140], [0, 0, 300, 300]]
    report = ProposalReport(at=(1, 2))
    report.update([[100, 100, 140, 124], [0, 0, 20, 20], [0, 0, 0, 0]], truth, crowd=[False, False, True])
    result = report.result()
    assert result["instances"] == {"all": 2, "small": 1, "medium": 1, "large": 0}
    # IoU 0.6 reaches 0.5, 0.55 and 0.6.
    first, second = result["recall"]
    assert first == pytest.approx(
        {"at": 1, "all": 0.15, "all50": 0.5, "small": 0, "medium": 0.3, "large": -1}
    )
    assert second == pytest.approx({"at": 2, "all": 0.65, "all50": 1, "small": 1, "medium": 0.3, "large": -1})
    counts = dict(zip(result["best_iou"]["edges"], result["best_iou"]["counts"], strict=False))
    assert counts[0.95] == 1 and sum(counts.values()) == 2 and counts[0.55] + counts[0.6] == 1


def test_best_iou_is_of_any_proposal_but_recall_of_one_of_its_own():
    report = ProposalReport(at=(10,))
    report.update([[0, 0, 10, 10]], [[0, 0, 10, 10], [0, 0, 10, 10]])
    result = report.result()
    assert result["recall"][0]["all50"] == pytest.approx(0.5)
    assert result["best_iou"]["counts"][-1] == 2


def test_equals_proposal_recall():
    rng = np.random.default_rng(0)
    report, whole = ProposalReport(at=(5, 40)), ProposalRecall(at=(5, 40))
    instances = {"small": 0, "medium": 0, "large": 0}
    best = []
    for _ in range(4):
        truth = _boxes(rng, 15)
        proposals = np.concatenate([truth + rng.normal(0, 4, truth.shape), _boxes(rng, 40)])[
            rng.permutation(55)
        ]
        crowd = rng.random(15) < 0.2
        report.update(proposals, truth, crowd=crowd)
        whole.update(proposals, truth, crowd=crowd)
        for y1, x1, y2, x2 in truth[~crowd].astype(np.float32):
            area = (y2 - y1) * (x2 - x1)
            instances["small" if area < 1024 else "medium" if area < 9216 else "large"] += 1
            overlaps = []
            for a, b, c, d in proposals:
                inter = max(min(y2, c) - max(y1, a), 0) * max(min(x2, d) - max(x1, b), 0)
                overlaps.append(inter / (area + (c - a) * (d - b) - inter) if c > a and d > b else 0)
            best.append(max(overlaps))
    result = report.result()
    for row in result["recall"]:
        assert row["all"] == pytest.approx(whole.result()[f"recall@{row['at']}"])
        assert row["all50"] == pytest.approx(whole.result()[f"recall50@{row['at']}"])
        # All is the mean of the sizes.
        total = sum(instances[size] * row[size] for size in instances)
        assert row["all"] == pytest.approx(total / sum(instances.values()))
    assert result["instances"] == {"all": sum(instances.values()), **instances}
    assert result["best_iou"]["counts"] == np.histogram(best, 20, (0, 1))[0].tolist()


def test_nothing_to_find_and_bad_input():
    report = ProposalReport()
    report.update(np.zeros((0, 4)), np.zeros((0, 4)))
    result = report.result()
    assert [row["at"] for row in result["recall"]] == [10, 100, 300, 1000]
    assert {v for row in result["recall"] for k, v in row.items() if k != "at"} == {-1.0}
    assert sum(result["best_iou"]["counts"]) == 0
    report.update(
        np.zeros((0, 4)), [[0, 0, 10, 10]]
    )  # no proposals: nothing found, the histogram starts at 0
    assert report.result()["recall"][0]["all50"] == 0 and report.result()["best_iou"]["counts"][0] == 1
    with pytest.raises(ValueError, match="positive numbers"):
        ProposalReport(at=())
