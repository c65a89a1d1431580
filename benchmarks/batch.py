"""Batch inference on Apache Beam: every image once, a kill -9 in the middle, memory.

    python benchmarks/batch.py --model runs/quickstart/model.keras
    python benchmarks/batch.py --model saved_models/quickstart/1 --images 500 -- --direct_num_workers=1

Draws pictures like the quickstart's, damages 1 % of them in several ways, and predicts them with `mrcnn predict-batch`
in processes of their own: the first is killed once a third of the shards is finished, the second goes on. Then every
good image must be in the results once, every damaged one in the dead letters once, and the files of shards that the
first run finished must be the same files as before. Prints Markdown; memory is the most that a worker has had (RSS)
when it finished each shard, and that of the starting process.
"""

from __future__ import annotations

import argparse
import glob
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import cv2
import numpy as np

from mrcnn_tf.data.scene import draw_scene

COMMAND = [
    sys.executable,
    "-c",
    "import sys; from mrcnn_tf.cli import main; sys.exit(main())",
    "predict-batch",
]


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model", required=True, help="a .keras file, or a version's folder of `mrcnn export`"
    )
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--shard-size", type=int, default=50)
    parser.add_argument("beam_options", nargs="*", help="behind --: Beam's")
    return parser.parse_args()


def main() -> None:
    """Draws, predicts, kills, predicts on, and compares."""
    args = parse_args()
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        bad = draw(scratch / "images", args.images)
        model = exported(args.model, scratch / "saved")
        output = scratch / "found" / "shapes"
        command = [*COMMAND, f"--input={scratch}/images/*", f"--model={model}", f"--output={output}"]
        command += [f"--shard-size={args.shard_size}", "--", *args.beam_options]

        total = -(-args.images // args.shard_size)
        first = kill_after(command, output, total // 3)
        kept = {path: state(path) for path in finished(output)}
        print(f"killed after {first:.0f} s with {len(kept)} of {total} shards finished")

        start = time.perf_counter()
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            launcher = max(memory_of(process))
            print(process.stdout.read().replace(str(scratch), "."), end="")
        assert process.returncode == 0, process.returncode
        print(
            f"the second run took {time.perf_counter() - start:.0f} s; memory of its starting process: {launcher} MiB"
        )
        check(output, scratch / "images", bad, kept)


def draw(folder: Path, count: int) -> set[str]:
    """Draws pictures and damages every hundredth; returns those files' paths."""
    folder.mkdir()
    damage = [lambda data: b"", lambda data: data[: len(data) // 2], lambda data: b"no image at all"]
    bad = set()
    for i in range(count):
        data = cv2.imencode(".jpg", draw_scene(np.random.default_rng(i), 128, 0.5)[0][..., ::-1])[1].tobytes()
        path = folder / f"{i:06d}.jpg"
        if i % 100 == 50:
            data = damage[len(bad) % len(damage)](data)
            bad.add(str(path))
        path.write_bytes(data)
    return bad


def exported(model: str, folder: Path) -> Path:
    """The folder of the SavedModel; made in a process of its own, whose memory would be counted here."""
    if not model.endswith(".keras"):
        return Path(model)
    code = (
        "import sys, mrcnn_tf as m; m.export_saved_model(m.load_model(sys.argv[1]), sys.argv[2], check=False)"
    )
    subprocess.run([sys.executable, "-c", code, model, str(folder)], check=True)
    return folder / "1"


def kill_after(command: list[str], output: Path, shards: int) -> float:
    """Runs the command and kills it with so many shards finished; returns the seconds until then."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while len(finished(output)) < shards:
        assert process.poll() is None, "ended before it could be killed"
        time.sleep(0.2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    seconds = time.perf_counter() - start
    time.sleep(5)  # its workers lose their connection and end
    return seconds


def finished(output: Path) -> list[str]:
    """The shards' files, of shards that are finished."""
    return sorted(glob.glob(f"{output}-*.done.json"))


def state(done: str) -> list[tuple[int, int]]:
    """What changes if one of a shard's three files is written again."""
    files = [done, done.replace(".done.json", ".jsonl"), done.replace(".done.json", ".failed.jsonl")]
    return [(os.stat(path).st_ino, os.stat(path).st_mtime_ns) for path in files]


def memory_of(process: subprocess.Popen) -> Iterator[int]:
    """MiB that a process has had at most, until it ends."""
    while process.poll() is None:
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        yield from (int(line.split()[1]) // 1024 for line in lines if line.startswith("VmHWM"))
        time.sleep(0.5)


def check(output: Path, images: Path, bad: set[str], kept: dict[str, Any]) -> None:
    """Compares what is there with what must be, and prints both."""
    done = finished(output)
    results = [row for path in done for row in rows(path.replace(".done.json", ".jsonl"))]
    failed = [row for path in done for row in rows(path.replace(".done.json", ".failed.jsonl"))]
    everything = {str(path) for path in images.iterdir()}
    once = Counter(row["source"] for row in results)
    assert once == Counter(everything - bad), "a good image is missing or there twice"
    assert Counter(row["source"] for row in failed) == Counter(bad), "a bad image is missing or there twice"
    assert all(state(path) == before for path, before in kept.items()), "a finished shard was made again"
    assert not glob.glob(f"{output}-*.partial"), "a partial file was left"
    print(f"\n| | |\n|---|---:|\n| good images, each predicted once | {len(results)} |")
    for reason, count in sorted(Counter(row["reason"] for row in failed).items()):
        print(f"| dead letters: {reason} | {count} |")
    print(f"| detections | {sum(len(row['detections']) for row in results)} |")
    notes = [json.loads(Path(path).read_bytes()) for path in done]
    peaks: dict[str, list[int]] = {}
    for path, note in zip(done, notes, strict=True):
        peaks.setdefault(note["run"] + ("" if path in kept else " on"), []).append(note["peak_bytes"] >> 20)
    for run in peaks.values():
        shards = f"over the {len(run)} shards of one run"
        print(f"| a worker's memory after a shard, least and most {shards}, MiB | {min(run)} to {max(run)} |")
    size = sum(os.stat(path.replace(".done.json", ".jsonl")).st_size for path in done)
    print(f"| kB of results an image | {size / len(results) / 1000:.1f} |")


def rows(path: str) -> list[dict[str, Any]]:
    """The lines of a file of JSON lines."""
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


if __name__ == "__main__":
    main()
