"""Weights that follow from their names, so that golden files of other projects' outputs need not hold weights.

Used by the scripts `make_*_golden.py`, which run in the other projects' environments, and by the tests: NumPy alone.
"""

from __future__ import annotations

import zlib

import numpy as np


def draw(
    name: str, shape: tuple[int, ...], seed: int, adjust: dict[str, tuple[float, float]] | None = None
) -> np.ndarray:
    """The value of one tensor.

    Kernels are scaled to keep the size of what goes through them; statistics, scales and shifts of norms and all
    biases are random too, so that a reader that mixes them up shows. The last norm of a residual branch is small:
    activations do not grow with depth.

    Args:
        name: of the tensor, in PyTorch's words (`....weight`, `.bias`, `.running_mean`, `.running_var`) or Keras'.
        shape: in the layout of the project it belongs to.
        seed: another one, other weights.
        adjust: by name, a factor and what is added to the first element (a class layer's background) afterwards.

    Returns:
        float32, or int64 zeros for a counter of batches.
    """
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    last = name.rsplit("/", 1)[-1].rsplit(".", 1)[-1]
    if last == "num_batches_tracked":
        return np.zeros(shape, np.int64)
    if last in ("running_var", "moving_variance"):
        value = rng.uniform(0.7, 1.4, shape)
    elif last in ("running_mean", "moving_mean"):
        value = rng.normal(0, 0.1, shape)
    elif last in ("bias", "beta"):
        value = rng.normal(0, 0.05, shape)
    elif len(shape) <= 1:
        value = rng.uniform(0.6, 1.2, shape) * (0.3 if "bn3" in name or "conv3.norm" in name else 1.0)
    else:
        # Kernel sides, input channels, output channels: PyTorch and Keras lay them out differently.
        fan_in = np.prod(shape[:-1] if last == "kernel" else shape[1:])
        value = rng.normal(0, np.sqrt(2.0 / fan_in), shape)
    factor, first = (adjust or {}).get(name, (1.0, 0.0))
    value = np.asarray(value * factor, np.float32)
    if first:
        value.reshape(-1)[0] += np.float32(first)
    return value


def sample(values: np.ndarray, count: int = 400) -> np.ndarray:
    """Up to `count` entries of an array, always the same ones for a size: what a golden file keeps of a stage."""
    flat = np.asarray(values).reshape(-1)
    if flat.size <= count:
        return flat
    return flat[np.sort(np.random.default_rng(flat.size).choice(flat.size, count, replace=False))]


def picture(height: int, width: int, seed: int) -> np.ndarray:
    """A uint8 RGB image `[height, width, 3]` with structure at every scale, so that boxes of all sizes light up."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width].astype(np.float64)
    image = np.full((height, width, 3), 110.0)
    for _ in range(40):
        cy, cx = rng.uniform(0, height), rng.uniform(0, width)
        ry, rx = rng.uniform(6, 0.4 * height), rng.uniform(6, 0.4 * width)
        inside = ((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 < 1
        image[inside] = 0.5 * image[inside] + 0.5 * rng.uniform(0, 255, 3)
    return np.clip(image + rng.normal(0, 12, image.shape), 0, 255).astype(np.uint8)
