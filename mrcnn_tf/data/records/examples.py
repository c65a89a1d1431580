"""One image with its instances as the features of a `tf.train.Example`, and back.

The names and types are those of the TensorFlow Object Detection API and of the Model Garden
(official/vision/data/create_coco_tf_record.py). Boxes there are float32 shares of the image, and masks are pixels:
neither gives COCO's numbers back. So two features of our own hold the image's part of the annotation file as it is,
`coco/image` and `coco/annotations`, as JSON text; where they are, nothing else is read but the image.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from mrcnn_tf.data.images import to_rgb
from mrcnn_tf.data.records.files import Features, decode_example, encode_example
from mrcnn_tf.data.structure import mask_area, parse_box, parse_segmentation

MASKS = ("rle", "png", "none")  # how masks are written beside `coco/annotations`

_SIDES = ("ymin", "xmin", "ymax", "xmax")
_FORMATS = {
    b"\xff\xd8": b"jpeg",
    b"\x89P": b"png",
    b"RI": b"webp",
    b"BM": b"bmp",
    b"II": b"tiff",
    b"MM": b"tiff",
}


def to_example(
    record: dict[str, Any],
    rows: list[dict[str, Any]],
    image: bytes,
    *,
    class_names: dict[int, str],
    masks: str,
) -> bytes:
    """An image and its annotations as a serialised `tf.train.Example`.

    Args:
        record: the image's entry in the COCO file.
        rows: its annotations, sound as `structure_problems` has it.
        image: content of the image file.
        class_names: of every category id.
        masks: "png", the API's `image/object/mask`, 0 and 1 over the whole image; "rle", COCO's compressed counts in
            `image/object/mask_counts`; or "none".

    Returns:
        The features of the API have the annotations with a box in the image, clipped to it. All zeros is the PNG of
        an instance without a mask, and no bytes its counts.
    """
    height, width = record["height"], record["width"]
    features: Features = {
        "image/height": [height],
        "image/width": [width],
        "image/filename": [record["file_name"].encode()],
        "image/source_id": [str(record["id"]).encode()],
        "image/key/sha256": [hashlib.sha256(image).hexdigest().encode()],
        "image/encoded": [image],
        "image/format": [_FORMATS.get(image[:2], Path(record["file_name"]).suffix[1:].lower().encode())],
        "coco/image": [json.dumps(record).encode()],
        "coco/annotations": [json.dumps(rows).encode()],
    }
    objects: dict[str, list[Any]] = {
        name: [] for name in (*_SIDES, "label", "text", "is_crowd", "area", "mask")
    }
    for row in rows:
        segmentation = parse_segmentation(row.get("segmentation"), height, width)
        box = parse_box(row, segmentation)
        if fate_of(box, height, width):
            continue
        clipped = np.clip(box, 0, [height, width, height, width]) / [height, width, height, width]
        for side, value in zip(_SIDES, clipped.tolist(), strict=True):
            objects[side].append(value)
        objects["label"].append(row["category_id"])
        objects["text"].append(class_names[row["category_id"]].encode())
        objects["is_crowd"].append(int(bool(row.get("iscrowd", 0))))
        area = row.get("area")
        if area is None:
            y1, x1, y2, x2 = box
            area = (y2 - y1) * (x2 - x1) if segmentation is None else mask_area(segmentation, height, width)
        objects["area"].append(float(area))
        if masks != "none":
            code = None if segmentation is None else _rle(segmentation, height, width)
            objects["mask"].append(
                _png(code, height, width) if masks == "png" else (code or {}).get("counts", b"")
            )
    for name in (*_SIDES, "label", "text", "is_crowd", "area"):
        group = "bbox/" if name in _SIDES else "class/" if name in ("label", "text") else ""
        features[f"image/object/{group}{name}"] = objects[name]
    features["image/object/mask" if masks == "png" else "image/object/mask_counts"] = objects["mask"]
    return encode_example(features)


def fate_of(box: tuple[float, ...], height: int, width: int) -> int:
    """0 if a box `(y1, x1, y2, x2)` is of use; 1 if it has no area, 2 if it lies outside the image."""
    y1, x1, y2, x2 = box
    if not (y2 > y1 and x2 > x1):
        return 1
    return 0 if min(y2, height) > max(y1, 0.0) and min(x2, width) > max(x1, 0.0) else 2


def _rle(segmentation: list[np.ndarray] | dict[str, Any], height: int, width: int) -> dict[str, Any]:
    """The pixels of a parsed segmentation as a compressed RLE, `counts` in bytes."""
    if isinstance(segmentation, dict):
        counts = segmentation["counts"]
        return {**segmentation, "counts": counts.encode() if isinstance(counts, str) else counts}
    # The rasteriser's memory grows with the length of the outline: points far outside are drawn nearer.
    limits = np.array([[-width, -height], [2 * width, 2 * height]], np.float64)
    polygons = [np.clip(polygon.reshape(-1, 2), *limits).reshape(-1).tolist() for polygon in segmentation]
    return coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))


def _png(code: dict[str, Any] | None, height: int, width: int) -> bytes:
    mask = np.zeros((height, width), np.uint8) if code is None else coco_mask.decode(code)
    return cv2.imencode(".png", np.ascontiguousarray(mask))[1].tobytes()


def read_example(
    data: bytes, where: str, *, masks: bool = True
) -> tuple[Features, dict[str, Any], list[dict[str, Any]]]:
    """The features of a serialised example, and the image's entry and annotations as a COCO file has them.

    Args:
        data: `tf.train.Example` with the features of `to_example`, of the Object Detection API or the Model Garden.
        where: begins the message of an error: file and place.
        masks: decode the PNGs of foreign examples, which takes most of the time.

    Returns:
        `(features, record, rows)`. Of foreign examples, the record's `id` is the source id, a string, and rows
        have no `id`; both get theirs when the whole set is known. An all-zero PNG is no mask.

    Raises:
        ValueError: if the image, boxes or labels are missing or do not agree.
    """
    try:
        features = decode_example(data)
        if not features.get("image/encoded"):
            raise ValueError("has no feature 'image/encoded'; is this a data set for detection?")
        if "coco/image" in features and "coco/annotations" in features:
            return (
                features,
                json.loads(features["coco/image"][0]),
                json.loads(features["coco/annotations"][0]),
            )
        record = _foreign_record(features, where)
        return features, record, _foreign_rows(features, record["height"], record["width"], masks)
    except ValueError as error:
        raise ValueError(str(error) if str(error).startswith(where) else f"{where}: {error}") from None


def _foreign_record(features: Features, where: str) -> dict[str, Any]:
    height, width = (int((features.get(f"image/{side}") or [0])[0]) for side in ("height", "width"))
    if height < 1 or width < 1:
        height, width = to_rgb(np.frombuffer(features["image/encoded"][0], np.uint8), where).shape[:2]
    source, name = ((features.get(f"image/{key}") or [b""])[0].decode() for key in ("source_id", "filename"))
    return {"id": source, "file_name": name or source, "height": height, "width": width}


def _foreign_rows(features: Features, height: int, width: int, decode: bool) -> list[dict[str, Any]]:
    sides = [features.get(f"image/object/bbox/{side}", []) for side in _SIDES]
    labels = features.get("image/object/class/label", [])
    crowd, areas, masks = (features.get(f"image/object/{key}", []) for key in ("is_crowd", "area", "mask"))
    count = len(labels)
    if any(len(side) != count for side in sides):
        raise ValueError(f"has {count} class labels, but {[len(side) for side in sides]} {', '.join(_SIDES)}")
    for key, values in (("is_crowd", crowd), ("area", areas), ("mask", masks)):
        if values and (len(values) != count or (key == "mask" and not isinstance(values[0], bytes))):
            hint = " (masks must be one PNG for each)" if key == "mask" else ""
            raise ValueError(f"has {len(values)} values of image/object/{key} for {count} objects{hint}")
    rows = []
    for k in range(count):
        y1, x1, y2, x2 = (side[k] * length for side, length in zip(sides, (height, width) * 2, strict=True))
        row = {"category_id": labels[k], "bbox": [x1, y1, x2 - x1, y2 - y1]}
        row["iscrowd"] = int(bool(crowd[k])) if crowd else 0
        if areas:
            row["area"] = areas[k]
        if masks and decode:
            row["segmentation"] = _from_png(masks[k], k, height, width)
        rows.append(row)
    return rows


def _from_png(data: bytes, k: int, height: int, width: int) -> dict[str, Any] | None:
    mask = (
        cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE)
        if data
        else np.zeros((height, width))
    )
    if mask is None or mask.shape != (height, width):
        found = "not a readable PNG" if mask is None else f"{mask.shape[0]} high and {mask.shape[1]} wide"
        raise ValueError(f"the mask of object {k} is {found}, its image {height} high and {width} wide")
    if not mask.any():
        return None
    code = coco_mask.encode(np.asfortranarray(mask > 0, np.uint8))
    return {"size": [height, width], "counts": code["counts"].decode()}
