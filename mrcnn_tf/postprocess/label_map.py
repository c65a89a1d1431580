"""No overlap: every pixel of an image belongs to one instance, as a label map and as masks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from mrcnn_tf.files import written_aside
from mrcnn_tf.geometry.masks import crop_of_rle, to_rle
from mrcnn_tf.geometry.overlap import mask_boxes
from mrcnn_tf.postprocess.suppress import best_first

__all__ = ["separate", "write_label_map"]


def separate(
    masks: Sequence[dict[str, Any]],
    scores: ArrayLike,
    class_ids: ArrayLike,
    *,
    image_size: tuple[int, int],
) -> tuple[NDArray[np.int64], list[dict[str, Any]], NDArray[np.int32]]:
    """Gives every pixel to the instance of the highest score there.

    Args:
        masks: N run-length codes of one image.
        scores: `[N]`, finite. Equal scores go by class, then by the masks themselves, never by their place.
        class_ids: integers `[N]`.
        image_size: `(height, width)`, which the masks have.

    Returns:
        indices: int64 `[M]` into N, best first, of those that have a pixel left.
        masks: what is left of these, M run-length codes.
        labels: int32 `[height, width]`: 0 for background, i + 1 for the i-th of the M.

    Raises:
        ValueError: for masks of another size, damaged codes, or lengths that differ.
    """
    for rle in masks:
        if tuple(rle["size"]) != tuple(image_size):
            raise ValueError(f"a mask has size {list(rle['size'])}, its image {list(image_size)}")
    height, width = image_size
    windows = mask_boxes(masks).astype(int)
    order = best_first(windows, scores, class_ids, masks)
    labels = np.zeros((height, width), np.int32)
    for place in range(len(order) - 1, -1, -1):
        y0, x0, y1, x1 = windows[order[place]].tolist()
        labels[y0:y1, x0:x1][crop_of_rle(masks[order[place]], y0, x0, y1, x1)] = place + 1
    seen, trimmed = np.zeros(len(order) + 1, bool), []
    for place, index in enumerate(order):
        y0, x0, y1, x1 = windows[index].tolist()
        crop = labels[y0:y1, x0:x1] == place + 1
        if crop.any():
            seen[place + 1] = True
            trimmed.append(to_rle(crop, y0, x0, height, width))
    numbers = (np.cumsum(seen) * seen).astype(np.int32)
    return order[seen[1:]], trimmed, numbers[labels]


def write_label_map(stem: str | Path, labels: ArrayLike) -> Path:
    """Writes a label map, whole or not at all.

    Args:
        stem: the path without its ending.
        labels: integers `[height, width]`, not negative.

    Returns:
        The file: `STEM.png` of 16 bits, or, with labels above 65535, `STEM.tif` of 32.

    Raises:
        ValueError: for a negative label.
        OSError: if the file cannot be written.
    """
    labels = np.asarray(labels)
    if labels.min(initial=0) < 0:
        raise ValueError("a label map must not hold negative labels")
    wide = labels.max(initial=0) > 65535
    path = Path(f"{stem}.tif" if wide else f"{stem}.png")
    with written_aside(path) as aside:
        if wide:
            Image.fromarray(labels.astype(np.int32)).save(aside, "TIFF", compression="tiff_deflate")
        else:
            Image.fromarray(labels.astype(np.uint16)).save(aside, "PNG")
    return path
