"""The warm-up records are TensorFlow Serving's, and the model answers them."""

from __future__ import annotations

import pytest
import tensorflow as tf

from mrcnn_tf.export import warmup
from mrcnn_tf.models.mask_rcnn import MaskRCNN


def test_requests(export_tiny, tmp_path):
    prediction_log_pb2 = pytest.importorskip("tensorflow_serving.apis.prediction_log_pb2")
    assert warmup.write_warmup(tmp_path, "tiny")
    served = tf.saved_model.load(str(export_tiny(MaskRCNN)[1])).signatures
    seen = []
    for record in tf.data.TFRecordDataset(str(tmp_path / "tf_serving_warmup_requests")):
        request = prediction_log_pb2.PredictionLog.FromString(record.numpy()).predict_log.request
        assert request.model_spec.name == "tiny"
        inputs = {name: tf.constant(tf.make_ndarray(value)) for name, value in request.inputs.items()}
        out = served[request.model_spec.signature_name](**inputs)
        assert out["status"].numpy().tolist() == [b"ok"]
        seen.append((request.model_spec.signature_name, *out["image_size"].numpy()[0].tolist()))
    sizes = [(480, 640), (640, 480)]
    assert sorted(seen) == sorted((name, *s) for name in ("compact", "serving_default") for s in sizes)


def test_without_the_package(tmp_path, monkeypatch):
    monkeypatch.setattr(warmup.importlib.util, "find_spec", lambda name: None)
    assert not warmup.write_warmup(tmp_path, "tiny") and not list(tmp_path.iterdir())
