"""Requests that TensorFlow Serving sends to a model before it is ready."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import tensorflow as tf

from mrcnn_tf.data.scene import draw_scene

# Of photographs: the first run for a shape is the slow one.
SIZES = ((480, 640), (640, 480))


def write_warmup(extra: Path, name: str) -> bool:
    """Writes `tf_serving_warmup_requests`, one request to each signature for files and size, to `assets.extra`.

    Args:
        extra: the folder.
        name: of the model.

    Returns:
        Whether it could: it needs `tensorflow-serving-api`, of the extra `serving`.
    """
    if importlib.util.find_spec("tensorflow_serving") is None:
        return False
    from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

    with tf.io.TFRecordWriter(str(extra / "tf_serving_warmup_requests")) as writer:
        for height, width in SIZES:
            image = draw_scene(np.random.default_rng(0), max(height, width), 0.5)[0][:height, :width]
            own = tf.constant([-1.0])
            fed = {
                "image_bytes": tf.io.encode_jpeg(image)[None],
                "score_threshold": own,
                "iou_threshold": own,
            }
            for signature, inputs in (("serving_default", ("image_bytes",)), ("compact", tuple(fed))):
                request = predict_pb2.PredictRequest()
                request.model_spec.name, request.model_spec.signature_name = name, signature
                for key in inputs:
                    request.inputs[key].CopyFrom(tf.make_tensor_proto(fed[key]))
                log = prediction_log_pb2.PredictLog(request=request)
                writer.write(prediction_log_pb2.PredictionLog(predict_log=log).SerializeToString())
    return True
