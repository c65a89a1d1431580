"""What an entry of COCO's results format must be."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any, NamedTuple

import numpy as np

from mrcnn_tf.geometry.masks import rle_counts

__all__ = ["Known", "check_entry", "is_box"]


class Known(NamedTuple):
    """What an annotation file defines.

    Attributes:
        path: the file.
        sizes: `[height, width]` by image id; of `None` where the file does not tell.
        categories: names by category id.
    """

    path: str
    sizes: dict[Any, list[int | None]]
    categories: dict[int, str]


def check_entry(entry: Any, where: str, sizes: dict[Any, list[int]], known: Known | None = None) -> None:
    """Sees that an entry is one of COCO's results format, with boxes and codes that can be computed with.

    Args:
        entry: `image_id`, `category_id`, `score` and `bbox` (`[x, y, w, h]`), `segmentation` (an RLE) or both.
        where: what messages begin with: file and entry.
        sizes: sizes of masks by image id, as found until now; this entry's is added. All of an image must agree.
        known: images and categories that entries may name; None to believe them.

    Raises:
        ValueError: for the first thing that is wrong.
    """
    if not isinstance(entry, dict):
        raise ValueError(f"{where} is not an object but {str(entry)[:40]!r}; see COCO's results format")
    for key in ("image_id", "category_id", "score"):
        if key not in entry:
            raise ValueError(f"{where} has no '{key}'; see COCO's results format")
    image_id, category_id, score = entry["image_id"], entry["category_id"], entry["score"]
    if not isinstance(image_id, (Integral, str)) or not isinstance(category_id, Integral):
        raise ValueError(
            f"{where} has image_id {image_id!r} and category_id {category_id!r}; "
            "an image_id is a whole number or a text, a category_id a whole number"
        )
    if not abs(int(category_id)) < 2**62:
        raise ValueError(f"{where} has category_id {category_id}, which no 64 bits can hold")
    if known is not None:
        if image_id not in known.sizes:
            raise ValueError(
                f"{where} has image_id {image_id}, which is not in {known.path}; are these results of another set?"
            )
        if category_id not in known.categories:
            raise ValueError(
                f"{where} has category_id {category_id}, which is not in {known.path}; "
                "results need the data set's own category ids"
            )
    if not _is_number(score):
        raise ValueError(f"{where} has score {score}; it must be a finite number")
    if "bbox" not in entry and "segmentation" not in entry:
        raise ValueError(f"{where} has neither 'bbox' nor 'segmentation'; give one of them or both")
    if "bbox" in entry:
        box = entry["bbox"]
        if not (is_box(box) and min(box[2:]) >= 0):
            raise ValueError(
                f"{where} has bbox {box}; it must be [x, y, width, height], finite numbers, the last two not negative"
            )
    if "segmentation" in entry:
        _check_mask(entry["segmentation"], where, image_id, sizes, known)


def _check_mask(
    rle: Any, where: str, image_id: Any, sizes: dict[Any, list[int]], known: Known | None
) -> None:
    if not isinstance(rle, dict) or "counts" not in rle or "size" not in rle:
        raise ValueError(f"{where} has a segmentation that is not an RLE with 'size' and 'counts'")
    size = rle["size"]
    sound = isinstance(size, (list, tuple)) and len(size) == 2 and all(isinstance(n, int) for n in size)
    if not sound or min(size) < 1:
        raise ValueError(f"{where} has a mask of size {size}; it must be [height, width], in pixels")
    size = list(size)
    if known is not None and None not in known.sizes[image_id] and size != known.sizes[image_id]:
        raise ValueError(
            f"{where} has a mask of size {size}, but its image {image_id} has "
            f"{known.sizes[image_id]} in {known.path}; "
            "masks must be those of the original image"
        )
    if sizes.setdefault(image_id, size) != size:
        raise ValueError(
            f"{where} has a mask of size {size}, but masks before it of image {image_id} have {sizes[image_id]}; "
            "masks must be those of the original image"
        )
    try:
        rle_counts(rle)
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(f"{where}: {error}") from None


def is_box(value: Any) -> bool:
    """Whether it is four finite numbers."""
    return isinstance(value, (list, tuple, np.ndarray)) and len(value) == 4 and all(map(_is_number, value))


def _is_number(value: Any) -> bool:
    if not isinstance(value, Real) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # of an integer that no float can hold
        return False
