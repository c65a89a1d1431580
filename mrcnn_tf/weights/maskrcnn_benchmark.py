"""maskrcnn-benchmark's names: the baselines of the MR R-CNN paper."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from mrcnn_tf.models.mask_rcnn import MaskRCNN
from mrcnn_tf.weights import torchvision
from mrcnn_tf.weights.transfer import Move, Tensors

# Its models are laid out as torchvision's are, which came after them.
NAMES = (
    (r"^backbone\.body\.stem\.", "backbone.body."),
    (r"^rpn\.head\.conv\.", "rpn.head.conv.0.0."),
    (r"^roi_heads\.box\.feature_extractor\.", "roi_heads.box_head."),
    (r"^roi_heads\.box\.predictor\.", "roi_heads.box_predictor."),
    (r"^roi_heads\.mask\.predictor\.", "roi_heads.mask_predictor."),
)
FPN = re.compile(r"^backbone\.fpn\.fpn_(inner|layer)(\d)\.")
MASK = re.compile(r"^roi_heads\.mask\.feature_extractor\.mask_fcn(\d)\.")


def tidy(tensors: Tensors) -> dict[str, np.ndarray]:
    """The tensors under torchvision's names."""
    out = {}
    for name, value in tensors.items():
        for theirs, ours in NAMES:
            name = re.sub(theirs, ours, name)
        name = FPN.sub(lambda m: f"backbone.fpn.{m[1]}_blocks.{int(m[2]) - 1}.0.", name)
        out[MASK.sub(lambda m: f"roi_heads.mask_head.{int(m[1]) - 1}.0.", name)] = value
    return out


def recognised(tensors: Tensors) -> bool:
    """Whether the names are maskrcnn-benchmark's; see `settings` for what sets them apart."""
    return "backbone.body.conv1.weight" in tensors and "rpn.anchor_generator.cell_anchors.0" in tensors


def settings(tensors: Tensors) -> dict[str, Any]:
    """The `model` section of a config that is this file's architecture.

    ResNeXt models are taken for X-101-32x8d, whose stride is in the 3x3 convolution. Pixels are normalised as Detectron
    does for all.
    """
    backbone = {"dialect": "caffe2", "epsilon": 0.0, **torchvision.resnet_settings(tensors, "backbone.body.")}
    if "groups" in backbone:
        backbone["dialect"] = "torchvision"
    return {
        "backbone": backbone,
        "normalize": {"mean": [122.7717, 115.9465, 102.9801], "std": [1.0, 1.0, 1.0], "bgr": True},
        "rpn": {"anchor_offset": 0.5, "anchor_rounding": "detectron", "min_size": 0.0},
        "size_rule": "short_first",
        "interpolation": "pil",
        "aligned": False,
        "roi_end": -1.0,
        "box_beta": 1.0,
    }


def class_count(tensors: Tensors) -> int | None:
    """K."""
    return torchvision.class_count(tensors)


def ignored(name: str) -> str | None:
    """Why a tensor is of no use, if it is."""
    return "anchors are computed" if name.startswith("rpn.anchor_generator.") else torchvision.ignored(name)


def moves(model: MaskRCNN, tensors: Tensors) -> list[Move]:
    """Which weight comes from which tensor."""
    return torchvision.moves(model, tensors)
