"""The exported folder runs where this package is not, and gives what the model gives."""

from __future__ import annotations

import io
import json
import subprocess
import sys

import cv2
import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from mrcnn_tf.export.saved_model import export_saved_model
from mrcnn_tf.models.mask_rcnn import MaskRCNN
from mrcnn_tf.models.mask_refining_rcnn import MaskRefiningRCNN
from tests.tiny import CLASSES, make_model

# Run in a folder without the package, with Keras out of reach.
READER = """
import sys, json
sys.modules["keras"] = None
sys.modules["mrcnn_tf"] = None
import numpy as np, tensorflow as tf
folder, inputs, outputs = sys.argv[1:]
loaded = tf.saved_model.load(folder)
data = np.load(inputs)
out = {}
for name in ("a", "b"):
    result = loaded.signatures["image"](images=tf.constant(data[name]))
    out.update({f"image/{name}/{k}": v.numpy() for k, v in result.items()})
files = tf.constant([data["file_a"].tobytes(), data["file_b"].tobytes()])
out.update({f"bytes/{k}": v.numpy() for k, v in loaded.signatures["serving_default"](image_bytes=files).items()})
np.savez(outputs, **out)
"""


@pytest.fixture(scope="module", params=[MaskRCNN, MaskRefiningRCNN])
def exported(request, tmp_path_factory):
    keras.utils.set_random_seed(0)
    model = make_model(request.param, score_threshold=0.0)
    folder = tmp_path_factory.mktemp("saved") / "tiny"
    return model, export_saved_model(model, folder)


def test_versions_rise_and_classes_travel(exported):
    model, first = exported
    assert first.name == "1"
    second = export_saved_model(model, first.parent)
    assert second.name == "2" and sorted(p.name for p in first.parent.iterdir()) == ["1", "2"]
    classes = json.loads((first / "assets.extra" / "classes.json").read_text())
    assert classes == {"class_names": CLASSES, "category_ids": [3, 5, 7, 11, 13, 90]}


def test_runs_without_the_package(exported, tmp_path):
    model, folder = exported
    rng = np.random.default_rng(0)
    a = rng.integers(0, 256, (48, 80, 3), np.uint8)
    b = rng.integers(0, 256, (100, 60, 3), np.uint8)
    encode = {n: cv2.imencode(".png", x[..., ::-1])[1].reshape(-1) for n, x in (("file_a", a), ("file_b", b))}
    np.savez(tmp_path / "in.npz", a=a[None], b=b[None], **encode)
    done = subprocess.run(
        [sys.executable, "-c", READER, str(folder), "in.npz", "out.npz"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    out = np.load(tmp_path / "out.npz")
    for row, (name, image) in enumerate((("a", a), ("b", b))):
        found = model.detect(image)
        count = len(found)
        assert count and out[f"image/{name}/num_detections"][0] == count == out["bytes/num_detections"][row]
        for got in (
            {
                k: out[f"image/{name}/detection_{k}"][0, :count]
                for k in ("boxes", "scores", "classes", "masks")
            },
            {k: out[f"bytes/detection_{k}"][row, :count] for k in ("boxes", "scores", "classes", "masks")},
        ):
            np.testing.assert_allclose(got["boxes"], found.boxes, atol=0.01)
            np.testing.assert_allclose(got["scores"], found.scores, atol=1e-5)
            np.testing.assert_array_equal(got["classes"], found.class_ids)
            np.testing.assert_allclose(got["masks"] / 255, found.masks, atol=0.003)


def test_stock_operations_only(exported):
    from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

    proto = SavedModel()
    proto.ParseFromString((exported[1] / "saved_model.pb").read_bytes())
    graph = proto.meta_graphs[0].graph_def
    ops = {n.op for n in graph.node} | {n.op for f in graph.library.function for n in f.node_def}
    assert "CropAndResize" in ops and "NonMaxSuppressionV4" in ops
    # Neither Python calls nor sparse-matrix variants, which a lean server build may lack.
    assert not {op for op in ops if op.startswith(("PyFunc", "EagerPyFunc", "SparseMatrix", "Mrcnn"))}


def test_jpeg_files_are_decoded_exactly(tmp_path):
    """TensorFlow's quick default is up to 19 levels away, which moves boxes by pixels."""
    image = np.random.default_rng(0).integers(0, 256, (40, 56, 3), np.uint8)
    image = cv2.resize(image, (64, 64), interpolation=cv2.INTER_CUBIC)
    model = make_model(score_threshold=0.0)
    served = tf.saved_model.load(export_saved_model(model, tmp_path / "served")).signatures
    for ending in (".jpg", ".png"):
        data = cv2.imencode(ending, image[..., ::-1])[1].tobytes()
        pixels = np.asarray(Image.open(io.BytesIO(data)))
        from_bytes = served["serving_default"](image_bytes=tf.constant([data]))
        from_pixels = served["image"](images=tf.constant(pixels[None]))
        np.testing.assert_array_equal(from_bytes["detection_scores"], from_pixels["detection_scores"])
        np.testing.assert_array_equal(from_bytes["detection_boxes"], from_pixels["detection_boxes"])
