"""Boundary AP: equal to dense masks, eroded and matched by pycocotools itself."""

from __future__ import annotations

import contextlib
import io

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mrcnn_tf.evaluation.boundary import boundary_metrics, boundary_of
from mrcnn_tf.evaluation.coco import evaluate_coco, match_coco
from tests.evaluation.made import SIZE, annotation, coded, messy, truth_of


def dense_rim(mask, dilation):
    """The definition on the whole image: the mask without what is left of it after so many erosions."""
    distance = max(1, round(dilation * float(np.sqrt(mask.shape[0] ** 2 + mask.shape[1] ** 2))))
    eroded = np.pad(mask, 1)
    for _ in range(distance):
        eroded = cv2.erode(eroded, np.ones((3, 3), np.uint8), borderType=cv2.BORDER_CONSTANT, borderValue=0)
    return mask - eroded[1:-1, 1:-1]


class DenseBoundary(COCOeval):
    """pycocotools with the smaller of the two IoUs for each pair, whatever it is."""

    dilation = 0.02

    def computeIoU(self, imgId, catId):  # noqa: N802, N803
        ious = super().computeIoU(imgId, catId)
        if not len(ious):
            return ious
        found = sorted(self._dts[imgId, catId], key=lambda d: -d["score"])[: self.params.maxDets[-1]]
        for i, d in enumerate(found):
            for j, g in enumerate(self._gts[imgId, catId]):
                if not g["iscrowd"]:
                    a, b = (
                        dense_rim(coco_mask.decode(thing["segmentation"]), self.dilation) for thing in (d, g)
                    )
                    ious[i, j] = min(ious[i, j], (a & b).sum() / max((a | b).sum(), 1))
        return ious


def blobs(seed, *, crowds=0.0):
    """Ellipses, some of them cut off by the image's border, and results with rougher and shifted outlines."""
    rng = np.random.default_rng(seed)
    annotations, results = [], []
    for image in (1, 2, 3):
        for _ in range(5):
            centre, axes = rng.integers(0, SIZE, 2), rng.integers(12, 60, 2)
            category, angle = 10 * int(rng.integers(1, 3)), float(rng.uniform(0, 180))
            draw = lambda c, a, angle=angle: cv2.ellipse(  # noqa: E731
                np.zeros((SIZE, SIZE), np.uint8), c.tolist(), a.tolist(), angle, 0, 360, 1, -1
            )
            mask = draw(centre, axes)
            box = [int(v) for v in coco_mask.toBbox(coco_mask.encode(np.asfortranarray(mask)))]
            crowd = int(rng.random() < crowds)
            annotations.append(
                annotation(image, category, box, crowd=crowd)
                | {"segmentation": coded(mask), "area": int(mask.sum())}
            )
            other = draw(centre + rng.integers(-4, 5, 2), np.maximum(axes + rng.integers(-5, 6, 2), 3))
            other[rng.random(other.shape) < rng.choice([0, 0.01])] = 0
            results.append(
                {"image_id": image, "category_id": category, "score": float(rng.random())}
                | {"segmentation": coded(other)}
            )
    return truth_of(annotations, classes=2), results


def metrics(truth, results, **settings):
    truth, matchings = match_coco(truth, results, iou_types=["segm"])
    return boundary_metrics(truth, matchings["segm"], **settings)


@pytest.mark.parametrize(("seed", "dilation"), [(0, 0.02), (1, 0.02), (2, 0.005), (3, 0.04)])
def test_equals_dense_masks(seed, dilation):
    truth, results = blobs(seed, crowds=0.15)
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = truth | {"annotations": [{**a, "id": a["id"] + 1} for a in truth["annotations"]]}
        coco.createIndex()
        evaluation = DenseBoundary(coco, coco.loadRes([dict(r) for r in results]), "segm")
        evaluation.dilation = dilation
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    found = metrics(truth, results, dilation=dilation)
    assert list(found.values()) == pytest.approx(evaluation.stats[:3], abs=1e-12)
    assert list(found) == ["AP", "AP50", "AP75"]
    plain = evaluate_coco(truth, results, iou_types=["segm"])
    assert -1 < found["AP"] < plain["segm/AP"]


@given(
    arrays(
        np.uint8,
        st.tuples(st.integers(1, 40), st.integers(1, 40)),
        elements=st.integers(0, 1),
        fill=st.just(1),
    ),
    st.sampled_from([0.001, 0.02, 0.05, 0.1, 1.0]),
)
@settings(max_examples=60, deadline=None)
def test_rims_equal_dense_ones(mask, dilation):
    rim = coco_mask.decode(boundary_of(coded(mask), dilation=dilation))
    np.testing.assert_array_equal(rim, dense_rim(mask, dilation))


def test_the_images_border_is_an_edge():
    # 100 x 100: the distance is round(0.02 * 141.4) = 3 pixels.
    full = coded(np.ones((100, 100), np.uint8))
    assert coco_mask.area(boundary_of(full)) == 100**2 - 94**2


def test_a_wide_rim_is_the_whole_mask():
    truth, results = blobs(4)
    plain = evaluate_coco(truth, results, iou_types=["segm"])
    found = metrics(truth, results, dilation=1)
    assert found == pytest.approx({key: plain[f"segm/{key}"] for key in ("AP", "AP50", "AP75")})


def test_the_matching_stays_as_it_is():
    truth, matchings = match_coco(*blobs(0), iou_types=["segm"])
    before = {key: np.array(ious) for key, ious in matchings["segm"].ious.items()}
    boundary_metrics(truth, matchings["segm"])
    assert all(np.array_equal(ious, before[key]) for key, ious in matchings["segm"].ious.items())
    assert len(matchings["segm"].params.areaRng) == 4


def test_nothing_to_find_and_nothing_found():
    truth, results = blobs(0)
    assert metrics(truth, []) == {"AP": 0, "AP50": 0, "AP75": 0}
    empty = metrics({**truth, "annotations": []}, results)
    assert empty == {"AP": -1, "AP50": -1, "AP75": -1}


def test_boxes_have_no_boundary():
    truth, matchings = match_coco(*messy(0))
    with pytest.raises(ValueError, match="needs the matching of masks"):
        boundary_metrics(truth, matchings["bbox"])


@pytest.mark.parametrize("dilation", [0, -1, 2, float("nan")])
def test_a_dilation_out_of_range(dilation):
    with pytest.raises(ValueError, match="dilation must lie above 0"):
        metrics(*blobs(0), dilation=dilation)
