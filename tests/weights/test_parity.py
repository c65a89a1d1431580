"""Imported models against what torchvision and detectron2 computed: tests/golden/make_*_golden.py."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from mrcnn_tf.export.saved_model import export_saved_model
from mrcnn_tf.importer import import_model
from mrcnn_tf.training.checkpoints import load_model
from tests.golden.drawn import picture, sample
from tests.memory import release
from tests.weights.parity import imported
from tests.weights.stages import about, compared, weights_of

GOLDEN = Path(__file__).parent.parent / "golden"


@pytest.fixture(params=["torchvision_v1", "torchvision_v2", "detectron2_r50", "detectron2_x101"])
def case(request, tmp_path):
    file = np.load(GOLDEN / f"{request.param}.npz")
    np.savez(tmp_path / "weights.npz", **weights_of(file))
    project = request.param.split("_")[0]
    yield request.param, project, file, *imported(project, tmp_path / "weights.npz", file)
    release()  # these are the largest models of all tests


def test_every_stage(case, tmp_path):
    name, project, file, model, report = case
    assert not report.fresh
    assert set(report.left_out.values()) <= {"counts batches", "anchors are computed"}
    assert model.class_names[model.category_ids.index(18)] == "dog"
    limits = {"proposals": 0.02, "boxes": 0.05, "scores": 1e-4, "classes": 0, "mask_probabilities": 1e-3}
    for stage, (difference, largest) in compared(project, model, file).items():
        assert difference <= limits.get(stage, 1e-5 * max(largest, 1)), stage

    # Both ways of saving, each with half of the models: tracing takes longest here.
    image = picture(*about(file)["size"], about(file)["seed"])
    found = model.detect(image)
    if name in ("torchvision_v2", "detectron2_x101"):
        model.save(tmp_path / "model.keras")
        again = load_model(tmp_path / "model.keras")
        for mine, theirs in zip(model.get_weights(), again.get_weights(), strict=True):
            np.testing.assert_array_equal(mine, theirs)
        # Not bit for bit: oneDNN's kernels depend on what a process has computed in these shapes before.
        again = again.detect(image)
        np.testing.assert_allclose(found.boxes, again.boxes, atol=0.01)
        np.testing.assert_allclose(found.masks, again.masks, atol=1e-4)
        return
    folder = export_saved_model(model, tmp_path / "served", check=False)
    release()  # writing a graph takes many times its size
    served = tf.saved_model.load(folder).signatures["image"]
    out = served(images=tf.constant(image[None]))
    count = int(out["num_detections"][0])
    assert count == len(found.scores)
    np.testing.assert_allclose(out["detection_boxes"][0, :count], found.boxes, atol=0.05)
    np.testing.assert_allclose(out["detection_scores"][0, :count], found.scores, atol=1e-4)


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnet101", "resnext101_32x8d"])
def test_features_of_a_classifier(name, tmp_path):
    file = np.load(GOLDEN / f"torchvision_{name}.npz")
    np.savez(tmp_path / "weights.npz", **weights_of(file))
    model, report = import_model(tmp_path / "weights.npz", "torchvision")
    assert {name for name, why in report.left_out.items() if why != "counts batches"} == {
        "fc.weight",
        "fc.bias",
    }
    assert not any("res_net" in path for path in report.fresh)
    images = np.random.default_rng(int(file["seed"])).normal(size=(1, 3, 96, 96)).astype(np.float32)
    shapes = json.loads(str(file["shapes"]))
    for level, x in enumerate(model.backbone(tf.constant(images.transpose(0, 2, 3, 1))), 2):
        out = x.numpy().transpose(0, 3, 1, 2)
        assert list(out.shape) == shapes[f"c{level}"]
        expected = file[f"c{level}"]
        np.testing.assert_allclose(sample(out), expected, atol=1e-4 * np.abs(expected).max(), rtol=0)
