"""The built-in data set: huddled, textured shapes with exact masks, made on the spot from a seed."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from mrcnn_tf.data.scene import SHAPE_CLASSES, draw_scene

# Raised whenever the same arguments would draw other pictures, so that an old folder is not taken for new.
VERSION = 1


def generate_shapes(
    folder: str | Path,
    *,
    num_images: int,
    size: int = 128,
    crowding: float = 0.5,
    seed: int = 0,
) -> tuple[Path, Path]:
    """Write images with COCO annotations, or keep those that the same arguments made in the folder before.

    Args:
        folder: gets `annotations.json` and `images/*.png`. Must be new, empty, or made by this function.
        num_images: how many.
        size: side of the square images in pixels, at least 64.
        crowding: 0 (4 to 6 shapes an image, all apart) to 1 (7 to 12, most of them in huddles).
        seed: the annotations depend on nothing but the arguments, whatever the machine; pixels may differ by
            one level. Image i depends on `(seed, i)` alone, so a larger set starts with the smaller one.

    Returns:
        Path of the annotation file and of the image folder, as `CocoDataset` takes them. Masks are what is
        visible, as RLE; whole polygonal shapes have polygons.

    Raises:
        ValueError: if an argument is out of its range or the folder holds something else.
    """
    if num_images < 1 or size < 64 or not 0 <= crowding <= 1:
        raise ValueError(
            f"num_images must be 1 or more, size 64 or more, crowding in [0, 1]; "
            f"not {num_images}, {size} and {crowding}"
        )
    folder = Path(folder)
    annotations, images = folder / "annotations.json", folder / "images"
    recipe = {
        "description": "generated shapes",
        "version": VERSION,
        "num_images": num_images,
        "size": size,
        "crowding": crowding,
        "seed": seed,
    }
    if folder.exists() and any(folder.iterdir()):
        found = _recipe_in(annotations)
        if found == recipe and len(list(images.glob("*.png"))) == num_images:
            return annotations, images
        if found.get("description") != recipe["description"]:
            raise ValueError(f"{folder}: is not empty and not a generated set; choose another folder")
        shutil.rmtree(folder)
    # Made aside and then renamed: a set that is broken off, or that another process makes too, is in nobody's way.
    aside = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    (aside / "images").mkdir(parents=True)
    try:
        _write(aside, recipe)
        folder.mkdir(exist_ok=True)  # rename() replaces an empty folder only
        os.rename(aside, folder)
    except OSError:
        if _recipe_in(annotations) != recipe:
            raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return annotations, images


def _write(folder: Path, recipe: dict[str, Any]) -> None:
    """Draws the images of a recipe and lists them in `annotations.json`."""
    images, num_images, size = folder / "images", recipe["num_images"], recipe["size"]
    seed, crowding = recipe["seed"], recipe["crowding"]
    coco: dict[str, Any] = {"info": recipe, "images": [], "annotations": []}
    coco["categories"] = [{"id": i + 1, "name": name} for i, name in enumerate(SHAPE_CLASSES)]
    for i in range(num_images):
        image, rows = draw_scene(np.random.default_rng([seed, i]), size, crowding)
        name = f"{i:06d}.png"
        bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
        if not cv2.imwrite(str(images / name), bgr, [cv2.IMWRITE_PNG_COMPRESSION, 1]):
            raise OSError(f"{images / name}: cannot be written; is the disk full?")
        coco["images"].append({"id": i + 1, "file_name": name, "height": size, "width": size})
        for row in rows:
            row = {"id": len(coco["annotations"]) + 1, "image_id": i + 1, "iscrowd": 0, **row}
            coco["annotations"].append(row)
    (folder / "annotations.json").write_text(json.dumps(coco))


def _recipe_in(annotations: Path) -> dict[str, Any]:
    try:
        return json.loads(annotations.read_text()).get("info", {})
    except (OSError, ValueError, AttributeError):
        return {}
