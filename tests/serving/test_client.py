"""The client gives what `model.detect` gives, over REST and gRPC; everything that goes wrong is said clearly."""

from __future__ import annotations

import base64
import io
import json
import logging
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import cv2
import grpc
import keras
import numpy as np
import pytest
import urllib3
from grpc import StatusCode
from PIL import Image, ImageOps

from mrcnn_tf.export.saved_model import export_saved_model
from mrcnn_tf.models.detections import Detections
from mrcnn_tf.models.mask_rcnn import MaskRCNN
from mrcnn_tf.models.mask_refining_rcnn import MaskRefiningRCNN
from mrcnn_tf.serving import Client, ImageError, ServerUnavailable, ServingError
from tests.serving.conftest import free_port
from tests.tiny import make_model

pytest.importorskip(
    "tensorflow_serving", reason="needs tensorflow-serving-api: pip install 'mrcnn_tf[serving]'"
)

from tests.serving.server import Models, Server, urls
from tests.serving.tensor_json import Failure

INTERFACES = ["rest", "grpc"]
RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 256, (48, 80, 3), np.uint8)


@pytest.fixture(scope="session")
def models():
    keras.utils.set_random_seed(0)
    return {
        "mask_rcnn": make_model(MaskRCNN, score_threshold=0.0, max_detections=100),
        "mr_rcnn": make_model(MaskRefiningRCNN, score_threshold=0.0),
    }


@pytest.fixture(scope="session")
def folders(models, half_plus_two, tmp_path_factory):
    base = tmp_path_factory.mktemp("served")
    for name, model in models.items():
        export_saved_model(model, base / name, check=False)
    return {**{name: base / name for name in models}, "half_plus_two": half_plus_two}


@pytest.fixture(scope="module")
def url(serve, folders):
    with serve(folders) as url:
        yield url


@pytest.fixture(scope="session")
def loaded(folders):
    return Models(folders)


@pytest.fixture
def server(loaded):
    """A test server of a test's own, with its own faults."""
    server = Server(loaded)
    server.url = urls(server.rest_port, server.grpc_port)
    loaded.requests = 0
    yield server
    loaded.faults.clear()
    server.stop()


def assert_equal(got: Detections, want: Detections) -> None:
    assert len(want) and len(got) == len(want) and got.image_size == want.image_size
    np.testing.assert_allclose(got.boxes, want.boxes, atol=0.01)
    np.testing.assert_allclose(got.scores, want.scores, atol=1e-5)
    np.testing.assert_array_equal(got.class_ids, want.class_ids)
    np.testing.assert_array_equal(got.category_ids, want.category_ids)
    assert got.class_names == want.class_names and got.masks.dtype == np.float32
    np.testing.assert_allclose(got.masks, want.masks, atol=1 / 255)


def jpeg(image: np.ndarray, **kwargs) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "jpeg", quality=95, **kwargs)
    return file.getvalue()


def smooth(height: int, width: int) -> np.ndarray:
    return cv2.resize(
        RNG.integers(0, 256, (6, 8, 3), np.uint8), (width, height), interpolation=cv2.INTER_CUBIC
    )


# ------------------------------------------------------------------ what it gives


@pytest.mark.parametrize("interface", INTERFACES)
@pytest.mark.parametrize("name", ["mask_rcnn", "mr_rcnn"])
def test_gives_what_the_model_gives(url, models, interface, name, tmp_path):
    """Arrays, files and bytes of different sizes, in one list."""
    model = models[name]
    photo = jpeg(smooth(100, 60))
    path = tmp_path / "ü 1.png"
    Image.fromarray(smooth(64, 64)).save(path)
    pixels = [IMAGE, np.asarray(Image.open(io.BytesIO(photo))), np.asarray(Image.open(path)), IMAGE[:, ::-1]]
    with Client(url(interface, name)) as client:
        found = client.detect([IMAGE, photo, path, pixels[3]])
        assert len(found) == 4
        for got, image in zip(found, pixels, strict=True):
            assert_equal(got, model.detect(image))
        assert_equal(client.detect(str(path)), model.detect(pixels[2]))
        assert len(client.detect(np.stack([IMAGE] * 2))) == 2 and client.detect([]) == []


@pytest.fixture(scope="module")
def fewer(models):
    """What the model finds with a lower threshold of its own for overlaps."""
    stricter = MaskRCNN.from_config({**models["mask_rcnn"].get_config(), "nms_threshold": 0.1})
    stricter.set_weights(models["mask_rcnn"].get_weights())
    return stricter.detect(IMAGE)


@pytest.mark.parametrize("interface", INTERFACES)
def test_thresholds(url, models, fewer, interface):
    model = models["mask_rcnn"]
    everything = model.detect(IMAGE)
    middle = float(np.median(everything.scores))
    with Client(url(interface, "mask_rcnn")) as client:
        some = client.detect(IMAGE, score_threshold=middle)
        assert 0 < len(some) < len(everything)
        assert_equal(some, model.detect(IMAGE, score_threshold=middle))
        assert len(client.detect(IMAGE, 1.0)) == 0 and client.detect(IMAGE, 1.0).dense_masks().shape == (
            0,
            48,
            80,
        )
        assert len(fewer) < len(everything)
        assert_equal(client.detect(IMAGE, iou_threshold=0.1), fewer)


@pytest.mark.parametrize("interface", INTERFACES)
def test_exif_orientation(url, models, interface):
    exif = Image.Exif()
    exif[0x0112] = 6
    photo = jpeg(smooth(48, 80), exif=exif)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(photo))))
    with Client(url(interface, "mask_rcnn")) as client:
        found = client.detect(photo)
    assert found.image_size == (80, 48)
    assert_equal(found, models["mask_rcnn"].detect(upright))


@pytest.mark.parametrize("interface", INTERFACES)
def test_an_image_that_cannot_be_used(url, models, interface, tmp_path):
    """It is named, and does not harm the others."""
    cut = tmp_path / "cut.jpg"
    cut.write_bytes(jpeg(smooth(64, 64))[:-300])
    with Client(url(interface, "mask_rcnn"), batch_size=2) as client:
        with pytest.raises(ImageError, match="cut.jpg: damaged"):
            client.detect([IMAGE, cut])
        with pytest.raises(ImageError, match="image 2 of the list: neither a JPEG nor a PNG"):
            client.detect([IMAGE, IMAGE, b"GIF89a"])
        with pytest.raises(ImageError, match="the image: empty"):
            client.detect(b"")
        with pytest.raises(ImageError, match="absent.jpg: cannot be read: No such file"):
            client.detect(tmp_path / "absent.jpg")
        images = [cut, IMAGE, b"junk", str(tmp_path / "absent.jpg"), IMAGE[::-1]]
        results = client.detect(images, on_error="return")
        assert [type(r) for r in results] == [ImageError, Detections, ImageError, ImageError, Detections]
        assert "cut.jpg: damaged" in str(results[0]) and "absent.jpg" in str(results[3])
        assert_equal(results[1], models["mask_rcnn"].detect(IMAGE))
        assert_equal(results[4], models["mask_rcnn"].detect(IMAGE[::-1]))
        assert isinstance(client.detect(b"junk", on_error="return"), ImageError)


@pytest.mark.parametrize("interface", INTERFACES)
def test_lists_are_sent_in_batches(server, interface):
    with Client(server.url(interface, "mask_rcnn"), batch_size=2) as client:
        assert len(client.detect([IMAGE] * 5)) == 5
    assert server.models.requests == 3


def test_a_reply_of_100_detections_is_small(url):
    """Its masks are base64, not numbers."""
    encoded = cv2.imencode(".png", IMAGE)[1].tobytes()
    row = {
        "image_bytes": {"b64": base64.b64encode(encoded).decode()},
        "score_threshold": -1,
        "iou_threshold": -1,
    }
    body = json.dumps({"signature_name": "compact", "instances": [row]})
    reply = urllib3.request("POST", url("rest", "mask_rcnn") + ":predict", body=body)
    assert reply.status == 200 and json.loads(reply.data)["predictions"][0]["num_detections"] == 100
    assert len(reply.data) < 200_000


def test_needs_neither_tensorflow_nor_keras_over_rest(url, models, tmp_path):
    np.save(tmp_path / "image.npy", IMAGE)
    code = """
import sys
for name in ("tensorflow", "keras", "grpc", "tensorflow_serving"):
    sys.modules[name] = None  # importing it raises
import numpy as np
from mrcnn_tf.serving import Client
client = Client(sys.argv[1])
client.wait_until_ready()
found = client.detect(np.load("image.npy"))
print(len(found), found.class_names[0], sum(len(r["counts"]) > 0 for r in found.rles()))
try:
    Client("grpc://127.0.0.1:1/x")
except ImportError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, url("rest", "mask_rcnn")], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    want = models["mask_rcnn"].detect(IMAGE)
    first, second = done.stdout.splitlines()
    assert first == f"{len(want)} {want.class_names[0]} {len(want)}"
    assert "pip install 'mrcnn_tf[serving]'" in second


# ------------------------------------------------------------------ what can go wrong


@pytest.mark.parametrize("interface", INTERFACES)
def test_missing_models_versions_and_signatures(url, interface):
    for name, version, message in (
        ("nothing", None, r"Servable not found for request: Latest\(nothing\).*no model of this name"),
        ("mask_rcnn", 9, r"Servable not found for request: Specific\(mask_rcnn, 9\).*wait_until_ready"),
        ("half_plus_two", None, "compact.*not exported by mrcnn_tf"),
    ):
        with (
            Client(url(interface, name, version)) as client,
            pytest.raises(ServingError, match=message) as caught,
        ):
            client.detect(IMAGE)
        assert not isinstance(caught.value, ServerUnavailable)
    with Client(url(interface, "mask_rcnn", 1)) as client:
        assert len(client.detect(IMAGE))


@pytest.mark.parametrize("interface", INTERFACES)
def test_tries_again_what_may_succeed_later(server, interface, caplog, monkeypatch):
    pauses = []
    monkeypatch.setattr("mrcnn_tf.serving.client.time.sleep", pauses.append)
    client = Client(server.url(interface, "mask_rcnn"), retries=3, backoff=0.4)
    faults = [Failure(StatusCode.UNAVAILABLE, "queue is full"), Failure(StatusCode.RESOURCE_EXHAUSTED, "OOM")]
    faults += [ConnectionResetError()] if interface == "rest" else faults[:1]
    server.models.faults.extend(faults)
    with caplog.at_level(logging.WARNING, "mrcnn_tf"):
        assert len(client.detect(IMAGE))
    assert server.models.requests == 4
    assert len(caplog.messages) == 3 and "queue is full; trying again in" in caplog.messages[0]
    for pause, longest in zip(pauses, (0.4, 0.8, 1.6), strict=True):
        assert longest / 2 <= pause <= longest

    server.models.requests = 0
    server.models.faults.extend([Failure(StatusCode.UNAVAILABLE, "queue is full")] * 4)
    with pytest.raises(ServerUnavailable, match="queue is full"):
        client.detect(IMAGE)
    assert server.models.requests == 4


@pytest.mark.parametrize("interface", INTERFACES)
def test_does_not_try_again_what_cannot_succeed(server, interface):
    with Client(server.url(interface, "mask_rcnn"), backoff=0) as client:
        for code in (StatusCode.INVALID_ARGUMENT, StatusCode.NOT_FOUND, StatusCode.INTERNAL):
            server.models.requests = 0
            server.models.faults.append(Failure(code, f"no: {code.name}\nnode1\nnode2"))
            with pytest.raises(ServingError, match=f"no: {code.name}$"):
                client.detect(IMAGE)
            assert server.models.requests == 1


@pytest.mark.parametrize("interface", INTERFACES)
def test_gives_up_in_time(server, interface):
    server.models.faults.append(2.0)
    start = time.monotonic()
    with (
        Client(server.url(interface, "mask_rcnn"), timeout=0.2) as client,
        pytest.raises(TimeoutError, match=r"no reply within 0.2 s.*timeout"),
    ):
        client.detect(IMAGE)
    assert time.monotonic() - start < 1.8 and server.models.requests == 1


def test_gives_up_on_a_server_that_does_not_read():
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        client = Client(f"http://127.0.0.1:{deaf.getsockname()[1]}/v1/models/x", timeout=0.2)
        with pytest.raises(TimeoutError, match="no reply within 0.2 s"):
            client.detect(bytes(20_000_000))


@pytest.mark.parametrize("interface", INTERFACES)
def test_a_server_that_comes_up_late(loaded, interface):
    ports = free_port(), free_port()
    address = urls(*ports)(interface, "mask_rcnn")
    with Client(address, retries=0) as client:
        with pytest.raises(ServerUnavailable, match="no connection.*is the server running"):
            client.detect(IMAGE)
        with pytest.raises(TimeoutError, match="not ready after 0.1 s: .*no connection"):
            client.wait_until_ready(0.1)
    servers = []
    timer = threading.Timer(0.5, lambda: servers.append(Server(loaded, *ports)))
    timer.start()
    with Client(address, retries=8, backoff=0.2) as client:
        assert len(client.detect(IMAGE))
        client.wait_until_ready(0)
    with (
        Client(urls(*ports)(interface, "nothing")) as client,
        pytest.raises(TimeoutError, match="model nothing"),
    ):
        client.wait_until_ready(0)
    timer.join()
    servers[0].stop()


@pytest.mark.parametrize("interface", INTERFACES)
def test_requests_that_are_too_large(loaded, interface):
    server = Server(loaded, max_body=100_000)
    with Client(urls(server.rest_port, server.grpc_port)(interface, "mask_rcnn"), backoff=0) as client:
        with pytest.raises(
            ServingError, match=r"request of \d\.\d MB is larger than.*smaller batch_size"
        ) as caught:
            client.detect(bytes(3_000_000))
        assert not isinstance(caught.value, ServerUnavailable)
        assert len(client.detect(IMAGE))
    server.stop()


class Stranger(BaseHTTPRequestHandler):
    """Answers everything with the server's `answer`: a status and a body."""

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        status, body = self.server.answer
        self.server.requests += 1
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) + 5 * (body == b"cut")))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST

    def log_message(self, *_):
        pass


def test_other_servers(server):
    stranger = ThreadingHTTPServer(("127.0.0.1", 0), Stranger)
    threading.Thread(target=stranger.serve_forever, args=(0.05,), daemon=True).start()
    client = Client(f"http://127.0.0.1:{stranger.server_address[1]}/some/proxy/v1/models/x", backoff=0)
    row = {"status": "ok", "num_detections": 1}
    for status, body, message, requests in (
        (200, b"<html>hello", "not TensorFlow Serving's REST interface: HTTP 200, '<html>hello'", 1),
        (404, b"", "not TensorFlow Serving's REST interface: HTTP 404", 1),
        (301, b"", "not TensorFlow Serving's REST interface: HTTP 301", 1),
        (200, b"[1]", "not the reply of a model that mrcnn_tf", 1),
        (200, b'{"predictions": [1]}', "not the reply of a model that mrcnn_tf", 1),
        (200, b'{"predictions": []}', "not the reply of a model that mrcnn_tf", 1),
        (200, json.dumps({"predictions": [row]}).encode(), "KeyError: 'detection_masks_bytes'", 1),
        (502, b"<html>bad gateway", "HTTP 502", 4),
        (200, b"cut", "the connection broke", 4),
        (
            400,
            b'{"error": "Task size 4 is larger than maximum input batch size 2"}',
            "give the client a batch_size",
            1,
        ),
    ):
        stranger.answer, stranger.requests = (status, body), 0
        with pytest.raises(ServingError, match=message):
            client.detect(IMAGE)
        assert stranger.requests == requests
    for state, message in (({"state": "LOADING"}, "/x: LOADING"), ({}, "not the reply of a model")):
        stranger.answer = 200, json.dumps({"model_version_status": [state]}).encode()
        with pytest.raises(TimeoutError, match=f"not ready after 0 s: .*{message}"):
            client.wait_until_ready(0)
    with pytest.raises(ServingError, match="SSL"):
        Client(client.url.replace("http:", "https:")).detect(IMAGE)
    stranger.shutdown()
    stranger.server_close()

    with pytest.raises(ServingError, match="not an HTTP server; for gRPC's port give grpc://HOST:PORT/NAME"):
        Client(f"http://127.0.0.1:{server.grpc_port}/v1/models/mask_rcnn").detect(IMAGE)
    with pytest.raises(ServerUnavailable, match="no connection.*is this its port"):
        Client(f"grpc://127.0.0.1:{server.rest_port}/mask_rcnn", retries=0).detect(IMAGE)
    empty = grpc.server(ThreadPoolExecutor(1))
    port = empty.add_insecure_port("127.0.0.1:0")
    empty.start()
    with pytest.raises(ServingError, match="Method not found"):
        Client(f"grpc://127.0.0.1:{port}/mask_rcnn").detect(IMAGE)
    empty.stop(0)


def test_arguments():
    for bad in (
        "http://host:8501/NAME",
        "host:8501",
        "grpc://host:8500",
        "http://h/v1/models/a:predict",
        "ftp://h/v1",
    ):
        with pytest.raises(ValueError, match="url must be http://HOST:8501/v1/models/NAME or grpc://"):
            Client(bad)
    good = "http://host:8501/v1/models/a"
    for bad in ({"timeout": 0}, {"retries": -1}, {"backoff": -1}, {"batch_size": 0}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            Client(good, **bad)
    client = Client(good)
    for bad in (IMAGE[..., 0], IMAGE.astype(float), IMAGE[:0], 7):
        with pytest.raises(
            ValueError, match=r"the image must be a path, the bytes of a file or uint8 \[height"
        ):
            client.detect(bad)
    with pytest.raises(ValueError, match=r"score_threshold must be in \[0, 1\], not 50"):
        client.detect(IMAGE, 50)
    with pytest.raises(ValueError, match=r"iou_threshold must be in \[0, 1\], not -1"):
        client.detect(IMAGE, iou_threshold=-1)
    with pytest.raises(ValueError, match='on_error must be "raise" or "return", not \'ignore\''):
        client.detect(IMAGE, on_error="ignore")


@pytest.mark.parametrize("interface", INTERFACES)
def test_many_at_once(loaded, models, interface):
    """64 requests of 8 threads through one client, bad ones among them."""
    server = Server(loaded, max_body=200_000)
    url = urls(server.rest_port, server.grpc_port)
    images = [RNG.integers(0, 256, (40 + 4 * i, 60, 3), np.uint8) for i in range(4)]
    wanted = [models["mask_rcnn"].detect(image) for image in images]
    client, other = Client(url(interface, "mask_rcnn")), Client(url(interface, "half_plus_two"))

    def request(i: int):
        try:
            if i % 16 == 5:
                return client.detect(b"\xff\xd8\xff corrupt")
            if i % 16 == 9:
                return other.detect(images[0])
            if i % 16 == 13:
                return client.detect(bytes(1_000_000))
            return client.detect(images[i % 4])
        except ServingError as error:
            return error

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(request, range(64)))
    messages = {5: "damaged or incomplete", 9: "not exported by mrcnn_tf", 13: "is larger than"}
    for i, result in enumerate(results):
        if i % 16 in messages:
            assert isinstance(result, ServingError) and messages[i % 16] in str(result)
        else:
            assert_equal(result, wanted[i % 4])
    server.stop()
