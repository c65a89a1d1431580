"""Mask NMS, merging and label maps on run-length codes beside dense NumPy; and a large results file, cleaned.

    python benchmarks/postprocess.py                          # 100 masks of 800 x 1333
    python benchmarks/postprocess.py --file 5000 --folder DIR # also a file of 5000 x 100 masks: memory and time

Dense: the masks decoded to a stack, bool `[100, 800, 1333]`; IoU by one matrix product of the stack as float32; vote on
the stack of a group's masks. Both ways start from run-length codes and end with the same instances, which is checked.
The file's entries are shuffled, the worst order; its images take turns with 50 sets of masks. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from mrcnn_tf.geometry.masks import to_rle
from mrcnn_tf.postprocess.label_map import separate
from mrcnn_tf.postprocess.merge import merge_masks
from mrcnn_tf.postprocess.suppress import best_first, suppress

SIZE = (800, 1333)
# The command, then its own peak: what the kernel tells of a child begins with the memory of its parent.
CLEAN = """
import sys
from mrcnn_tf.cli import main
assert main(sys.argv[1:]) == 0
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""
Masks = list[dict[str, Any]]


def made_masks(count: int, seed: int) -> tuple[NDArray[np.float64], NDArray[np.float64], Masks]:
    """Boxes, scores and masks of wavy ellipses, 20 to 400 pixels long; every third nearly covers the one before it."""
    random = np.random.default_rng(seed)
    boxes: list[list[int]] = []
    masks = []
    for i in range(count):
        if i % 3 == 2:
            y, x, h, w = np.array(boxes[-1]) + random.integers(-3, 4, 4)
        else:
            h, w = random.integers(20, 400, 2)
            y, x = random.integers(4, SIZE[0] - h - 8), random.integers(4, SIZE[1] - w - 8)
        boxes.append([int(v) for v in (max(y, 0), max(x, 0), h, w)])
        y, x, h, w = boxes[-1]
        rows, columns = (np.arange(h)[:, None] + 0.5) * 2 / h - 1, (np.arange(w) + 0.5) * 2 / w - 1
        crop = rows**2 + columns**2 < 0.85 + 0.15 * np.sin(7 * np.arctan2(rows, columns))
        masks.append(to_rle(crop, y, x, *SIZE))
    y, x, h, w = np.array(boxes, float).T
    return np.stack([y, x, y + h, x + w], axis=1), np.round(random.random(count), 6), masks


def dense_table(masks: Masks) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """The stack, bool `[N, H, W]`, and the IoU of each pair."""
    stack = np.ascontiguousarray(coco_mask.decode(masks).transpose(2, 0, 1)).astype(bool)
    flat = stack.reshape(len(stack), -1).astype(np.float32)
    shared = (flat @ flat.T).astype(np.float64)
    areas = shared.diagonal()
    return stack, shared / (areas[:, None] + areas - shared)


def dense_nms(masks: Masks, scores: NDArray[np.float64]) -> list[int]:
    """Hard suppression above IoU 0.5."""
    _, iou = dense_table(masks)
    left = np.argsort(-scores, kind="stable")
    kept = []
    while left.size:
        kept.append(int(left[0]))
        left = left[1:][iou[left[0], left[1:]] <= 0.5]
    return kept


def dense_vote(masks: Masks, scores: NDArray[np.float64]) -> list[bytes]:
    """A vote of each connected group above IoU 0.5, as codes."""
    stack, iou = dense_table(masks)
    left = np.argsort(-scores, kind="stable")
    made = []
    while left.size:
        group = np.zeros(len(scores), bool)
        group[left[0]] = True
        while (grown := (iou[group] > 0.5).any(axis=0)).sum() > group.sum():
            group = grown
        weights = scores[group]
        one = np.tensordot(weights, stack[group].astype(np.float64), 1) >= (0.5 - 1e-9) * weights.sum()
        made.append(coco_mask.encode(np.asfortranarray(one, np.uint8))["counts"])
        left = left[~group[left]]
    return made


def dense_separate(masks: Masks, scores: NDArray[np.float64]) -> list[bytes]:
    """Every pixel to the best there, as codes of what has pixels left."""
    order = np.argsort(-scores, kind="stable")
    stack = np.ascontiguousarray(coco_mask.decode([masks[i] for i in order]).transpose(2, 0, 1)).astype(bool)
    owner = np.where(stack.any(axis=0), stack.argmax(axis=0), -1)
    pieces = [owner == i for i in range(len(order))]
    return [coco_mask.encode(np.asfortranarray(p, np.uint8))["counts"] for p in pieces if p.any()]


def fastest(run: Callable[[], Any], turns: int) -> tuple[float, Any]:
    """Seconds of the fastest turn, and what it gave."""
    seconds = []
    for _ in range(turns):
        start = time.perf_counter()
        made = run()
        seconds.append(time.perf_counter() - start)
    return min(seconds), made


def compare(turns: int) -> dict[str, Any]:
    """Milliseconds and ratios of each step on 100 masks."""
    boxes, scores, masks = made_masks(100, 0)
    ones = np.ones(100, int)
    assert best_first(boxes, scores, ones, masks).tolist() == np.argsort(-scores, kind="stable").tolist()
    pairs: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
        "mask_nms": (
            lambda: suppress(boxes, scores, ones, masks=masks, measure="mask")[0].tolist(),
            lambda: dense_nms(masks, scores),
        ),
        "merge_vote": (
            lambda: [m["counts"] for m in merge_masks(masks, scores, ones, keep="vote").masks],
            lambda: dense_vote(masks, scores),
        ),
        "no_overlap": (
            lambda: [m["counts"] for m in separate(masks, scores, ones, image_size=SIZE)[1]],
            lambda: dense_separate(masks, scores),
        ),
    }
    report = {}
    for name, (own, dense) in pairs.items():
        (own_s, made), (dense_s, expected) = fastest(own, turns), fastest(dense, turns)
        assert made == expected, f"{name}: the two ways differ"
        report[name] = {
            "ms": round(own_s * 1e3, 2),
            "dense_ms": round(dense_s * 1e3, 1),
            "ratio": round(dense_s / own_s, 1),
            "instances": len(made),
        }
    return report


def write_file(path: Path, images: int) -> None:
    """A results file, its entries in random order."""
    sets = [made_masks(100, seed) for seed in range(50)]
    random = np.random.default_rng(0)
    with open(path, "w", encoding="utf-8") as file:
        before = "["
        for number in random.permutation(images * 100).tolist():
            image_id, i = divmod(number, 100)
            boxes, scores, masks = sets[image_id % 50]
            y1, x1, y2, x2 = boxes[i].tolist()
            entry = {
                "image_id": image_id,
                "category_id": 1 + i % 80,
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "score": float(scores[i]),
                "segmentation": {"size": list(SIZE), "counts": masks[i]["counts"].decode()},
            }
            file.write(before + json.dumps(entry))
            before = ",\n"
        file.write("]")


def clean_large(images: int, folder: str | None) -> dict[str, Any]:
    """Time and peak memory of `mrcnn clean` in a process of its own."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        path, out = Path(place) / "results.json", Path(place) / "clean.json"
        write_file(path, images)
        start = time.perf_counter()
        settings = ["--merge", "vote", "--rule", "connected"]
        run = [sys.executable, "-c", CLEAN, "clean", str(path), "--out", str(out), *settings]
        *told, peak = subprocess.run(run, check=True, capture_output=True, text=True).stdout.splitlines()
        print("\n".join(told), file=sys.stderr)
        return {
            "entries": images * 100,
            "megabytes": round(path.stat().st_size / 1e6),
            "seconds": round(time.perf_counter() - start, 1),
            "peak_rss_mb": round(int(peak) / 1024),
        }


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--turns", type=int, default=5, help="of each way; the fastest counts")
    parser.add_argument(
        "--file", type=int, metavar="IMAGES", help="clean a file of so many images, 100 masks each"
    )
    parser.add_argument("--folder", metavar="DIR", help="for this file; 0.2 GB per 5000 images")
    args = parser.parse_args()
    report: dict[str, Any] = compare(args.turns)
    if args.file:
        report["file"] = clean_large(args.file, args.folder)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
