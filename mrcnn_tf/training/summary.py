"""What a person wants to know before the first step."""

from __future__ import annotations

import numpy as np

from mrcnn_tf.config import Config
from mrcnn_tf.data.coco import CocoDataset
from mrcnn_tf.data.pipeline import left_out
from mrcnn_tf.layers.conv import BatchNorm, Conv
from mrcnn_tf.models.mask_rcnn import MaskRCNN
from mrcnn_tf.models.mask_refining_rcnn import MaskRefiningRCNN


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
        f"memory     about {training_memory(config, model, replicas) / 2**30:.1f} GiB a device (estimate)",
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


def training_memory(config: Config, model: MaskRCNN, replicas: int) -> float:
    """Bytes that a device needs in training, roughly: weights, optimiser, and the activations kept for the gradient."""
    size = 4 if config.precision == "float32" else 2
    slots = 2 if config.train.optimizer == "sgd" else 3
    slots += config.train.ema is not None
    fixed = 4.0 * model.count_params() * (1 + slots)
    images = config.train.batch_size / replicas
    height, width = config.data.canvas
    kept = 0.0
    resolution = height * width / 4
    stages = [(model.backbone.stem, resolution)]
    stage = 1
    for block in model.backbone.blocks:
        number = int(block.name[len("stage")])
        if number != stage:
            stage, resolution = number, height * width / 4**number
        if model.backbone.checkpointing:
            kept += resolution * block.convs[-1].filters * size
        else:
            stages += [(conv, resolution) for conv in block.convs]
    kept += sum(pixels * conv.filters * size * _tensors(conv) for conv, pixels in stages if conv.trainable)
    channels = model.fpn.channels
    pyramid = sum(height * width / stride**2 for stride in model.fpn.strides)
    kept += pyramid * (3 * channels + model.rpn.depth * model.rpn.channels) * size
    rois = model.roi_sampling["count"]
    positives = rois * model.roi_sampling["positive_fraction"]
    box, mask = model.box_head, model.mask_head
    # RoIAlign samples each bin sampling_ratio^2 times before it averages; of its own choice mostly 3 by 3.
    samples = 1 + (model.roi_align["sampling_ratio"] or 3) ** 2
    convs = box.roi_size**2 * len(box.convs) * box.conv_channels
    box_kept = box.roi_size**2 * channels * samples + convs + box.depth * box.units
    kept += rois * box_kept * size
    kept += positives * mask.roi_size**2 * (channels * samples + mask.channels * (mask.depth + 4)) * size
    if isinstance(model, MaskRefiningRCNN):
        again = model.refining_samples
        kept += again * box_kept * size
        masks = again * (1 + model.roi_sampling["positive_fraction"])
        kept += masks * mask.roi_size**2 * (channels * samples + mask.channels * (mask.depth + 4)) * size
    # The gradients of the last tensors live beside what is still kept: a quarter more.
    batch = height * width * 3 * 4 + config.data.max_instances * config.data.mask_size**2
    return fixed + images * (1.25 * kept + 3 * batch)


def _tensors(conv: Conv) -> int:
    """How many tensors of the output's size the gradient of a convolution keeps."""
    own = isinstance(conv.norm, BatchNorm) and conv.norm.mode != "frozen_batch"
    return 2 if own or (conv.norm is not None and conv.norm_name == "group") else 1
