"""Instance masks in NumPy: paste, run-length codes and targets cropped to a box.

A mask lives in one of several forms: a small probability map `[m, m]` that belongs to a box, a crop (the pixels
of the box's window on the image, and where the window starts), a COCO run-length code, polygons (`polygons`), and
those that files hold (`forms`). Nothing here makes an image-sized array unless its name says so, because a
hundred of those per image is what makes evaluation slow and memory scarce.

Boxes are `[y1, x1, y2, x2]` in continuous pixels: pixel i covers [i, i + 1) and has its centre at i + 0.5.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray
from pycocotools import mask as coco_mask

__all__ = [
    "coverage",
    "crop_of_rle",
    "paste",
    "rasterize",
    "rle_counts",
    "rle_to_crop",
    "rle_to_mask",
    "to_rle",
]


def paste(
    mask: ArrayLike, box: ArrayLike, height: int, width: int, order: str = "F"
) -> tuple[NDArray[np.float32], int, int]:
    """Paste a small mask at its box: bilinear at the pixel centres, zero outside.

    The values are those of detectron2's `paste_masks_in_image`.

    Args:
        mask: `[mh, mw]` probabilities; its cells divide the box evenly.
        box: `[y1, x1, y2, x2]` in pixels of the image; may reach beyond the image.
        height, width: size of the image.
        order: how the crop lies in memory: `"F"`, column by column, as run-length codes have it, or `"C"`, row by
            row, as images have it.

    Returns:
        `(crop, y0, x0)`: `crop` float32 `[h, w]` holds the pixels `[y0, y0 + h)` x `[x0, x0 + w)`, which are
        all that can differ from zero. Interpolation against the zeros outside reaches half a mask cell beyond
        the box; those pixels are below 0.5. A box without area, or with a coordinate that is not finite,
        gives a crop of `[0, 0]`.
    """
    mask = np.asarray(mask, np.float32)
    y1, x1, y2, x2 = (float(v) for v in np.asarray(box, np.float64))
    if not (np.isfinite([y1, x1, y2, x2]).all() and y2 > y1 and x2 > x1):
        return np.zeros((0, 0), np.float32), 0, 0
    # Bilinear interpolation is separable, and the second direction, which makes all the pixels, should be the one
    # whose lines are contiguous.
    if order == "F":
        lines, y0 = _stretch(mask, y1, y2, height)
        crop, x0 = _stretch(np.ascontiguousarray(lines.T), x1, x2, width)
        return crop.T, y0, x0
    lines, x0 = _stretch(np.ascontiguousarray(mask.T), x1, x2, width)
    crop, y0 = _stretch(np.ascontiguousarray(lines.T), y1, y2, height)
    return crop, y0, x0


def _stretch(
    values: NDArray[np.float32], start: float, end: float, pixels: int
) -> tuple[NDArray[np.float32], int]:
    """Interpolate `values` `[cells, n]`, spread from `start` to `end`, at the centres of the pixels they reach.

    Returns:
        `[pixels reached, n]` and the first of these pixels.
    """
    cells = len(values)
    reach = 0.5 * (end - start) / cells
    first = int(np.clip(np.floor(start - reach - 0.5) + 1, 0, pixels))
    stop = int(np.clip(np.ceil(end + reach - 0.5), first, pixels))
    at = (np.arange(first, stop) + 0.5 - start) * (cells / (end - start)) - 0.5
    # Taking whole lines is a third of the work of the same interpolation as a matrix product, and does not wake the
    # threads of NumPy's BLAS, which go on spinning for a while.
    ringed = np.pad(values, [(1, 1), (0, 0)])
    before = np.clip(np.floor(at), -1, cells - 1).astype(np.intp)
    out = np.take(np.diff(ringed, axis=0), before + 1, axis=0)
    out *= (at - before).astype(np.float32)[:, None]
    out += np.take(ringed, before + 1, axis=0)
    return out, first


def to_rle(crop: NDArray[np.bool_], y0: int, x0: int, height: int, width: int) -> dict[str, Any]:
    """Encode a crop as the COCO run-length code of the whole image, without making the whole image.

    Args:
        crop: bool `[h, w]`, the pixels from `(y0, x0)` on; everything else is background. Must lie inside the
            image.
        y0, x0: first row and column of the crop.
        height, width: size of the image.

    Returns:
        `{"size": [height, width], "counts": bytes}`, byte for byte what `pycocotools.mask.encode` makes of
        the dense mask.

    Raises:
        ValueError: if the crop does not lie inside the image.
    """
    crop = np.asarray(crop, bool)
    h, w = crop.shape
    if crop.size and not (0 <= y0 <= height - h and 0 <= x0 <= width - w):
        raise ValueError(
            f"a crop of {h}x{w} at ({y0}, {x0}) is not inside an image of {height}x{width}; clip it"
        )
    # Column by column, each column ended by one background element, so that no run passes from one column to
    # the next.
    flat = np.zeros(w * (h + 1) + 1, bool)
    flat[1:].reshape(w, h + 1)[:, :h] = crop.T
    column, row = np.divmod(np.flatnonzero(flat[1:] != flat[:-1]), h + 1)
    edges = (column + x0) * height + row + y0
    # On the image, a run that ends at a column's bottom goes on at the next one's top: both edges vanish.
    joined = np.flatnonzero(edges[2::2] == edges[1:-1:2]) * 2 + 1
    if joined.size:
        edges = np.delete(edges, np.concatenate([joined, joined + 1]))
    counts = np.diff(edges, prepend=0)
    if not edges.size or edges[-1] < height * width:
        counts = np.append(counts, height * width - (edges[-1] if edges.size else 0))
    size = [int(height), int(width)]
    return coco_mask.frPyObjects({"size": size, "counts": counts.tolist()}, *size)


def rle_counts(rle: dict[str, Any]) -> NDArray[np.int64]:
    """Run lengths of a COCO RLE, background first, column by column.

    Args:
        rle: `size` and `counts`, compressed (`bytes` or `str`) or not (a list).

    Raises:
        ValueError: if the counts are not a run-length code that fills the image exactly.
    """
    counts = rle["counts"]
    if isinstance(counts, str):
        counts = counts.encode("ascii", "replace")
    runs = _decompress(counts) if isinstance(counts, bytes) else np.asarray(counts, np.int64).reshape(-1)
    height, width = rle["size"]
    if height * width >= 2**32:
        raise ValueError(f"a mask of size [{height}, {width}] has more pixels than COCO's codes can count")
    if (runs < 0).any() or runs.sum() != height * width:
        raise ValueError(
            f"a run-length code of size [{height}, {width}] must add up to {height * width} pixels, but adds "
            f"up to {runs.sum()}; the annotation is damaged or its size is wrong"
        )
    return runs


def _decompress(code: bytes) -> NDArray[np.int64]:
    """Undo COCO's compression.

    A character has six bits: five of value, lowest first, and one that says that more follow. From the fourth
    on, each number is the difference to the one two before it.
    """
    chars = np.frombuffer(code, np.uint8).astype(np.int64) - 48
    if not chars.size or (chars < 0).any() or (chars > 63).any() or chars[-1] & 32:
        raise ValueError(
            "a compressed run-length code breaks off or holds characters that COCO's code does not have"
        )
    last = np.flatnonzero((chars & 32) == 0)
    first = np.append(0, last[:-1] + 1)
    place = np.arange(chars.size) - np.repeat(first, last - first + 1)
    values = np.add.reduceat((chars & 31) << (5 * np.minimum(place, 11)), first)
    values -= np.where(chars[last] & 16, 1 << (5 * (np.minimum(place[last], 11) + 1)), 0)
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values


def crop_of_rle(rle: dict[str, Any], y0: int, x0: int, y1: int, x1: int) -> NDArray[np.bool_]:
    """Decode rows `[y0, y1)` and columns `[x0, x1)` of a COCO RLE to bool `[y1 - y0, x1 - x0]`.

    Raises:
        ValueError: if the window is not inside the image, or the code is damaged.
    """
    height, width = rle["size"]
    if not (0 <= y0 <= y1 <= height and 0 <= x0 <= x1 <= width):
        raise ValueError(f"window [{y0}:{y1}, {x0}:{x1}] is not inside the mask's size [{height}, {width}]")
    edges = np.append(0, np.cumsum(rle_counts(rle)))
    lengths = np.diff(np.clip(edges, x0 * height, x1 * height))
    columns = np.repeat(np.arange(lengths.size) % 2 == 1, lengths).reshape(x1 - x0, height)
    return columns[:, y0:y1].T


def rle_to_crop(rle: dict[str, Any]) -> tuple[NDArray[np.bool_], int, int]:
    """Decode a COCO RLE (compressed or not) to its tight crop `(crop, y0, x0)`, `[0, 0]` for an empty mask.

    Raises:
        ValueError: if the code is damaged.
    """
    height = rle["size"][0]
    edges = np.cumsum(rle_counts(rle))
    starts, stops = edges[0:-1:2], edges[1::2]
    starts, stops = starts[stops > starts], stops[stops > starts]
    if not starts.size:
        return np.zeros((0, 0), bool), 0, 0
    x0, x1 = int(starts[0] // height), int((stops[-1] - 1) // height) + 1
    y0, y1 = 0, height
    if (starts // height == (stops - 1) // height).all():  # a run over two columns touches top and bottom
        y0, y1 = int((starts % height).min()), int(((stops - 1) % height).max()) + 1
    return crop_of_rle(rle, y0, x0, y1, x1), y0, x0


def rle_to_mask(rle: dict[str, Any]) -> NDArray[np.bool_]:
    """Decode a COCO RLE (compressed or not) to the dense mask, bool `[height, width]`."""
    height, width = rle["size"]
    return crop_of_rle(rle, 0, 0, height, width)


def rasterize(
    segmentation: list[Any] | dict[str, Any], box: ArrayLike, size: int, height: int, width: int
) -> NDArray[np.uint8]:
    """Mask of one COCO annotation on a `size` x `size` grid over its box: the target of the mask head.

    Args:
        segmentation: COCO polygons (a list of `[x, y, x, y, ...]`) or an RLE dict, compressed or not, of the
            whole image.
        box: `[y1, x1, y2, x2]` in the same pixels as the segmentation.
        size: number of cells along each side.
        height, width: size of the image that the segmentation belongs to.

    Returns:
        uint8 `[size, size]` of 0 and 1. A cell of an RLE is 1 where at least half its area is covered;
        polygons are rasterised in the box's own frame, at `size` cells, so that no detail of a small object
        is lost. All zeros for an empty segmentation or a box without area.

    Raises:
        ValueError: if an RLE's size is not the image's, its code is damaged, or a coordinate is not finite.
    """
    y1, x1, y2, x2 = (float(v) for v in np.asarray(box, np.float64))
    if not (y2 > y1 and x2 > x1) or not segmentation:
        return np.zeros((size, size), np.uint8)
    if isinstance(segmentation, dict):
        if tuple(segmentation["size"]) != (height, width):
            raise ValueError(
                f"a run-length code has size {list(segmentation['size'])}, its image [{height}, {width}]; "
                "the annotation belongs to another image or to another resolution"
            )
        return _shrink(segmentation, (y1, x1, y2, x2), size)
    scale, offset = np.array([size / (x2 - x1), size / (y2 - y1)]), np.array([x1, y1])
    polygons = []
    for polygon in segmentation:
        if not isinstance(polygon, (list, tuple, np.ndarray)):
            raise ValueError(
                "a segmentation must be an RLE or a list of polygons [x, y, x, y, ...], not flat numbers"
            )
        if len(polygon) < 6 or len(polygon) % 2:  # no area; pycocotools would take four numbers for a box
            continue
        points = np.asarray(polygon, np.float64).reshape(-1, 2)
        if not np.isfinite(points).all():
            raise ValueError(
                "a polygon holds a coordinate that is not a finite number; the annotation is damaged"
            )
        # The rasteriser needs time and memory in proportion to the outline's length: absurd points are cut.
        points = np.clip(points, (-width, -height), (2 * width, 2 * height))
        polygons.append(((points - offset) * scale).reshape(-1).tolist())
    if not polygons:
        return np.zeros((size, size), np.uint8)
    return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, size, size)))


def _shrink(rle: dict[str, Any], box: tuple[float, float, float, float], size: int) -> NDArray[np.uint8]:
    """Cells `[size, size]` over the box that an RLE covers at least by half."""
    height, width = rle["size"]
    y1, x1, y2, x2 = box
    top, bottom = (int(v) for v in np.clip([np.floor(y1), np.ceil(y2)], 0, height))
    left, right = (int(v) for v in np.clip([np.floor(x1), np.ceil(x2)], 0, width))
    if bottom <= top or right <= left:
        return np.zeros((size, size), np.uint8)
    crop = crop_of_rle(rle, top, left, bottom, right)
    return (coverage(crop, top, left, box, size) >= 0.5 - 1e-6).astype(np.uint8)


def coverage(crop: NDArray[np.bool_], y0: int, x0: int, box: ArrayLike, size: int) -> NDArray[np.float64]:
    """Share of the area of each cell that a mask covers, on a `size` x `size` grid over a box.

    Args:
        crop: bool `[h, w]`, not empty, the pixels from `(y0, x0)` on; everything else is background.
        y0, x0: first row and column of the crop.
        box: `[y1, x1, y2, x2]` in the same pixels, with an area.
        size: number of cells along each side.

    Returns:
        float64 `[size, size]` in [0, 1].
    """
    y1, x1, y2, x2 = (float(v) for v in np.asarray(box, np.float64))
    # The integral image is bilinear between the pixels' corners, so interpolating it at the cells' corners
    # gives the covered area of every cell exactly, at a cost that does not depend on how many pixels a cell
    # has.
    table = cv2.integral(np.ascontiguousarray(crop, np.uint8))
    table = _at(table, np.linspace(y1, y2, size + 1) - y0)
    table = _at(table.T, np.linspace(x1, x2, size + 1) - x0).T
    return np.diff(np.diff(table, axis=0), axis=1) * (size**2 / ((y2 - y1) * (x2 - x1)))


def _at(table: NDArray[Any], where: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rows of the table at fractional positions, the border row beyond its ends."""
    where = np.clip(where, 0, table.shape[0] - 1)
    low = np.minimum(where.astype(int), max(table.shape[0] - 2, 0))
    high = np.minimum(low + 1, table.shape[0] - 1)
    share = (where - low)[:, None]
    return table[low] * (1 - share) + table[high] * share
