"""The test server speaks as TensorFlow Serving's documentation and its own tests say the server does.

Where TensorFlow Serving is installed, the requests go to it as well.
"""

from __future__ import annotations

import json
import math

import grpc
import numpy as np
import pytest
import tensorflow as tf
import urllib3

pytest.importorskip(
    "tensorflow_serving", reason="needs tensorflow-serving-api: pip install 'mrcnn_tf[serving]'"
)

from tensorflow_serving.apis.get_model_metadata_pb2 import GetModelMetadataRequest, SignatureDefMap
from tensorflow_serving.apis.get_model_status_pb2 import GetModelStatusRequest
from tensorflow_serving.apis.model_service_pb2_grpc import ModelServiceStub
from tensorflow_serving.apis.predict_pb2 import PredictRequest
from tensorflow_serving.apis.prediction_service_pb2_grpc import PredictionServiceStub

from tests.serving.tensor_json import Failure, tensors, write_json

HALF = "half_plus_two"


@pytest.fixture(scope="module")
def url(serve, half_plus_two):
    with serve({HALF: half_plus_two}) as url:
        yield url


def ask(url: str, body: object = None) -> tuple[int, str]:
    data = body if isinstance(body, str) or body is None else json.dumps(body)
    reply = urllib3.request("GET" if body is None else "POST", url, body=data)
    return reply.status, reply.data.decode()


# ------------------------------------------------------------------ JSON alone


def test_replies_are_written_as_the_server_writes_them():
    """The tensors and the text of json_tensor_test.cc."""
    outputs = {
        "double_scalar_tensor": np.array([8.0, 9.0]),
        "float_tensor": np.array([[1], [2]], np.float32),
        "int_tensor": np.array([[[1, 2], [3, 4], [5, 6]], [[7, 8], [9, 0], [1, 2]]], np.int32),
        "str_tensor": np.array([[b"foo", b"bar"], [b"baz", b"bat"]], object),
        "str_tensor_bytes": np.array([[b"hello", b"world"], [b"tf", b"serving"]], object),
    }
    first = {
        "double_scalar_tensor": 8.0,
        "float_tensor": [1.0],
        "int_tensor": [[1, 2], [3, 4], [5, 6]],
        "str_tensor": ["foo", "bar"],
        "str_tensor_bytes": [{"b64": "aGVsbG8="}, {"b64": "d29ybGQ="}],
    }
    second = {
        "double_scalar_tensor": 9.0,
        "float_tensor": [2.0],
        "int_tensor": [[7, 8], [9, 0], [1, 2]],
        "str_tensor": ["baz", "bat"],
        "str_tensor_bytes": [{"b64": "dGY="}, {"b64": "c2VydmluZw=="}],
    }
    assert json.loads(write_json(outputs, by_row=True)) == {"predictions": [first, second]}
    columns = {name: [first[name], second[name]] for name in first}
    assert json.loads(write_json(outputs, by_row=False)) == {"outputs": columns}
    with pytest.raises(Failure, match="inconsistent batch size"):
        write_json({"a": np.zeros((1, 2)), "b": np.zeros((2, 2))}, by_row=True)
    with pytest.raises(Failure, match="no shape information"):
        write_json({"a": np.array(1)}, by_row=True)


def test_the_layout_of_a_reply():
    """By row, an array takes one line; by column, each number has its own, and a reply is several times as long."""
    one = {"y": np.array([[2.5, 3], [3.5, 4]], np.float32)}
    assert write_json(one, by_row=True) == '{\n    "predictions": [[2.5, 3.0], [3.5, 4.0]\n    ]\n}'
    two = {"a": np.array([1, 2]), "m_bytes": np.array([[b"x", b""], [b"", b""]], object)}
    assert write_json(two, by_row=True).split("\n")[:9] == [
        "{",
        '    "predictions": [',
        "        {",
        '            "a": 1,',
        '            "m_bytes": [{',
        '                    "b64": "eA=="',
        "                }, {",
        '                    "b64": ""',
        "                }]",
    ]
    assert (
        write_json({"a": np.array([1, 2])}, by_row=False)
        == '{\n    "outputs": [\n        1,\n        2\n    ]\n}'
    )


def test_numbers_are_written_exactly_and_short():
    values = [9000000, 999999, 0.5, 0.0003, 0.00003, 555557.5, 0.1, 123.456789, math.nan, -math.inf]
    text = write_json({"y": np.array(values, np.float32)}, by_row=True)
    numbers = text[text.index("[") + 1 : text.index("\n    ]")].split(", ")
    assert numbers[:6] == ["9e+06", "999999.0", "0.5", "0.0003", "3e-05", "555557.5"]
    assert numbers[6:] == ["0.1", "123.456787", "NaN", "-Infinity"]
    many = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    back = json.loads(write_json({"y": many}, by_row=True))["predictions"]
    np.testing.assert_array_equal(np.array(back, np.float32), many)


@pytest.mark.parametrize(
    "document, message",
    [
        ({}, "Missing 'inputs' or 'instances' key"),
        ({"instances": [1], "inputs": [1]}, "expecting only one of 'inputs' or 'instances'"),
        ({"instances": 1}, "Expecting 'instances' to be an list/array"),
        ({"instances": []}, "No values in 'instances' array"),
        ({"instances": [1, 2]}, "instances is a plain list, but expecting list of objects"),
        ({"instances": [{"s": "a"}]}, "keys must be equal to: f,s"),
        ({"instances": [{"s": "a", "f": 1, "q": 1}]}, "does not have named input: q"),
        (
            {"instances": [{"s": "a", "f": "b"}]},
            'JSON Value: "b" Type: String is not of expected type: float',
        ),
        ({"instances": [{"s": {"b64": "?"}, "f": 1}]}, "Unable to base64 decode"),
        ({"instances": [{"s": {"b65": ""}, "f": 1}]}, "not formatted correctly for base64 data"),
        (
            {"instances": [{"s": "a", "f": [1]}, {"s": "a", "f": [1, 2]}]},
            "Expecting tensor size: 1 but got: 2",
        ),
        ({"instances": [{"s": "a", "f": [[1], 2]}]}, "found at incorrect level"),
        ({"inputs": [1]}, "inputs is a plain value/list"),
        ({"inputs": {"s": ["a"]}}, "Missing named input: f in 'inputs' object."),
        ({"inputs": {"s": ["a"], "f": [[1, 2], [3]]}}, "Encountered list at unexpected size: 1 at level: 1"),
    ],
)
def test_requests_are_refused_in_the_servers_words(document, message):
    class Info:
        def __init__(self, dtype):
            self.dtype = dtype.as_datatype_enum

    with pytest.raises(Failure) as caught:
        tensors(document, {"s": Info(tf.string), "f": Info(tf.float32)})
    assert message in str(caught.value) and caught.value.code == grpc.StatusCode.INVALID_ARGUMENT


# ------------------------------------------------------------------ over sockets


def test_rest_predicts(url):
    predict = url("rest", HALF) + ":predict"
    assert ask(predict, '{"instances": [1.0, 2.0, 5.0]}') == (
        200,
        '{\n    "predictions": [2.5, 3.0, 4.5\n    ]\n}',
    )
    status, text = ask(predict, {"signature_name": "serving_default", "inputs": [3.0, 4.0]})
    assert (status, json.loads(text)) == (200, {"outputs": [3.5, 4.0]})
    status, text = ask(url("rest", HALF, 2) + ":predict", {"inputs": {"x": [3.0]}})
    assert (status, json.loads(text)) == (200, {"outputs": [3.5]})


def test_rest_tells_status_and_signatures(url):
    state = {"version": "2", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
    for version in (None, 2):
        status, text = ask(url("rest", HALF, version))
        assert (status, json.loads(text)) == (200, {"model_version_status": [state]})
    status, text = ask(url("rest", HALF) + "/metadata")
    metadata = json.loads(text)
    assert (
        status == 200 and metadata["model_spec"]["name"] == HALF and metadata["model_spec"]["version"] == "2"
    )
    signature = metadata["metadata"]["signature_def"]["signature_def"]["serving_default"]
    assert signature["inputs"]["x"]["dtype"] == "DT_FLOAT"
    assert signature["inputs"]["x"]["tensor_shape"]["dim"] == [{"size": "-1", "name": ""}]


def test_rest_refuses(url):
    model, predict = url("rest", HALF), url("rest", HALF) + ":predict"
    root = model[: model.index("/v1/")]
    good = {"instances": [1.0]}
    for address, body, status, message in (
        (url("rest", "half") + ":predict", good, 404, "Servable not found for request: Latest(half)"),
        # Only the newest version is loaded.
        (
            url("rest", HALF, 1) + ":predict",
            good,
            404,
            "Servable not found for request: Specific(half_plus_two, 1)",
        ),
        (url("rest", "half"), None, 404, "Could not find any versions of model half"),
        (url("rest", HALF, 1), None, 404, "Could not find version 1 of model half_plus_two"),
        (root + "/v1/models", None, 400, "Missing model name in request."),
        (root + "/v1/foo", good, 400, "Malformed request: POST /v1/foo"),
        (model + "/metadata", good, 400, "Malformed request: POST"),
        (predict, None, 400, "Malformed request: GET"),
        (f"{model}/versions/{2**64}:predict", good, 400, "Failed to convert version"),
        (predict, "", 400, "JSON Parse error: The document is empty"),
        (predict, "instances = [1, 2]", 400, "JSON Parse error: Invalid value"),
        (predict, "[1]", 400, "Is not object"),
        (predict, {"instances": ["x"]}, 400, "is not of expected type: float"),
        (predict, {"signature_name": 100}, 400, "'signature_name' key must be a string value."),
        (
            predict,
            {"signature_name": "no", **good},
            400,
            'Serving signature name: "no" not found in signature def',
        ),
    ):
        got, text = ask(address, body)
        assert got == status and message in json.loads(text)["error"], text
    assert ask(root + "/index")[0] == 404


def test_grpc(url):
    target, name = url("grpc", HALF).removeprefix("grpc://").split("/")
    with grpc.insecure_channel(target) as channel:
        predict, models = PredictionServiceStub(channel).Predict, ModelServiceStub(channel)

        def request(values=(3.0,), name=name, key="x", **spec):
            return PredictRequest(
                model_spec={"name": name, **spec},
                inputs={key: tf.make_tensor_proto(np.array(values))},
            )

        reply = predict(request(np.float32([3, 4])))
        assert list(reply.outputs["y"].float_val) == [3.5, 4.0] and not reply.outputs["y"].tensor_content
        assert reply.model_spec.version.value == 2 and reply.model_spec.signature_name == "serving_default"
        status = models.GetModelStatus(GetModelStatusRequest(model_spec={"name": name}))
        assert [(v.version, v.state) for v in status.model_version_status] == [(2, 30)]
        metadata = PredictionServiceStub(channel).GetModelMetadata(
            GetModelMetadataRequest(model_spec={"name": name}, metadata_field=["signature_def"])
        )
        signatures = SignatureDefMap()
        metadata.metadata["signature_def"].Unpack(signatures)
        assert signatures.signature_def["serving_default"].inputs["x"].dtype == tf.float32.as_datatype_enum
        code = grpc.StatusCode
        floats = np.float32([1])
        for bad, status, message in (
            (request(floats, name="half"), code.NOT_FOUND, "Servable not found for request: Latest(half)"),
            (
                request(floats, version={"value": 1}),
                code.NOT_FOUND,
                "Servable not found for request: Specific(half_plus_two, 1)",
            ),
            (
                request(floats, signature_name="no"),
                code.FAILED_PRECONDITION,
                'Serving signature key "no" not found.',
            ),
            (request(floats, key="z"), code.INVALID_ARGUMENT, "Missing but required: {x}."),
            (request(np.int32([1])), code.INVALID_ARGUMENT, "int32"),
        ):
            with pytest.raises(grpc.RpcError) as caught:
                predict(bad)
            assert caught.value.code() == status and message in caught.value.details()
