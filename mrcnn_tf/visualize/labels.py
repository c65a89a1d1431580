"""Text on pictures: labels that keep out of each other's way."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

__all__ = ["font", "touched_pixels", "write_labels"]


@lru_cache
def font(size: int) -> ImageFont.FreeTypeFont:
    """The typeface of all pictures at a size in pixels: DejaVu Sans, which comes with matplotlib."""
    return ImageFont.truetype(
        str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), size
    )


def touched_pixels(box: NDArray[np.float64], picture: NDArray[Any]) -> tuple[int, int, int, int]:
    """First and last row and column of the picture that a box `[y1, x1, y2, x2]` touches, ordered like it."""
    height, width = picture.shape[:2]
    y1, x1 = np.floor(box[:2])
    y2, x2 = np.ceil(box[2:]) - 1
    y1, x1, y2, x2 = (int(v) for v in np.clip([y1, x1, y2, x2], 0, [height - 1, width - 1] * 2))
    return y1, x1, y2, x2


def write_labels(
    picture: NDArray[np.uint8],
    owner: NDArray[np.int32],
    boxes: NDArray[np.float64],
    colors: Sequence[tuple[int, int, int]],
    texts: Sequence[Sequence[str]],
    order: Iterable[int],
    title: str | None = None,
) -> NDArray[np.uint8]:
    """Write a label at every box that has room for one.

    Args:
        picture: uint8 `[H, W, 3]`.
        owner: int32 `[H, W]`, the instance seen at each pixel, counted from 1; 0 for none.
        boxes: `[N, 4]`, `[y1, x1, y2, x2]` in the picture's pixels.
        colors: N backgrounds.
        texts: for each instance what to write, the most wanted first.
        order: the instances' indices; earlier ones have the choice.
        title: text for the lower left corner.

    Returns:
        A new picture.
    """
    height, width = owner.shape
    face = font(int(np.clip(round(max(height, width) / (60 if len(boxes) <= 30 else 75)), 11, 20)))
    canvas = Image.fromarray(picture)
    pen = ImageDraw.Draw(canvas, "RGBA")
    ascent, descent = face.getmetrics()
    seen = np.bincount(owner.reshape(-1), minlength=len(boxes) + 1)
    taken = np.zeros((height, width), bool)

    def write(text: str, y: int, x: int, w: int, h: int, rgb: tuple[int, int, int]) -> None:
        taken[y : y + h, x : x + w] = True
        pen.rectangle((x, y, x + w - 1, y + h - 1), fill=(*rgb, 215))
        ink = "black" if np.dot(rgb, (0.299, 0.587, 0.114)) > 95 else "white"
        pen.text((x + 2, y + ascent), text, fill=ink, font=face, anchor="ls")

    h = ascent + descent
    if title:
        w = round(face.getlength(title)) + 5
        write(title, max(0, height - h), 0, w, h, (30, 30, 30))
    for i in order:
        for text in texts[i]:
            w = round(face.getlength(text)) + 5
            place = _place(touched_pixels(boxes[i], owner), w, h, owner, taken, seen, int(i) + 1)
            if place is not None:
                write(text, *place, w, h, colors[i])
                break
    return np.asarray(canvas)


def _place(
    box: tuple[int, int, int, int],
    w: int,
    h: int,
    owner: NDArray[np.int32],
    taken: NDArray[np.bool_],
    seen: NDArray[np.int64],
    number: int,
) -> tuple[int, int] | None:
    """Row and column for a label at its box; None if it would hide a label or much of another instance."""
    height, width = owner.shape
    if w > width or h > height:
        return None
    y1, x1, y2, x2 = box
    best, best_cost = None, 0.5
    spots = (
        (y1 - h, x1),
        (y1, x1),
        (y1 - h, x2 + 1 - w),
        (y2 + 1, x1),
        (y2 + 1, x2 + 1 - w),
        (y2 + 1 - h, x1),
        (y1, x2 + 1 - w),
        ((y1 + y2 - h) // 2, (x1 + x2 - w) // 2),
    )
    for rank, (y, x) in enumerate(spots):
        y, x = min(max(y, 0), height - h), min(max(x, 0), width - w)
        if taken[y : y + h, x : x + w].any():
            continue
        hidden = np.bincount(owner[y : y + h, x : x + w].reshape(-1), minlength=len(seen)) / np.maximum(
            seen, 1
        )
        hidden[[0, number]] = 0
        cost = hidden.sum() + 0.02 * rank
        if cost < best_cost:
            best, best_cost = (y, x), cost
    return best
