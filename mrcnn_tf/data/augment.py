"""Augmentation of one image and its instances, in NumPy, from a `numpy.random.Generator`.

All geometry is a `View`: a window of the stored image, flips, and the size that the window is resized to.
Boxes are clipped to the window and follow it; a mask is rasterised over what the window leaves of its box,
straight from polygons or RLE, so that no image-sized mask is ever made and none is resampled twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from mrcnn_tf.data.coco import Instances
from mrcnn_tf.geometry.masks import rasterize

# After a crop, an instance is kept if this many pixels of each side and this share of its box are left.
MIN_SIDE = 2.0
MIN_SHARE = 0.05


@dataclass(frozen=True)
class View:
    """How an image is looked at.

    Attributes:
        window: `(y1, x1, y2, x2)`, whole pixels of the stored image.
        size: height and width that the window is resized to.
        flip_x, flip_y: mirror left and right, top and bottom.
        cropped: whether instances may have been cut or shrunk to nothing, so that remnants are to be dropped.
    """

    window: tuple[int, int, int, int]
    size: tuple[int, int]
    flip_x: bool = False
    flip_y: bool = False
    cropped: bool = False


def fit_size(height: int, width: int, min_size: int, max_size: int, rule: str = "round") -> tuple[int, int]:
    """NumPy's `mrcnn_tf.layers.preprocess.resized_shape`, to the pixel."""
    short, long = min(height, width), max(height, width)
    if rule == "short_first":
        side = (
            min(min_size, round(max_size * short / long)) if long / short * min_size > max_size else min_size
        )
        new = [side if n == short else int(side * n / short) for n in (height, width)]
    elif rule in ("floor", "half_even"):
        scale = min(min_size / short, max_size / long)
        new = [int(n * scale) if rule == "floor" else round(n * scale) for n in (height, width)]
    else:
        exact = [min_size if n == short else min_size / short * n for n in (height, width)]
        shrink = max_size / max(exact) if max(exact) > max_size else 1.0
        new = [int(n * shrink + 0.5) for n in exact]
    return max(new[0], 1), max(new[1], 1)


def whole_view(
    height: int,
    width: int,
    *,
    min_size: int,
    max_size: int,
    canvas: tuple[int, int],
    size_rule: str = "round",
    flip_x: bool = False,
    flip_y: bool = False,
) -> View:
    """The whole image at shorter side `min_size`, longer at most `max_size`, or as the canvas has room."""
    size = fit_size(height, width, min_size, max_size, size_rule)
    if size[0] > canvas[0] or size[1] > canvas[1]:
        scale = min(canvas[0] / height, canvas[1] / width)
        size = max(int(height * scale), 1), max(int(width * scale), 1)
    return View((0, 0, height, width), size, flip_x, flip_y)


def jittered_view(
    rng: np.random.Generator,
    height: int,
    width: int,
    *,
    canvas: tuple[int, int],
    scale: tuple[float, float],
    flip_x: bool = False,
    flip_y: bool = False,
) -> View:
    """Large-scale jitter (Ghiasi et al., Simple Copy-Paste, 2021).

    The image is scaled to fit the canvas and then by a factor drawn evenly from `scale`, (0.1, 2.0) in the
    paper; what does not fit is cropped at a random place, and a smaller image is padded.
    """
    ratio = min(canvas[0] / height, canvas[1] / width) * rng.uniform(*scale)
    window, size = [], []
    for stored, room in ((height, canvas[0]), (width, canvas[1])):
        length = max(min(stored, round(room / ratio)), 1)
        start = int(rng.integers(0, stored - length + 1))
        window.append((start, start + length))
        size.append(int(np.clip(round(length * ratio), 1, room)))
    (y1, y2), (x1, x2) = window
    return View((y1, x1, y2, x2), (size[0], size[1]), flip_x, flip_y, cropped=True)


def view_image(view: View, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The window of the image, flipped, before resizing; uint8 `[h, w, 3]`."""
    y1, x1, y2, x2 = view.window
    image = image[y1:y2, x1:x2]
    if view.flip_y:
        image = image[::-1]
    if view.flip_x:
        image = image[:, ::-1]
    return np.ascontiguousarray(image)


def view_instances(
    view: View,
    instances: Instances,
    height: int,
    width: int,
    *,
    mask_size: int,
    max_instances: int,
    rng: np.random.Generator,
) -> dict[str, np.ndarray]:
    """The instances as the view shows them, padded to a fixed number.

    Args:
        view: how the image is looked at.
        instances: in pixels of the stored image.
        height, width: of the stored image.
        mask_size: side of the masks, m.
        max_instances: M. If there are more, crowd regions stay and the others are chosen at random.
        rng: for that choice.

    Returns:
        `gt_boxes` float32 `[M, 4]` in pixels of the resized window, `gt_classes` int32 `[M]` with -1 for
        padding, `gt_crowd` and `gt_has_mask` bool `[M]`, `gt_masks` uint8 `[M, m, m]`, 0 or 1 over each box.
    """
    y1, x1, y2, x2 = view.window
    window = np.array([y1, x1, y1, x1], np.float32)
    clipped = np.clip(instances.boxes, window, np.array([y2, x2, y2, x2], np.float32))
    scale = np.array([view.size[0] / (y2 - y1), view.size[1] / (x2 - x1)] * 2, np.float32)
    boxes = (clipped - window) * scale
    visible = _visible(instances.boxes, clipped, scale) if view.cropped else np.ones(len(boxes), bool)
    keep = _choose(np.flatnonzero(visible), instances.crowd, max_instances, rng)

    out = no_instances(max_instances, mask_size)
    slot = 0
    for i in keep:
        if instances.has_mask[i]:
            mask = rasterize(instances.segmentations[i], clipped[i], mask_size, height, width)
            if mask.any():
                out["gt_has_mask"][slot] = True
                mask = mask[::-1] if view.flip_y else mask
                out["gt_masks"][slot] = mask[:, ::-1] if view.flip_x else mask
            elif view.cropped:  # the window holds a corner of the box, but nothing of the object
                continue
        out["gt_boxes"][slot] = boxes[i]
        out["gt_classes"][slot] = instances.classes[i]
        out["gt_crowd"][slot] = instances.crowd[i]
        slot += 1
    real = out["gt_boxes"][:slot]
    if view.flip_y:
        real[:, [0, 2]] = view.size[0] - real[:, [2, 0]]
    if view.flip_x:
        real[:, [1, 3]] = view.size[1] - real[:, [3, 1]]
    return out


def no_instances(max_instances: int, mask_size: int) -> dict[str, np.ndarray]:
    """All padding: what `view_instances` gives for an image without objects."""
    return {
        "gt_boxes": np.zeros((max_instances, 4), np.float32),
        "gt_classes": np.full(max_instances, -1, np.int32),
        "gt_crowd": np.zeros(max_instances, bool),
        "gt_has_mask": np.zeros(max_instances, bool),
        "gt_masks": np.zeros((max_instances, mask_size, mask_size), np.uint8),
    }


def _visible(boxes: NDArray, clipped: NDArray, scale: NDArray) -> NDArray[np.bool_]:
    """Which boxes are left large enough by the window."""
    sides = clipped[:, 2:] - clipped[:, :2]
    whole = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    return ((sides * scale[:2]).min(axis=1, initial=np.inf) >= MIN_SIDE) & (
        np.prod(sides, axis=1) >= MIN_SHARE * whole
    )


def _choose(keep: NDArray, crowd: NDArray, most: int, rng: np.random.Generator) -> NDArray:
    """At most `most` of the instances, crowd regions first, in the order of the file."""
    if len(keep) <= most:
        return keep
    keep = rng.permutation(keep)
    return np.sort(keep[np.argsort(~crowd[keep], kind="stable")][:most])


def colour_jitter(
    rng: np.random.Generator, image: NDArray[np.uint8], strengths: Sequence[float]
) -> NDArray[np.uint8]:
    """Change brightness, contrast, saturation and hue at random.

    Each is linear in RGB, so the four make one matrix and the image is passed over once.

    Args:
        rng: source of the four random numbers.
        image: uint8 `[H, W, 3]`, RGB.
        strengths: `(brightness, contrast, saturation, hue)`: the first three factors are drawn evenly from
            `[1 - s, 1 + s]`, the hue is turned by `[-s, s]` of the colour circle (s up to 0.5).
    """
    brightness, contrast, saturation, hue = (rng.uniform(-s, s) if s else 0.0 for s in strengths)
    grey = np.array([0.299, 0.587, 0.114])
    # Turning the hue is a rotation about the grey axis in YIQ, which leaves the luminance as it is.
    to_yiq = np.array([grey, [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
    c, s = np.cos(2 * np.pi * hue), np.sin(2 * np.pi * hue)
    colour = (1 + saturation) * np.array([[c, -s], [s, c]])
    turn = np.eye(3)
    turn[1:, 1:] = colour
    matrix = (1 + brightness) * np.linalg.inv(to_yiq) @ turn @ to_yiq
    mean = float(np.dot(matrix @ np.array(cv2.mean(image)[:3]), grey))
    matrix = np.column_stack([(1 + contrast) * matrix, np.full(3, -contrast * mean)])
    return np.asarray(cv2.transform(image, matrix), np.uint8)
