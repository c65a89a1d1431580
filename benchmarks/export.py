"""Time of a model's `detect` beside its exported SavedModels', in turn; and their AP.

    python benchmarks/export.py --size 800x1344                        ResNet-50 with random weights
    python benchmarks/export.py --model M.keras --annotations A.json --images DIR --first 100

The calls compared are `model.detect(image)` and the signature `image`, which return the same. `--calls files` compares
`model.detect(read_image(file))` with the signature `serving_default`. Both float32 and bfloat16 are exported. Each is
timed in processes of its own, as a server has it: TensorFlow's oneDNN kernels keep what they prepared for one graph and
use it in another of the same shapes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from mrcnn_tf.allocator import keep_memory

keep_memory()

import cv2
import numpy as np
import tensorflow as tf

from mrcnn_tf.data.coco import CocoDataset
from mrcnn_tf.data.images import read_image
from mrcnn_tf.evaluation.huddled import evaluate_all
from mrcnn_tf.evaluation.run import category_ids
from mrcnn_tf.export.check import detections_of
from mrcnn_tf.export.saved_model import PRECISIONS, export_saved_model
from mrcnn_tf.models.mask_rcnn import MaskRCNN
from mrcnn_tf.models.mask_refining_rcnn import MaskRefiningRCNN
from mrcnn_tf.training.checkpoints import load_model


def random_model(size: tuple[int, int], refining: bool) -> MaskRCNN:
    """ResNet-50-FPN for 90 classes that finds 100 instances in any image."""
    names = [f"class{i}" for i in range(90)]
    kind = MaskRefiningRCNN if refining else MaskRCNN
    model = kind(names, min_size=min(size), max_size=max(size), score_threshold=0.0)
    for block in model.backbone.blocks:  # keeps random activations near unit size
        gamma = block.convs[-1].norm.gamma
        gamma.assign(np.full(gamma.shape, 0.25))
    return model


def seconds(kind: str, source: Path, image: Path, calls: str, repeats: int) -> list[float]:
    """Times one variant in this process: `keras`, whose source is a .keras file, or an exported folder."""
    pixels, data = read_image(image), image.read_bytes()
    if kind == "keras":
        model = load_model(source)
        run = {"pixels": lambda: model.detect(pixels), "files": lambda: model.detect(read_image(image))}
    else:
        served = tf.saved_model.load(str(source)).signatures
        run = {
            "pixels": lambda: served["image"](images=tf.constant(pixels)[None]),
            "files": lambda: served["serving_default"](image_bytes=tf.constant([data])),
        }
    for _ in range(3):
        run[calls]()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run[calls]()
        times.append(time.perf_counter() - start)
    return times


def precisions_ap(model: MaskRCNN, served: dict, dataset: CocoDataset, first: int | None) -> None:
    """Prints box and mask AP of the model and of each exported folder."""
    ids = category_ids(model.class_names, dataset)
    count = min(len(dataset), first or len(dataset))
    truth = dataset.ground_truth()
    seen = set(dataset.image_ids[:count])
    truth["images"] = [image for image in truth["images"] if image["id"] in seen]
    truth["annotations"] = [a for a in truth["annotations"] if a["image_id"] in seen]

    def of_folder(signatures, image):
        outputs = signatures["image"](images=tf.constant(image)[None])
        found = detections_of({k: v.numpy() for k, v in outputs.items()}, 0)
        own = {"boxes": found.boxes, "scores": found.scores, "classes": found.class_ids, "masks": found.masks}
        return model.results(own, found.image_size, ids)

    def of_model(image):
        found = model.detect(image)
        own = {"boxes": found.boxes, "scores": found.scores, "classes": found.class_ids, "masks": found.masks}
        return model.results(own, found.image_size, ids)

    runs = {"keras": of_model}
    runs |= {name: lambda image, s=s: of_folder(s, image) for name, s in served.items()}
    print("\n| | box AP | mask AP |\n|---|---:|---:|")
    for name, run in runs.items():
        results = [row for i in range(count) for row in run(dataset.image(i)).to_coco(dataset.image_ids[i])]
        metrics = evaluate_all(truth, results)
        print(f"| {name} | {100 * metrics['bbox/AP']:.2f} | {100 * metrics['segm/AP']:.2f} |")


def main() -> None:
    """See above."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", help="a .keras file; default: ResNet-50 with random weights")
    parser.add_argument("--refining", action="store_true", help="with random weights: MR R-CNN")
    parser.add_argument("--size", default="800x1344", help="of the image that is timed")
    parser.add_argument("--calls", choices=("pixels", "files"), default="pixels")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--annotations", help="compare AP on this data set")
    parser.add_argument("--images", help="folder of its images")
    parser.add_argument("--first", type=int, help="only its first N images")
    parser.add_argument("--rounds", type=int, default=3, help="processes of each kind, in turn")
    parser.add_argument("--worker", nargs=4, metavar="X", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        kind, source, file, calls = args.worker
        print(json.dumps(seconds(kind, Path(source), Path(file), calls, args.repeats)))
        return
    size = tuple(int(side) for side in args.size.split("x"))
    model = load_model(args.model) if args.model else random_model(size, args.refining)
    with tempfile.TemporaryDirectory() as scratch:
        # A lossless file, so that both sides decode the same.
        image, sources = Path(scratch) / "image.png", {"keras": Path(scratch) / "model.keras"}
        noise = np.random.default_rng(0).integers(0, 256, (size[0] // 16, size[1] // 16, 3), np.uint8)
        cv2.imwrite(str(image), cv2.resize(noise, size[::-1]))
        model.save(sources["keras"])
        for name in PRECISIONS:
            sources[name] = export_saved_model(model, Path(scratch) / name, precision=name, check=False)
            size_on_disk = sum(p.stat().st_size for p in sources[name].rglob("*") if p.is_file())
            print(f"{name}: {size_on_disk / 1e6:.1f} MB")
        print(f"{len(model.detect(read_image(image)))} detections on {args.size}", flush=True)
        times: dict[str, list[list[float]]] = {name: [] for name in sources}
        for _ in range(args.rounds):
            for name, source in sources.items():
                command = [sys.executable, __file__, "--worker", name, str(source), str(image), args.calls]
                done = subprocess.run(
                    [*command, "--repeats", str(args.repeats)], stdout=subprocess.PIPE, check=True
                )
                times[name].append(json.loads(done.stdout.splitlines()[-1]))
        best = {name: [min(values) for values in rounds] for name, rounds in times.items()}
        print("\n| | median | least of each process | over keras |\n|---|---:|---:|---:|")
        for name, rounds in times.items():
            least = ", ".join(f"{value:.3f}" for value in best[name])
            ratio = np.median(best[name]) / np.median(best["keras"])
            print(f"| {name} | {np.median(rounds):.3f} | {least} | {ratio:.3f} |")
        if args.annotations:
            served = {name: tf.saved_model.load(str(sources[name])).signatures for name in PRECISIONS}
            precisions_ap(model, served, CocoDataset(args.annotations, args.images), args.first)


if __name__ == "__main__":
    main()
