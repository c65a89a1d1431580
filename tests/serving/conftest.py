"""Servers of exported models: the test server, and TensorFlow Serving where it is installed."""

from __future__ import annotations

import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import tensorflow as tf

from mrcnn_tf.serving import Client

if TYPE_CHECKING:
    from tests.serving.server import Url


class HalfPlusTwo(tf.Module):
    """The model of TensorFlow Serving's own documentation."""

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
    def predict(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": 0.5 * x + 2}


@pytest.fixture(scope="session")
def half_plus_two(tmp_path_factory) -> Path:
    """A folder with two versions of a model that is no detector."""
    folder = tmp_path_factory.mktemp("half") / "half_plus_two"
    for version in ("1", "2"):
        tf.saved_model.save(HalfPlusTwo(), str(folder / version))
    return folder


@pytest.fixture(scope="session", params=["test server", "tensorflow_model_server"])
def serve(request) -> Callable:
    """Serves folders on either server, and yields the URLs: `url(interface, name, version=None)`."""
    if request.param == "test server":
        return on_test_server
    if shutil.which("tensorflow_model_server") is None:
        pytest.skip("tensorflow_model_server is not on the PATH")
    return on_tensorflow_serving


@contextmanager
def on_test_server(folders: dict[str, Path]) -> Iterator[Url]:
    from tests.serving.server import Models, Server, urls  # needs packages that may be absent

    server = Server(Models(folders))
    yield urls(server.rest_port, server.grpc_port)
    server.stop()


@contextmanager
def on_tensorflow_serving(folders: dict[str, Path]) -> Iterator[Url]:
    from tests.serving.server import urls

    config = "".join(
        f'config {{ name: "{name}" base_path: "{folder}" model_platform: "tensorflow" }}\n'
        for name, folder in folders.items()
    )
    file = next(iter(folders.values())).parent / "models.conf"
    file.write_text(f"model_config_list {{\n{config}}}\n")
    rest_port, grpc_port = free_port(), free_port()
    ports = [f"--rest_api_port={rest_port}", f"--port={grpc_port}"]
    process = subprocess.Popen(["tensorflow_model_server", *ports, f"--model_config_file={file}"])
    url = urls(rest_port, grpc_port)
    try:
        for name in folders:
            with Client(url("rest", name)) as client:
                client.wait_until_ready(120)
        yield url
    finally:
        process.kill()
        process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
