"""What serving costs: many clients with bad requests among them, the time beside the network's, the payloads' sizes.

    python benchmarks/serving.py --model runs/quickstart/model.keras --what load
    python benchmarks/serving.py --model runs/quickstart/model.keras --what cost
    python benchmarks/serving.py --model runs/quickstart/model.keras --what payloads --image photo.jpg
    python benchmarks/serving.py --model runs/quickstart/model.keras --what batches --image photo.jpg

The server is the tests' (`tests/serving/server.py`), which speaks TensorFlow Serving's interface and runs the same
graph in the same runtime, but reads and writes JSON in Python. Prints Markdown. Needs the extra `serving`.

`load` sends `--requests` requests from `--clients` threads, every other one over gRPC, to a server in a process of its
own; 2 % of the images are damaged, 1 % of the requests name a signature that is not there, and 1 % are larger than
the server takes. It compares every good reply with `model.detect`, expects an error that says what is wrong for every
bad one, and samples the server's memory.

`cost` lets the server answer at once, with what the model found before: what is left of a request's time is the
client's and the server's encoding and decoding and the way between them, all on one core.

`payloads` sends one image in each form that the model takes.

`batches` sends lists of images in requests of different sizes.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import cv2
import grpc
import numpy as np
import tensorflow as tf
import urllib3
from tensorflow_serving.apis.predict_pb2 import PredictRequest
from tensorflow_serving.apis.prediction_service_pb2_grpc import PredictionServiceStub

from mrcnn_tf import export_saved_model, load_model
from mrcnn_tf.data.images import read_image
from mrcnn_tf.data.scene import draw_scene
from mrcnn_tf.serving import Client, ServingError
from mrcnn_tf.serving.rpc import OPTIONS
from tests.serving.server import Models, Server, urls

NAME = "model"
MAX_BODY = 4_000_000
ERRORS = {
    "damaged image": r"^the image: damaged or incomplete image file$",
    "wrong signature": r"ignature (key|name:) \"no_such_signature\" not found",
    "too large": r"a request of \d+\.\d MB is larger than the server",
}


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="a .keras file")
    parser.add_argument("--what", choices=["load", "cost", "payloads", "batches"], default="load")
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--image", help="for all but load; without it, a generated picture")
    parser.add_argument("--repeats", type=int, default=200, help="of each measurement of cost")
    return parser.parse_args()


def main() -> None:
    """Exports the model and measures."""
    args = parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = load_model(args.model)
        export_saved_model(model, Path(folder) / NAME, check=False)
        if args.what == "load":
            load(model, Path(folder) / NAME, args.requests, args.clients)
        elif args.what == "cost":
            cost(Path(folder) / NAME, picture(args.image), args.repeats)
        elif args.what == "payloads":
            payloads(Path(folder) / NAME, picture(args.image))
        else:
            batches(Path(folder) / NAME, picture(args.image))


def picture(path: str | None) -> np.ndarray:
    """The image that is sent."""
    return read_image(path) if path else draw_scene(np.random.default_rng(0), 640, 0.5)[0]


def encoded(image: np.ndarray, ending: str) -> bytes:
    """The bytes of a file of this image."""
    return cv2.imencode(ending, image[..., ::-1])[1].tobytes()


@contextmanager
def running_server(folder: Path, *flags: str) -> Iterator[tuple[int, str, str]]:
    """A test server in a process of its own: its process id and the addresses of its interfaces."""
    command = [
        sys.executable,
        "-m",
        "tests.serving.server",
        f"--model_name={NAME}",
        f"--model_base_path={folder}",
    ]
    root = Path(__file__).resolve().parent.parent
    process = subprocess.Popen(
        [*command, "--port=0", "--rest_api_port=0", *flags], cwd=root, stdout=subprocess.PIPE, text=True
    )
    try:
        ports = re.findall(r"port (\d+)", process.stdout.readline())
        yield (
            process.pid,
            f"http://127.0.0.1:{ports[0]}/v1/models/{NAME}",
            f"grpc://127.0.0.1:{ports[1]}/{NAME}",
        )
    finally:
        process.terminate()
        process.wait()


def resident(pid: int) -> int:
    """MiB of memory that a process holds."""
    return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1]) // 1024


def table(header: list[str], rows: list[list[Any]]) -> None:
    """Prints Markdown."""
    print("| " + " | ".join(header) + " |\n|" + "---|" + "---:|" * (len(header) - 1))
    for row in rows:
        print("| " + " | ".join(str(cell) for cell in row) + " |")
    print()


# ------------------------------------------------------------------ load


def load(model: Any, folder: Path, requests: int, clients: int) -> None:
    """Good and bad requests from several clients at once."""
    rng = np.random.default_rng(0)
    files = [encoded(draw_scene(rng, size, 0.5)[0], ".jpg") for size in (160, 200, 240, 256) * 4]
    wanted = [
        model.detect(cv2.imdecode(np.frombuffer(f, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]) for f in files
    ]
    kinds = [*["damaged image"] * (requests // 50), *["wrong signature"] * (requests // 100)]
    kinds += ["too large"] * (requests // 100)
    kinds += ["good"] * (requests - len(kinds))
    random.Random(0).shuffle(kinds)
    jobs = enumerate(kinds)
    lock = threading.Lock()
    outcomes: Counter[str] = Counter()
    times: dict[str, list[float]] = {"REST": [], "gRPC": []}
    memory: list[list[Any]] = []

    def request(client: Client, i: int, kind: str) -> None:
        if kind == "good":
            found, want = client.detect(files[i % len(files)]), wanted[i % len(files)]
            np.testing.assert_allclose(found.boxes, want.boxes, atol=0.01)
            np.testing.assert_allclose(found.scores, want.scores, atol=1e-5)
            np.testing.assert_allclose(found.masks, want.masks, atol=1 / 255)
            assert found.class_names == want.class_names and len(found)
            return
        try:
            if kind == "damaged image":
                client.detect(files[i % len(files)][: 200 + i])
            elif kind == "wrong signature":
                row = {"image_bytes": files[0], "score_threshold": -1.0, "iou_threshold": -1.0}
                client._server.predict("no_such_signature", [row])
            else:
                client.detect(bytes(MAX_BODY + i))
        except ServingError as error:
            if re.search(ERRORS[kind], str(error)):
                return
            raise
        raise AssertionError(f"{kind}: no error")

    with running_server(folder, f"--max_body={MAX_BODY}") as (pid, rest, rpc):

        def note(done: int) -> None:
            memory.append([done, resident(pid)])

        def work(number: int) -> None:
            interface, url = (("REST", rest), ("gRPC", rpc))[number % 2]
            with Client(url) as client:
                while True:
                    with lock:
                        i, kind = next(jobs, (None, ""))
                    if i is None:
                        return
                    start = time.perf_counter()
                    try:
                        request(client, i, kind)
                        outcome = kind
                    except Exception as error:
                        outcome = f"{kind}: {type(error).__name__}: {str(error).strip()[:200]}"
                    with lock:
                        outcomes[outcome] += 1
                        if outcome == "good":
                            times[interface].append(time.perf_counter() - start)
                        if outcomes.total() % max(requests // 10, 1) == 0:
                            note(outcomes.total())

        note(0)
        start = time.perf_counter()
        with ThreadPoolExecutor(clients) as pool:
            list(pool.map(work, range(clients)))
        seconds = time.perf_counter() - start

    print(
        f"{requests} requests of {clients} clients in {seconds:.0f} s ({requests / seconds:.1f} a second)\n"
    )
    table(
        ["request", "sent", "as expected"], [[k, n, outcomes[k]] for k, n in sorted(Counter(kinds).items())]
    )
    for outcome in set(outcomes) - set(kinds):
        print(f"not as expected: {outcomes[outcome]} x {outcome}")
    rows = []
    for interface, values in times.items():
        at = [f"{1000 * q:.0f}" for q in np.percentile(values, (50, 95, 100))]
        rows.append([interface, len(values), *at])
    table(["good requests", "number", "median ms", "95 % below ms", "longest ms"], rows)
    table(["requests done", "server's memory, MiB"], memory)


# ------------------------------------------------------------------ cost


def cost(folder: Path, image: np.ndarray, repeats: int) -> None:
    """The time of a request whose model takes none."""
    models = Models({NAME: folder})
    server = Server(models)
    url = urls(server.rest_port, server.grpc_port)
    jpeg = encoded(image, ".jpg")
    own = np.float32([-1])
    files = np.array([jpeg], object)
    known = models.predict(
        NAME, None, "compact", {"image_bytes": files, "score_threshold": 0 * own, "iou_threshold": own}
    )
    models.predict = lambda *_: known
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    rows = []
    for interface in ("REST", "gRPC"):
        with Client(url(interface.lower(), NAME)) as client:
            for what, sent in (("JPEG file", jpeg), ("array, sent as PNG", image)):
                detect = partial(client.detect, sent)
                whole, alone = milliseconds(detect, repeats), milliseconds(detect, repeats, time.thread_time)
                rows.append([f"{interface}, {what}", f"{alone:.1f}", f"{whole:.1f}"])
    server.stop()
    height, width = image.shape[:2]
    print(
        f"{height} x {width}, a JPEG file of {len(jpeg) / 1000:.0f} kB, {known['num_detections'][0]} detections, "
        "one core\n"
    )
    table(["an image", "client's CPU time, ms", "client, connection and server without the model, ms"], rows)


def milliseconds(
    call: Callable[[], Any], repeats: int, clock: Callable[[], float] = time.perf_counter
) -> float:
    """The median of a call's times."""
    times = []
    for _ in range(repeats):
        start = clock()
        call()
        times.append(clock() - start)
    return 1000 * statistics.median(times)


# ------------------------------------------------------------------ payloads


def payloads(folder: Path, image: np.ndarray) -> None:
    """Bytes and time of one image in each form."""
    jpeg, png = encoded(image, ".jpg"), encoded(image, ".png")
    own = {"score_threshold": -1.0, "iou_threshold": -1.0}
    with running_server(folder) as (_, rest, rpc):
        pool = urllib3.PoolManager(timeout=600)

        def over_rest(signature: str, make: Callable[[], dict[str, Any]]) -> tuple[int, int, float]:
            def ask() -> tuple[int, int]:
                body = json.dumps({"signature_name": signature, **make()})
                reply = pool.request("POST", rest + ":predict", body=body)
                json.loads(reply.data)
                assert reply.status == 200, reply.data[:300]
                return len(body), len(reply.data)

            return (*ask(), milliseconds(ask, 5))

        target = rpc.removeprefix("grpc://").split("/")[0]
        stub = PredictionServiceStub(grpc.insecure_channel(target, list(OPTIONS.items())))

        def over_grpc(signature: str, inputs: dict[str, Any]) -> tuple[int, int, float]:
            def ask() -> tuple[int, int]:
                request = PredictRequest(model_spec={"name": NAME, "signature_name": signature})
                for name, value in inputs.items():
                    value = value[None] if isinstance(value, np.ndarray) else [value]
                    request.inputs[name].CopyFrom(tf.make_tensor_proto(value))
                reply = stub.Predict(request)
                for tensor in reply.outputs.values():
                    tf.make_ndarray(tensor)
                return request.ByteSize(), reply.ByteSize()

            return (*ask(), milliseconds(ask, 5))

        def b64(data: bytes) -> dict[str, str]:
            return {"b64": base64.b64encode(data).decode()}

        measured = {
            "**REST, JPEG, `compact`, by row: what the client does**": over_rest(
                "compact", lambda: {"instances": [{"image_bytes": b64(jpeg), **own}]}
            ),
            "REST, PNG, `compact`": over_rest(
                "compact", lambda: {"instances": [{"image_bytes": b64(png), **own}]}
            ),
            'REST, JPEG, `compact`, by column (`"inputs"`)': over_rest(
                "compact",
                lambda: {"inputs": {"image_bytes": [b64(jpeg)], **{k: [v] for k, v in own.items()}}},
            ),
            "REST, JPEG, `serving_default`: masks as numbers": over_rest(
                "serving_default", lambda: {"instances": [{"image_bytes": b64(jpeg)}]}
            ),
            "REST, pixels as numbers, `image`: the wrong way": over_rest(
                "image", lambda: {"instances": [image.tolist()]}
            ),
            "**gRPC, JPEG, `compact`: what the client does**": over_grpc(
                "compact", {"image_bytes": jpeg, **own}
            ),
            "gRPC, PNG, `compact`": over_grpc("compact", {"image_bytes": png, **own}),
            "gRPC, pixels, `image`": over_grpc("image", {"images": image}),
        }
    height, width = image.shape[:2]
    print(f"{height} x {width}\n")
    rows = [
        [what, f"{sent / 1000:,.0f}", f"{got / 1000:,.0f}", f"{ms:,.0f}"]
        for what, (sent, got, ms) in measured.items()
    ]
    table(["one image", "request, kB", "reply, kB", "time, ms"], rows)


# ------------------------------------------------------------------ batches


def batches(folder: Path, image: np.ndarray) -> None:
    """Time for an image, and the server's memory, by the number of images in a request."""
    jpeg = encoded(image, ".jpg")
    rows = []
    with running_server(folder) as (pid, rest, _):
        for size in (1, 2, 4, 8):
            with Client(rest, batch_size=size, timeout=600) as client:
                detect = partial(client.detect, [jpeg] * 16)
                detect()  # the first run for a shape is slower
                rows.append([size, f"{milliseconds(detect, 3) / 16:.0f}", resident(pid)])
    table(["images in a request", "ms for an image", "server's memory, MiB"], rows)


if __name__ == "__main__":
    main()
