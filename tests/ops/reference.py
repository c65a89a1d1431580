"""RoIAlign as the papers and detectron2's kernel say it, sample by sample, in float64 NumPy."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

Corner = tuple[int, int, float]


def level_of(box: np.ndarray, strides: Sequence[int]) -> int:
    """floor(4 + log2(sqrt(area) / 224)), counted from the first level and clipped to those there are."""
    y1, x1, y2, x2 = box
    size = math.sqrt(max(y2 - y1, 0.0) * max(x2 - x1, 0.0))
    if size == 0.0:
        return 0
    level = math.floor(4 + math.log2(size / 224)) - round(math.log2(strides[0]))
    return min(max(level, 0), len(strides) - 1)


def corners(y: float, x: float, height: int, width: int) -> list[Corner]:
    """The cells (y, x) and weights of a bilinear sample; none where it is more than one cell outside."""
    if y < -1.0 or y > height or x < -1.0 or x > width:
        return []
    y, x = max(y, 0.0), max(x, 0.0)
    y0, x0 = int(y), int(x)
    if y0 >= height - 1:
        y0 = y1 = height - 1
        y = float(y0)
    else:
        y1 = y0 + 1
    if x0 >= width - 1:
        x0 = x1 = width - 1
        x = float(x0)
    else:
        x1 = x0 + 1
    ly, lx = y - y0, x - x0
    return [
        (y0, x0, (1 - ly) * (1 - lx)),
        (y0, x1, (1 - ly) * lx),
        (y1, x0, ly * (1 - lx)),
        (y1, x1, ly * lx),
    ]


def samples(
    box: np.ndarray,
    shape: tuple[int, int],
    stride: int,
    output_size: int,
    sampling_ratio: int,
    aligned: bool,
) -> Iterator[tuple[int, int, list[Corner]]]:
    """Bin's row, bin's column and corners of every sample of one box, weighted with its share of the bin."""
    offset = 0.5 if aligned else 0.0
    y1, x1, y2, x2 = (c / stride - offset for c in np.asarray(box, np.float64))
    height, width = y2 - y1, x2 - x1
    if not aligned:
        height, width = max(height, 1.0), max(width, 1.0)
    bin_h, bin_w = height / output_size, width / output_size
    # 0 samples a bin: as many as it is cells long, rounded up.
    across_y, across_x = (sampling_ratio or math.ceil(side) for side in (bin_h, bin_w))
    for by in range(output_size):
        for bx in range(output_size):
            for sy in range(across_y):
                for sx in range(across_x):
                    y = y1 + by * bin_h + (sy + 0.5) * bin_h / across_y
                    x = x1 + bx * bin_w + (sx + 0.5) * bin_w / across_x
                    share = 1 / (across_y * across_x)
                    yield by, bx, [(row, column, w * share) for row, column, w in corners(y, x, *shape)]


def roi_align(
    feature_maps: Sequence[np.ndarray],
    boxes: np.ndarray,
    *,
    strides: Sequence[int],
    output_size: int,
    sampling_ratio: int,
    aligned: bool,
) -> np.ndarray:
    """`mrcnn_tf.ops.roi_align`: list of `[B, H_l, W_l, C]`, `[B, N, 4]` -> float64 `[B, N, S, S, C]`."""
    maps = [np.asarray(f, np.float64) for f in feature_maps]
    out = np.zeros((*boxes.shape[:2], output_size, output_size, maps[0].shape[-1]))
    for b, n in np.ndindex(*boxes.shape[:2]):
        level = level_of(boxes[b, n], strides)
        f = maps[level][b]
        for by, bx, cells in samples(
            boxes[b, n], f.shape[:2], strides[level], output_size, sampling_ratio, aligned
        ):
            for y, x, weight in cells:
                out[b, n, by, bx] += weight * f[y, x]
    return out


def roi_align_gradient(
    shapes: Sequence[tuple[int, ...]],
    boxes: np.ndarray,
    upstream: np.ndarray,
    *,
    strides: Sequence[int],
    output_size: int,
    sampling_ratio: int,
    aligned: bool,
) -> list[np.ndarray]:
    """Gradients for maps of these shapes, given that of the output, `[B, N, S, S, C]`."""
    out = [np.zeros(shape) for shape in shapes]
    for b, n in np.ndindex(*boxes.shape[:2]):
        level = level_of(boxes[b, n], strides)
        g = out[level][b]
        for by, bx, cells in samples(
            boxes[b, n], g.shape[:2], strides[level], output_size, sampling_ratio, aligned
        ):
            for y, x, weight in cells:
                g[y, x] += weight * upstream[b, n, by, bx]
    return out


def bilinear(values: np.ndarray, y: float, x: float) -> np.ndarray:
    """Equations 1 and 4: the sum over all cells of value times max(0, 1 - |distance|) along both axes.

    A place beyond the outermost cells' centres is moved to them. `values` is `[H, W, ...]`, cell i is at i.
    """
    height, width = values.shape[:2]
    wy = np.maximum(0.0, 1.0 - np.abs(np.clip(y, 0, height - 1) - np.arange(height)))
    wx = np.maximum(0.0, 1.0 - np.abs(np.clip(x, 0, width - 1) - np.arange(width)))
    return np.tensordot(np.outer(wy, wx), values, 2)


def shape_aware_roi_align(
    feature_maps: Sequence[np.ndarray],
    boxes: np.ndarray,
    probabilities: np.ndarray,
    *,
    strides: Sequence[int],
    output_size: int,
    sampling_ratio: int,
    aligned: bool,
) -> np.ndarray:
    """`mrcnn_tf.ops.shape_aware_roi_align` as equations 1 to 5 of the paper say it: float64 `[B, N, S, S, C]`.

    With the one correction that equation 5 needs: a place a in the box, which begins at y0 and is h high, is at
    `(a - y0) * Hp / h - 0.5` in the map, whose cell j has its centre at j + 0.5. The paper has the number of bins
    where h stands.
    """
    maps = [np.asarray(f, np.float64) for f in feature_maps]
    probabilities = np.asarray(probabilities, np.float64)
    out = np.zeros((*boxes.shape[:2], output_size, output_size, maps[0].shape[-1]))
    points = output_size * sampling_ratio
    for b, n in np.ndindex(*boxes.shape[:2]):
        level = level_of(boxes[b, n], strides)
        f, mask = maps[level][b], probabilities[b, n]
        y0, x0, y1, x1 = (c / strides[level] - 0.5 * aligned for c in boxes[b, n].astype(np.float64))
        h, w = (y1 - y0, x1 - x0) if aligned else (max(y1 - y0, 1.0), max(x1 - x0, 1.0))
        for i, j in np.ndindex(points, points):
            y, x = y0 + (i + 0.5) * h / points, x0 + (j + 0.5) * w / points
            if y < -1.0 or y > f.shape[0] or x < -1.0 or x > f.shape[1]:
                continue
            # Without area, the place in the box is the limit of ever smaller boxes.
            in_y = (y - y0) * mask.shape[0] / h if h else (i + 0.5) / points * mask.shape[0]
            in_x = (x - x0) * mask.shape[1] / w if w else (j + 0.5) / points * mask.shape[1]
            value = bilinear(f, y, x) * bilinear(mask, in_y - 0.5, in_x - 0.5)
            out[b, n, i // sampling_ratio, j // sampling_ratio] += value
    return out / sampling_ratio**2
