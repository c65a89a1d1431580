"""Polygons of instance masks: along the pixels' edges, simplified to a tolerance, and back to pixels.

OpenCV walks along the outlines and simplifies them, pycocotools fills them.
"""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

__all__ = ["polygons_to_rle", "to_polygons"]

# Along pixels' edges, the corners inside and outside of any straight stretch are sqrt(1/2) apart.
_NOTHING_TO_GAIN = 0.35


def to_polygons(crop: NDArray[np.bool_], y0: int, x0: int, *, tolerance: float = 0.0) -> list[list[float]]:
    """Outline a crop as COCO polygons `[x, y, x, y, ...]`, in pixels of the image.

    Each connected part is one polygon (pixels that touch at a corner are connected). Holes are cut in by a bridge
    that is walked both ways, which even-odd filling (as in pycocotools) takes out again.

    Args:
        crop: bool `[h, w]`, the pixels from `(y0, x0)` on.
        y0, x0: first row and column of the crop.
        tolerance: how far, in pixels, an outline may leave the pixels' edges and they it. 0 is exact: `pycocotools`
            rasterises the polygons to the same pixels. Otherwise outlines lose points (Douglas and Peucker 1973,
            by OpenCV) as long as that distance holds and what each encloses keeps an IoU of 0.5; one of few pixels
            thus keeps its exact corners, and no part or hole vanishes.

    Returns:
        Polygons of integers; `[]` for an empty crop.

    Raises:
        ValueError: if the tolerance is negative or not finite.
    """
    if not 0 <= tolerance < math.inf:
        raise ValueError(f"a polygon's tolerance must be a number of pixels, 0 or more, not {tolerance}")
    if not crop.any():
        return []
    # OpenCV walks along pixel centres. On the doubled mask, index 2a (a run's first pixel) or 2b - 1 (its
    # last) tells which edge of the pixel is meant: (k + 1) // 2 gives a and b.
    doubled = np.repeat(np.repeat(crop.astype(np.uint8), 2, axis=0), 2, axis=1)
    contours, hierarchy = cv2.findContours(doubled, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    outlines = [_simplify(_corners((contour[:, 0] + 1) // 2), tolerance) + (x0, y0) for contour in contours]
    parents = hierarchy[0, :, 3]
    holes = defaultdict(list)
    for i in np.flatnonzero(parents >= 0):
        holes[parents[i]].append(outlines[i])
    polygons = []
    for i in np.flatnonzero(parents < 0):
        points = [outlines[i]]
        for hole in holes[i]:
            points += [outlines[i][:1], hole, hole[:1]]
        polygons.append(np.concatenate(points).reshape(-1).tolist())
    return polygons


def polygons_to_rle(polygons: Any, height: int, width: int) -> dict[str, Any]:
    """Fill COCO polygons, as pycocotools does: the compressed RLE of what any of them covers.

    Args:
        polygons: a list of `[x, y, x, y, ...]` in pixels. Those of fewer than three points have no area and cover
            nothing. What lies outside the image is cut.
        height, width: size of the image.

    Raises:
        ValueError: if these are not lists of finite numbers in pairs, or if they lie outside the image altogether.
    """
    if not isinstance(polygons, (list, tuple)) or any(
        not isinstance(p, (list, tuple, np.ndarray)) for p in polygons
    ):
        raise ValueError("polygons must be a list of lists [x, y, x, y, ...]")
    rings = []
    for number, polygon in enumerate(polygons):
        try:
            points = np.asarray(polygon, np.float64)
        except (TypeError, ValueError):
            points = np.array(np.nan)
        if points.ndim != 1 or points.size % 2 or not np.isfinite(points).all():
            raise ValueError(
                f"polygon {number} must be a flat list of finite numbers in pairs [x, y, x, y, ...]; "
                "the annotation is damaged"
            )
        if points.size >= 6:  # pycocotools would take four numbers for a box
            rings.append(points.reshape(-1, 2))
    if not rings:
        return coco_mask.frPyObjects({"size": [height, width], "counts": [height * width]}, height, width)
    points = np.concatenate(rings)
    (left, top), (right, bottom) = points.min(axis=0), points.max(axis=0)
    if left >= width or top >= height or right <= 0 or bottom <= 0:
        raise ValueError(
            f"a polygon over x {left:g} to {right:g} and y {top:g} to {bottom:g} lies outside its image of "
            f"{height} x {width}; it belongs to another image or resolution"
        )
    # The rasteriser needs time and memory in proportion to the outline's length: absurd points are cut.
    limits = np.array([[-width, -height], [2 * width, 2 * height]])
    flat = [np.clip(ring, *limits).reshape(-1).tolist() for ring in rings]
    return coco_mask.merge(coco_mask.frPyObjects(flat, height, width))


def _corners(points: NDArray[Any]) -> NDArray[Any]:
    """Keep the points of a closed axis-parallel walk at which it turns."""
    points = points[(points != np.roll(points, 1, axis=0)).any(axis=1)]
    come, go = points - np.roll(points, 1, axis=0), np.roll(points, -1, axis=0) - points
    return points[(come != go).any(axis=1)]


def _simplify(outline: NDArray[Any], tolerance: float) -> NDArray[Any]:
    """The fewest points that OpenCV finds and that keep what `to_polygons` says; at worst all of them."""
    first = outline.min(axis=0)
    width, height = (int(v) for v in outline.max(axis=0) - first)

    def fill(ring: NDArray[Any]) -> list[dict[str, Any]]:
        return coco_mask.frPyObjects([(ring - first).reshape(-1).tolist()], height, width)

    epsilon = min(tolerance, float(width + height))
    while epsilon > _NOTHING_TO_GAIN:
        short = cv2.approxPolyDP(outline.astype(np.int32)[:, None], epsilon, True)[:, 0]
        # OpenCV drops points once more at the end, so that epsilon is no bound: up to 1.45 times were seen.
        near = len(short) >= 3 and _deviation(outline, short) <= tolerance + 1e-9
        if near and coco_mask.iou(fill(short), fill(outline), [0])[0, 0] >= 0.5:
            return short
        epsilon *= 0.7
    return outline


def _deviation(outline: NDArray[Any], short: NDArray[Any]) -> float:
    """Largest distance between a closed outline and one through some of its points in the same order.

    Between two points that were kept, each point that was dropped is compared with the line between the two. The
    distance to a line's stretch is convex, so that it bounds the way between the points, and, because that way is
    connected, the distance of the straight line from it.
    """
    count = len(outline)
    places: defaultdict[tuple[int, ...], list[int]] = defaultdict(list)
    for i, point in enumerate(map(tuple, outline.tolist())):
        places[point].append(i)
    kept = [tuple(point) for point in short.tolist()]
    for start in places[kept[0]]:  # an outline may pass a corner twice
        at = [start]
        for point in kept[1:]:
            at.append(at[-1] + 1 + min((i - at[-1] - 1) % count for i in places[point]))
        if at[-1] < start + count:
            break
    else:
        return math.inf
    stretch = np.repeat(np.arange(len(at)), np.diff([*at, start + count]))
    points = np.roll(outline, -start, axis=0) - short[stretch]
    line = (np.roll(short, -1, axis=0) - short)[stretch]
    share = np.clip((points * line).sum(axis=1) / (line * line).sum(axis=1), 0, 1)
    return float(np.linalg.norm(points - share[:, None] * line, axis=1).max())
