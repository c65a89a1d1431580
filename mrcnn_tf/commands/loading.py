"""A model as a command is told to use it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mrcnn_tf.data.coco import CocoDataset
    from mrcnn_tf.models.mask_rcnn import MaskRCNN

NOT_OF_RESULTS = "KEY=VALUE sets what a model gives; `mrcnn clean` does the like to a results file"
HELP = "what becomes a detection, such as model.nms_threshold=0.6 or model.nms_groups=all"


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """The argument whose values `load_with` takes."""
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help=HELP)


def open_data(annotations: str, images: str | None) -> CocoDataset:
    """The data set of `--annotations` and `--images`; TFRecords hold their images.

    Raises:
        ValueError: COCO annotations without the folder of the images.
    """
    from mrcnn_tf.build import open_dataset
    from mrcnn_tf.data.records.manifest import is_records
    from mrcnn_tf.schema import DataSource

    if not images and not is_records(annotations):
        raise ValueError("--annotations with a model needs --images, the folder of the images")
    return open_dataset(DataSource(annotations=annotations, images=images), seed=0)


def load_with(path: str | Path, overrides: Sequence[str]) -> MaskRCNN:
    """The model of a `.keras` file, with other settings of its detections."""
    from mrcnn_tf.config import selection_settings
    from mrcnn_tf.training.checkpoints import load_model

    settings = selection_settings(overrides)  # before seconds of loading
    model = load_model(path)
    if settings:
        model.set_selection(**settings)
    return model
