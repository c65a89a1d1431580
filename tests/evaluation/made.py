"""Generated truth and results in COCO's format, the same everywhere: rectangles, and for masks their pixels."""

from __future__ import annotations

import random

import numpy as np
from pycocotools import mask as coco_mask

SIZE = 200


def rle_of(box, size=SIZE):
    """The run-length code of a rectangle `[x, y, w, h]`."""
    x, y, w, h = box
    dense = np.zeros((size, size), np.uint8, order="F")
    dense[y : y + h, x : x + w] = 1
    return coded(dense)


def coded(dense):
    """The run-length code of a dense mask, as JSON has it."""
    code = coco_mask.encode(np.asfortranarray(dense, np.uint8))
    return {"size": code["size"], "counts": code["counts"].decode()}


def annotation(image, category, box, *, crowd=0):
    return {
        "image_id": image,
        "category_id": category,
        "bbox": list(box),
        "area": box[2] * box[3],
        "iscrowd": crowd,
        "segmentation": rle_of(box),
    }


def entry(image, category, box, score):
    return {
        "image_id": image,
        "category_id": category,
        "bbox": list(box),
        "score": score,
        "segmentation": rle_of(box),
    }


def truth_of(annotations, *, classes=3, images=None):
    ids = images if images is not None else sorted({a["image_id"] for a in annotations})
    return {
        "images": [{"id": i, "height": SIZE, "width": SIZE, "file_name": f"{i}.png"} for i in ids],
        "categories": [{"id": 10 * k, "name": f"class {k}"} for k in range(1, classes + 1)],
        "annotations": [{**a, "id": number} for number, a in enumerate(annotations)],
    }


def messy(seed, *, images=12, classes=3, crowds=0):
    """A truth, and results with errors of every kind; no two scores are equal, and no two IoUs by design."""
    rng = random.Random(seed)
    annotations, results = [], []
    for image in range(1, images + 1):
        for _ in range(rng.randint(0, 8)):
            w, h = rng.randint(15, 60), rng.randint(15, 60)
            box = [rng.randint(0, SIZE - w), rng.randint(0, SIZE - h), w, h]
            category = 10 * rng.randint(1, classes)
            annotations.append(annotation(image, category, box, crowd=int(rng.random() < crowds)))
            for _ in range(rng.choice([0, 1, 1, 1, 2, 3])):
                shift = rng.choice([1, 2, 5, 10, 20, 30])
                moved = [
                    min(max(box[0] + rng.randint(-shift, shift), 0), SIZE - w),
                    min(max(box[1] + rng.randint(-shift, shift), 0), SIZE - h),
                    w,
                    h,
                ]
                other = category if rng.random() < 0.75 else 10 * rng.randint(1, classes)
                results.append(entry(image, other, moved, round(rng.random(), 6)))
        for _ in range(rng.randint(0, 3)):
            w, h = rng.randint(10, 40), rng.randint(10, 40)
            box = [rng.randint(0, SIZE - w), rng.randint(0, SIZE - h), w, h]
            results.append(entry(image, 10 * rng.randint(1, classes), box, round(rng.random(), 6)))
    return truth_of(annotations, classes=classes, images=range(1, images + 1)), results
