"""TensorFlow Serving's interface over exported folders, for tests on machines without TensorFlow Serving.

    python -m tests.serving.server --model_name=quickstart --model_base_path=saved_models/quickstart

Real sockets, the REST and the gRPC interface, and below them what the server does: of the numbered versions in a
model's folder the newest is loaded, as a graph in a session, warmed up and run. Requests are checked in the same order,
and refused with the same codes and words, as in its C++ sources (`json_tensor.cc`, `predict_util.cc`,
`http_rest_api_handler.cc`, `get_model_status_impl.cc`). Left out: classify and regress, version labels, batching, new
versions while it runs.
"""

from __future__ import annotations

import argparse
import functools
import json
import re
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import grpc
import numpy as np
import tensorflow as tf
from google.protobuf import text_format
from google.protobuf.json_format import MessageToJson
from grpc import StatusCode
from tensorflow.core.framework.tensor_pb2 import TensorProto
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    model_service_pb2_grpc,
    prediction_service_pb2_grpc,
)
from tensorflow_serving.apis.get_model_status_pb2 import GetModelStatusResponse, ModelVersionStatus
from tensorflow_serving.apis.predict_pb2 import PredictResponse
from tensorflow_serving.apis.prediction_log_pb2 import PredictionLog
from tensorflow_serving.config.model_server_config_pb2 import ModelServerConfig

from tests.serving.tensor_json import Failure, invalid, parse, tensors, write_json

HTTP_STATUS = {
    StatusCode.INVALID_ARGUMENT: 400,
    StatusCode.FAILED_PRECONDITION: 400,
    StatusCode.OUT_OF_RANGE: 400,
    StatusCode.NOT_FOUND: 404,
    StatusCode.RESOURCE_EXHAUSTED: 429,
    StatusCode.UNIMPLEMENTED: 501,
    StatusCode.UNAVAILABLE: 503,
    StatusCode.DEADLINE_EXCEEDED: 504,
}
CODES = {code.value[0]: code for code in StatusCode}
Url = Callable[..., str]
PREDICT = re.compile(r"(?i)/v1/models/([^/:]+)(?:/versions/(\d+))?:(classify|regress|predict)")
STATUS = re.compile(r"(?i)/v1/models(?:/([^/:]+))?(?:/versions/(\d+))?(?:/(metadata))?")


# ------------------------------------------------------------------ models


class Model:
    """The newest version in a model's folder."""

    def __init__(self, folder: Path) -> None:
        path = max((p for p in folder.iterdir() if p.name.isdigit()), key=lambda p: int(p.name))
        self.version = int(path.name)
        self.session = tf.compat.v1.Session(graph=tf.Graph())
        with self.session.graph.as_default():
            loaded = tf.compat.v1.saved_model.load(self.session, ["serve"], str(path))
        self.signatures = loaded.signature_def
        self.callables = {
            name: self.session.make_callable(
                [tensor.name for _, tensor in sorted(signature.outputs.items())],
                [tensor.name for _, tensor in sorted(signature.inputs.items())],
            )
            for name, signature in self.signatures.items()
            if signature.method_name == "tensorflow/serving/predict"
        }
        warmup = path / "assets.extra" / "tf_serving_warmup_requests"
        for record in tf.data.TFRecordDataset(str(warmup)).as_numpy_iterator() if warmup.exists() else ():
            request = PredictionLog.FromString(record).predict_log.request
            self.predict(request.model_spec.signature_name, arrays(request.inputs))

    def predict(self, signature: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs of a signature."""
        signature = signature or "serving_default"
        if signature not in self.callables:
            raise Failure(StatusCode.FAILED_PRECONDITION, f'Serving signature key "{signature}" not found.')
        wanted = self.signatures[signature].inputs
        if set(inputs) != set(wanted):
            sent, needed = (",".join(sorted(names)) for names in (inputs, wanted))
            extra = ",".join(sorted(set(inputs) - set(wanted)))
            missing = ",".join(sorted(set(wanted) - set(inputs)))
            raise invalid(
                f"input size does not match signature: {len(inputs)}!={len(wanted)} len({{{sent}}}) != "
                f"len({{{needed}}}). Sent extra: {{{extra}}}. Missing but required: {{{missing}}}."
            )
        for name, value in inputs.items():
            dtype = tf.dtypes.as_dtype(wanted[name].dtype)
            if tf.dtypes.as_dtype(value.dtype) != dtype:
                raise invalid(f"Expects arg[{name}] to be {dtype.name} but {value.dtype} is provided")
        try:
            outputs = self.callables[signature](*(inputs[name] for name in sorted(wanted)))
        except tf.errors.OpError as error:
            raise Failure(CODES[error.error_code], error.message) from error
        return dict(zip(sorted(self.signatures[signature].outputs), outputs, strict=True))


load = functools.cache(Model)  # servers in one process share their models


class Models:
    """All that the server has loaded, and the faults that tests put in its way."""

    def __init__(self, folders: dict[str, Path | str]) -> None:
        self.loaded = {name: load(Path(folder)) for name, folder in folders.items()}
        # One for each of the next predictions: a Failure to answer with, seconds to wait, or None. REST also knows
        # ConnectionResetError, to close the connection without a reply.
        self.faults: deque[Failure | float | ConnectionResetError | None] = deque()
        self.requests = 0

    def find(self, name: str, version: int | None) -> Model:
        model = self.loaded.get(name)
        if model is None or version not in (None, model.version):
            which = f"Latest({name})" if version is None else f"Specific({name}, {version})"
            raise Failure(StatusCode.NOT_FOUND, f"Servable not found for request: {which}")
        return model

    def predict(self, name: str, version: int | None, signature: str, inputs: dict[str, np.ndarray]) -> Any:
        return self.find(name, version).predict(signature, inputs)

    def meet_fault(self) -> None:
        self.requests += 1
        fault = self.faults.popleft() if self.faults else None
        if isinstance(fault, Exception):
            raise fault
        if fault:
            time.sleep(fault)

    def status(self, name: str, version: int | None) -> GetModelStatusResponse:
        model = self.loaded.get(name)
        if model is None and version is None:
            raise Failure(StatusCode.NOT_FOUND, f"Could not find any versions of model {name}")
        if model is None or version not in (None, model.version):
            raise Failure(StatusCode.NOT_FOUND, f"Could not find version {version} of model {name}")
        state = ModelVersionStatus(version=model.version, state="AVAILABLE", status={"error_code": "OK"})
        return GetModelStatusResponse(model_version_status=[state])

    def metadata(self, name: str, version: int | None) -> get_model_metadata_pb2.GetModelMetadataResponse:
        model = self.find(name, version)
        response = get_model_metadata_pb2.GetModelMetadataResponse(
            model_spec={"name": name, "version": {"value": model.version}}
        )
        signatures = get_model_metadata_pb2.SignatureDefMap(signature_def=dict(model.signatures))
        response.metadata["signature_def"].Pack(signatures)
        return response


# ------------------------------------------------------------------ REST


class RestHandler(BaseHTTPRequestHandler):
    """Routes and replies of the REST interface."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: RestServer

    def do_GET(self) -> None:
        self.respond(self.get)

    def do_POST(self) -> None:
        size = int(self.headers.get("Content-Length", 0))
        if self.server.max_body is not None and size > self.server.max_body:
            # The server itself has no limit; this is libevent's answer to one, and a usual proxy's.
            self.close_connection = True
            self.reply(
                413, "<HTML><HEAD><TITLE>413 Request Entity Too Large</TITLE></HEAD></HTML>", "text/html"
            )
            self.drain(size)
            return
        body = self.rfile.read(size)
        self.respond(lambda: self.post(body))

    def get(self) -> str:
        found = STATUS.fullmatch(self.path)
        if not found:
            raise invalid(f"Malformed request: GET {self.path}")
        name, version, metadata = unquote(found[1] or ""), as_version(found[2]), found[3]
        if not name:
            raise invalid("Missing model name in request.")
        models = self.server.models
        if not metadata:
            return (
                MessageToJson(
                    models.status(name, version), always_print_fields_with_no_presence=True, indent=1
                )
                + "\n"
            )
        response = models.metadata(name, version)
        signatures = get_model_metadata_pb2.SignatureDefMap()
        response.metadata["signature_def"].Unpack(signatures)
        spec, signature_def = (
            MessageToJson(
                m, always_print_fields_with_no_presence=True, preserving_proto_field_name=True, indent=1
            )
            for m in (response.model_spec, signatures)
        )
        return f'{{\n"model_spec":{spec}\n,\n"metadata": {{"signature_def": {signature_def}\n}}\n}}\n'

    def post(self, body: bytes) -> str:
        found = PREDICT.fullmatch(self.path)
        if not found:
            raise invalid(f"Malformed request: POST {self.path}")
        name, version = unquote(found[1]), as_version(found[2])
        if found[3].lower() != "predict":
            raise Failure(StatusCode.UNIMPLEMENTED, f"{found[3]} is not part of this test server")
        models = self.server.models
        models.meet_fault()
        document, signature = parse(body)
        signatures = models.find(name, version).signatures
        if (signature or "serving_default") not in signatures:
            raise invalid(
                f'Serving signature name: "{signature or "serving_default"}" not found in signature def'
            )
        by_row, inputs = tensors(document, signatures[signature or "serving_default"].inputs)
        return write_json(models.predict(name, version, signature, inputs), by_row)

    def respond(self, answer: Any) -> None:
        if not self.path.lower().startswith("/v1/"):
            self.reply(404, "<HTML><HEAD><TITLE>404 Not Found</TITLE></HEAD></HTML>", "text/html")
            return
        try:
            self.reply(200, answer(), "application/json")
        except Failure as error:
            text = json.dumps({"error": str(error)}, indent=4, ensure_ascii=False)
            self.reply(HTTP_STATUS.get(error.code, 500), text, "application/json")
        except ConnectionResetError:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)

    def reply(self, status: int, text: str, content_type: str) -> None:
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def drain(self, size: int) -> None:
        """Reads what the client still sends, so that it gets to the reply instead of a reset connection."""
        while size > 0 and (block := self.rfile.read(min(size, 1 << 20))):
            size -= len(block)

    def log_message(self, *_: object) -> None:
        """Requests are not logged."""


def as_version(text: str | None) -> int | None:
    if text is not None and int(text) >= 2**63:
        raise invalid(f"Failed to convert version: {text} to numeric.")
    return None if text is None else int(text)


class RestServer(ThreadingHTTPServer):
    """The REST interface's sockets."""

    request_queue_size = 128

    def __init__(self, port: int, models: Models, max_body: int | None) -> None:
        self.models, self.max_body = models, max_body
        super().__init__(("127.0.0.1", port), RestHandler)

    def handle_error(self, *args: Any) -> None:
        """A client that went away is no error of the server's."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(*args)


# ------------------------------------------------------------------ gRPC


def arrays(tensors: Any) -> dict[str, np.ndarray]:
    """Tensor protos as arrays; an unreadable one is refused."""
    try:
        return {name: tf.make_ndarray(proto) for name, proto in tensors.items()}
    except (TypeError, ValueError) as error:
        raise invalid(f"could not parse a tensor: {error}") from error


def proto(array: np.ndarray) -> TensorProto:
    """A tensor with its values in the field of its type, not as one string of bytes: the server's default."""
    dtype = tf.dtypes.as_dtype(array.dtype)
    fields = {"float32": "float_val", "float64": "double_val", "int64": "int64_val", "string": "string_val"}
    return TensorProto(
        dtype=dtype.as_datatype_enum,
        tensor_shape=tf.TensorShape(array.shape).as_proto(),
        **{{"bool": "bool_val", **fields}.get(dtype.name, "int_val"): array.ravel().tolist()},
    )


class GrpcService(
    prediction_service_pb2_grpc.PredictionServiceServicer, model_service_pb2_grpc.ModelServiceServicer
):
    """Predict, GetModelMetadata and GetModelStatus."""

    def __init__(self, models: Models) -> None:
        self.models = models

    def answer(self, context: grpc.ServicerContext, make: Any) -> Any:
        try:
            return make()
        except Failure as error:
            text = str(error)
            context.abort(error.code, text if len(text) <= 1024 else text[:1024] + "...TRUNCATED")

    def Predict(self, request: Any, context: grpc.ServicerContext) -> Any:
        def make() -> PredictResponse:
            name, version = named(request)
            signature = request.model_spec.signature_name
            self.models.meet_fault()
            outputs = self.models.predict(name, version, signature, arrays(request.inputs))
            response = PredictResponse(outputs={name: proto(array) for name, array in outputs.items()})
            response.model_spec.name = name
            response.model_spec.version.value = self.models.find(name, version).version
            response.model_spec.signature_name = signature or "serving_default"
            return response

        return self.answer(context, make)

    def GetModelMetadata(self, request: Any, context: grpc.ServicerContext) -> Any:
        return self.answer(context, lambda: self.models.metadata(*named(request)))

    def GetModelStatus(self, request: Any, context: grpc.ServicerContext) -> Any:
        return self.answer(context, lambda: self.models.status(*named(request)))


def named(request: Any) -> tuple[str, int | None]:
    """Name and version that a request asks for."""
    spec = request.model_spec
    if not spec.name:
        raise invalid("Missing ModelSpec")
    return spec.name, spec.version.value if spec.HasField("version") else None


# ------------------------------------------------------------------ server


class Server:
    """Both interfaces, from construction to `stop`; a port of 0 is any free one."""

    def __init__(
        self,
        models: Models,
        rest_port: int = 0,
        grpc_port: int = 0,
        max_body: int | None = None,
        threads: int = 32,
    ) -> None:
        self.models = models
        self.rest = RestServer(rest_port, models, max_body)
        self.grpc = grpc.server(
            ThreadPoolExecutor(threads),
            options=[
                ("grpc.max_receive_message_length", max_body or -1),
                ("grpc.max_send_message_length", -1),
                ("grpc.so_reuseport", 0),
            ],
        )
        service = GrpcService(models)
        prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(service, self.grpc)
        model_service_pb2_grpc.add_ModelServiceServicer_to_server(service, self.grpc)
        self.rest_port = self.rest.server_address[1]
        self.grpc_port = self.grpc.add_insecure_port(f"127.0.0.1:{grpc_port}")
        self.thread = threading.Thread(target=self.rest.serve_forever, args=(0.05,), daemon=True)
        self.thread.start()
        self.grpc.start()

    def stop(self) -> None:
        self.grpc.stop(0).wait()
        self.rest.shutdown()
        self.rest.server_close()


def urls(rest_port: int, grpc_port: int) -> Url:
    """The addresses that a client takes."""

    def url(interface: str, name: str, version: int | None = None) -> str:
        base = (
            f"http://127.0.0.1:{rest_port}/v1/models/"
            if interface == "rest"
            else f"grpc://127.0.0.1:{grpc_port}/"
        )
        return base + name + ("" if version is None else f"/versions/{version}")

    return url


def main() -> None:
    """Takes those of `tensorflow_model_server`'s flags that tests and benchmarks need."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model_name", default="default")
    parser.add_argument("--model_base_path")
    parser.add_argument("--model_config_file", help="several models, instead of the two above")
    parser.add_argument("--port", type=int, default=8500)
    parser.add_argument("--rest_api_port", type=int, default=8501)
    parser.add_argument("--max_body", type=int, help="bytes of the largest request")
    args = parser.parse_args()
    folders = {args.model_name: args.model_base_path}
    if args.model_config_file:
        config = text_format.Parse(Path(args.model_config_file).read_text(), ModelServerConfig())
        folders = {model.name: model.base_path for model in config.model_config_list.config}
    models = Models(folders)
    server = Server(models, args.rest_api_port, args.port, args.max_body)
    print(f"REST on port {server.rest_port}, gRPC on port {server.grpc_port}", flush=True)
    server.thread.join()


if __name__ == "__main__":
    main()
