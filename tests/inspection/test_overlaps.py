"""Overlapping pairs: hand-computed, and against loops over all pairs with dense masks."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from mrcnn_tf.inspection.overlaps import overlapping_pairs

TRUTH = {
    "images": [{"id": i, "height": 40, "width": 50} for i in (1, 2)],
    "annotations": [],
    "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}],
}


def _entry(image_id, category_id, bbox, score=0.9, mask=None):
    entry = {"image_id": image_id, "category_id": category_id, "bbox": bbox, "score": score}
    if mask is not None:
        rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
        entry["segmentation"] = {"size": rle["size"], "counts": rle["counts"].decode()}
    return entry


def test_golden():
    results = [
        _entry(1, 1, [0, 0, 10, 10]),
        _entry(1, 1, [0, 0, 10, 10], 0.3),  # IoU 1 with the first; the score is just enough
        _entry(1, 2, [0, 0, 10, 6], 0.8),  # IoU 0.6 with both
        _entry(1, 1, [0, 0, 10, 10], 0.29),  # too low a score
        _entry(2, 1, [0, 0, 10, 10]),  # another image
        _entry(2, 1, [0, 5, 10, 10]),  # IoU 1/3
    ]
    found = overlapping_pairs(TRUTH, results)
    assert found["measure"] == "box" and found["images"] == 2 and found["detections"] == 5
    assert (
        found["pairs"]
        == found["boxes"]
        == [
            {"iou": 0.3, "same_class": 2, "other_class": 2},
            {"iou": 0.5, "same_class": 1, "other_class": 2},
            {"iou": 0.7, "same_class": 1, "other_class": 0},
        ]
    )
    assert found["per_image"] == {1: 3}
    assert overlapping_pairs(TRUTH, results, score_threshold=0.0)["per_image"] == {1: 6}


def test_masks_are_compared_where_there_are_any():
    left, right = np.zeros((2, 40, 50), bool)
    left[:20, :10], right[:20, 10:20] = True, True
    results = [_entry(1, 1, [0, 0, 20, 20], mask=left), _entry(1, 1, [0, 0, 20, 20], mask=right)]
    found = overlapping_pairs(TRUTH, results)
    assert found["measure"] == "mask"
    assert [row["same_class"] for row in found["pairs"]] == [0, 0, 0]
    assert [row["same_class"] for row in found["boxes"]] == [1, 1, 1]
    for entry in results:  # masks alone will do, uncompressed ones, too
        del entry["bbox"]
        counts = [0, *([20, 20] * 10)] if entry is results[0] else [400, *([20, 20] * 10)]
        counts[-1] = 2000 - sum(counts[:-1])
        entry["segmentation"] = {"size": [40, 50], "counts": counts}
    assert overlapping_pairs(TRUTH, results)["pairs"] == found["pairs"]


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10_000), with_masks=st.booleans())
def test_equals_a_loop_over_pairs(seed, with_masks):
    rng = np.random.default_rng(seed)
    results, dense = [], []
    for _ in range(30):
        y, x = rng.integers(0, 20, 2)
        h, w = rng.integers(4, 20, 2)
        mask = np.zeros((40, 50), bool)
        mask[y : y + h, x : x + w] = rng.random((h, w)) < 0.9
        entry = _entry(int(rng.integers(1, 3)), int(rng.integers(1, 3)), [int(v) for v in (x, y, w, h)])
        entry["score"] = float(rng.random())
        results.append(_entry(**entry, mask=mask) if with_masks else entry)
        box = np.zeros((40, 50), bool)
        box[y : y + h, x : x + w] = True
        dense.append(mask if with_masks else box)
    want = np.zeros((3, 2), int)
    for i in range(30):
        for j in range(i):
            a, b = results[i], results[j]
            if a["image_id"] != b["image_id"] or min(a["score"], b["score"]) < 0.3:
                continue
            iou = (dense[i] & dense[j]).sum() / (dense[i] | dense[j]).sum()
            want[:, int(a["category_id"] != b["category_id"])] += iou > np.array([0.3, 0.5, 0.7])
    found = overlapping_pairs(TRUTH, [results[i] for i in rng.permutation(30)])
    assert [[row["same_class"], row["other_class"]] for row in found["pairs"]] == want.tolist()
    assert sum(found["per_image"].values()) == want[1].sum()


def test_no_results():
    found = overlapping_pairs(TRUTH, [])
    assert found["detections"] == 0 and found["per_image"] == {}
    assert [row["same_class"] + row["other_class"] for row in found["pairs"]] == [0, 0, 0]


def test_masks_of_two_sizes_are_refused():
    results = [_entry(1, 1, [0, 0, 9, 9], mask=np.ones(size, bool)) for size in ((40, 50), (50, 40))]
    with pytest.raises(ValueError, match="one size"):
        overlapping_pairs(TRUTH, results)
