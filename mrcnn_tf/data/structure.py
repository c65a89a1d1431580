"""Reading a COCO annotation file and finding what is wrong with its structure, before any image is opened."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from mrcnn_tf.geometry.masks import rle_counts


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a data set.

    Attributes:
        level: "error" (training would break or learn something wrong) or "warning".
        kind: short name of the sort of problem, the same for all of a sort.
        message: one line for a person; does not repeat file and ids.
        file: the image's file name, or "" if it is about the annotation file.
        image_id, annotation_id: as in the annotation file, or None.
    """

    level: str
    kind: str
    message: str
    file: str = ""
    image_id: Any = None
    annotation_id: Any = None

    def __str__(self) -> str:
        """One line with file, ids and message."""
        where = [self.file] if self.file else []
        where += [f"image {self.image_id}"] if self.image_id is not None else []
        where += [f"annotation {self.annotation_id}"] if self.annotation_id is not None else []
        return f"{', '.join(where)}: {self.message}" if where else self.message


def read_json(path: str | Path) -> dict[str, Any]:
    """Read a COCO annotation file.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not whole JSON (with the position), or not an object with `images`.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such annotation file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read as text ({error})") from None
    try:
        coco = json.loads(text)
    except json.JSONDecodeError as error:
        cut = "" if text.rstrip().endswith(("}", "]")) else "; it breaks off, copy it again"
        raise ValueError(
            f"{path}: not valid JSON at line {error.lineno} column {error.colno} "
            f"(character {error.pos} of {len(text)}): {error.msg}{cut}"
        ) from None
    if not isinstance(coco, dict) or not isinstance(coco.get("images"), list):
        hint = " (a list is what a results file holds)" if isinstance(coco, list) else ""
        raise ValueError(f"{path}: not COCO annotations, which are an object with 'images'{hint}")
    return coco


@dataclass(frozen=True)
class Parsed:
    """A sound annotation: its box `(y1, x1, y2, x2)` and its segmentation, see `parse_segmentation`."""

    box: tuple[float, ...]
    segmentation: list[np.ndarray] | dict[str, Any] | None


def structure_problems(coco: dict[str, Any], parsed: dict[int, Parsed] | None = None) -> Iterator[Problem]:
    """Everything about ids, sizes, boxes and segmentations that makes annotations unusable; errors only.

    Args:
        coco: content of an annotation file.
        parsed: filled with the annotations in which nothing is wrong, by id; complete at the end.
    """
    for key in ("images", "annotations", "categories"):
        rows = coco.get(key, [] if key == "annotations" else None)
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            yield Problem("error", "not COCO", f"'{key}' must be a list of objects")
            return
    images: dict[Any, dict[str, Any]] = {}
    for image in coco["images"]:
        name, key = str(image.get("file_name", "")), image.get("id")
        if not isinstance(key, int) or not name:
            message = "an image needs an integer 'id' and a 'file_name'"
            yield Problem("error", "image record", message, name, key)
        elif key in images:
            message = f"{images[key].get('file_name')} has the same id; make ids unique"
            yield Problem("error", "duplicate image id", message, name, key)
        elif not all(isinstance(image.get(side), int) and image[side] > 0 for side in ("height", "width")):
            message = "'height' and 'width' must be positive integers"
            yield Problem("error", "image record", message, name, key)
        if isinstance(key, int):
            images.setdefault(key, image)
    categories: set[int] = set()
    for category in coco["categories"]:
        key, name = category.get("id"), category.get("name")
        if not isinstance(key, int) or not isinstance(name, str) or not name:
            message = f"a category needs an integer 'id' and a 'name': {category}"
            yield Problem("error", "category record", message)
        elif key in categories:
            message = f"category id {key} occurs twice; make ids unique"
            yield Problem("error", "duplicate category id", message)
        else:
            categories.add(key)
    seen: set[Any] = set()
    for row in coco.get("annotations", []):
        key, image = row.get("id"), images.get(row.get("image_id"))
        where = {
            "file": str(image.get("file_name", "")) if image else "",
            "image_id": row.get("image_id"),
            "annotation_id": key,
        }
        sound = isinstance(key, int) and key not in seen
        if not isinstance(key, int):
            yield Problem("error", "annotation record", "an annotation needs an integer 'id'", **where)
        elif key in seen:
            yield Problem("error", "duplicate annotation id", "the id occurs twice; make ids unique", **where)
        seen.add(key)
        if image is None:
            message = "there is no image with this id; remove the annotation or add the image"
            yield Problem("error", "unknown image", message, **where)
            continue
        if row.get("category_id") not in categories:
            message = f"category {row.get('category_id')!r} is not among the file's categories; add it there"
            yield Problem("error", "unknown category", message, **where)
            sound = False
        try:
            segmentation = parse_segmentation(
                row.get("segmentation"), image.get("height"), image.get("width")
            )
            box = parse_box(row, segmentation)
        except ValueError as error:
            yield Problem("error", "annotation record", str(error), **where)
            continue
        if sound and parsed is not None:
            parsed[key] = Parsed(box, segmentation)


def parse_segmentation(raw: Any, height: Any, width: Any) -> list[np.ndarray] | dict[str, Any] | None:
    """A segmentation in compact form.

    Args:
        raw: what an annotation holds under `segmentation`: polygons, RLE of either form, or nothing.
        height, width: size of the image.

    Returns:
        Polygons as float64 arrays `[x, y, x, y, ...]` of three points or more; a compressed RLE; or None
        where there is no mask at all.

    Raises:
        ValueError: if it is none of these, or an RLE is damaged or not of the image's size.
    """
    if not raw:
        return None
    if isinstance(raw, dict):
        if not {"size", "counts"} <= raw.keys():
            raise ValueError("an RLE segmentation needs 'size' and 'counts'")
        if list(raw["size"]) != [height, width]:
            raise ValueError(f"the RLE has size {list(raw['size'])}, but the image is [{height}, {width}]")
        rle_counts(raw)  # refuses a damaged code, beyond the end of which pycocotools would read
        if isinstance(raw["counts"], list):
            return coco_mask.frPyObjects(raw, height, width)
        return {"size": [height, width], "counts": raw["counts"]}
    if not isinstance(raw, list) or not all(isinstance(polygon, list) for polygon in raw):
        raise ValueError("the segmentation must be a list of polygons [[x, y, x, y, ...], ...] or an RLE")
    polygons = []
    for polygon in raw:
        try:
            points = np.array(polygon, np.float64)
        except (TypeError, ValueError):
            points = np.array([np.nan])
        if points.ndim != 1 or points.size % 2 or not np.isfinite(points).all():
            raise ValueError("a polygon must be a flat list of finite numbers [x, y, x, y, ...]")
        if points.size >= 6:
            polygons.append(points)
    return polygons or None


def parse_box(
    row: dict[str, Any], segmentation: list[np.ndarray] | dict[str, Any] | None
) -> tuple[float, ...]:
    """The annotation's box as `(y1, x1, y2, x2)`; that of the segmentation where the annotation has none.

    Raises:
        ValueError: if it has neither, or the box is not four finite numbers.
    """
    box = row.get("bbox")
    if box is None and segmentation is not None:
        return mask_box(segmentation)
    if (
        not isinstance(box, (list, tuple))
        or len(box) != 4
        or not all(isinstance(v, Real) and math.isfinite(v) for v in box)
    ):
        raise ValueError(f"'bbox' must be four finite numbers [x, y, width, height], not {box!r}")
    x, y, width, height = box
    return y, x, y + height, x + width


def mask_box(segmentation: list[np.ndarray] | dict[str, Any]) -> tuple[float, float, float, float]:
    """Tight box `(y1, x1, y2, x2)` of a segmentation; zeros for an empty RLE."""
    if isinstance(segmentation, dict):
        x, y, width, height = coco_mask.toBbox(segmentation)
        return float(y), float(x), float(y + height), float(x + width)
    points = np.concatenate(segmentation).reshape(-1, 2)
    (x1, y1), (x2, y2) = points.min(axis=0), points.max(axis=0)
    return float(y1), float(x1), float(y2), float(x2)


def mask_area(segmentation: list[np.ndarray] | dict[str, Any], height: int, width: int) -> float:
    """Pixels of the image that a segmentation covers."""
    if isinstance(segmentation, dict):
        return float(coco_mask.area(segmentation))
    # The rasteriser's memory grows with the length of the outline: points far outside are drawn nearer.
    limits = np.array([[-width, -height], [2 * width, 2 * height]], np.float64)
    polygons = [np.clip(polygon.reshape(-1, 2), *limits).reshape(-1).tolist() for polygon in segmentation]
    return float(coco_mask.area(coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))))
