"""Small data sets on disk for the tests of `mrcnn_tf.data`."""

import json

import cv2
import numpy as np
from pycocotools import mask as coco_mask


def rectangle(y1, x1, y2, x2):
    """COCO polygon of a box."""
    return [[x1, y1, x2, y1, x2, y2, x1, y2]]


def rle(mask, compressed=True):
    """COCO RLE of a dense mask, as it stands in JSON."""
    code = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    if compressed:
        return {"size": code["size"], "counts": code["counts"].decode()}
    flat = np.append(np.asarray(mask, np.uint8).T.reshape(-1), 2)
    edges = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff(np.append(0, edges)).tolist()
    return {"size": code["size"], "counts": ([0] if flat[0] else []) + counts}


def dense(segmentation, height, width):
    """Any segmentation as a dense bool mask, by pycocotools alone."""
    if isinstance(segmentation, dict):
        if isinstance(segmentation["counts"], list):
            segmentation = coco_mask.frPyObjects(segmentation, height, width)
        return coco_mask.decode(segmentation).astype(bool)
    polygons = [np.asarray(polygon, float).tolist() for polygon in segmentation]
    return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))).astype(bool)


def coco(images, annotations, categories=((1, "cat"),)):
    """COCO JSON from `(id, height, width)` and annotation dicts, with file names `<id>.png`."""
    return {
        "images": [{"id": i, "file_name": f"{i}.png", "height": h, "width": w} for i, h, w in images],
        "annotations": annotations,
        "categories": [{"id": i, "name": name} for i, name in categories],
    }


def annotation(key, image, box, category=1, **more):
    """An annotation; `box` is `(y1, x1, y2, x2)`."""
    y1, x1, y2, x2 = box
    row = {"id": key, "image_id": image, "category_id": category, "bbox": [x1, y1, x2 - x1, y2 - y1]}
    return {**row, "iscrowd": 0, **more}


def write(folder, content):
    """Write the JSON and a random picture for every image; returns what `CocoDataset` takes."""
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    for record in content["images"]:
        rng = np.random.default_rng(record["id"])
        small = rng.integers(0, 256, (8, 8, 3), np.uint8)
        picture = cv2.resize(small, (record["width"], record["height"]), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(images / record["file_name"]), picture)
    path = folder / "annotations.json"
    path.write_text(json.dumps(content))
    return path, images
