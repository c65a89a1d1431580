"""Instances drawn on their image, so that they can be told apart on crowded pictures."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from mrcnn_tf.geometry.crops import Crop, resize_crop
from mrcnn_tf.geometry.masks import rle_to_crop
from mrcnn_tf.visualize.labels import touched_pixels, write_labels

__all__ = ["color", "draw"]

_CROWD = (150, 150, 150)
_CROWDED = 15  # from here on, a picture needs more pixels for its labels
_MANY = 30  # from here on, equal names are written once


def color(index: int) -> tuple[int, int, int]:
    """The RGB colour of instance `index`: always the same, and far from those of the indices around it."""
    # Steps of the golden angle never come close to a hue used just before; brightness tells later rounds
    # apart.
    hue = (0.58 + index * 0.381966) % 1.0
    saturation, value = ((0.85, 1.0), (0.6, 1.0), (0.95, 0.8))[index // 5 % 3]
    rgb = np.array(colorsys.hsv_to_rgb(hue, saturation, value)) * 255
    # Pure blue is nearly black to the eye: dark colours get white until they show on a night picture.
    lightness = rgb @ (0.299, 0.587, 0.114)
    rgb += (255 - rgb) * max(0.0, (105 - lightness) / (255 - lightness))
    red, green, blue = (round(v) for v in rgb)
    return red, green, blue


def draw(
    image: NDArray[np.uint8],
    instances: Any,
    class_names: Sequence[str] | None = None,
    *,
    size: int | None = None,
    alpha: float = 0.4,
    boxes: bool = True,
    labels: bool = True,
) -> NDArray[np.uint8]:
    """Draw instances on their image: filled and outlined masks, thin boxes, class names and scores.

    Labels do not cover each other, nor a good part of another instance: where there is no room for name and
    score, the score alone is written, and where there is none for that, nothing. On a picture of many
    instances of one class the name stands once, in the corner.

    Args:
        image: uint8 `[H, W, 3]`, RGB.
        instances: a `Detections`, the `Instances` of a data set, or any object with `boxes` (`[N, 4]`,
            `[y1, x1, y2, x2]` in pixels of the image) and, each if there is one: `class_names` (N), `scores`
            (`[N]`), `crowd` (bool `[N]`), and masks as `crops(size=(height, width))` like that of
            `Detections` or as `segmentations`: N times COCO polygons, a COCO RLE, `(crop, y0, x0)` with a
            bool crop, or None.
        class_names: N names, of the instances and not of the classes; default: those of `instances`.
        size: length in pixels of the picture's longer side. Default: the image's own, but at least 640, and
            1024 for more than 15 instances, so that text can be read. Give it where all pictures must be
            alike, as for a video.
        alpha: opacity of the masks' fill, 0..1.
        boxes, labels: whether to draw them.

    Returns:
        uint8 `[H', W', 3]` RGB, the image's shape unless it was resized.

    Raises:
        ValueError: if the image is not uint8 RGB, or not of the detections' size, or the names are not as
            many as the boxes.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(
            f"draw takes uint8 images of shape [H, W, 3], not {image.dtype} of {list(image.shape)}"
        )
    found_on = tuple(getattr(instances, "image_size", image.shape[:2]))
    if found_on != image.shape[:2]:
        raise ValueError(
            f"these detections are of an image of {list(found_on)}, not of {list(image.shape[:2])}; draw on "
            "the image that was given to the model"
        )
    corners = np.asarray(instances.boxes, np.float64).reshape(-1, 4)
    names = list(
        class_names if class_names is not None else getattr(instances, "class_names", [""] * len(corners))
    )
    if len(names) != len(corners):
        raise ValueError(f"draw needs one class name per box, but has {len(names)} for {len(corners)} boxes")
    scores = getattr(instances, "scores", None)
    crowd = np.asarray(getattr(instances, "crowd", np.zeros(len(corners))), bool)

    longest = max(image.shape[:2])
    scale = (size or max(longest, 1024 if len(corners) > _CROWDED else 640)) / longest
    height, width = (max(1, round(side * scale)) for side in image.shape[:2])
    picture = image.copy()
    if scale != 1:
        picture = cv2.resize(
            image, (width, height), interpolation=cv2.INTER_CUBIC if scale > 1 else cv2.INTER_AREA
        )
    corners = corners * np.tile([height / image.shape[0], width / image.shape[1]], 2)
    crops = _crops(instances, image.shape[:2], (height, width), len(corners))
    colors = [_CROWD if is_crowd else color(i) for i, is_crowd in enumerate(crowd)]
    largest_first = np.argsort(-_areas(corners), kind="stable")

    owner = np.zeros((height, width), np.int32)  # which instance is seen at a pixel, counted from 1
    for i in largest_first:
        if crops[i] is not None:
            _fill(picture, owner, crops[i], colors[i], alpha / 2 if crowd[i] else alpha, int(i) + 1)
    thickness = int(np.clip(round(max(height, width) / 700), 1, 3))
    for i in largest_first:
        if boxes:
            _box(picture, corners[i], colors[i])
        if crops[i] is not None:
            _outline(picture, crops[i], colors[i], thickness)
        else:
            _own(owner, corners[i], int(i) + 1)
    if labels:
        order = largest_first if scores is None else np.argsort(-np.asarray(scores), kind="stable")
        title = None
        if len(names) > _MANY and len(set(names)) == 1 and names[0]:
            title, names = f"{len(names)} x {names[0]}", [""] * len(names)
        texts = [
            _texts(
                f"{name} (crowd)".strip() if is_crowd else name, None if scores is None else float(scores[i])
            )
            for i, (name, is_crowd) in enumerate(zip(names, crowd, strict=True))
        ]
        picture = write_labels(picture, owner, corners, colors, texts, order, title)
    return picture


def _areas(boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.prod(np.maximum(boxes[:, 2:] - boxes[:, :2], 0), axis=1)


def _crops(instances: Any, image_size: Sequence[int], size: tuple[int, int], count: int) -> list[Crop | None]:
    """Every instance's pixels on the picture, None without a mask."""
    if getattr(instances, "masks", None) is not None and hasattr(instances, "crops"):
        return instances.crops(size=size)
    segmentations = getattr(instances, "segmentations", None)
    if segmentations is None:
        return [None] * count
    return [_crop(segmentation, image_size, size) for segmentation in segmentations]


def _crop(segmentation: Any, image_size: Sequence[int], size: tuple[int, int]) -> Crop | None:
    """A segmentation's pixels on a picture of `size` of its image."""
    if segmentation is None or len(segmentation) == 0:
        return None
    scale = np.array(size) / image_size
    if isinstance(segmentation, list):
        return _crop_of_polygons(segmentation, scale, size)
    pixels, y0, x0 = rle_to_crop(segmentation) if isinstance(segmentation, dict) else segmentation
    crop = resize_crop(pixels, y0, x0, scale)
    return crop if crop[0].size else None


def _crop_of_polygons(polygons: list[Any], scale: NDArray[np.float64], size: tuple[int, int]) -> Crop | None:
    """Polygons are rasterised at the picture's size, which keeps their edges straight."""
    scaled = [np.asarray(p, np.float64).reshape(-1, 2) * scale[::-1] for p in polygons if len(p) >= 6]
    if not scaled:
        return None
    points = np.clip(np.concatenate(scaled), 0, size[::-1])
    x0, y0 = (int(v) for v in np.floor(points.min(axis=0)))
    width, height = (int(v) for v in np.ceil(points.max(axis=0)) - (x0, y0))
    if height < 1 or width < 1:
        return None
    moved = [(polygon - (x0, y0)).reshape(-1).tolist() for polygon in scaled]
    crop = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(moved, height, width)))
    return crop.astype(bool), y0, x0


def _fill(
    picture: NDArray[np.uint8],
    owner: NDArray[np.int32],
    crop: Crop,
    rgb: tuple[int, int, int],
    alpha: float,
    number: int,
) -> None:
    pixels, y0, x0 = crop
    window = np.s_[y0 : y0 + pixels.shape[0], x0 : x0 + pixels.shape[1]]
    region = picture[window]
    region[pixels] = (region[pixels] * (1 - alpha) + np.array(rgb) * alpha + 0.5).astype(np.uint8)
    owner[window][pixels] = number


def _outline(picture: NDArray[np.uint8], crop: Crop, rgb: tuple[int, int, int], thickness: int) -> None:
    pixels, y0, x0 = crop
    contours, _ = cv2.findContours(
        np.ascontiguousarray(pixels, np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE, offset=(x0, y0)
    )
    cv2.drawContours(picture, contours, -1, rgb, thickness, cv2.LINE_AA)


def _box(picture: NDArray[np.uint8], box: NDArray[np.float64], rgb: tuple[int, int, int]) -> None:
    """A line of one pixel, half transparent: it frames what the outline shows more exactly."""
    y1, x1, y2, x2 = touched_pixels(box, picture)
    for side in (
        np.s_[y1, x1 : x2 + 1],
        np.s_[y2, x1 : x2 + 1],
        np.s_[y1 : y2 + 1, x1],
        np.s_[y1 : y2 + 1, x2],
    ):
        picture[side] = (picture[side] * 0.35 + np.array(rgb) * 0.65 + 0.5).astype(np.uint8)


def _own(owner: NDArray[np.int32], box: NDArray[np.float64], number: int) -> None:
    y1, x1, y2, x2 = touched_pixels(box, owner)
    owner[y1 : y2 + 1, x1 : x2 + 1] = number


def _texts(name: str, score: float | None) -> list[str]:
    """What to write, the longest first."""
    texts = [name] if score is None else [f"{name} {score:.2f}", f"{score:.2f}"]
    return [text.strip() for text in texts if text.strip()]
