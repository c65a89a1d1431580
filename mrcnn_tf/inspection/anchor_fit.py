"""How well anchors fit the truth, and the search for anchors that fit better.

Best overlaps are computed without listing the anchors: of one shape on one level, the anchor whose centre lies nearest
is the best, in y and in x alone, because the overlap of two intervals falls with the distance of their centres.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["STRIDES", "Anchors", "Truths", "best_overlaps", "suggest_anchors"]

STRIDES = (4, 8, 16, 32, 64)  # of P2 to P6
SOFTNESS = 0.03  # of the steps at IoU 0.5 and 0.7 that are climbed
FACTORS = (1.4, 1.15, 1.05)  # by which a size or ratio moves


@dataclass(frozen=True)
class Anchors:
    """Anchors of a pyramid, as `mrcnn_tf.layers.rpn.RPN` has them.

    Attributes:
        sizes: for each level P2 to P6 the square roots of the areas, in pixels of the resized image.
        aspect_ratios: height over width.
        offset: of the first anchor's centre, in strides.
        rounding: None, `"torchvision"` or `"detectron"`.
    """

    sizes: tuple[tuple[float, ...], ...] = ((32,), (64,), (128,), (256,), (512,))
    aspect_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    offset: float = 0.0
    rounding: str | None = None

    def overrides(self) -> str:
        """The settings as a command line takes them."""
        sizes = ", ".join(f"[{', '.join(f'{s:g}' for s in level)}]" for level in self.sizes)
        ratios = ", ".join(f"{r:g}" for r in self.aspect_ratios)
        return f"'model.rpn.anchor_sizes=[{sizes}]' 'model.rpn.aspect_ratios=[{ratios}]'"


@dataclass(frozen=True)
class Truths:
    """The instances of a set, crowd regions left out.

    Attributes:
        boxes: float64 `[N, 4]` in pixels of the resized image.
        canvas: int `[N, 2]`, height and width of what the network sees of its image, padding included.
        sizes: `[N]`, index into `SIZES`, by the area in the original image.
        images: `[N]`, which image.
    """

    boxes: NDArray[np.float64]
    canvas: NDArray[np.int64]
    sizes: NDArray[np.int64]
    images: NDArray[np.int64]

    def __len__(self) -> int:
        """Number of instances."""
        return len(self.boxes)

    def select(self, keep: NDArray[Any]) -> Truths:
        """Those of these indices, or of a bool mask."""
        return Truths(self.boxes[keep], self.canvas[keep], self.sizes[keep], self.images[keep])


def best_overlaps(truths: Truths, anchors: Anchors) -> NDArray[np.float64]:
    """IoU `[N]` of each instance with the best of all anchors on its canvas."""
    best = np.zeros(len(truths))
    for level, sizes in enumerate(anchors.sizes):
        best = np.maximum(best, _level_overlaps(truths, anchors, level, sizes))
    return best


def suggest_anchors(truths: Truths, current: Anchors) -> Anchors:
    """Anchors that fit the instances best, with no more of them at a place than now.

    For each way of sharing the anchors of a place between sizes and ratios, sizes and ratios start at quantiles of the
    instances' own, and one after the other moves as long as that helps. Sizes ascend over the levels.
    """
    place = len(current.sizes[0]) * len(current.aspect_ratios)
    ways = [(sizes, ratios) for sizes in range(1, place + 1) for ratios in range(1, place // sizes + 1)]
    starts = [current, *(_start(truths, current, sizes, ratios) for sizes, ratios in ways)]
    found = [_rounded(_climb(truths, start)) for start in starts]
    return max(found, key=lambda anchors: _fit(best_overlaps(truths, anchors)))


def _level_overlaps(
    truths: Truths, anchors: Anchors, level: int, sizes: Sequence[float]
) -> NDArray[np.float64]:
    stride = STRIDES[level]
    cells = -(-truths.canvas // stride)
    # torchvision spreads the cells over the canvas, see `mrcnn_tf.geometry.anchors.level_anchors`.
    step = truths.canvas // cells if anchors.rounding == "torchvision" else stride
    centre = (truths.boxes[:, :2] + truths.boxes[:, 2:]) / 2
    nearest = np.clip(np.rint(centre / step - anchors.offset), 0, cells - 1)
    distance = np.abs(centre - (nearest + anchors.offset) * step)
    sides = truths.boxes[:, 2:] - truths.boxes[:, :2]
    best = np.zeros(len(truths))
    for shape in _shapes(sizes, anchors, stride):
        shared = np.minimum(np.minimum(sides, shape), (sides + shape) / 2 - distance)
        overlap = np.prod(np.maximum(shared, 0), 1)
        best = np.maximum(best, overlap / (np.prod(sides, 1) + np.prod(shape) - overlap))
    return best


def _shapes(sizes: Sequence[float], anchors: Anchors, stride: int) -> NDArray[np.float64]:
    """Heights and widths `[A, 2]` of a level's anchors."""
    if anchors.rounding is None:
        roots = np.sqrt(np.array(anchors.aspect_ratios))
        side = np.array(sizes, np.float64)[:, None]
        return np.stack([side * roots, side / roots], -1).reshape(-1, 2)
    from mrcnn_tf.geometry.anchors import cell_anchors  # needs TensorFlow, which the other models do not

    cell = cell_anchors(sizes, anchors.aspect_ratios, anchors.rounding, stride)
    return (cell[:, 2:] - cell[:, :2]).astype(np.float64)


def _fit(best: NDArray[np.float64]) -> float:
    """What is maximised: recall at IoU 0.5 and 0.7, with soft steps, which small moves of an anchor can climb."""
    return float((1 / (1 + np.exp((np.array([[0.5], [0.7]]) - best) / SOFTNESS))).mean())


def _start(truths: Truths, current: Anchors, count: int, ratios: int) -> Anchors:
    """`count` sizes a level, each level's twice those of the one below, and `ratios` quantiles of the truth's ratios.

    Of all such pyramids, the one that fits best.
    """
    sides = truths.boxes[:, 2:] - truths.boxes[:, :2]
    shapes = np.quantile(sides[:, 0] / sides[:, 1], (np.arange(ratios) + 0.5) / ratios)
    trials = [
        replace(
            current,
            sizes=tuple(
                tuple(float(base * 2 ** (level + k / count)) for k in range(count))
                for level in range(len(STRIDES))
            ),
            aspect_ratios=tuple(shapes.tolist()),
        )
        for base in np.geomspace(4, 64, 17)
    ]
    return max(trials, key=lambda anchors: _fit(best_overlaps(truths, anchors)))


def _climb(truths: Truths, anchors: Anchors) -> Anchors:
    """Moves one size or ratio at a time by a factor, coarse steps first, as long as the fit gets better."""
    fit = _fit(best_overlaps(truths, anchors))
    for factor in FACTORS:
        moved = True
        while moved:
            moved = False
            for move in (_moved_sizes, _moved_ratios):
                for trial, best in move(truths, anchors, factor):
                    if _fit(best) > fit + 1e-5:
                        anchors, fit, moved = trial, _fit(best), True
                        break
    return anchors


def _moved_sizes(
    truths: Truths, anchors: Anchors, factor: float
) -> Iterator[tuple[Anchors, NDArray[np.float64]]]:
    """Anchors with one size changed, as long as sizes still ascend, and their best overlaps."""
    flat = [size for level in anchors.sizes for size in level]
    count = len(anchors.sizes[0])
    parts = [_level_overlaps(truths, anchors, i // count, [size]) for i, size in enumerate(flat)]
    for i, size in enumerate(flat):
        others = np.max([part for k, part in enumerate(parts) if k != i], axis=0)
        for changed in (size * factor, size / factor):
            sizes = [*flat[:i], changed, *flat[i + 1 :]]
            if sizes == sorted(sizes):
                levels = tuple(tuple(sizes[k : k + count]) for k in range(0, len(sizes), count))
                own = _level_overlaps(truths, anchors, i // count, [changed])
                yield replace(anchors, sizes=levels), np.maximum(others, own)


def _moved_ratios(
    truths: Truths, anchors: Anchors, factor: float
) -> Iterator[tuple[Anchors, NDArray[np.float64]]]:
    """Anchors with one ratio changed, and their best overlaps."""
    for i, ratio in enumerate(anchors.aspect_ratios):
        for changed in (ratio * factor, ratio / factor):
            ratios = (*anchors.aspect_ratios[:i], changed, *anchors.aspect_ratios[i + 1 :])
            trial = replace(anchors, aspect_ratios=tuple(sorted(ratios)))
            yield trial, best_overlaps(truths, trial)


def _rounded(anchors: Anchors) -> Anchors:
    """Sizes in whole pixels, ratios to two digits: what people write."""
    sizes = tuple(tuple(max(float(round(s)), 1.0) for s in level) for level in anchors.sizes)
    return replace(anchors, sizes=sizes, aspect_ratios=tuple(round(r, 2) for r in anchors.aspect_ratios))
