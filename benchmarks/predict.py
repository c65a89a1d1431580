"""What `mrcnn predict` gains by reading and writing beside the network.

    python benchmarks/predict.py MODEL.keras photos/ clip.mp4

Turns of a plain loop (read, detect, draw, write) and of `predict_paths`, on the same files. Prints one JSON line:
pictures per second, frames counted as pictures, of each turn, and the processor's seconds of all threads.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from mrcnn_tf.allocator import keep_memory

keep_memory()

import cv2
import numpy as np

from mrcnn_tf import load_model, predict
from mrcnn_tf.data.images import read_image
from mrcnn_tf.models.mask_rcnn import MaskRCNN


def plain_loop(model: MaskRCNN, paths: list[str], out: str, *, score: float) -> int:
    """The same pictures one after the other; returns how many."""
    count = 0
    for file in predict.expand(paths):
        target = Path(out) / file.stem
        if not predict.is_video(file):
            image = read_image(file)
            found = predict.detect(model, image, score)
            predict.write_image(file, target.with_suffix(".png"), image, found, count)
            count += 1
            continue
        video, writer = cv2.VideoCapture(str(file)), cv2.VideoWriter()
        while (read := video.read())[0]:
            frame = cv2.cvtColor(read[1], cv2.COLOR_BGR2RGB)
            if not writer.isOpened():
                code, size = cv2.VideoWriter.fourcc(*"mp4v"), (frame.shape[1], frame.shape[0])
                writer.open(str(target.with_suffix(".mp4")), code, 25.0, size)
            found = predict.detect(model, frame, score)
            predict.write_frame(file, writer, frame, found, count, count, None)
            count += 1
        writer.release()
    return count


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="a .keras file")
    parser.add_argument("paths", nargs="+", help="images, videos, folders or glob patterns")
    parser.add_argument("--score", type=float, default=0.5)
    parser.add_argument("--turns", type=int, default=5, help="of each of the two")
    args = parser.parse_args()
    model = load_model(args.model)
    model.detect(np.zeros((64, 64, 3), np.uint8))
    runs: dict[str, Callable] = {"plain": plain_loop, "predict_paths": predict.predict_paths}
    rates: dict[str, list[float]] = {name: [] for name in runs}
    busy: dict[str, list[float]] = {name: [] for name in runs}
    count = 0
    for _ in range(args.turns):
        for name, run in runs.items():
            with tempfile.TemporaryDirectory() as out:
                start, used = time.perf_counter(), time.process_time()
                result = run(model, args.paths, out, score=args.score)
                seconds, used = time.perf_counter() - start, time.process_time() - used
            count = result if name == "plain" else count
            rates[name].append(round(count / seconds, 2))
            busy[name].append(round(used, 1))
    print(json.dumps({"pictures": count, "per_second": rates, "cpu_seconds": busy, "cores": os.cpu_count()}))


if __name__ == "__main__":
    main()
