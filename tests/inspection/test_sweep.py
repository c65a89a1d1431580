"""The sweep over NMS thresholds: equal to suppressing and evaluating anew, for results and for models."""

import keras
import numpy as np
import pytest
from pycocotools import mask as coco_mask

from mrcnn_tf.data.coco import CocoDataset
from mrcnn_tf.data.pipeline import evaluation_batches
from mrcnn_tf.data.shapes import generate_shapes
from mrcnn_tf.evaluation.coco import evaluate_coco
from mrcnn_tf.inspection import sweep
from mrcnn_tf.inspection.sweep import (
    boxes_at,
    nms_threshold_of,
    suggested_threshold,
    sweep_model,
    sweep_results,
)
from mrcnn_tf.models.mask_rcnn import MaskRCNN
from mrcnn_tf.models.mask_refining_rcnn import MaskRefiningRCNN
from mrcnn_tf.postprocess.suppress import suppress
from tests.tiny import CLASSES, make_model

SIDE = 100


def _planted(seed=0, images=6, instances=6, copies=5, masks=False):
    """Truth, and results that find each instance several times, more or less well, some under another class."""
    rng = np.random.default_rng(seed)
    truth = {"images": [], "annotations": [], "categories": [{"id": 3, "name": "a"}, {"id": 7, "name": "b"}]}
    results = []
    for image_id in range(1, images + 1):
        truth["images"].append({"id": image_id, "height": SIDE, "width": SIDE})
        for _ in range(instances):
            box = np.concatenate([rng.uniform(0, 60, 2), rng.uniform(15, 35, 2)])
            category = int(rng.choice([3, 7]))
            crowd = int(rng.random() < 0.1)
            number = len(truth["annotations"]) + 1
            common = {"image_id": image_id, "category_id": category}
            truth["annotations"].append(
                {"id": number, **common, "bbox": box.tolist(), "area": box[2] * box[3], "iscrowd": crowd}
                | {"segmentation": _rle(box)}
            )
            for _ in range(copies):
                moved = box + rng.normal(0, rng.choice([1, 5]), 4)
                moved[2:] = np.maximum(moved[2:], 2)
                entry = {"image_id": image_id, "category_id": int(rng.choice([category, 3]))}
                entry |= {
                    "bbox": [round(float(v), 3) for v in moved],
                    "score": round(float(rng.uniform(0.05, 1)), 4),
                }
                results.append(entry | ({"segmentation": _rle(moved)} if masks else {}))
    results.append({**results[0], "bbox": [5.0, 5.0, 0.0, 9.0]})  # without area
    return truth, results


def _rle(box):
    x, y, w, h = np.round(box).astype(int)
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[max(y, 0) : max(y + h, 0), max(x, 0) : max(x + w, 0)] = 1
    rle = coco_mask.encode(np.asfortranarray(mask))
    return {"size": rle["size"], "counts": rle["counts"].decode()}


def _suppressed(results, threshold):
    kept = []
    for image_id in sorted({entry["image_id"] for entry in results}):
        entries = [entry for entry in results if entry["image_id"] == image_id]
        xywh = np.array([entry["bbox"] for entry in entries])
        boxes = np.stack([xywh[:, 1], xywh[:, 0], xywh[:, 1] + xywh[:, 3], xywh[:, 0] + xywh[:, 2]], 1)
        indices, _ = suppress(
            boxes, [e["score"] for e in entries], [e["category_id"] for e in entries], iou_threshold=threshold
        )
        kept += [entries[i] for i in indices]
    return kept


def _iou(a, b):
    wide = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    high = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    shared = max(wide, 0) * max(high, 0)
    return shared / (a[2] * a[3] + b[2] * b[3] - shared)


def _duplicates(truth, results):
    """Boxes of score 0.3 or more on an instance that a better box has taken, best first, by loops."""
    count = 0
    for image in truth["images"]:
        for category in truth["categories"]:
            of = [e for e in results if (e["image_id"], e["category_id"]) == (image["id"], category["id"])]
            there = [
                a
                for a in truth["annotations"]
                if (a["image_id"], a["category_id"]) == (image["id"], category["id"])
            ]
            real = [a for a in there if not a["iscrowd"]]
            taken = set()
            for entry in sorted(of, key=lambda e: -e["score"]):
                overlaps = [(_iou(entry["bbox"], a["bbox"]), i) for i, a in enumerate(real)]
                free = [(iou, i) for iou, i in overlaps if iou >= 0.5 and i not in taken]
                x, y, w, h = entry["bbox"]
                inside = [
                    max(min(x + w, a["bbox"][0] + a["bbox"][2]) - max(x, a["bbox"][0]), 0)
                    * max(min(y + h, a["bbox"][1] + a["bbox"][3]) - max(y, a["bbox"][1]), 0)
                    for a in there
                    if a["iscrowd"]
                ]
                if free:
                    taken.add(max(free)[1])
                elif w * h and any(share >= 0.5 * w * h for share in inside):
                    continue  # lies in a crowd region: neither right nor wrong
                elif entry["score"] >= 0.3 and any(iou >= 0.5 for iou, _ in overlaps):
                    count += 1
    return count


@pytest.mark.parametrize("masks", [False, True])
def test_equals_suppressing_and_evaluating_anew(masks):
    truth, results = _planted(masks=masks)
    thresholds = (0.7, 0.3, 0.5)
    found = sweep_results(truth, results, thresholds=thresholds)
    assert [row["threshold"] for row in found["rows"]] == [0.3, 0.5, 0.7]
    for row in [found["as_is"], *found["rows"]]:
        kept = _suppressed(results, row["threshold"]) if "threshold" in row else results
        metrics = evaluate_coco(truth, kept)
        assert row["detections"] == len(kept)
        assert (row["AP"], row["AP50"]) == (metrics["bbox/AP"], metrics["bbox/AP50"])
        assert ("mask_AP" in row) == masks
        if masks:
            assert (row["mask_AP"], row["mask_AP50"]) == (metrics["segm/AP"], metrics["segm/AP50"])
        assert row["duplicates_per_image"] == pytest.approx(_duplicates(truth, kept) / 6)
    assert found["current"] is None
    assert found["rows"][0]["duplicates_per_image"] < found["as_is"]["duplicates_per_image"] / 3


def test_what_suppression_lets_move_up_is_evaluated():
    """AP takes so many detections of a class after suppression, not before."""
    box = [10.0, 10.0, 20.0, 20.0]
    common = {"image_id": 1, "category_id": 1}
    truth = {
        "images": [{"id": 1, "height": SIDE, "width": SIDE}],
        "annotations": [
            {"id": 1, **common, "bbox": box, "area": 400.0, "iscrowd": 0},
            {"id": 2, **common, "bbox": [60.0, 60.0, 20.0, 20.0], "area": 400.0, "iscrowd": 0},
        ],
        "categories": [{"id": 1, "name": "a"}],
    }
    results = [{**common, "bbox": box, "score": 0.9 - i / 100} for i in range(3)]
    results.append({**common, "bbox": [60.0, 60.0, 20.0, 20.0], "score": 0.4})
    found = sweep_results(truth, results, thresholds=(0.5,), max_detections=2)
    assert found["as_is"]["AP"] == pytest.approx(51 / 101)  # half of the instances, at full precision
    assert found["rows"][0]["AP"] == pytest.approx(1.0)
    assert found["as_is"]["duplicates_per_image"] == 1  # the third is beyond the limit


def test_masks_alone_are_suppressed_by_their_boxes():
    truth, results = _planted(masks=True)
    results.pop()
    both = sweep_results(truth, results, thresholds=(0.4,))
    for entry in results:
        del entry["bbox"]
    alone = sweep_results(truth, results, thresholds=(0.4,))
    assert alone["as_is"]["AP"] == both["as_is"]["mask_AP"]
    assert "mask_AP" not in alone["rows"][0]
    assert 0 < alone["rows"][0]["detections"] < len(results)


def test_the_threshold_of_suppressed_results_is_seen():
    truth, results = _planted(images=20, copies=8)
    kept = _suppressed(results, 0.6)
    found = sweep_results(truth, kept, thresholds=(0.3, 0.5, 0.6, 0.8))
    assert found["current"] == 0.6
    by_threshold = {row["threshold"]: row for row in found["rows"]}
    assert by_threshold[0.6]["detections"] == by_threshold[0.8]["detections"] == len(kept)
    assert by_threshold[0.5]["detections"] < len(kept)
    assert found["as_is"]["AP"] == by_threshold[0.8]["AP"]


@pytest.mark.parametrize("threshold", [0.3, 0.45, 0.5, 0.7])
def test_guessing_a_threshold(threshold):
    iou = np.random.default_rng(0).uniform(0, threshold, 400)
    assert nms_threshold_of(iou) == threshold
    assert nms_threshold_of(np.append(iou, threshold + 0.002)) == threshold  # a rounded coordinate
    assert nms_threshold_of(np.append(iou, 0.98)) is None  # an exception: nothing was suppressed
    assert nms_threshold_of(iou[iou < 0.1][:5]) is None  # too few to tell
    assert nms_threshold_of(np.zeros(0)) is None


def test_what_is_suggested():
    def rows(*values):
        return [
            {"threshold": t, "AP": ap, "duplicates_per_image": d}
            for t, ap, d in zip((0.3, 0.5, 0.7), *values, strict=True)
        ]

    assert suggested_threshold(rows((0.4, 0.45, 0.5), (0, 1, 2)), 0.5) == 0.7  # AP decides ...
    assert (
        suggested_threshold(rows((0.5, 0.5, 0.501), (0, 1, 2)), 0.7) == 0.3
    )  # ... where it hardly differs, duplicates ...
    assert (
        suggested_threshold(rows((0.5, 0.5, 0.5), (0, 0.01, 0.02)), 0.7) == 0.7
    )  # ... and else nothing changes
    assert suggested_threshold(rows((0.5, 0.5, 0.5), (0, 0, 0)), None) == 0.5
    assert suggested_threshold(rows((-1, -1, -1), (0, 0, 0)), 0.5) is None


def test_no_results_and_bad_input():
    truth, _ = _planted()
    found = sweep_results(truth, [])
    assert [row["AP"] for row in found["rows"]] == [0.0] * 7
    assert found["suggested"] is None and found["current"] is None
    for thresholds in ((), (0.5, 1.5)):
        with pytest.raises(ValueError, match="thresholds must be numbers in"):
            sweep_results(truth, [], thresholds=thresholds)


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        (MaskRCNN, {"mask_nms_threshold": 0.5, "max_detections": 60}),
        (MaskRefiningRCNN, {"nms_groups": "all"}),
    ],
)
def test_a_model_is_swept_as_if_it_were_built_with_each_threshold(kind, more, tmp_path, monkeypatch):
    annotations, images = generate_shapes(tmp_path, num_images=1, size=80, crowding=0.5, seed=0)
    dataset = CocoDataset(annotations, images)
    settings = {"score_threshold": 0.0, "max_detections": 200, **more}
    keras.utils.set_random_seed(0)
    model = make_model(kind, nms_threshold=0.6, **settings)
    results, truth = boxes_at(model, dataset, (0.2, 0.6), first=None, bar=None)
    assert results[0] != results[1]
    # Not run again for the sweep, which takes the same: tracing is slow.
    monkeypatch.setattr(sweep, "boxes_at", lambda *_, **__: (results, truth))
    found = sweep_model(model, dataset, thresholds=(0.2,))
    assert [row["threshold"] for row in found["rows"]] == [0.2, 0.6]
    assert found["current"] == model.nms_threshold == 0.6
    for threshold, entries, row in zip((0.2, 0.6), results, found["rows"], strict=True):
        built = make_model(kind, nms_threshold=threshold, **settings)
        built.set_weights(model.get_weights())
        for batch in evaluation_batches(dataset, min_size=64, max_size=64):
            want = built({name: batch[name] for name in ("images", "image_sizes")})
            there = want["classes"][0].numpy() > 0
            y1, x1, y2, x2 = (want["boxes"][0].numpy()[there] * 80 / 64).T
            of = [entry for entry in entries if entry["image_id"] == int(batch["image_ids"][0])]
            np.testing.assert_allclose(
                [entry["bbox"] for entry in of], np.stack([x1, y1, x2 - x1, y2 - y1], 1), atol=2e-3
            )
            np.testing.assert_allclose([e["score"] for e in of], want["scores"][0].numpy()[there], atol=1e-5)
            ids = {i + 1: dataset.category_ids[dataset.class_names.index(n)] for i, n in enumerate(CLASSES)}
            assert [e["category_id"] for e in of] == [ids[c] for c in want["classes"][0].numpy()[there]]
        metrics = evaluate_coco(truth, entries, max_detections=(200,))
        assert row["detections"] == len(entries)
        assert (row["AP"], row["AP50"]) == (metrics["bbox/AP"], metrics["bbox/AP50"])
