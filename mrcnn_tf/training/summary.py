"""What a person wants to know before the first step."""

from __future__ import annotations

import numpy as np

from mrcnn_tf.data.coco import CocoDataset
from mrcnn_tf.data.pipeline import left_out
from mrcnn_tf.models.mask_rcnn import MaskRCNN
from mrcnn_tf.models.mask_refining_rcnn import MaskRefiningRCNN
from mrcnn_tf.planning.memory import training_memory
from mrcnn_tf.schema import Config


def summary(
    config: Config,
    model: MaskRCNN,
    train_set: CocoDataset,
    val_set: CocoDataset | None,
    replicas: int,
    start: int,
) -> str:
    """Data set sizes, classes, parameters, estimated memory and steps, as text of some lines."""
    settings = config.train
    names = ", ".join(train_set.class_names[:8]) + (", ..." if train_set.num_classes > 8 else "")
    trainable = sum(int(np.prod(w.shape)) for w in model.trainable_weights)
    kind = "MR R-CNN" if isinstance(model, MaskRefiningRCNN) else "Mask R-CNN"
    backbone = f"{'ResNeXt' if model.backbone.groups > 1 else 'ResNet'}-{model.backbone.depth}"
    backbone = f"deformable {backbone}" if model.backbone.deformable else backbone
    epochs = settings.steps * settings.batch_size / len(train_set)
    memory = sum(
        training_memory(
            config, model, model.optimizer, settings.batch_size / replicas, devices=replicas
        ).values()
    )
    lines = [
        f"{config.name}: {kind}, {backbone}-FPN, {config.precision}, {replicas} device(s)",
        f"train      {len(train_set)} images, {int(train_set.instance_counts.sum())} instances",
    ]
    if val_set is not None:
        lines.append(f"validation {len(val_set)} images, {int(val_set.instance_counts.sum())} instances")
    else:
        lines.append("validation none: no AP will be computed; set data.val.annotations and data.val.images")
    lines += [
        f"classes    {train_set.num_classes}: {names}",
        f"parameters {model.count_params():,}, of which {trainable:,} are trained",
        f"memory     about {memory / 2**30:.1f} GiB a device (estimate; mrcnn plan tells of what)",
        f"steps      {settings.steps} of {settings.batch_size} images ({epochs:.1f} epochs)"
        + (f", going on from step {start}" if start else ""),
    ]
    for dataset in (train_set, val_set):
        if dataset is not None and dataset.dropped:
            what = ", ".join(f"{count} {reason}" for reason, count in dataset.dropped.items())
            lines.append(
                f"note       {dataset.name}: instances not used: {what} (mrcnn check-data lists them)"
            )
    images, instances = left_out(train_set, config.data.max_instances)
    if images:
        lines.append(
            f"note       {images} images have more than data.max_instances={config.data.max_instances} instances; "
            f"{instances} are left out at random each epoch"
        )
    return "\n".join(lines)
