"""Writes deform.npz: deformable convolutions and their gradients as torchvision computes them.

    python -m venv tv && tv/bin/pip install torch torchvision
    tv/bin/python tests/golden/make_deform_golden.py

Recorded with torch 2.15 and torchvision 0.29. Channels are moved to the end, as TensorFlow has them, and a kernel is
`[k, k, C / groups, filters]`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torchvision.ops import deform_conv2d

CASES = [(v, stride, groups) for v in (1, 2) for stride in (1, 2) for groups in (1, 2)]


def record(rng: np.random.Generator, version: int, stride: int, groups: int) -> dict[str, np.ndarray]:
    """One case on a map of 5 x 6: inputs, output, and gradients of `sum(output * upstream)`."""

    def draw(*shape: int) -> torch.Tensor:
        # Few bits, so that the file is small and float32 holds the numbers exactly.
        return torch.tensor(np.round(rng.normal(0, 1, shape) * 64) / 64, dtype=torch.float64)

    height, width = -(-5 // stride), -(-6 // stride)
    x, kernel = draw(2, 4, 5, 6), draw(6, 4 // groups, 3, 3)
    # Up to some cells, and a few from beyond the border to far outside.
    offsets = draw(2, 18, height, width) * 2
    offsets[0, :, 0, 0] *= 16
    modulation = torch.sigmoid(draw(2, 9, height, width)) if version == 2 else None
    upstream = draw(2, 6, height, width)
    inputs = {"x": x, "offsets": offsets, "kernel": kernel}
    if modulation is not None:
        inputs["modulation"] = modulation
    for value in inputs.values():
        value.requires_grad_()
    out = deform_conv2d(x, offsets, kernel, stride=stride, padding=1, mask=modulation)
    (out * upstream).sum().backward()
    case = {**inputs, "upstream": upstream, "out": out}
    case |= {f"{name}_gradient": value.grad for name, value in inputs.items()}
    return {
        name: value.detach().permute((2, 3, 1, 0) if "kernel" in name else (0, 2, 3, 1)).numpy()
        for name, value in case.items()
    }


def main() -> None:
    """Writes the file beside this script."""
    rng = np.random.default_rng(2017)
    arrays = {
        f"v{version}_stride{stride}_groups{groups}/{name}": value.astype(np.float32)
        for version, stride, groups in CASES
        for name, value in record(rng, version, stride, groups).items()
    }
    path = Path(__file__).with_name("deform.npz")
    np.savez_compressed(path, **arrays)
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
