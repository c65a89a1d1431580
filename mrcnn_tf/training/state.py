"""What training needs besides weights and optimiser to go on as if it had never stopped."""

from __future__ import annotations

import json
import platform
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import yaml

import mrcnn_tf
from mrcnn_tf.config import ConfigError, differences, dump_config, make_config
from mrcnn_tf.models.mask_rcnn import MaskRCNN
from mrcnn_tf.schema import Config

FORMAT = 1
# The state's name within a checkpoint, which is a zip archive.
MEMBER = "training.json"


def versions() -> dict[str, str]:
    """Of what decides the last bits of a training."""
    return {
        "mrcnn_tf": mrcnn_tf.__version__,
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


@dataclass(frozen=True)
class TrainingState:
    """A moment of a training.

    There is no state of random numbers in it, because nothing draws from one: order and augmentation of the data and
    the sampling of anchors and RoIs are functions of the config's seed, the images and the step.

    Attributes:
        config: as resolved; schedule, seed and order of the data follow from it and the step.
        class_names: the model's.
        images: checksum of the training images' ids, in their order.
        shapes: of all variables of model and optimiser.
        step: steps done.
        best: the best validation metric so far.
        validations: what was measured on the validation subset, each with its `step`.
        versions: of what made it.
        format: of this record.
    """

    config: dict[str, Any]
    class_names: list[str]
    images: int
    shapes: list[list[int]]
    step: int = 0
    best: float | None = None
    validations: list[dict[str, Any]] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=versions)
    format: int = FORMAT

    def to_json(self) -> str:
        """For `read_state`."""
        return json.dumps(asdict(self))

    def made_with(self) -> str:
        """Its versions, as text."""
        return ", ".join(f"{name} {version}" for name, version in self.versions.items())

    def compare(self, here: TrainingState, path: Path) -> list[str]:
        """What differs in the run that is to go on from this state, read from `path`, but lets it go on.

        Raises:
            ValueError: it is of another model.
        """
        try:
            unlike = differences(make_config(self.config), make_config(here.config))
        except ConfigError as error:
            raise ValueError(
                f"{path}: holds a config that this version cannot read ({error}); it was made with {self.made_with()}"
            ) from None
        if self.class_names != here.class_names:
            unlike.insert(
                0, f"classes: {', '.join(self.class_names)} there, {', '.join(here.class_names)} here"
            )
        if self.shapes != here.shapes or self.class_names != here.class_names:
            shaping = ("classes", "model.", "precision", "train.optimizer", "train.ema", "train.momentum")
            reasons = [d for d in unlike if d.startswith(shaping)] or ["its variables have other shapes"]
            raise ValueError(
                f"{path}: is of another model ({'; '.join(reasons)}); go on with the config it was trained with, or "
                "start a run of another name from its weights with init_from"
            )
        notes = [f"going on with other settings than before: {'; '.join(unlike)}"] if unlike else []
        if self.images != here.images:
            notes.append("going on with other training images than before")
        other = [
            f"{name} {there}, here {here.versions.get(name, 'none')}"
            for name, there in self.versions.items()
            if there != here.versions.get(name)
        ]
        if other:
            notes.append(f"the checkpoint was made with {'; '.join(other)}: the last bits may differ")
        return notes


def checksum(image_ids: Sequence[int]) -> int:
    """Of ids in their order."""
    return zlib.crc32(np.asarray(image_ids, np.int64).tobytes())


def state_at_start(config: Config, model: MaskRCNN, image_ids: Sequence[int]) -> TrainingState:
    """That of a compiled model before its first step."""
    return TrainingState(
        config=yaml.safe_load(dump_config(config)),
        class_names=list(model.class_names),
        images=checksum(image_ids),
        shapes=[list(v.shape) for v in (*model.variables, *model.optimizer.variables)],
    )


def read_state(path: Path) -> TrainingState:
    """The state within an intact checkpoint.

    Raises:
        ValueError: it has none, or one that this version does not know.
    """
    with zipfile.ZipFile(path) as archive:
        if MEMBER not in archive.namelist():
            raise ValueError(
                f"{path}: is a model without the state of a training; start from its weights with init_from={path}"
            )
        values = json.loads(archive.read(MEMBER))
    if values.get("format") != FORMAT:
        made = ", ".join(f"{k} {v}" for k, v in values.get("versions", {}).items()) or "another version"
        raise ValueError(
            f"{path}: has a training state of format {values.get('format')}, this version reads {FORMAT}; go on with "
            f"what made it ({made}), or start from its weights with init_from={path}"
        )
    return TrainingState(**values)
