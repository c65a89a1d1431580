"""Prints how far each stage of an imported model is from what its own project recorded.

python tests/golden/make_torchvision_golden.py --model maskrcnn_resnet50_fpn --out DIR     (its environment)
python -m tests.weights.parity torchvision DIR/model.pth DIR/stages.npz                    (this one)
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

from mrcnn_tf.importer import import_model
from mrcnn_tf.models.mask_rcnn import MaskRCNN
from mrcnn_tf.weights.transfer import LoadReport
from tests.weights.stages import about, compared


def imported(project: str, weights: str | Path, file: Any) -> tuple[MaskRCNN, LoadReport]:
    """The model of a file of weights, with the image size and number of proposals that were recorded."""
    settings = about(file)
    overrides = [f"model.{key}={settings[key]}" for key in ("min_size", "max_size")]
    return import_model(
        weights, project, overrides=[*overrides, f"model.rpn.post_nms=[1000, {settings['proposals']}]"]
    )


def main() -> None:
    """Reads the arguments and prints a table."""
    project, weights, recorded = sys.argv[1:]
    with np.load(recorded) as file:
        model, report = imported(project, weights, file)
        print(report.summary())
        print(f"{'stage':<20} {'largest difference':>20} {'largest value':>15}")
        for name, (difference, largest) in compared(project, model, file).items():
            print(f"{name:<20} {difference:>20.3g} {largest:>15.4g}")


if __name__ == "__main__":
    main()
