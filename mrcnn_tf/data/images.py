"""Reading image files of any kind to the one form used everywhere: uint8 RGB."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

# OpenCV turns grey, palette and RGBA images into three channels (alpha is dropped) and applies the EXIF
# orientation; 16 bits are kept so that they can be scaled here and not cut off.
_FLAGS = cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH


def read_image(path: str | Path, size: tuple[int, int] | None = None) -> NDArray[np.uint8]:
    """Read an image file.

    Args:
        path: a file in a format that OpenCV reads (JPEG, PNG, TIFF, WebP, BMP, ...). Grey, palette and RGBA
            images become RGB, alpha is dropped. 16-bit values are divided by 257, or by 4095 / 255 if none
            of them needs more than 12 bits, as microscopes write them.
        size: height and width that the annotations of this image refer to. The EXIF orientation is applied,
            as every viewer and annotation tool does, unless the size says that the annotations were made on
            the image as stored.

    Returns:
        uint8 `[H, W, 3]`, RGB.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is not a whole image of 8 or 16 bits, or does not have the size.
    """
    return to_rgb(read_bytes(path), path, size)


def to_rgb(
    data: NDArray[np.uint8], path: str | Path, size: tuple[int, int] | None = None
) -> NDArray[np.uint8]:
    """As `read_image`, from an image file's bytes; `path` stands in the messages."""
    image = decode_image(data, _FLAGS)
    if image is not None and size is not None and image.shape[:2] != tuple(size):
        upright, image = image, decode_image(data, _FLAGS | cv2.IMREAD_IGNORE_ORIENTATION)
        if image is None or image.shape[:2] != tuple(size):
            raise ValueError(
                f"{path}: is {upright.shape[0]} high and {upright.shape[1]} wide, but its annotations say "
                f"{size[0]} and {size[1]}; correct the annotation file or put the right image there"
            )
    if image is None:
        raise ValueError(f"{path}: not a whole, readable image ({len(data)} bytes); replace or remove it")
    if image.dtype == np.uint16:
        image = image * (255 / 4095 if image.max() < 4096 else 255 / 65535)
        image = np.floor(image + 0.5).astype(np.uint8)
    elif image.dtype != np.uint8:
        raise ValueError(f"{path}: pixels of type {image.dtype}; convert the image to 8 or 16 bits")
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), np.uint8)


def read_bytes(path: str | Path) -> NDArray[np.uint8]:
    """The file's bytes; FileNotFoundError or ValueError in one line if it cannot be read."""
    try:
        return np.fromfile(path, np.uint8)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such image file") from None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror or error})") from None


def decode_image(data: NDArray[np.uint8], flags: int) -> NDArray | None:
    """The image in OpenCV's own form, or None if the bytes are not a whole image."""
    # Some versions of OpenCV fill what a broken-off file lacks with grey and say nothing. A JPEG ends with
    # an end marker behind its last scan (an embedded preview has its own pair, in front), a PNG with IEND.
    head, raw = data[:8].tobytes(), data.tobytes()
    if head[:2] == b"\xff\xd8" and raw.rfind(b"\xff\xd9") < raw.rfind(b"\xff\xda"):
        return None
    if head == b"\x89PNG\r\n\x1a\n" and b"IEND" not in raw[-4096:]:
        return None
    if not data.size:
        return None
    try:
        return cv2.imdecode(data, flags)
    except cv2.error:
        return None
