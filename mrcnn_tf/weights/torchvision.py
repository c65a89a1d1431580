"""torchvision's names: Mask R-CNN v1 and v2 with ResNet-FPN, and ResNets as classifiers."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from mrcnn_tf.layers.resnet import BLOCKS, ResNet
from mrcnn_tf.models.mask_rcnn import MaskRCNN
from mrcnn_tf.weights.transfer import (
    Move,
    Tensors,
    conv_moves,
    count,
    deconv_moves,
    dense_moves,
    dense_on_map_moves,
    in_yx,
    predictor_moves,
    resnet_depth,
)

# Names until torchvision 0.12, which the published COCO_V1 file has.
OLD_NAMES = (
    (r"^(backbone\.fpn\.(?:inner|layer)_blocks\.\d)\.(weight|bias)$", r"\1.0.\2"),
    (r"^rpn\.head\.conv\.(weight|bias)$", r"rpn.head.conv.0.0.\1"),
)
OLD_MASK = re.compile(r"^roi_heads\.mask_head\.mask_fcn(\d)\.(weight|bias)$")


def tidy(tensors: Tensors) -> dict[str, np.ndarray]:
    """The tensors under today's names."""
    out = {}
    for name, value in tensors.items():
        for old, new in OLD_NAMES:
            name = re.sub(old, new, name)
        name = OLD_MASK.sub(lambda m: f"roi_heads.mask_head.{int(m[1]) - 1}.0.{m[2]}", name)
        out[name] = value
    return out


def recognised(tensors: Tensors) -> bool:
    """Whether the names are torchvision's."""
    return "backbone.body.conv1.weight" in tensors or is_classifier(tensors)


def is_classifier(tensors: Tensors) -> bool:
    """Whether this is a ResNet alone, not a detector."""
    return "conv1.weight" in tensors and "layer1.0.conv1.weight" in tensors


def settings(tensors: Tensors) -> dict[str, Any]:
    """The `model` section of a config that is this file's architecture."""
    body = "" if is_classifier(tensors) else "backbone.body."
    backbone = {"dialect": "torchvision", **resnet_settings(tensors, body)}
    if is_classifier(tensors):
        return {"backbone": backbone}
    if "roi_heads.mask_predictor.mask_fcn_logits.weight" not in tensors:
        raise ValueError("has no mask head, so it is not a Mask R-CNN; other detectors cannot be imported")
    rpn_depth = count(tensors, r"rpn\.head\.conv\.(\d+)\.0\.weight")
    out: dict[str, Any] = {
        "backbone": backbone,
        "fpn": {},
        "rpn": {"depth": rpn_depth, "anchor_rounding": "torchvision", "post_nms": [2000, 1000]},
        "box_head": {},
        "mask_head": {"depth": count(tensors, r"roi_heads\.mask_head\.(\d+)\.0\.weight")},
        "size_rule": "floor",
        "aligned": False,
        "box_beta": 1 / 9,
    }
    if "roi_heads.box_head.0.0.weight" in tensors:
        convs = count(tensors, r"roi_heads\.box_head\.(\d+)\.0\.weight")
        out["box_head"] = {"conv_depth": convs, "depth": 1, "norm": "batch"}
        backbone["norm"] = out["fpn"]["norm"] = out["mask_head"]["norm"] = "batch"
    else:
        # As torchvision sets it for the weights that it publishes.
        backbone["epsilon"] = 0.0
    return out


def resnet_settings(tensors: Tensors, prefix: str) -> dict[str, Any]:
    """Depth, groups and width of a ResNet with torchvision's names."""
    blocks = tuple(count(tensors, rf"{re.escape(prefix)}layer{i}\.(\d+)\.conv1\.weight") for i in range(1, 5))
    bottleneck = f"{prefix}layer1.0.conv3.weight" in tensors
    out: dict[str, Any] = {"depth": resnet_depth(blocks, bottleneck)}
    if bottleneck:
        width, inputs = tensors[f"{prefix}layer1.0.conv2.weight"].shape[:2]
        if width != inputs:
            out.update(groups=width // inputs, width_per_group=inputs)
    return out


def class_count(tensors: Tensors) -> int | None:
    """K, or None for a classifier of images."""
    scores = tensors.get("roi_heads.box_predictor.cls_score.bias")
    return None if scores is None else len(scores) - 1


def ignored(name: str) -> str | None:
    """Why a tensor is of no use, if it is."""
    if name.endswith("num_batches_tracked"):
        return "counts batches"
    if name in ("fc.weight", "fc.bias"):
        return "the classifier of images"
    return None


def moves(model: MaskRCNN, tensors: Tensors) -> list[Move]:
    """Which weight comes from which tensor."""
    if is_classifier(tensors):
        return resnet_moves(model.backbone, "")
    fpn, rpn, box, mask = model.fpn, model.rpn, model.box_head, model.mask_head
    out = resnet_moves(model.backbone, "backbone.body.")
    for kind, layers in (("inner", fpn.laterals), ("layer", fpn.outputs)):
        for i, conv in enumerate(layers):
            name = f"backbone.fpn.{kind}_blocks.{i}"
            out += conv_moves(conv, f"{name}.0", f"{name}.1" if fpn.norm else None)
    for i, conv in enumerate(rpn.hidden):
        out += conv_moves(conv, f"rpn.head.conv.{i}.0")
    out += conv_moves(rpn.objectness, "rpn.head.cls_logits")
    out += in_yx(conv_moves(rpn.deltas, "rpn.head.bbox_pred"))

    heads = "roi_heads."
    if box.convs:
        for i, conv in enumerate(box.convs):
            out += conv_moves(conv, f"{heads}box_head.{i}.0", f"{heads}box_head.{i}.1")
        first = len(box.convs) + 1  # past the layer that flattens
        names = [f"{heads}box_head.{first + 2 * i}" for i in range(box.depth)]
    else:
        names = [f"{heads}box_head.fc{6 + i}" for i in range(box.depth)]
    out += dense_on_map_moves(box.hidden[0], names[0], box.roi_size)
    for layer, name in zip(box.hidden[1:], names[1:], strict=True):
        out += dense_moves(layer, name)
    out += dense_moves(box.classes, f"{heads}box_predictor.cls_score")
    out += in_yx(dense_moves(box.deltas, f"{heads}box_predictor.bbox_pred"), skip=4)
    for i, conv in enumerate(mask.convs):
        name = f"{heads}mask_head.{i}"
        out += conv_moves(conv, f"{name}.0", f"{name}.1" if mask.norm else None)
    out += deconv_moves(mask.deconv, f"{heads}mask_predictor.conv5_mask")
    out += predictor_moves(mask, f"{heads}mask_predictor.mask_fcn_logits", background=True)
    return out


def resnet_moves(backbone: ResNet, prefix: str) -> list[Move]:
    """Of a ResNet with torchvision's names."""
    out = conv_moves(backbone.stem, f"{prefix}conv1", f"{prefix}bn1")
    blocks = iter(backbone.blocks)
    for stage, number in enumerate(BLOCKS[backbone.depth]):
        for i in range(number):
            block, name = next(blocks), f"{prefix}layer{stage + 1}.{i}"
            if block.shortcut is not None:
                out += conv_moves(block.shortcut, f"{name}.downsample.0", f"{name}.downsample.1")
            for j, conv in enumerate(block.convs, 1):
                out += conv_moves(conv, f"{name}.conv{j}", f"{name}.bn{j}")
    return out
