"""The model card: what an exported model is, for people and programs."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf
import yaml

import mrcnn_tf
from mrcnn_tf.models.mask_rcnn import MaskRCNN
from mrcnn_tf.models.mask_refining_rcnn import arguments_of


def model_card(model: MaskRCNN, precision: str | None) -> dict[str, Any]:
    """What can be told from the model itself; `precision` is the exported one, None for the model's own."""
    settings = {k: v for k, v in model.settings.items() if k not in ("class_names", "category_ids")}
    return {
        "model": type(model).__name__,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "precision": precision or model.compute_dtype,
        "parameters": model.count_params(),
        "classes": model.num_classes,
        "versions": {
            "mrcnn_tf": mrcnn_tf.__version__,
            "tensorflow": tf.__version__,
            "keras": keras.__version__,
        },
        "settings": {**settings, **{part: arguments_of(getattr(model, part)) for part in model.PARTS}},
    }


def training_of(run: Path) -> dict[str, Any]:
    """The metrics and the config, the data's names among it, that a run folder holds; None for what it does not."""
    metrics, config = run / "metrics.json", run / "config.yaml"
    return {
        "metrics": json.loads(metrics.read_text(encoding="utf-8")) if metrics.exists() else None,
        "config": portable(yaml.safe_load(config.read_text(encoding="utf-8"))) if config.exists() else None,
    }


def portable(value: Any) -> Any:
    """A config without this machine's folders: of an absolute path, the name stays."""
    if isinstance(value, dict):
        return {key: portable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [portable(item) for item in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value
