"""A model and data small enough to train in a test."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from mrcnn_tf.layers.fpn import FPN
from mrcnn_tf.layers.heads import BoxHead, MaskHead
from mrcnn_tf.layers.resnet import ResNet
from mrcnn_tf.layers.rpn import RPN
from mrcnn_tf.models.mask_rcnn import MaskRCNN

CLASSES = ["disc", "ellipse", "square", "triangle", "star", "cross"]

# The config of a run of seconds. The group norms make a step independent of how its batch is split.
CONFIG: dict[str, Any] = {
    "name": "tiny",
    "model": {
        "backbone": {"depth": 18, "norm": "group", "freeze_at": 0, "width": 8},
        "fpn": {"channels": 16},
        "rpn": {
            "channels": 16,
            "anchor_sizes": [[12], [20], [32], [48], [64]],
            "pre_nms": [50, 40],
            "post_nms": [40, 30],
        },
        "box_head": {"units": 32},
        "mask_head": {"channels": 8, "depth": 1},
        "min_size": 64,
        "max_size": 64,
        "rpn_samples": 32,
        "roi_samples": 16,
        "max_detections": 20,
    },
    "data": {
        "generated": {"train_images": 12, "val_images": 4, "size": 64},
        "canvas": [64, 64],
        "max_instances": 12,
        "mask_size": 28,
    },
    "train": {
        "steps": 4,
        "batch_size": 2,
        "learning_rate": 0.01,
        "schedule": "cosine",
        "warmup_steps": 1,
        "log_every": 1,
        "checkpoint_every": 2,
    },
    "evaluation": {"every": 2, "pictures": 2},
    # It takes longer than all of the training.
    "export": {"saved_model": False},
}


def make_model(kind: type[MaskRCNN] = MaskRCNN, **kwargs: Any) -> Any:
    """An untrained model of `CONFIG`'s size for images of 64 pixels."""
    settings: dict[str, Any] = {
        "min_size": 64,
        "max_size": 64,
        "rpn_samples": 32,
        "roi_samples": 16,
        "max_detections": 20,
        **kwargs,
    }
    return kind(
        CLASSES,
        [3, 5, 7, 11, 13, 90],
        backbone=ResNet(18, norm="group", freeze_at=0, width=8),
        fpn=FPN(16),
        rpn=RPN(16, anchor_sizes=((12,), (20,), (32,), (48,), (64,)), pre_nms=(50, 40), post_nms=(40, 30)),
        box_head=BoxHead(6, 32),
        mask_head=MaskHead(6, 8, 1),
        **settings,
    )


def make_batch(size: int = 2, instances: int = 4, seed: int = 0, slots: int = 6) -> dict[str, tf.Tensor]:
    """A training batch of noise with random instances, as the data pipeline shapes it."""
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 36, (size, slots, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(8, 28, (size, slots, 2))], -1).astype(np.float32)
    classes = rng.integers(1, 7, (size, slots)).astype(np.int32)
    classes[:, instances:] = -1
    boxes[:, instances:] = 0
    batch = {
        "images": rng.uniform(0, 255, (size, 64, 64, 3)).astype(np.float32),
        "image_sizes": np.full((size, 2), 64, np.float32),
        "image_ids": np.arange(size) + 100,
        "gt_boxes": boxes,
        "gt_classes": classes,
        "gt_crowd": np.zeros((size, slots), bool),
        "gt_has_mask": classes > 0,
        "gt_masks": rng.integers(0, 2, (size, slots, 28, 28)).astype(np.uint8),
    }
    return {k: tf.constant(v) for k, v in batch.items()}
