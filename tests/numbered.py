"""Images whose pixels hold the number of their instance, and a detector that reads it: it errs in nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mrcnn_tf.geometry.masks import to_rle
from mrcnn_tf.models.detections import Detections
from mrcnn_tf.tiling import tiles_of

NAMES = ("even", "odd")


def draw_numbered(
    size: int, count: int, tile: int, overlap: int, *, seed: int = 0
) -> tuple[NDArray[np.uint8], list[dict[str, Any]]]:
    """Ellipses that do not cover one another: a third across borders of the tiles, many cut into two that touch.

    Their sides are from 16 to 400 pixels, or a sixth of the image if that is less; one in 200 is a bar of up to 40 %
    of the image.

    Returns:
        The image, uint8 `[size, size, 3]`, and of each instance the COCO RLE, that of number 1 first.
    """
    rng = np.random.default_rng(seed)
    image = np.zeros((size, size, 3), np.uint8)
    borders = [v for y1, _, y2, _ in tiles_of(size, 1, tile, overlap) for v in (y1, y2) if 0 < v < size]
    truth: list[dict[str, Any]] = []
    while len(truth) < count:
        a, b = np.exp(rng.uniform(np.log(8), np.log(min(200, size / 12)), 2))
        if len(truth) < count // 200:
            a, b = rng.uniform(0.1, 0.2) * size, rng.uniform(6, 12)
        y, x = rng.uniform(0, size, 2)
        where = (
            rng.integers(9) if borders else 9
        )  # 0, 1: across a border between rows, columns; 2: across a corner
        y = rng.choice(borders) if where in (0, 2) else y
        x = rng.choice(borders) if where in (1, 2) else x
        shape, y0, x0 = _ellipse(y, x, a, b, rng.uniform(0, np.pi), size)
        window = image[y0 : y0 + shape.shape[0], x0 : x0 + shape.shape[1]]
        if np.count_nonzero(shape) < 60 or window[shape].any():
            continue
        instances = [shape]
        if (
            rng.random() < 0.5 and len(truth) % 2 == 0 and len(truth) + 2 <= count
        ):  # 2k + 1 and 2k + 2: one class
            rows, columns = np.indices(shape.shape)
            angle = rng.uniform(0, np.pi)
            side = (rows + y0 - y) * np.cos(angle) + (columns + x0 - x) * np.sin(angle) > 0
            if min(np.count_nonzero(shape & side), np.count_nonzero(shape & ~side)) >= 30:
                instances = [shape & side, shape & ~side]
        for pixels in instances:
            truth.append(to_rle(pixels, y0, x0, size, size))
            window[pixels] = (len(truth) % 256, len(truth) // 256, 200)
    return image, truth


def _ellipse(y: float, x: float, a: float, b: float, angle: float, size: int) -> tuple[Any, int, int]:
    """Its pixels on the image, `(crop, y0, x0)`."""
    reach = int(max(a, b)) + 2
    y0, x0 = max(int(y) - reach, 0), max(int(x) - reach, 0)
    y1, x1 = min(int(y) + reach, size), min(int(x) + reach, size)
    dy, dx = np.arange(y0, y1)[:, None] + 0.5 - y, np.arange(x0, x1) + 0.5 - x
    u, v = np.cos(angle) * dx + np.sin(angle) * dy, np.cos(angle) * dy - np.sin(angle) * dx
    return (u / a) ** 2 + (v / b) ** 2 <= 1, y0, x0


def numbers_of(image: NDArray[np.uint8]) -> NDArray[np.uint16]:
    """The number at each pixel, 0 for background."""
    return image[..., 0] + np.uint16(256) * image[..., 1]


def classes_of(numbers: Any) -> NDArray[np.int32]:
    """1 or 2, the same for 1 and 2, for 3 and 4, ..., which may touch."""
    return ((np.asarray(numbers, np.int64) + 1) // 2 % 2 + 1).astype(np.int32)


class Perfect:
    """Finds in a picture all that lies in it of each instance."""

    def detect(self, image: NDArray[np.uint8], score_threshold: float = 0.0) -> Detections:
        """The instances; the score of one, from 0.5 to 1, differs from picture to picture."""
        numbers = numbers_of(image)
        found = [int(n) for n in np.unique(numbers) if n]
        boxes, rles, scores = [], [], []
        for n in found:
            ours = numbers == n
            rows, columns = np.flatnonzero(ours.any(axis=1)), np.flatnonzero(ours.any(axis=0))
            y1, x1, y2, x2 = (int(v) for v in (rows[0], columns[0], rows[-1] + 1, columns[-1] + 1))
            boxes.append([y1, x1, y2, x2])
            rles.append(to_rle(ours[y1:y2, x1:x2], y1, x1, *numbers.shape))
            scores.append(0.5 + (n * 7919 + int(ours.sum())) % 1000 / 2000)
        classes = classes_of(found)
        return Detections(
            image_size=numbers.shape,
            boxes=np.array(boxes, np.float32),
            scores=np.array(scores, np.float32),
            class_ids=classes,
            category_ids=classes * 10,
            class_names=[NAMES[c - 1] for c in classes],
            segmentations=rles,
        ).filter(score_threshold)
