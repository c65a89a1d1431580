"""Objects from a config: each function reads a section and calls one constructor."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf

from mrcnn_tf.config import ConfigError
from mrcnn_tf.data.coco import CocoDataset
from mrcnn_tf.data.pipeline import training_batches
from mrcnn_tf.data.records.dataset import RecordDataset
from mrcnn_tf.data.records.manifest import is_records
from mrcnn_tf.data.shapes import generate_shapes
from mrcnn_tf.layers.fpn import FPN
from mrcnn_tf.layers.heads import BoxHead, MaskHead, RefiningMaskHead
from mrcnn_tf.layers.preprocess import Normalize
from mrcnn_tf.layers.resnet import ResNet
from mrcnn_tf.layers.rpn import RPN
from mrcnn_tf.models.mask_rcnn import MaskRCNN
from mrcnn_tf.models.mask_refining_rcnn import MaskRefiningRCNN
from mrcnn_tf.schema import Config, DataSource


def build_model(config: Config, class_names: Sequence[str], category_ids: Sequence[int]) -> MaskRCNN:
    """The model of a config for these classes, with fresh weights."""
    values: dict[str, Any] = config.model.model_dump(by_alias=True)
    backbone, refining, count = values.pop("backbone"), values.pop("refining"), len(class_names)
    backbone.pop("weights")
    mask_head, normalize = values.pop("mask_head"), values.pop("normalize")
    parts: dict[str, Any] = {
        "backbone": ResNet(**backbone),
        "normalize": None if normalize is None else Normalize(**normalize),
        "fpn": FPN(**values.pop("fpn")),
        "rpn": RPN(**values.pop("rpn")),
        "box_head": BoxHead(count, **values.pop("box_head")),
        "mask_head": MaskHead(count, **mask_head),
    }
    model = MaskRCNN
    if refining is not None:
        model = MaskRefiningRCNN
        flow = refining.pop("mask_flow")
        parts["refining_mask_head"] = RefiningMaskHead(count, mask_flow=flow, **mask_head)
        values.update(refining)
    weights = values.pop("loss_weights")
    values["loss_weights"] = {name: weights[name] for name in model.LOSSES}
    return model(list(class_names), list(category_ids), **parts, **values, name="mask_rcnn")


def build_datasets(config: Config) -> tuple[CocoDataset, CocoDataset | None]:
    """Training and validation set; the built-in one is generated where the config asks for it.

    Raises:
        ConfigError: if there is no training set, or the two name other classes.
        OSError, ValueError: from reading them.
    """
    data = config.data
    if data.generated is not None:
        made = data.generated
        sets = []
        for split, count, seed in (
            ("train", made.train_images, 2 * made.seed),
            ("val", made.val_images, 2 * made.seed + 1),
        ):
            annotations, images = generate_shapes(
                Path(made.folder) / split, num_images=count, size=made.size, crowding=made.crowding, seed=seed
            )
            chosen = getattr(data, split).model_copy(
                update={"annotations": str(annotations), "images": str(images)}
            )
            sets.append(open_dataset(chosen, config.seed))
        return sets[0], sets[1]
    for key in ("annotations", "images"):
        if not getattr(data.train, key) and not is_records(data.train.annotations or ""):
            raise ConfigError(
                f"data.train.{key} is not set; give it in the config or as data.train.{key}=PATH on the command line"
            )
    train = open_dataset(data.train, config.seed)
    if not data.val.annotations:
        return train, None
    if not data.val.images and not is_records(data.val.annotations):
        raise ConfigError("data.val.images is not set, but data.val.annotations is; give both or neither")
    val = open_dataset(data.val, config.seed)
    if val.class_names != train.class_names:
        unlike = sorted(set(val.class_names) ^ set(train.class_names))
        raise ConfigError(
            f"data.val.annotations: {data.val.annotations} has other classes than {data.train.annotations}: "
            f"{', '.join(unlike) or 'the same names in another order'}"
        )
    return train, val


def validation_set(config: Config) -> CocoDataset | None:
    """The validation set alone; errors as in `build_datasets`."""
    if config.data.generated is not None:
        return build_datasets(config)[1]
    return open_dataset(config.data.val, config.seed) if config.data.val.annotations else None


def open_dataset(source: DataSource, seed: int) -> CocoDataset:
    """The data set of a section.

    Raises:
        ConfigError: it names no annotation file.
    """
    if source.annotations is None:
        raise ConfigError("annotations is not set; give the path of a COCO JSON file or of TFRecords")
    chosen = source.model_dump(exclude={"annotations", "images"})
    if is_records(source.annotations):
        return RecordDataset(source.annotations, **chosen, seed=seed)
    return CocoDataset(source.annotations, source.images, **chosen, seed=seed)


def build_batches(
    config: Config,
    dataset: CocoDataset,
    start_step: int = 0,
    slices: int = 1,
    wanted: Sequence[int] = (0,),
) -> tf.data.Dataset:
    """The endless training batches of a config from a step on, or slices of them, see `training_batches`."""
    data, model = config.data, config.model
    return training_batches(
        dataset,
        batch_size=config.train.batch_size,
        canvas=data.canvas,
        min_sizes=data.min_sizes or [model.min_size],
        max_size=model.max_size,
        size_rule=model.size_rule,
        interpolation=model.interpolation,
        aspect_grouping=data.aspect_grouping,
        flip=data.flip,
        vertical_flip=data.vertical_flip,
        scale_jitter=data.scale_jitter,
        colour_jitter=data.colour_jitter,
        max_instances=data.max_instances,
        mask_size=data.mask_size,
        seed=config.seed,
        start_step=start_step,
        slices=slices,
        wanted=wanted,
        num_parallel_calls=data.workers,
    )
