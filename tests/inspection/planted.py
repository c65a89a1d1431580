"""A small set of squares on noise with results whose mistakes are known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as coco_mask

SIDE = 64


def rle(box: tuple[int, int, int, int]) -> dict[str, Any]:
    """The mask of a box `(x, y, w, h)`."""
    x, y, w, h = box
    mask = np.zeros((SIDE, SIDE), np.uint8, order="F")
    mask[y : y + h, x : x + w] = 1
    code = coco_mask.encode(mask)
    return {"size": [SIDE, SIDE], "counts": code["counts"].decode()}


def entry(image: int, category: int, box: tuple[int, int, int, int], score: float) -> dict[str, Any]:
    """One of a results file."""
    return {
        "image_id": image,
        "category_id": category,
        "bbox": list(box),
        "score": score,
        "segmentation": rle(box),
    }


def planted(
    *, images: int = 4, classes: tuple[str, ...] = ("cat", "dog")
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Truth and results: on each image a cat and a dog; on the second a duplicate, on the third a miss.

    On the fourth, the dog is taken for a cat. The images are called 10.png, 20.png, ...
    """
    boxes = (4, 6, 20, 24), (34, 30, 24, 20)
    truth: dict[str, Any] = {
        "images": [
            {"id": 10 * (i + 1), "file_name": f"{10 * (i + 1)}.png", "height": SIDE, "width": SIDE}
            for i in range(images)
        ],
        "categories": [{"id": 3 + i, "name": name} for i, name in enumerate(classes)],
        "annotations": [],
    }
    results = []
    for image in truth["images"]:
        for category, box in zip((3, 4), boxes, strict=True):
            x, y, w, h = box
            polygon = [x, y, x + w, y, x + w, y + h, x, y + h]
            truth["annotations"].append(
                {
                    **{"id": len(truth["annotations"]) + 1, "image_id": image["id"], "category_id": category},
                    **{"bbox": list(box), "area": w * h, "iscrowd": 0, "segmentation": [polygon]},
                }
            )
            if (image["id"], category) != (30, 4):
                found = 3 if (image["id"], category) == (40, 4) else category
                results.append(entry(image["id"], found, box, 0.9 - image["id"] / 1000))
    if images > 1:
        results.append(entry(20, 3, (5, 7, 20, 24), 0.6))
    return truth, results


def write(folder: Path, truth: Any, results: Any) -> dict[str, Path]:
    """Files of a set, as arguments of `inspect`."""
    folder.mkdir(parents=True, exist_ok=True)
    images = folder / "images"
    images.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    for image in truth["images"]:
        pixels = rng.integers(0, 256, (image["height"], image["width"], 3), np.uint8)
        cv2.imwrite(str(images / image["file_name"]), pixels)
    (folder / "truth.json").write_text(json.dumps(truth))
    (folder / "results.json").write_text(json.dumps(results))
    return {"annotations": folder / "truth.json", "results": folder / "results.json", "images": images}
