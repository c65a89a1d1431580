"""ONNX files give what the model gives, from operations of ONNX's own domain."""

from __future__ import annotations

import json
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from mrcnn_tf.export.onnx import export_onnx
from mrcnn_tf.export.static import letterbox
from mrcnn_tf.models.mask_rcnn import MaskRCNN
from mrcnn_tf.models.mask_refining_rcnn import MaskRefiningRCNN
from tests.tiny import CLASSES, make_model

SIZE = (64, 96)


@pytest.mark.parametrize("kind", [MaskRCNN, MaskRefiningRCNN])
def test_the_file_is_the_model(kind, tmp_path):
    import onnx
    import onnxruntime

    keras.utils.set_random_seed(0)
    model = make_model(kind, score_threshold=0.0)
    file = export_onnx(model, tmp_path / "model.onnx", size=SIZE)
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    made = onnx.load(file)
    assert [opset.domain for opset in made.opset_import] == [""]
    assert {node.domain for node in made.graph.node} == {""}
    session = onnxruntime.InferenceSession(file)
    assert {i.name: (i.shape, i.type) for i in session.get_inputs()} == {
        "image": ([1, *SIZE, 3], "tensor(uint8)"),
        "image_size": ([2], "tensor(int32)"),
    }
    known = json.loads(session.get_modelmeta().custom_metadata_map["classes.json"])
    assert known["class_names"] == CLASSES and known["category_ids"] == [3, 5, 7, 11, 13, 90]
    names = [output.name for output in session.get_outputs()]
    for seed, shape in enumerate([(64, 96, 3), (80, 60, 3)]):
        image, used = letterbox(np.random.default_rng(seed).integers(0, 256, shape, np.uint8), SIZE)
        found = dict(zip(names, session.run(None, {"image": image, "image_size": used}), strict=True))
        wanted = model.detect_batch(
            tf.constant(image, tf.float32), *[tf.constant(used[None], tf.float32)] * 2
        )
        count = int((wanted["classes"].numpy() > 0).sum())
        assert count > 5 and found["num_detections"].tolist() == [count]
        for name in ("boxes", "scores", "classes", "masks"):
            np.testing.assert_allclose(found[f"detection_{name}"], wanted[name], atol=1e-3, err_msg=name)


def test_bad_input(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="multiples of 32"):
        export_onnx(make_model(), tmp_path / "m.onnx", size=(64, 65))
    with pytest.raises(ValueError, match="sampling_ratio=2"):
        export_onnx(make_model(sampling_ratio=0), tmp_path / "m.onnx")
    monkeypatch.setitem(sys.modules, "tf2onnx", None)
    with pytest.raises(RuntimeError, match=r"mrcnn_tf\[onnx\]"):
        export_onnx(make_model(), tmp_path / "m.onnx")
