"""Crops of masks on pictures of another size than their image's."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["Crop", "resize_crop"]

Crop = tuple[NDArray[np.bool_], int, int]


def resize_crop(crop: NDArray[np.bool_], y0: int, x0: int, scale: ArrayLike) -> Crop:
    """The same crop on a picture of another size: each of the picture's pixels is that under its centre.

    Args:
        crop: bool `[h, w]`.
        y0, x0: its first row and column on the image.
        scale: the picture's height and width over the image's.

    Returns:
        `(crop, y0, x0)` on the picture, of no pixels where no centre falls on the crop.
    """
    first, sources = [], []
    for start, count, factor in zip((y0, x0), crop.shape, np.asarray(scale, float), strict=True):
        pixels = np.arange(np.ceil(start * factor - 0.5), np.ceil((start + count) * factor - 0.5))
        first.append(int(pixels[0]) if len(pixels) else 0)
        sources.append(np.clip(((pixels + 0.5) / factor).astype(int) - start, 0, max(count - 1, 0)))
    return crop[np.ix_(*sources)], first[0], first[1]
