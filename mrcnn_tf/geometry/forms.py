"""The forms that a mask has in a file: what each looks like in JSON, and from any of them to any other.

- `rle`: `{"size": [H, W], "counts": "..."}`, COCO's compressed run-length code.
- `rle-uncompressed`: `{"size": [H, W], "counts": [n, n, ...]}`, COCO's run lengths, background first, column by
  column.
- `polygons`: `[[x, y, x, y, ...], ...]`, COCO's. They do not tell the image's size.
- `box-mask`: `{"size": [H, W], "box_mask": "...", "shape": [m, m], "bbox": [x, y, w, h]}`, base64 of m x m bytes, row
  by row: probabilities times 255 on a grid over the box, as a mask head gives them.
- `packed-bits`: `{"size": [H, W], "packed_bits": "...", "window": [x, y, w, h]}`, base64 of the window's pixels, row by
  row, eight in a byte, the first in the highest bit.

The key tells which form it is. Between two forms lies the crop `(crop, y0, x0)`: the pixels of the mask's tight
window, bool `[h, w]`, and where it starts; `[0, 0]` for an empty mask.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import time
from typing import Any

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from mrcnn_tf.geometry.crops import Crop
from mrcnn_tf.geometry.masks import coverage, paste, rle_counts, rle_to_crop, to_rle
from mrcnn_tf.geometry.polygons import polygons_to_rle, to_polygons

__all__ = ["FORMS", "compare", "convert", "decode", "encode", "form_of", "measure", "to_box_mask"]

FORMS = ("rle", "rle-uncompressed", "polygons", "box-mask", "packed-bits")


def form_of(segmentation: Any) -> str:
    """Which of `FORMS` a segmentation has, by its type and keys.

    Raises:
        ValueError: if it is none of them.
    """
    if isinstance(segmentation, list):
        return "polygons"
    if isinstance(segmentation, dict):
        if "counts" in segmentation:
            return "rle" if isinstance(segmentation["counts"], (str, bytes)) else "rle-uncompressed"
        for key, form in (("box_mask", "box-mask"), ("packed_bits", "packed-bits")):
            if key in segmentation:
                return form
    raise ValueError(
        f"{str(segmentation)[:40]!r} is no segmentation: neither polygons nor an object with 'counts', "
        "'box_mask' or 'packed_bits'"
    )


def convert(
    segmentation: Any,
    form: str,
    *,
    image_size: tuple[int, int] | None = None,
    tolerance: float = 0.0,
    mask_size: int = 28,
) -> Any:
    """A segmentation in another form; see `decode` and `encode`, whose errors it has."""
    size = _size(segmentation, image_size)
    return encode(decode(segmentation, image_size=size), form, size, tolerance=tolerance, mask_size=mask_size)


def decode(segmentation: Any, *, image_size: tuple[int, int] | None = None) -> Crop:
    """The pixels of a mask in any form.

    Args:
        segmentation: as in JSON, see above.
        image_size: `(height, width)`. Polygons need it; of other forms it must be the size.

    Returns:
        `(crop, y0, x0)`, the tight crop. A small mask is pasted and cut at 0.5; polygons are filled by pycocotools.

    Raises:
        ValueError: if it is none of the forms, is damaged, or of another size than the image.
    """
    form = form_of(segmentation)
    height, width = _size(segmentation, image_size)
    if form == "polygons":
        return rle_to_crop(polygons_to_rle(segmentation, height, width))
    if form in ("rle", "rle-uncompressed"):
        return rle_to_crop(_checked_rle(segmentation))
    if form == "box-mask":
        rows, columns = _numbers(segmentation, "shape", 2, whole=True)
        x, y, w, h = _numbers(segmentation, "bbox", 4)
        values = _bytes(segmentation, "box_mask", int(rows * columns)).reshape(int(rows), int(columns))
        crop, y0, x0 = paste(values.astype(np.float32) / 255, [y, x, y + h, x + w], height, width, "C")
        return _tight(crop >= 0.5, y0, x0)
    x0, y0, w, h = (int(v) for v in _numbers(segmentation, "window", 4, whole=True))
    if x0 + w > width or y0 + h > height:
        raise ValueError(f"window {[x0, y0, w, h]} is not inside an image of {height} x {width}")
    bits = np.unpackbits(_bytes(segmentation, "packed_bits", (h * w + 7) // 8), count=h * w)
    return _tight(bits.reshape(h, w).astype(bool), y0, x0)


def encode(
    crop: Crop, form: str, image_size: tuple[int, int], *, tolerance: float = 0.0, mask_size: int = 28
) -> Any:
    """A mask in one of `FORMS`, ready for `json.dump`.

    Args:
        crop: `(crop, y0, x0)`: bool `[h, w]`, and its first row and column; inside the image.
        form: one of `FORMS`.
        image_size: `(height, width)`.
        tolerance: in pixels, of polygons; 0 is exact. See `to_polygons`.
        mask_size: cells along each side of a small mask, at least 1. A cell gets the share of its area that is
            covered, which after interpolation keeps more of the outline than 0 and 1.

    Raises:
        ValueError: for another form, a mask size below 1, a bad tolerance or a crop that leaves the image.
    """
    if form not in FORMS:
        raise ValueError(f"there is no form {form!r}; choose one of {', '.join(FORMS)}")
    height, width = (int(n) for n in image_size)
    size = [height, width]
    pixels, y0, x0 = _tight(*crop)
    h, w = pixels.shape
    if form in ("rle", "rle-uncompressed"):
        rle = to_rle(pixels, y0, x0, height, width)
        if form == "rle":
            return {"size": size, "counts": rle["counts"].decode("ascii")}
        return {"size": size, "counts": rle_counts(rle).tolist()}
    if not (0 <= y0 <= height - h and 0 <= x0 <= width - w):
        raise ValueError(
            f"a crop of {h}x{w} at ({y0}, {x0}) is not inside an image of {height}x{width}; clip it"
        )
    if form == "polygons":
        return to_polygons(pixels, y0, x0, tolerance=tolerance)
    if form == "box-mask":
        if mask_size < 1:
            raise ValueError(f"a small mask needs at least 1 cell a side, not {mask_size}")
        box = [y0, x0, y0 + h, x0 + w]
        cells = np.zeros((mask_size, mask_size))
        if pixels.size:
            cells = np.clip(coverage(pixels, y0, x0, box, mask_size), 0, 1)
        return to_box_mask(cells, box, image_size)
    return {"size": size, "packed_bits": _text(np.packbits(pixels)), "window": [x0, y0, w, h]}


def to_box_mask(mask: ArrayLike, box: ArrayLike, image_size: tuple[int, int]) -> dict[str, Any]:
    """The form `box-mask` of what a mask head gives, without going through pixels.

    Args:
        mask: `[m, m]` probabilities in [0, 1], kept to 1/255. 0.5 stays on its side of the threshold.
        box: `[y1, x1, y2, x2]` in pixels of the image.
        image_size: `(height, width)`.
    """
    mask = np.asarray(mask)
    if mask.ndim != 2 or not (mask >= 0).all() or not (mask <= 1).all():
        raise ValueError("a small mask must be [m, m] probabilities in [0, 1]")
    y1, x1, y2, x2 = (v.item() for v in np.asarray(box))
    if not all(map(math.isfinite, (y1, x1, y2, x2))):
        raise ValueError(f"a box must be four finite numbers, not {[y1, x1, y2, x2]}")
    return {
        "size": [int(n) for n in image_size],
        "box_mask": _text(np.rint(mask * 255.0).astype(np.uint8)),
        "shape": list(mask.shape),
        "bbox": [x1, y1, x2 - x1, y2 - y1],
    }


def compare(one: Crop, other: Crop) -> tuple[float, float]:
    """How alike two masks are: their IoU, and the largest distance between their boundaries in pixels.

    The distance is Hausdorff's, between the pixels that have a neighbour on the other side (one of four; outside
    the image counts as background): the farthest that a boundary pixel of one is from the nearest of the other.
    So a part or a hole that was lost shows. Two empty masks are alike (1, 0); if one is empty the distance is
    infinite.
    """
    if not one[0].any() or not other[0].any():
        same = not one[0].any() and not other[0].any()
        return (1.0, 0.0) if same else (0.0, math.inf)
    top, left = (min(one[i], other[i]) - 1 for i in (1, 2))
    bottom = max(y0 + crop.shape[0] for crop, y0, _ in (one, other)) + 1
    right = max(x0 + crop.shape[1] for crop, _, x0 in (one, other)) + 1
    planes = np.zeros((2, bottom - top, right - left), np.uint8)
    for plane, (crop, y0, x0) in zip(planes, (one, other), strict=True):
        plane[y0 - top :, x0 - left :][: crop.shape[0], : crop.shape[1]] = crop
    iou = np.count_nonzero(planes[0] & planes[1]) / np.count_nonzero(planes[0] | planes[1])
    if iou == 1:
        return 1.0, 0.0
    cross = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
    edges = [plane - cv2.erode(plane, cross) for plane in planes]
    away = [cv2.distanceTransform(1 - edge, cv2.DIST_L2, cv2.DIST_MASK_PRECISE) for edge in edges]
    return iou, float(max(away[0][edges[1] > 0].max(), away[1][edges[0] > 0].max()))


def measure(
    crop: Crop, form: str, image_size: tuple[int, int], *, tolerance: float = 0.0, mask_size: int = 28
) -> dict[str, float]:
    """What a form costs for a mask and how well it keeps it; arguments as of `encode`.

    Returns:
        `json_bytes`, as `json.dumps` writes; `raw_bytes`, with numbers as 4 bytes each and without base64; `iou` and
        `deviation` of what comes back (see `compare`); `encode_seconds` and `decode_seconds`, which is without
        JSON.
    """
    start = time.perf_counter()
    segmentation = encode(crop, form, image_size, tolerance=tolerance, mask_size=mask_size)
    made = time.perf_counter()
    back = decode(segmentation, image_size=image_size)
    end = time.perf_counter()
    iou, deviation = compare(crop, back)
    return {
        "json_bytes": len(json.dumps(segmentation)),
        "raw_bytes": _raw_bytes(segmentation, form),
        "iou": iou,
        "deviation": deviation,
        "encode_seconds": made - start,
        "decode_seconds": end - made,
    }


def _raw_bytes(segmentation: Any, form: str) -> int:
    if form == "polygons":
        return sum(4 * len(polygon) for polygon in segmentation)
    if form == "rle":
        return len(segmentation["counts"])
    if form == "rle-uncompressed":
        return 4 * len(segmentation["counts"])
    key = "box_mask" if form == "box-mask" else "packed_bits"
    return len(base64.b64decode(segmentation[key])) + 16  # the bits, and box or window


def _size(segmentation: Any, image_size: tuple[int, int] | None) -> tuple[int, int]:
    """The image's `(height, width)`, from the segmentation if it tells, which then must agree."""
    if isinstance(segmentation, dict):
        height, width = (int(n) for n in _numbers(segmentation, "size", 2, whole=True))
        if image_size is not None and (height, width) != tuple(image_size):
            raise ValueError(
                f"the mask has size {[height, width]}, but its image {list(image_size)}; it belongs to another image "
                "or to another resolution"
            )
        return height, width
    if image_size is None:
        raise ValueError("polygons do not tell the image's size; give it")
    return int(image_size[0]), int(image_size[1])


def _checked_rle(rle: dict[str, Any]) -> dict[str, Any]:
    """The RLE, if its counts are text or numbers that an int64 takes; the rest `rle_counts` sees."""
    counts = rle["counts"]
    if not isinstance(counts, (str, bytes)) and not (
        isinstance(counts, (list, tuple)) and all(type(n) is int and abs(n) < 2**62 for n in counts)
    ):
        raise ValueError("the counts of a run-length code must be a string or a list of whole numbers")
    return rle


def _numbers(segmentation: dict[str, Any], key: str, count: int, whole: bool = False) -> list[float]:
    """The list under a key: so many finite numbers, none negative if they are to be whole."""
    values = segmentation.get(key)
    kinds = (int,) if whole else (int, float)
    if (
        not isinstance(values, (list, tuple))
        or len(values) != count
        or not all(type(v) in kinds and math.isfinite(v) and (v >= 0 or not whole) for v in values)
    ):
        kind = "whole numbers, 0 or more" if whole else "finite numbers"
        raise ValueError(f"a segmentation's '{key}' must be {count} {kind}, not {values!r}")
    return list(values)


def _bytes(segmentation: dict[str, Any], key: str, count: int) -> NDArray[np.uint8]:
    try:
        data = base64.b64decode(segmentation[key], validate=True)
    except (TypeError, ValueError, binascii.Error) as error:
        raise ValueError(f"a segmentation's '{key}' is not base64 ({error}); the file is damaged") from None
    if len(data) != count:
        raise ValueError(f"a segmentation's '{key}' must hold {count} bytes, but holds {len(data)}")
    return np.frombuffer(data, np.uint8)


def _text(values: NDArray[np.uint8]) -> str:
    return base64.b64encode(values.tobytes()).decode("ascii")


def _tight(crop: NDArray[np.bool_], y0: int, x0: int) -> Crop:
    """The crop without empty rows and columns around it."""
    rows, columns = np.flatnonzero(crop.any(axis=1)), np.flatnonzero(crop.any(axis=0))
    if not rows.size:
        return np.zeros((0, 0), bool), 0, 0
    top, left = int(rows[0]), int(columns[0])
    return crop[top : rows[-1] + 1, left : columns[-1] + 1], y0 + top, x0 + left
