"""Anchor boxes of a feature pyramid (Ren et al., 2015; one size a level in Lin et al., 2017)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

ROUNDINGS = (None, "torchvision", "detectron")


def cell_anchors(
    sizes: Sequence[float], aspect_ratios: Sequence[float], rounding: str | None = None, stride: int = 1
) -> np.ndarray:
    """The anchors of one place, centred on the origin.

    Args:
        sizes: square roots of the areas, in pixels.
        aspect_ratios: height over width.
        rounding: `None` leaves the sides as they come out; `"torchvision"` rounds the corners to whole pixels;
            `"detectron"` rounds the sides in strides for each ratio, then scales them up (Detectron and
            maskrcnn-benchmark: 48 x 24 where the others have 45.3 x 22.6).
        stride: pixels a cell, for `"detectron"`.

    Returns:
        float32 `[len(sizes) * len(aspect_ratios), 4]`, all ratios of the first size first.

    Raises:
        ValueError: a list is empty or holds a number that is not positive, or there is no such rounding.
    """
    if rounding not in ROUNDINGS:
        raise ValueError(f"anchor rounding is {rounding!r}; it must be one of {ROUNDINGS}")
    for name, values in (("sizes", sizes), ("aspect_ratios", aspect_ratios)):
        if len(values) == 0 or min(values) <= 0:
            raise ValueError(f"anchor {name} must be one or more positive numbers, not {list(values)}")
    ratios = np.sqrt(np.asarray(aspect_ratios, np.float64))
    sides = np.asarray(sizes, np.float64)[:, None]
    height, width = sides * ratios, sides / ratios
    if rounding == "detectron":
        cells = np.round(stride / ratios)
        height, width = np.round(cells * ratios**2) * sides / stride, cells * sides / stride
    half_h, half_w = height.reshape(-1) / 2, width.reshape(-1) / 2
    anchors = np.stack([-half_h, -half_w, half_h, half_w], axis=-1)
    return (np.round(anchors) if rounding == "torchvision" else anchors).astype(np.float32)


def level_anchors(
    height: int | tf.Tensor,
    width: int | tf.Tensor,
    stride: int,
    sizes: Sequence[float],
    aspect_ratios: Sequence[float],
    offset: float = 0.0,
    rounding: str | None = None,
    canvas: tuple[int | tf.Tensor, int | tf.Tensor] | None = None,
) -> tf.Tensor:
    """The anchors of one feature map.

    Args:
        height, width: of the map in cells, integers or integer tensors.
        stride: pixels a cell.
        sizes, aspect_ratios: those of `cell_anchors`.
        offset: where in its cell an anchor has its centre, as a share of the stride: 0 as torchvision and
            detectron2 have it, 0.5 for the cell's middle.
        rounding: that of `cell_anchors`.
        canvas: height and width in pixels. If given, cells are `canvas // cells` pixels apart instead of `stride`, as
            torchvision has it: they differ where a side had to be rounded up to a whole cell.

    Returns:
        float32 `[height * width * A, 4]` in image pixels: rows, then columns, then the anchors of a cell.
    """
    cell = tf.constant(cell_anchors(sizes, aspect_ratios, rounding, stride))
    steps = (
        (stride, stride)
        if canvas is None
        else [
            tf.math.floordiv(side, tf.maximum(n, 1)) for side, n in zip(canvas, (height, width), strict=True)
        ]
    )
    y, x = (
        (tf.cast(tf.range(n), tf.float32) + offset) * tf.cast(step, tf.float32)
        for n, step in zip((height, width), steps, strict=True)
    )
    y, x = tf.meshgrid(y, x, indexing="ij")
    centres = tf.stack([y, x, y, x], axis=-1)
    return tf.reshape(centres[:, :, None, :] + cell, [-1, 4])


def pyramid_anchors(
    shapes: Sequence[tuple[int | tf.Tensor, int | tf.Tensor]],
    strides: Sequence[int],
    sizes: Sequence[Sequence[float]],
    aspect_ratios: Sequence[float],
    offset: float = 0.0,
    rounding: str | None = None,
    canvas: tuple[int | tf.Tensor, int | tf.Tensor] | None = None,
) -> list[tf.Tensor]:
    """`level_anchors` of every level.

    Args:
        shapes: height and width of each map in cells.
        strides: one a level.
        sizes: a list of anchor sizes for each level.
        aspect_ratios: height over width, the same on all levels.
        offset, rounding, canvas: those of `level_anchors`.

    Returns:
        a list with float32 `[H_l * W_l * A_l, 4]` for each level.

    Raises:
        ValueError: `shapes`, `strides` and `sizes` differ in length.
    """
    if not len(shapes) == len(strides) == len(sizes):
        raise ValueError(
            f"anchors need one shape, stride and list of sizes for each level, not {len(shapes)} shapes, "
            f"{len(strides)} strides and {len(sizes)} lists of sizes"
        )
    return [
        level_anchors(shape[0], shape[1], stride, level_sizes, aspect_ratios, offset, rounding, canvas)
        for shape, stride, level_sizes in zip(shapes, strides, sizes, strict=True)
    ]
