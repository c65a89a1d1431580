"""The fast matching against pycocotools' own."""

import contextlib
import io

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mrcnn_tf.evaluation.matching import Matching


def random_set(seed):
    """Boxes with many ties: crowd regions, equal scores, shifted copies of the truth as detections."""
    rng = np.random.default_rng(seed)
    truth, found = [], []
    for image in range(4):
        for _ in range(rng.integers(0, 9)):
            x, y, w, h = (int(v) for v in (*rng.integers(0, 120, 2), *rng.integers(5, 120, 2)))
            truth.append({"image_id": image, "bbox": [x, y, w, h], "area": w * h * float(rng.random())})
            truth[-1] |= {"iscrowd": int(rng.random() < 0.2), "category_id": int(rng.choice([3, 7]))}
        for _ in range(rng.integers(0, 12)):
            x, y, w, h = (int(v) for v in (*rng.integers(0, 120, 2), *rng.integers(5, 120, 2)))
            if truth and rng.random() < 0.7:
                x, y, w, h = (
                    max(1, v + int(rng.integers(-6, 7))) for v in truth[rng.integers(len(truth))]["bbox"]
                )
            found.append({"image_id": image, "bbox": [x, y, w, h], "area": w * h, "iscrowd": 0})
            found[-1] |= {"score": round(float(rng.random()), 1), "category_id": int(rng.choice([3, 7]))}
    for entries in (truth, found):
        for number, entry in enumerate(entries, start=1):
            entry["id"] = number
    return truth, found


def run(kind, truth, found):
    indexed = []
    with contextlib.redirect_stdout(io.StringIO()):
        for annotations in (truth, found):
            coco = COCO()
            coco.dataset = {
                "images": [{"id": i} for i in range(4)],
                "categories": [{"id": 3}, {"id": 7}],
                "annotations": [dict(a) for a in annotations],
            }
            coco.createIndex()
            indexed.append(coco)
        evaluation = kind(*indexed, "bbox")
        evaluation.params.maxDets = [1, 5, 100]
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation


@pytest.mark.parametrize("seed", range(25))
def test_equals_pycocotools(seed):
    truth, found = random_set(seed)
    ours, theirs = run(Matching, truth, found), run(COCOeval, truth, found)
    for key in ("precision", "recall", "scores"):
        np.testing.assert_array_equal(ours.eval[key], theirs.eval[key])
    for mine, other in zip(ours.evalImgs, theirs.evalImgs, strict=True):
        assert (mine is None) == (other is None)
        if mine is not None:
            for key in ("dtMatches", "dtIgnore", "dtScores", "dtIds"):
                np.testing.assert_array_equal(mine[key], other[key])
