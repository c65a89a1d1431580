"""COCO run-length codes of 100 masks of an image of 800 x 1333: from their crops, and from dense masks.

    python benchmarks/encode_masks.py

Masks are 28 x 28 probabilities on generated boxes of COCO's sizes. In turns, all from these to codes:

- `crops`: this project's way, each mask pasted into its box's window and encoded from there;
- `dense`: the masks pasted, by the same function, into `[N, H, W]` for the whole image, and each of these brought
  into pycocotools' order, column by column, and encoded: the way of Detectron2 and of most others;
- `dense by columns`: one mask of the image after the other, which lies column by column from the start and in the
  cache: the best that pycocotools can have.

And the last step alone: `encode crops`, and `encode dense` of all masks, lying column by column already.
Prints milliseconds, best and median of the turns, and the ratios of the bests; ends with an error if a code differs.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from mrcnn_tf.geometry.masks import paste, to_rle

HEIGHT, WIDTH = 800, 1333
# Of COCO's instances 41 % are small (sides up to 32), 35 % medium (up to 96) and 24 % large, on images of 480 x 640.
SIDES, SHARES = ((8, 32), (32, 96), (96, 400)), (0.41, 0.35, 0.24)

Crops = list[tuple[NDArray[np.bool_], int, int]]


def make_masks(count: int, seed: int = 0) -> list[tuple[NDArray[np.float32], NDArray[np.float64]]]:
    """Probabilities `[28, 28]` of wavy discs, and boxes `[y1, x1, y2, x2]` inside the image."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[-1:1:28j, -1:1:28j]
    angle, radius = np.arctan2(y, x), np.hypot(y, x)
    masks = []
    for low, high in np.array(SIDES)[rng.choice(3, count, p=SHARES)]:
        side = np.exp(rng.uniform(np.log(low), np.log(high))) * HEIGHT / 480
        stretch = np.exp(rng.normal(0, 0.4))
        size = np.minimum([side * stretch, side / stretch], [HEIGHT, WIDTH])
        corner = rng.uniform(0, 1, 2) * ([HEIGHT, WIDTH] - size)
        edge = 0.8 + sum(rng.normal(0, 0.1) * np.sin(k * angle + rng.uniform(0, 6.3)) for k in range(1, 7))
        mask = 1 / (1 + np.exp(12 * (radius - edge)))
        masks.append((mask.astype(np.float32), np.append(corner, corner + size)))
    return masks


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--turns", type=int, default=9, help="of each")
    turns = parser.parse_args().turns
    masks = make_masks(100)

    def crops(order: str = "F") -> Crops:
        pasted = (paste(mask, box, HEIGHT, WIDTH, order) for mask, box in masks)
        return [(crop >= 0.5, y0, x0) for crop, y0, x0 in pasted]

    def from_crops(crops: Crops) -> list[Any]:
        return [to_rle(*crop, HEIGHT, WIDTH) for crop in crops]

    def dense(crops: Crops, order: str) -> NDArray[np.uint8]:
        """`[N, H, W]`, each mask row by row or column by column."""
        planes = np.zeros((len(crops), HEIGHT, WIDTH), np.uint8)
        if order == "F":
            planes = np.zeros((len(crops), WIDTH, HEIGHT), np.uint8).transpose(0, 2, 1)
        for plane, (crop, y0, x0) in zip(planes, crops, strict=True):
            plane[y0 : y0 + crop.shape[0], x0 : x0 + crop.shape[1]] = crop
        return planes

    def from_dense(planes: NDArray[np.uint8]) -> list[Any]:
        return [coco_mask.encode(np.asfortranarray(plane)) for plane in planes]

    def by_columns() -> list[Any]:
        return [from_dense(dense([crop], "F"))[0] for crop in crops()]

    made = crops()
    columns = dense(made, "F")
    ways: dict[str, Callable[[], list[Any]]] = {
        "crops": lambda: from_crops(crops()),
        "dense": lambda: from_dense(dense(crops("C"), "C")),
        "dense by columns": by_columns,
        "encode crops": lambda: from_crops(made),
        "encode dense": lambda: from_dense(columns),
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    wanted = from_dense(columns)
    for _ in range(turns):
        for way, codes in ways.items():
            start = time.perf_counter()
            result = codes()
            seconds[way].append(time.perf_counter() - start)
            if result != wanted:
                sys.exit(f"error: {way} gives other codes")
    share = np.mean([np.prod(box[2:] - box[:2]) for _, box in masks]) / (HEIGHT * WIDTH)
    print(f"100 masks, boxes of {share:.1%} of the image in the mean; all codes are the same")
    best = {way: min(times) for way, times in seconds.items()}
    for way, times in seconds.items():
        print(f"{way:<18}{1e3 * best[way]:>8.1f} ms best{1e3 * statistics.median(times):>8.1f} ms median")
    for one, other in (("crops", "dense"), ("crops", "dense by columns"), ("encode crops", "encode dense")):
        print(f"{one} / {other}: {best[one] / best[other]:.3f}")


if __name__ == "__main__":
    main()
