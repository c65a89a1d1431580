"""The files in `serving/` are such as Docker Compose and TensorFlow Serving read."""

from __future__ import annotations

import inspect
import re
import shutil
import subprocess

import pytest
import yaml
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format, wrappers_pb2

from mrcnn_tf.serving import Client
from tests.conftest import ROOT

pytest.importorskip(
    "tensorflow_serving", reason="needs tensorflow-serving-api: pip install 'mrcnn_tf[serving]'"
)

from tests.serving.server import Models, Server

FOLDER = ROOT / "serving"
COMPOSE = yaml.safe_load((FOLDER / "docker-compose.yaml").read_text())


def batching_parameters():
    """The message of TensorFlow Serving's session_bundle_config.proto, which its Python package leaves out."""
    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(
        name="batching.proto",
        package="tensorflow.serving",
        syntax="proto3",
        dependency=[wrappers_pb2.DESCRIPTOR.name],
    )
    message = file.message_type.add(name="BatchingParameters")
    for number, (name, wrapper) in enumerate(
        {
            "max_batch_size": "Int64Value",
            "batch_timeout_micros": "Int64Value",
            "max_enqueued_batches": "Int64Value",
            "num_batch_threads": "Int64Value",
            "thread_pool_name": "StringValue",
            "enable_large_batch_splitting": "BoolValue",
            "max_execution_batch_size": "Int64Value",
        }.items(),
        1,
    ):
        message.field.add(
            name=name,
            number=number,
            type=kinds.TYPE_MESSAGE,
            type_name=f".google.protobuf.{wrapper}",
            label=1,
        )
    message.field.add(name="allowed_batch_sizes", number=8, type=kinds.TYPE_INT64, label=kinds.LABEL_REPEATED)
    message.field.add(name="pad_variable_length_inputs", number=9, type=kinds.TYPE_BOOL, label=1)
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(wrappers_pb2.DESCRIPTOR.serialized_pb)
    pool.Add(file)
    return message_factory.GetMessageClass(
        pool.FindMessageTypeByName("tensorflow.serving.BatchingParameters")
    )()


@pytest.mark.parametrize("text", ["as it is", "with the hints for a GPU"])
def test_batching(text):
    config = (FOLDER / "batching.conf").read_text()
    if text != "as it is":
        config = re.sub(r"# (allowed_batch_sizes: \d+)", r"\1", config)
    parameters = text_format.Parse(config, batching_parameters())
    largest = parameters.max_batch_size.value
    # The server refuses a task above it, and sizes that do not end with it.
    assert largest >= inspect.signature(Client).parameters["batch_size"].default
    sizes = list(parameters.allowed_batch_sizes)
    assert sizes == sorted(sizes) and bool(sizes) == (text != "as it is")
    assert not sizes or sizes[-1] == largest
    assert not parameters.pad_variable_length_inputs and parameters.num_batch_threads.value >= 1


def test_compose():
    assert set(COMPOSE["services"]) == {"cpu", "gpu"}
    for service in COMPOSE["services"].values():
        assert re.fullmatch(r"tensorflow/serving:\d+\.\d+\.\d+(-gpu)?", service["image"])
        mounts = dict(volume.split(":")[:2] for volume in service["volumes"])
        assert {(FOLDER / source).resolve() for source in mounts} == {
            ROOT / "saved_models",
            FOLDER / "batching.conf",
        }
        (flag,) = (f for f in service["command"] if f.startswith("--batching_parameters_file="))
        assert flag.split("=")[1] in mounts.values()
        assert {port.split(":")[-1] for port in service["ports"]} == {"8500", "8501"}


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_health_check(half_plus_two):
    server = Server(Models({"half_plus_two": half_plus_two}))
    command = [
        part.replace("$$", "$").replace("8501", str(server.rest_port))
        for part in COMPOSE["services"]["cpu"]["healthcheck"]["test"][1:]
    ]
    for name, healthy in (("half_plus_two", True), ("nothing", False)):
        done = subprocess.run(command, env={"MODEL_NAME": name, "PATH": "/usr/bin:/bin"}, timeout=20)
        assert (done.returncode == 0) == healthy
    server.stop()
    assert subprocess.run(command, env={"PATH": "/usr/bin:/bin"}, capture_output=True).returncode
