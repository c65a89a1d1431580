"""TensorFlow Serving's gRPC interface, by its own stubs (the package `tensorflow-serving-api`)."""

from __future__ import annotations

from typing import Any

import grpc
import tensorflow as tf
from tensorflow_serving.apis.get_model_status_pb2 import GetModelStatusRequest, ModelVersionStatus
from tensorflow_serving.apis.model_service_pb2_grpc import ModelServiceStub
from tensorflow_serving.apis.predict_pb2 import PredictRequest
from tensorflow_serving.apis.prediction_service_pb2_grpc import PredictionServiceStub

from mrcnn_tf.serving import errors

OPTIONS = {
    # gRPC's default of 4 MB is a few photos.
    "grpc.max_send_message_length": -1,
    "grpc.max_receive_message_length": -1,
    # The client counts the attempts itself, and none may fail only because gRPC itself pauses before it connects.
    "grpc.enable_retries": 0,
    "grpc.initial_reconnect_backoff_ms": 100,
    "grpc.max_reconnect_backoff_ms": 500,
}


class Grpc:
    """One model, in one version or the newest.

    Args:
        target: `host:8500`.
        name: the model's.
        version: its number, or None for the newest.
        timeout: seconds until the reply.
    """

    def __init__(self, target: str, name: str, version: int | None, timeout: float) -> None:
        self.url = f"grpc://{target}/{name}" + ("" if version is None else f"/versions/{version}")
        self.timeout = timeout
        self.spec: dict[str, Any] = {"name": name}
        if version is not None:
            self.spec["version"] = {"value": version}
        self.channel = grpc.insecure_channel(target, list(OPTIONS.items()))
        self.predictions, self.models = PredictionServiceStub(self.channel), ModelServiceStub(self.channel)

    def predict(self, signature: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The signature's outputs for each row of inputs.

        Raises:
            ServerUnavailable, ServingError, TimeoutError: see `Client.detect`.
        """
        request = PredictRequest(model_spec={**self.spec, "signature_name": signature})
        for name, value in rows[0].items():
            dtype = tf.string if isinstance(value, bytes) else tf.float32
            request.inputs[name].CopyFrom(tf.make_tensor_proto([row[name] for row in rows], dtype))
        reply = self._ask(self.predictions.Predict, request)
        outputs = {name: tf.make_ndarray(tensor) for name, tensor in reply.outputs.items()}
        try:
            return [{name: value[i] for name, value in outputs.items()} for i in range(len(rows))]
        except IndexError as error:
            raise errors.foreign(self.url, error) from error

    def states(self) -> list[str]:
        """Of the model's versions: START, LOADING, AVAILABLE, UNLOADING or END."""
        reply = self._ask(self.models.GetModelStatus, GetModelStatusRequest(model_spec=self.spec))
        return [ModelVersionStatus.State.Name(version.state) for version in reply.model_version_status]

    def close(self) -> None:
        """Closes the connection."""
        self.channel.close()

    def _ask(self, method: Any, request: Any) -> Any:
        try:
            return method(request, timeout=self.timeout)
        except grpc.RpcError as error:
            code, message = error.code(), error.details() or ""
            if code == grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in message:
                raise errors.too_large(self.url, request.ByteSize()) from error
            if code == grpc.StatusCode.UNAVAILABLE and "connect" in message:
                raise errors.unreachable(self.url, errors.first_line(message)) from error
            if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED):
                raise errors.ServerUnavailable(f"{self.url}: {errors.first_line(message)}") from error
            if code == grpc.StatusCode.DEADLINE_EXCEEDED:
                raise errors.late(self.url, self.timeout) from error
            raise errors.refused(self.url, message) from error
