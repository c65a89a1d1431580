"""Workers on one machine, over the loopback interface: the same weights as one process, and what they exchange.

    python benchmarks/multi_worker.py                      4 workers, the three precisions
    python benchmarks/multi_worker.py --workers 2 --learning-rate 0.002

A small Mask R-CNN (`tests/tiny.py`) trains for some steps on eight generated images each, in one process on one device;
in one process on as many devices as there are workers; and by the workers. Prints a JSON line for each precision: the
largest difference of any weight between them, and how far the weights moved at most. `seconds_a_step` is the median;
all workers share this machine's cores, so it tells nothing about scaling.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")


def main() -> int:
    """Parses arguments; runs everything."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", type=int, default=4, help="how many; a divisor of 8")
    parser.add_argument("--steps", type=int, default=5, help="of the training")
    parser.add_argument("--learning-rate", type=float, default=0.01, help="of SGD, after one step of warm-up")
    parser.add_argument("--precision", choices=PRECISIONS, nargs="+", default=PRECISIONS)
    parser.add_argument(
        "--devices", type=int, help=argparse.SUPPRESS
    )  # of this process, which one of them is
    options = parser.parse_args()
    if options.devices is not None:
        for precision in options.precision:
            train_once(options, precision)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        run(Path(folder), [*sys.argv[1:], "--devices", "1"], "one", 1)
        run(Path(folder), [*sys.argv[1:], "--devices", str(options.workers)], "devices", 1)
        run(Path(folder), [*sys.argv[1:], "--devices", "0"], "workers", options.workers)
        for precision in options.precision:
            print(json.dumps(compare(Path(folder), precision, options)), flush=True)
    return 0


def run(folder: Path, arguments: list[str], name: str, count: int) -> None:
    """Runs this script `count` times at once, as workers if more than once."""
    from tests.training.test_multi_worker import addresses

    cluster, processes = addresses(count), []
    for index in range(count):
        environment = {**os.environ, "OUT": str(folder / f"{name}_{index}")}
        if count > 1:
            task = {"type": "worker", "index": index}
            environment["TF_CONFIG"] = json.dumps({"cluster": {"worker": cluster}, "task": task})
        command = [sys.executable, str(Path(__file__).resolve()), *arguments]
        (folder / name).mkdir(exist_ok=True)
        log = (folder / f"{name}_{index}.log").open("w")
        processes.append(
            subprocess.Popen(
                command, cwd=folder / name, env=environment, stdout=log, stderr=subprocess.STDOUT
            )
        )
    for index, process in enumerate(processes):
        if process.wait():
            sys.exit((folder / f"{name}_{index}.log").read_text()[-3000:])


def train_once(options: argparse.Namespace, precision: str) -> None:
    """What each process does."""
    import keras
    import tensorflow as tf

    from mrcnn_tf.data.shapes import generate_shapes
    from mrcnn_tf.training.train import train
    from tests.training.test_train import tiny

    changes: dict[str, Any] = {}
    if options.devices > 1:
        if precision == options.precision[0]:
            cpu = tf.config.list_physical_devices("CPU")[0]
            tf.config.set_logical_device_configuration(
                cpu, [tf.config.LogicalDeviceConfiguration()] * options.devices
            )
        changes["train__devices"] = options.devices
    annotations, images = generate_shapes("shapes", num_images=24, size=64)
    start = keras.callbacks.LambdaCallback()
    config = tiny(
        name=precision,
        precision=precision,
        data__generated=None,
        data__train={"annotations": str(annotations), "images": str(images)},
        train__batch_size=8,
        train__steps=options.steps,
        train__schedule="constant",
        train__learning_rate=options.learning_rate,
        train__checkpoint_every=1000,
        **changes,
    )
    before: list[np.ndarray] = []
    start.on_train_begin = lambda logs=None: before.extend(start.model.get_weights())
    run = train(config, callbacks=[start])
    moved = max(np.abs(a - b).max() for a, b in zip(run.model.get_weights(), before, strict=True))
    np.savez(f"{os.environ['OUT']}_{precision}.npz", *run.model.get_weights(), moved=moved)


def compare(folder: Path, precision: str, options: argparse.Namespace) -> dict[str, Any]:
    """The largest differences between the runs."""
    from mrcnn_tf.training.callbacks import read_rows

    def difference(a: str, b: str) -> float:
        first, second = (np.load(folder / f"{name}_{precision}.npz") for name in (a, b))
        names = [name for name in first.files if name != "moved"]
        return float(max(np.abs(first[name] - second[name]).max() for name in names))

    last = f"workers_{options.workers - 1}"
    rows = read_rows(folder / "workers" / "runs" / precision / "history.csv")
    return {
        "precision": precision,
        "workers": options.workers,
        "steps": options.steps,
        "weights_moved": float(np.load(folder / f"one_0_{precision}.npz")["moved"]),
        "to_one_process": difference("workers_0", "one_0"),
        "to_one_process_with_as_many_devices": difference("workers_0", "devices_0"),
        "one_device_to_many_in_one_process": difference("devices_0", "one_0"),
        "between_workers": max(difference("workers_0", last), 0.0),
        "seconds_a_step": float(np.median([8 / row["images_per_second"] for row in rows])),
    }


if __name__ == "__main__":
    sys.exit(main())
