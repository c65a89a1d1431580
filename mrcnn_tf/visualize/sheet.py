"""Sheets of pictures, and picture files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from mrcnn_tf.visualize.draw import draw
from mrcnn_tf.visualize.labels import font

__all__ = ["save", "sheet", "validation_sheet"]


def sheet(
    rows: Sequence[Sequence[NDArray[np.uint8]]],
    *,
    headers: Sequence[str] = ("prediction", "truth"),
    captions: Sequence[str] | None = None,
    cell: int = 560,
    rows_per_line: int | None = None,
) -> NDArray[np.uint8]:
    """Lay pictures out on a white sheet, the pictures of one row side by side under their headers.

    Args:
        rows: for each row its pictures, uint8 RGB of any size, as many as there are headers.
        headers: what the columns are.
        captions: one line of text under each row.
        cell: the pictures' longer side in pixels; they are scaled to it.
        rows_per_line: how many rows stand beside each other; default: 1 for up to three rows, 2 for more.

    Returns:
        The sheet, uint8 RGB.

    Raises:
        ValueError: if a row does not have one picture per header, or there is no row, or not one caption per
            row.
    """
    if not rows or any(len(row) != len(headers) for row in rows):
        raise ValueError(
            f"a sheet needs at least one row, and {len(headers)} pictures in each: {', '.join(headers)}"
        )
    if captions is not None and len(captions) != len(rows):
        raise ValueError(f"a sheet of {len(rows)} rows needs as many captions, not {len(captions)}")
    beside = rows_per_line or (1 if len(rows) <= 3 else 2)
    beside = min(beside, len(rows))
    gap, large, small = 12, font(18), font(15)
    pictures = [[_fit(picture, cell) for picture in row] for row in rows]
    columns = len(headers)
    # Every column is as wide as its widest picture, every line as high as its highest.
    widths = [
        max(row[c].shape[1] for row in pictures[b::beside]) for b in range(beside) for c in range(columns)
    ]
    lefts = np.cumsum([gap] + [w + gap * (3 if (k + 1) % columns == 0 else 1) for k, w in enumerate(widths)])
    lines = [pictures[i : i + beside] for i in range(0, len(rows), beside)]
    heights = [max(picture.shape[0] for row in line for picture in row) for line in lines]
    below = 26 if captions is not None else 0
    canvas = Image.new("RGB", (int(lefts[-1]) - 2 * gap, 40 + sum(h + below + gap for h in heights)), "white")
    pen = ImageDraw.Draw(canvas)
    for k, left in enumerate(lefts[:-1]):
        pen.text((int(left), 10), headers[k % columns], fill="black", font=large)
    top = 40
    for number, (line, line_height) in enumerate(zip(lines, heights, strict=True)):
        for b, row in enumerate(line):
            for c, picture in enumerate(row):
                canvas.paste(Image.fromarray(picture), (int(lefts[b * columns + c]), top))
            if captions is not None:
                at = (int(lefts[b * columns]), top + max(p.shape[0] for p in row) + 3)
                pen.text(at, captions[number * beside + b], fill=(70, 70, 70), font=small)
        top += line_height + below + gap
    return np.asarray(canvas)


def validation_sheet(
    rows: Sequence[tuple[NDArray[np.uint8], Any, Any, Sequence[str], str]], *, cell: int = 560
) -> NDArray[np.uint8]:
    """A sheet with each image's prediction beside its truth.

    Args:
        rows: for each image `(image, detections, instances, names, title)`: the image, what was found, the
            truth, the class name of each true instance, and what to call the image.
        cell: longer side of each picture.

    Returns:
        The sheet, uint8 RGB.
    """
    pictures, captions = [], []
    for image, found, truth, names, title in rows:
        # Scores would hide what is to be compared on a picture full of instances of one class.
        labels = len(set(names) | set(found.class_names)) > 1 or max(len(found.boxes), len(names)) <= 30
        pair = (
            draw(image, found, size=cell, labels=labels),
            draw(image, truth, names, size=cell, labels=labels),
        )
        pictures.append(pair)
        captions.append(f"{title}: {len(found.boxes)} found, {len(truth.boxes)} in truth")
    return sheet(pictures, captions=captions, cell=cell)


def save(path: str | Path, picture: NDArray[np.uint8]) -> None:
    """Write an RGB picture to a file, PNG or JPEG by its name; folders are made.

    Raises:
        ValueError: if OpenCV does not know the file name's ending.
        OSError: if the file cannot be written.
    """
    path = Path(path)
    options = [cv2.IMWRITE_JPEG_QUALITY, 92] if path.suffix.lower() in (".jpg", ".jpeg") else []
    try:
        done, code = cv2.imencode(path.suffix, cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), options)
    except cv2.error:
        done = False
    if not done:
        raise ValueError(f"{path}: pictures cannot be written as '{path.suffix}'; use .png or .jpg")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(code.tobytes())  # not cv2.imwrite, which is silent about a full disk


def _fit(picture: NDArray[np.uint8], longest: int) -> NDArray[np.uint8]:
    scale = longest / max(picture.shape[:2])
    if scale == 1:
        return picture
    size = tuple(max(1, round(side * scale)) for side in picture.shape[1::-1])
    resized = cv2.resize(picture, size, interpolation=cv2.INTER_CUBIC if scale > 1 else cv2.INTER_AREA)
    return resized.astype(np.uint8, copy=False)
