"""Tiled inference on large images: memory, time, and whether every instance comes out once.

    python benchmarks/tiling.py                    8000 x 8000, 2,000 instances, a detector that errs in nothing
    python benchmarks/tiling.py --network 10       the same; 10 tiles go through a ResNet-50 FPN Mask R-CNN as well
    python benchmarks/tiling.py --model M.keras    a model of the quickstart, on a mosaic of its generated pictures
    python benchmarks/tiling.py --draw big.png     a mosaic of 8000 x 8000 pixels for `mrcnn predict`

In the first two, the pixels of an instance hold its number, which the detector reads: of an instance it sees what lies
in the tile (tests/numbered.py). A third is drawn across borders or corners of tiles, many are two that touch, some are
longer than a tile. The network has fresh weights and its detections are dropped; it is there for its memory. The
mosaic is cut into tiles elsewhere than where it was put together, and compared with the model on each of its pictures
alone. Prints JSON lines; `peak_gb` is the most memory that the process has had (RSS), image included.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from mrcnn_tf.data.scene import SHAPE_CLASSES, draw_scene
from mrcnn_tf.evaluation.coco import evaluate_coco
from mrcnn_tf.geometry.masks import rle_to_crop, to_rle
from mrcnn_tf.models.detections import Detections
from mrcnn_tf.tiling import detect_tiled, tiles_of
from mrcnn_tf.visualize import save
from tests.numbered import Perfect, classes_of, draw_numbered


class WithNetwork(Perfect):
    """A perfect detector that runs a network on its first pictures, too, and drops what it finds."""

    def __init__(self, pictures: int):
        from mrcnn_tf.models.mask_rcnn import MaskRCNN

        self.left, self.network = pictures, MaskRCNN(["even", "odd"], score_threshold=0.0)

    def detect(self, image: NDArray[np.uint8], score_threshold: float = 0.0) -> Detections:
        """What is there."""
        if self.left:
            self.network.detect(image)
            self.left -= 1
        return super().detect(image, score_threshold)


def numbered(size: int, count: int, tile: int, overlap: int, network: int) -> dict[str, Any]:
    """The perfect detector, compared with the truth."""
    image, truth = draw_numbered(size, count, tile, overlap)
    model = WithNetwork(network) if network else Perfect()
    start = time.perf_counter()
    found = detect_tiled(model, image, tile=tile, overlap=overlap)
    seconds = time.perf_counter() - start
    number = {rle["counts"].decode(): n for n, rle in enumerate(truth, 1)}
    equal = [number.get(rle["counts"], 0) for rle in found.rles()]
    tiles = np.array(tiles_of(size, size, tile, overlap))
    x, y, w, h = coco_mask.toBbox(truth).T
    low, high = np.stack([y, x], -1)[:, None], np.stack([y + h, x + w], -1)[:, None]
    return {
        "tiles": len(tiles),
        "instances": count,
        "in_more_than_one_tile": int(
            (((low < tiles[:, 2:]) & (high > tiles[:, :2])).all(-1).sum(1) > 1).sum()
        ),
        "whole_in_none": int((~((low >= tiles[:, :2]) & (high <= tiles[:, 2:])).all(-1).any(1)).sum()),
        "longer_than_a_tile": int((np.maximum(w, h) > tile).sum()),
        "detections": len(found),
        "equal_to_an_instance": len(set(equal) - {0}),
        "right_class": int((classes_of(equal) == found.class_ids).sum()),
        "seconds": round(seconds, 1),
        "peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 2),
    }


def mosaic(pictures: int, size: int) -> tuple[NDArray[np.uint8], dict[str, Any]]:
    """Generated pictures side by side, `pictures` each way, as one image and its COCO annotations."""
    side = pictures * size
    image, rows = np.zeros((side, side, 3), np.uint8), []
    for y, x, y2, x2 in squares(pictures, size):
        image[y:y2, x:x2], scene = draw_scene(np.random.default_rng([2026, y, x]), size, 0.5)
        for row in scene:
            code = row["segmentation"]
            if isinstance(code, list):
                code = coco_mask.merge(coco_mask.frPyObjects(code, size, size))
            left, top, w, h = row["bbox"]
            row["bbox"], row["segmentation"] = [left + x, top + y, w, h], moved(code, y, x, side)
            rows.append({"id": len(rows) + 1, "image_id": 1, "iscrowd": 0, **row})
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(SHAPE_CLASSES)]
    truth = {
        "images": [{"id": 1, "height": side, "width": side}],
        "categories": categories,
        "annotations": rows,
    }
    return image, truth


def squares(pictures: int, size: int) -> list[tuple[int, int, int, int]]:
    """Where the pictures of a mosaic are, `(y1, x1, y2, x2)`."""
    starts = range(0, pictures * size, size)
    return [(y, x, y + size, x + size) for y in starts for x in starts]


def moved(rle: dict[str, Any], y: int, x: int, side: int) -> dict[str, Any]:
    """A picture's mask on the mosaic."""
    crop, y0, x0 = rle_to_crop(rle)
    rle = to_rle(crop, y0 + y, x0 + x, side, side)
    return {"size": rle["size"], "counts": rle["counts"].decode()}


def generated(file: str, pictures: int, tile: int | None, overlap: int | None) -> list[dict[str, Any]]:
    """A trained model on the mosaic's pictures, and on its tiles."""
    from mrcnn_tf import load_model

    model = load_model(file)
    size = model.min_size
    image, truth = mosaic(pictures, size)
    side = len(image)

    def report(how: str, entries: list[dict[str, Any]], seconds: float) -> dict[str, Any]:
        metrics = evaluate_coco(truth, entries, max_detections=(1, 10, 100 * pictures**2))
        return {
            "how": how,
            "instances": len(truth["annotations"]),
            "from_score_0.5": sum(e["score"] >= 0.5 for e in entries),
            **{k: round(metrics[k], 3) for k in ("bbox/AP", "segm/AP", "segm/AP50")},
            "seconds": round(seconds, 1),
        }

    model.detect(image[:size, :size].copy())
    alone: list[dict[str, Any]] = []
    start = time.perf_counter()
    for y, x, y2, x2 in squares(pictures, size):
        for entry in model.detect(image[y:y2, x:x2].copy()).to_coco(1):
            left, top, w, h = entry["bbox"]
            code = moved(entry["segmentation"], y, x, side)
            alone.append({**entry, "bbox": [left + x, top + y, w, h], "segmentation": code})
    rows = [report(f"{pictures**2} pictures alone", alone, time.perf_counter() - start)]
    start = time.perf_counter()
    found = detect_tiled(model, image, tile=tile or size, overlap=overlap)
    seconds = time.perf_counter() - start
    count = len(tiles_of(side, side, tile or size, overlap))
    return [*rows, report(f"{count} tiles", found.to_coco(1), seconds)]


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=int, default=8000, help="of the image with numbered instances")
    parser.add_argument("--count", type=int, default=2000, help="of its instances")
    parser.add_argument("--network", type=int, default=0, metavar="TILES")
    parser.add_argument("--model", metavar="KERAS")
    parser.add_argument("--draw", metavar="PNG")
    parser.add_argument("--pictures", type=int, default=8, help="of the mosaic, each way")
    parser.add_argument("--tile", type=int, help="default: 1024, or the model's size")
    parser.add_argument("--overlap", type=int, help="default: a quarter of the tile")
    args = parser.parse_args()
    rows = []
    if args.draw:
        save(args.draw, mosaic(20, 400)[0])
    elif args.model:
        rows = generated(args.model, args.pictures, args.tile, args.overlap)
    else:
        tile = args.tile or 1024
        rows = [numbered(args.size, args.count, tile, args.overlap or tile // 4, args.network)]
    for row in rows:
        print(json.dumps(row))


if __name__ == "__main__":
    main()
