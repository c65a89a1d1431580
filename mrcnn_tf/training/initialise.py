"""What weights a training starts from, and whether they suit the model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mrcnn_tf.config import ConfigError
from mrcnn_tf.data.coco import CocoDataset
from mrcnn_tf.models.class_rows import reclassed
from mrcnn_tf.models.mask_rcnn import MaskRCNN
from mrcnn_tf.models.mask_refining_rcnn import MaskRefiningRCNN
from mrcnn_tf.schema import Config
from mrcnn_tf.tables import some
from mrcnn_tf.training.checkpoints import load_model


def initialise(model: MaskRCNN, source: Path | None, config: Config, dataset: CocoDataset) -> None:
    """Weights to start from: those in `source`, a Mask R-CNN's for an MR R-CNN too; else the backbone's, if any."""
    if source is not None:
        trained = load_model(source)
        if trained.class_names != list(dataset.class_names):
            trained, *names = reclassed(trained, dataset.class_names, dataset.category_ids)
            for what, which in zip(("kept", "new", "left out"), names, strict=True):
                print(f"classes    {len(which)} {what}" + (f": {some(which)}" if which else ""))
        unlike = unlike_settings(trained, model)
        spoilt = [key for key in unlike if key.startswith(("normalize.", "backbone.dialect"))]
        if spoilt:
            raise ConfigError(
                f"init_from: {source} was trained on pixels that look otherwise: "
                + ", ".join(f"model.{key} {unlike[key][0]}, here {unlike[key][1]}" for key in spoilt)
                + "; take the model section of the config it was trained or imported with (docs/weights.md)"
            )
        for key, (theirs, ours) in unlike.items():
            print(f"note       {source} was trained with {key} {theirs}, this model has {ours}")
        try:
            if isinstance(model, MaskRefiningRCNN) and not isinstance(trained, MaskRefiningRCNN):
                model.start_from(trained)
            else:
                model.set_weights(trained.get_weights())
        except ValueError as error:
            raise ConfigError(
                f"init_from: {source} has another architecture than the config's model: "
                + (", ".join(unlike_parts(trained, model)) or str(error).splitlines()[0])
            ) from None
    elif config.model.backbone.weights == "imagenet":
        from mrcnn_tf.weights.imagenet import load_imagenet

        load_imagenet(model.backbone)


def unlike_parts(trained: MaskRCNN, model: MaskRCNN) -> list[str]:
    """In what the parts of two models differ, as `model.fpn.channels 256, here 24`."""
    out = []
    for part in MaskRCNN.PARTS:
        theirs, ours = (json.loads(json.dumps(getattr(m, part).get_config())) for m in (trained, model))
        keys = [
            key
            for key in theirs
            if key not in ("name", "dtype", "trainable") and theirs[key] != ours.get(key)
        ]
        out += [f"model.{part}.{key} {theirs[key]}, here {ours.get(key)}" for key in keys]
    return out


# Settings that decide what the numbers of a model mean; others are the training's own business.
CONVENTIONS = (
    "aligned",
    "sampling_ratio",
    "roi_end",
    "roi_shift",
    "roi_levels",
    "box_weights",
    "size_rule",
    "interpolation",
    "canvas",
    "norm_padding",
    "class_loss",
)


def unlike_settings(trained: MaskRCNN, model: MaskRCNN) -> dict[str, tuple[Any, Any]]:
    """Settings that the weights of one model may not suit in the other, though their shapes do."""
    values = [
        {
            **{key: m.settings[key] for key in CONVENTIONS},
            **{f"backbone.{key}": m.backbone.get_config()[key] for key in ("dialect", "epsilon")},
            **{f"normalize.{key}": m.normalize.get_config()[key] for key in ("mean", "std", "bgr")},
            **{
                f"rpn.{key}": m.rpn.get_config()[key]
                for key in ("anchor_sizes", "aspect_ratios", "anchor_offset", "anchor_rounding")
            },
        }
        for m in (trained, model)
    ]
    a, b = json.loads(json.dumps(values))  # lists and tuples are the same
    return {key: (a[key], b[key]) for key in a if a[key] != b[key]}
