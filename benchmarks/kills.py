"""One training by two workers, killed again and again: it must end by itself, with the weights of an undisturbed one.

    python benchmarks/kills.py                     20 kills, seed 0
    python benchmarks/kills.py --kills 4 --seed 1

A small Mask R-CNN (`tests/tiny.py`) trains on generated images, twice: left alone, and with `kill -9` at random
moments: of a worker, of the chief, of both; of the chief while it writes a checkpoint; of either
during an evaluation; and of either, the last time, when training is over and the chief evaluates and draws.
Both workers run under `mrcnn train --max-restarts`, over the loopback interface, and nothing else starts them again.
Prints a JSON line for each kill and one at the end; its exit status is 1 unless all weights, averages and metrics are
equal bit for bit.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import h5py
import numpy as np
import yaml

PATIENCE = 600.0  # seconds for one thing to happen
WHERE = (
    "worker",
    "chief",
    "writing",
    "evaluating",
    "worker",
    "chief",
    "writing",
    "evaluating",
    "both",
    "worker",
)


class Training:
    """Two supervised workers in a folder."""

    def __init__(self, folder: Path, steps: int):
        from tests.tiny import CONFIG
        from tests.training.test_multi_worker import addresses

        folder.mkdir()
        self.folder, self.run = folder, folder / "runs" / "tiny"
        train = {**CONFIG["train"], "steps": steps, "batch_size": 4, "ema": 0.9, "checkpoint_every": 3}
        evaluation = {"every": 4, "pictures": 0}
        (folder / "c.yaml").write_text(yaml.safe_dump({**CONFIG, "train": train, "evaluation": evaluation}))
        cluster = addresses(2)
        self.logs = [folder / f"{index}.log" for index in range(2)]
        self.workers = []
        for index, log in enumerate(self.logs):
            task = {"cluster": {"worker": cluster}, "task": {"type": "worker", "index": index}}
            environment = {**os.environ, "TF_CONFIG": json.dumps(task), "PYTHONPATH": str(ROOT)}
            command = [sys.executable, "-m", "mrcnn_tf.cli", "train", "--config", "c.yaml"]
            with log.open("w") as out:
                self.workers.append(
                    subprocess.Popen(
                        [*command, "--max-restarts", "1000"],
                        cwd=folder,
                        env=environment,
                        stdout=out,
                        stderr=subprocess.STDOUT,
                    )
                )

    def pid(self, worker: int) -> int | None:
        """Of the process that trains, not of the one that starts it."""
        own = self.workers[worker].pid
        try:
            found = Path(f"/proc/{own}/task/{own}/children").read_text().split()
        except FileNotFoundError:
            return None
        return int(found[0]) if found else None

    def step(self) -> int:
        """The last one in the run's history."""
        from mrcnn_tf.training.callbacks import read_rows

        rows = read_rows(self.run / "history.csv")
        return int(rows[-1]["step"]) if rows else 0

    def writing(self) -> bool:
        """Whether a checkpoint is half written."""
        return any((self.run / "checkpoints").glob(".*.partial.step_*"))

    def evaluations(self) -> int:
        """How many were begun."""
        return self.logs[0].read_bytes().count(b"evaluating:   0%")

    def restarts(self) -> list[int]:
        """Of each worker."""
        return [log.read_bytes().count(b"; restart ") for log in self.logs]

    def ended(self) -> bool:
        """Whether both have."""
        return all(worker.poll() is not None for worker in self.workers)

    def kill(self, worker: int) -> None:
        """`kill -9`."""
        pid = self.pid(worker)
        if pid is not None:
            os.kill(pid, signal.SIGKILL)

    def arrays(self) -> list[np.ndarray]:
        """All weights of the final, the best and the last model, the last with its optimiser's variables."""
        out: list[np.ndarray] = []
        newest = sorted((self.run / "checkpoints").glob("step_*.keras"))[-1]
        for path in (self.run / "model.keras", newest, self.run / "checkpoints" / "best.keras"):
            with zipfile.ZipFile(path) as archive, archive.open("model.weights.h5") as file:
                h5py.File(file).visititems(
                    lambda _, item: out.append(item[()]) if isinstance(item, h5py.Dataset) else None
                )
        return out


def wait_for(training: Training, happens, seconds: float = PATIENCE) -> bool:
    """Waits until it happens, training ends, or the time is over; whether it happened."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and not training.ended():
        if happens():
            return True
        time.sleep(0.002)
    return False


def disturb(training: Training, kills: int, rng: random.Random) -> int:
    """Kills as often, if training lasts that long; how often it was."""
    done, began = 0, time.monotonic()
    while done < kills and not training.ended():
        where = "finishing" if done == kills - 1 else WHERE[done % len(WHERE)]
        victims = {"chief": [0], "worker": [1], "both": [0, 1], "writing": [0]}.get(where) or [
            rng.randrange(2)
        ]
        if where == "writing":
            happened = wait_for(training, training.writing)
        elif where == "finishing":
            happened = wait_for(training, (training.run / "model.keras").exists)
            time.sleep(rng.uniform(0, 1))
        elif where == "evaluating":
            before = training.evaluations()
            happened = wait_for(training, lambda before=before: training.evaluations() > before)
            time.sleep(rng.uniform(0, 0.5))
        else:  # also while it starts, and connects
            time.sleep(rng.uniform(0, 50))
            happened = not training.ended()
        if not happened:
            break
        line = {"kill": done + 1, "where": where, "victims": victims, "step": training.step()}
        for worker in victims:
            training.kill(worker)
        done += 1
        print(json.dumps(line | {"seconds": round(time.monotonic() - began)}), flush=True)
        # Not before it lives again: two kills of one process would be one.
        wait_for(training, lambda victims=victims: all(training.pid(worker) for worker in victims))
    return done


def main() -> int:
    """Parses arguments; trains twice."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20, help="how many")
    parser.add_argument(
        "--steps", type=int, default=400, help="of the training; it must last for all of them"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        times: list[int] = []
        trainings: list[Training] = []
        for title, kills in (("alone", 0), ("disturbed", options.kills)):
            began = time.monotonic()
            training = Training(Path(name) / title, options.steps)
            try:
                done = disturb(training, kills, random.Random(options.seed))
                status = [worker.wait(timeout=3 * PATIENCE) for worker in training.workers]
            finally:
                for index, worker in enumerate(training.workers):
                    training.kill(index)
                    worker.kill()
            if any(status):
                for log in training.logs:
                    print(log.read_text(errors="replace")[-3000:], file=sys.stderr)
                return 1
            times.append(round(time.monotonic() - began))
            trainings.append(training)
        arrays = [training.arrays() for training in trainings]
        metrics = [json.loads((t.run / "metrics.json").read_text()) for t in trainings]
        for figures in metrics:
            figures.pop("images_per_second")
        equal = len(arrays[0]) == len(arrays[1]) and all(
            np.array_equal(a, b) for a, b in zip(*arrays, strict=True)
        )
        print(
            json.dumps(
                {
                    "kills": done,
                    "restarts": trainings[1].restarts(),
                    "seconds_alone_and_disturbed": times,
                    "arrays": len(arrays[0]),
                    "equal_bit_for_bit": equal,
                    "same_metrics": metrics[0] == metrics[1],
                    "left_over": [p.name for p in trainings[1].run.rglob(".*")],
                }
            )
        )
        return 0 if equal and metrics[0] == metrics[1] and done == options.kills else 1


if __name__ == "__main__":
    sys.exit(main())
