"""Conversion to TFRecord shards, and reading them, in images a second.

    python benchmarks/records.py --images 10000 --size 64

Converts a generated set with one and with two processes, once undisturbed and once killed (SIGKILL) after a random
number of shards, again and again, and resumed until it ends, and compares every shard's checksum. Then prepares
training batches as fast as they come, from the files and from the shards, with one thread and with two. Prints one
JSON line; `cpu_seconds` are those of all processes of a conversion.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import tensorflow as tf

from mrcnn_tf.data.coco import CocoDataset
from mrcnn_tf.data.pipeline import training_batches
from mrcnn_tf.data.records.dataset import RecordDataset
from mrcnn_tf.data.records.manifest import read_manifest, verify
from mrcnn_tf.data.shapes import generate_shapes

CONVERT = """
import sys
from mrcnn_tf.data.records.convert import convert
annotations, images, out, shards, workers, masks = sys.argv[1:]
convert(annotations, images, out, shards=int(shards), workers=int(workers), masks=masks)
"""


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=10000)
    parser.add_argument("--size", type=int, default=64, help="side of the images in pixels")
    parser.add_argument("--shards", type=int, default=20)
    parser.add_argument("--masks", default="rle", choices=["rle", "png", "none"])
    parser.add_argument("--kills", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    parser.add_argument("--batches", type=int, default=60, help="batches of 16 that are timed")
    parser.add_argument("--folder", help="where the sets are made and kept; a temporary one by default")
    return parser.parse_args()


def convert(args: argparse.Namespace, source: tuple[Path, Path], out: Path, workers: int) -> subprocess.Popen:
    """A conversion in a process of its own."""
    values = [*source, out, args.shards, workers, args.masks]
    return subprocess.Popen([sys.executable, "-c", CONVERT, *map(str, values)])


def finish(process: subprocess.Popen) -> None:
    """Waits for a conversion; ends the program if it failed."""
    if process.wait():
        raise SystemExit("the conversion failed")


def children_seconds() -> float:
    """CPU time of the processes that were started and have ended, and of theirs."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def disturbed(args: argparse.Namespace, source: tuple[Path, Path], out: Path) -> list[int]:
    """Kills a conversion again and again, each time after some more shards, then lets it end; shards at each kill."""
    manifest, listed = out / "manifest.json", []

    def finished() -> int:
        return len(read_manifest(manifest)["shards"]) if manifest.exists() else 0

    for goal in sorted(random.Random(args.seed).sample(range(1, args.shards), args.kills)):
        process = convert(args, source, out, 2)
        while finished() < goal and process.poll() is None:
            time.sleep(0.01)
        process.kill()
        process.wait()
        listed.append(finished())
    finish(convert(args, source, out, 2))
    return listed


def prepare(dataset: CocoDataset, size: int, threads: int, count: int) -> tuple[float, float]:
    """Training images a second that the pipeline prepares, and milliseconds of CPU time for each."""
    settings = {"canvas": (size, size), "min_sizes": (size,), "mask_size": 112, "num_parallel_calls": threads}
    batches = iter(training_batches(dataset, batch_size=16, **settings))
    for _ in range(5):
        next(batches)
    start, spent = time.perf_counter(), time.process_time()
    for _ in range(count):
        next(batches)
    seconds, spent = time.perf_counter() - start, time.process_time() - spent
    return round(16 * count / seconds, 1), round(1000 * spent / (16 * count), 2)


def main() -> None:
    """Measures and prints."""
    args = parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(args.folder or temporary)
        source = generate_shapes(folder / "source", num_images=args.images, size=args.size)
        report = {"images": args.images, "size": args.size, "shards": args.shards, "masks": args.masks}
        for workers in (1, 2):
            start, spent = time.perf_counter(), children_seconds()
            finish(convert(args, source, folder / f"of_{workers}" / "set", workers))
            seconds = time.perf_counter() - start
            report[f"cpu_seconds_{workers}"] = round(children_seconds() - spent, 1)
            report[f"converted_per_second_{workers}"] = round(args.images / seconds, 1)
        report["shards_listed_when_killed"] = disturbed(args, source, folder / "killed" / "set")
        manifests = [folder / name / "set" / "manifest.json" for name in ("of_1", "of_2", "killed")]
        sums = [[shard["sha256"] for shard in verify(path)["shards"]] for path in manifests]
        report["equal_checksums"] = sum(len(set(each)) == 1 for each in zip(*sums, strict=True))
        report["megabytes"] = round(sum(s["bytes"] for s in read_manifest(manifests[0])["shards"]) / 1e6, 1)
        sets = {"files": CocoDataset(*source), "records": RecordDataset(manifests[0])}
        for threads in (1, 2):
            # In turn, and the best of three: other programs disturb both alike.
            for name in [*sets] * 3:
                key = f"{name}_per_second_{threads}", f"{name}_cpu_ms_{threads}"
                rate, cost = prepare(sets[name], args.size, threads, args.batches)
                report[key[0]] = max(rate, report.get(key[0], 0))
                report[key[1]] = min(cost, report.get(key[1], cost))
        print(json.dumps({**report, "cores": os.cpu_count(), "tensorflow": tf.__version__}))


if __name__ == "__main__":
    main()
