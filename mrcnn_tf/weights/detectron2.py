"""detectron2's names: Mask R-CNN with ResNet- or ResNeXt-FPN, as its model zoo has them."""

from __future__ import annotations

from typing import Any

import numpy as np

from mrcnn_tf.layers.deformable import DeformableConv
from mrcnn_tf.layers.resnet import BLOCKS
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

BODY = "backbone.bottom_up."


def tidy(tensors: Tensors) -> dict[str, np.ndarray]:
    """The tensors as they are."""
    return dict(tensors)


def recognised(tensors: Tensors) -> bool:
    """Whether the names are detectron2's."""
    return f"{BODY}stem.conv1.weight" in tensors


def settings(tensors: Tensors) -> dict[str, Any]:
    """The `model` section of a config that is this file's architecture.

    The names do not tell where a bottleneck's stride is, nor how pixels are normalised. In the zoo it is in the 3x3
    convolution where there are groups or group norms, else in the first 1x1; ResNeXts divide by standard deviations.
    """
    if "roi_heads.box_predictor.0.cls_score.weight" in tensors:
        raise ValueError("has several box heads: a Cascade R-CNN, which cannot be imported")
    for part in ("roi_heads.box_predictor.cls_score", "roi_heads.mask_head.predictor"):
        if f"{part}.weight" not in tensors:
            raise ValueError(f"has no {part}, so it is not a Mask R-CNN; other models cannot be imported")
    blocks = tuple(count(tensors, rf"backbone\.bottom_up\.res{i}\.(\d+)\.conv1\.weight") for i in range(2, 6))
    width, inputs = tensors[f"{BODY}res2.0.conv2.weight"].shape[:2]
    resnext, norm = width != inputs, norm_of(tensors, f"{BODY}stem.conv1")
    dialect = "torchvision" if resnext or norm == "group" else "caffe2"
    backbone: dict[str, Any] = {
        "depth": resnet_depth(blocks, bottleneck=True),
        "dialect": dialect,
        "norm": norm,
    }
    if resnext:
        backbone.update(groups=width // inputs, width_per_group=inputs)
    offsets = {
        stage: tensors[name].shape[0]
        for stage in range(3, 6)
        if (name := f"{BODY}res{stage}.0.conv2_offset.weight") in tensors
    }
    if offsets:
        backbone.update(deformable=list(offsets), modulated=27 in offsets.values())
    std = (58.395, 57.12, 57.375) if resnext else (1.0, 1.0, 1.0)
    mean = (123.675, 116.28, 103.53)
    if "pixel_mean" in tensors and "pixel_std" in tensors:
        mean, std = (tuple(tensors[f"pixel_{k}"].ravel()[::-1].tolist()) for k in ("mean", "std"))
    heads = "roi_heads."
    convs = count(tensors, r"roi_heads\.box_head\.conv(\d+)\.weight")
    deltas, scores = (tensors[f"{heads}box_predictor.{k}.weight"] for k in ("bbox_pred", "cls_score"))
    mask = tensors[f"{heads}mask_head.predictor.weight"]
    return {
        "backbone": backbone,
        "normalize": {"mean": list(mean), "std": list(std), "bgr": True},
        "fpn": {"norm": norm_of(tensors, "backbone.fpn_output2")},
        "rpn": {"depth": len(rpn_convs(tensors)), "min_size": 0.0},
        "box_head": {
            "conv_depth": convs,
            "depth": count(tensors, r"roi_heads\.box_head\.fc(\d+)\.weight"),
            "norm": norm_of(tensors, f"{heads}box_head.conv1"),
            "class_agnostic": deltas.shape[0] == 4 and scores.shape[0] > 2,
        },
        "mask_head": {
            "depth": count(tensors, r"roi_heads\.mask_head\.mask_fcn(\d+)\.weight"),
            "norm": norm_of(tensors, f"{heads}mask_head.mask_fcn1"),
            "class_agnostic": mask.shape[0] == 1 and scores.shape[0] > 2,
        },
        "interpolation": "pil",
        "norm_padding": norm == "group",
        "sampling_ratio": 0,
        "rpn_beta": 0.0,
        "box_beta": 0.0,
    }


def norm_of(tensors: Tensors, name: str) -> str | None:
    """The norm behind a convolution: none, group norm, or batch norm, frozen in backbones without one in the FPN."""
    if f"{name}.norm.weight" not in tensors:
        return None
    if f"{name}.norm.running_mean" not in tensors:
        return "group"
    return "sync_batch" if "backbone.fpn_output2.norm.weight" in tensors else "frozen_batch"


def rpn_convs(tensors: Tensors) -> list[str]:
    """Names of the RPN's hidden convolutions."""
    name = "proposal_generator.rpn_head.conv"
    several = count(tensors, r"proposal_generator\.rpn_head\.conv\.conv(\d+)\.weight")
    return [f"{name}.conv{i}" for i in range(several)] or [name]


def class_count(tensors: Tensors) -> int | None:
    """K."""
    return len(tensors["roi_heads.box_predictor.cls_score.bias"]) - 1


def ignored(name: str) -> str | None:
    """Why a tensor is of no use, if it is."""
    if name.endswith("num_batches_tracked"):
        return "counts batches"
    if name.startswith("proposal_generator.anchor_generator."):
        return "anchors are computed"
    if name in ("pixel_mean", "pixel_std"):
        return "in the model's settings"
    return None


def moves(model: MaskRCNN, tensors: Tensors) -> list[Move]:
    """Which weight comes from which tensor."""
    body, fpn, rpn, box, mask = model.backbone, model.fpn, model.rpn, model.box_head, model.mask_head

    def conv(layer, name: str, norm: bool) -> list[Move]:
        return conv_moves(layer, name, f"{name}.norm" if norm else None)

    out = conv(body.stem, f"{BODY}stem.conv1", True)
    blocks = iter(body.blocks)
    for stage, number in enumerate(BLOCKS[body.depth], 2):
        for i in range(number):
            block, name = next(blocks), f"{BODY}res{stage}.{i}"
            if block.shortcut is not None:
                out += conv(block.shortcut, f"{name}.shortcut", True)
            for j, layer in enumerate(block.convs, 1):
                out += conv(layer, f"{name}.conv{j}", True)
                if isinstance(layer, DeformableConv):
                    out += conv_moves(layer.offset, f"{name}.conv{j}_offset")
    for kind, layers in (("lateral", fpn.laterals), ("output", fpn.outputs)):
        for level, layer in enumerate(layers, 2):
            out += conv(layer, f"backbone.fpn_{kind}{level}", fpn.norm is not None)
    for layer, name in zip(rpn.hidden, rpn_convs(tensors), strict=True):
        out += conv_moves(layer, name)
    out += conv_moves(rpn.objectness, "proposal_generator.rpn_head.objectness_logits")
    out += in_yx(conv_moves(rpn.deltas, "proposal_generator.rpn_head.anchor_deltas"))

    for i, layer in enumerate(box.convs, 1):
        out += conv(layer, f"roi_heads.box_head.conv{i}", box.norm is not None)
    out += dense_on_map_moves(box.hidden[0], "roi_heads.box_head.fc1", box.roi_size)
    for i, layer in enumerate(box.hidden[1:], 2):
        out += dense_moves(layer, f"roi_heads.box_head.fc{i}")
    for move in dense_moves(box.classes, "roi_heads.box_predictor.cls_score"):
        out.append(move._replace(convert=background_first(move.convert), how="background first, not last"))
    out += in_yx(dense_moves(box.deltas, "roi_heads.box_predictor.bbox_pred"))
    for i, layer in enumerate(mask.convs, 1):
        out += conv(layer, f"roi_heads.mask_head.mask_fcn{i}", mask.norm is not None)
    out += deconv_moves(mask.deconv, "roi_heads.mask_head.deconv")
    out += predictor_moves(mask, "roi_heads.mask_head.predictor", background=False)
    return out


def background_first(convert):
    """`convert` after the last row of a tensor was put before the first."""
    return lambda value: convert(np.roll(value, 1, axis=0))
