"""Writes torch_zip.pth and torch_legacy.pth as a training run saves them, with torch 2.15 (any version will do).

python tests/golden/make_torch_golden.py
"""

from __future__ import annotations

from pathlib import Path

import torch

base = torch.arange(6.0).reshape(2, 3)
model = {
    "base": base,
    "transposed": base.t(),  # shares the storage
    "sliced": base[1, ::2],
    "bfloat16": torch.tensor([1.5, -2.0]).bfloat16(),
    "count": torch.tensor(7),
}
weight = torch.nn.Parameter(torch.ones(2))
optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.9)
weight.sum().backward()
optimizer.step()
model["parameter"] = weight
checkpoint = {
    "model": {f"module.{name}": tensor for name, tensor in model.items()},
    "optimizer": optimizer.state_dict(),
    "iteration": 1,
}
for name, is_zip in (("torch_zip", True), ("torch_legacy", False)):
    path = Path(__file__).with_name(f"{name}.pth")
    torch.save(checkpoint, path, _use_new_zipfile_serialization=is_zip)
