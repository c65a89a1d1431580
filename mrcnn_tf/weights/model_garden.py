"""TensorFlow Model Garden's names: Mask R-CNN with ResNet-FPN, as its trainer's checkpoints have them."""

from __future__ import annotations

import re
from typing import Any

import keras
import numpy as np

from mrcnn_tf.layers.conv import BatchNorm, Conv
from mrcnn_tf.layers.resnet import BLOCKS
from mrcnn_tf.models.mask_rcnn import MaskRCNN
from mrcnn_tf.weights.transfer import Move, Tensors, as_is, count

END = "/.ATTRIBUTES/VARIABLE_VALUE"
SLOT = "/.OPTIMIZER_SLOT/"
# What comes first depends on what was saved: the trainer's checkpoint, or one of the model alone.
PART = re.compile(r"^(?:.*/)?(backbone|decoder|rpn_head|detection_head|mask_head)/(.*)$")
# Keras numbers a model's layers from its inputs to its outputs, and what is equally far from those by their order. P5's
# convolution comes first of its kind because P6's reads it.
DECODER = (
    *(f"lateral_{level}" for level in (5, 4, 3, 2)),
    *(f"post_hoc_{level}" for level in (5, 2, 3, 4)),
    "coarser_6",
    *(f"norm_{level}" for level in (2, 3, 4, 5, 6)),
)
NUMBERED = re.compile(r"^decoder/layer_with_weights-(\d+)/(.*)$")
BACKBONE = "backbone/layer_with_weights-"
NORM = ("gamma", "beta", "moving_mean", "moving_variance")
EPSILON = 1e-4  # of all its norms
SIDE = 1024  # of the canvas in its configs for COCO, which is in no tensor


def tidy(tensors: Tensors) -> dict[str, np.ndarray]:
    """The model's tensors as `backbone/...`, `decoder/lateral_5/...` and so on; others under their names."""
    out = {}
    for name, value in tensors.items():
        found = None if SLOT in name else PART.match(name.removesuffix(END))
        if found:
            name = f"{found[1]}/{found[2]}"
            if found[1] == "detection_head" and not found[2][0].isdigit():
                # Saved with the model alone, a single one has no number.
                name = f"detection_head/0/{found[2]}"
        out[name] = value
    numbers = {int(m[1]) for m in map(NUMBERED.match, out) if m}
    if numbers == set(range(len(DECODER))):
        out = {
            NUMBERED.sub(lambda m: f"decoder/{DECODER[int(m[1])]}/{m[2]}", name): value
            for name, value in out.items()
        }
    return out


def recognised(tensors: Tensors) -> bool:
    """Whether the names are Model Garden's."""
    return f"{BACKBONE}0/kernel" in tensors or "rpn_head/_classifier/kernel" in tensors


def settings(tensors: Tensors) -> dict[str, Any]:
    """The `model` section of a config that is this file's architecture, on the canvas of its configs for COCO."""
    check_parts(tensors)
    numbers = [int(m[1]) for m in (re.match(rf"{BACKBONE}(\d+)/_conv3/kernel$", k) for k in tensors) if m]
    first = sorted(n for n in numbers if f"{BACKBONE}{n}/_shortcut/kernel" in tensors)
    ends = [*first[1:], max(numbers, default=0) + 1]
    blocks = tuple(end - start for start, end in zip(first, ends, strict=False))
    depths = [depth for depth, counts in BLOCKS.items() if counts == blocks and depth >= 50]
    stem = tensors.get(f"{BACKBONE}0/kernel")
    if not depths or first[0] != 2 or stem is None or stem.shape[:3] != (7, 7, 3):
        raise ValueError(
            "its backbone is none of ResNet-50, 101 and 152; no other of Model Garden's can be imported"
        )
    deltas, scores = (tensors[f"detection_head/0/{k}/bias"] for k in ("_box_regressor", "_classifier"))
    masks = tensors["mask_head/_mask_regressor/bias"]
    convs = count(tensors, r"detection_head/0/_convs/(\d+)/kernel")
    box_head: dict[str, Any] = {
        "conv_depth": convs,
        "depth": count(tensors, r"detection_head/0/_fcs/(\d+)/kernel"),
        "units": tensors["detection_head/0/_classifier/kernel"].shape[0],
        "class_agnostic": len(deltas) == 4 and len(scores) > 2,
    }
    if convs:
        box_head["conv_channels"] = len(tensors["detection_head/0/_convs/0/bias"])
    return {
        "backbone": {"depth": depths[0], "dialect": "model_garden", "width": stem.shape[-1]},
        "fpn": {
            "channels": len(tensors["decoder/lateral_5/bias"]),
            "norm": "frozen_batch",
            "lateral_norm": False,
            "coarsest": "conv",
        },
        "rpn": {
            "channels": tensors["rpn_head/_classifier/kernel"].shape[2],
            "depth": count(tensors, r"rpn_head/_convs/(\d+)/kernel"),
            "norm": "frozen_batch",
            "aspect_ratios": [2.0, 1.0, 0.5],
            "anchor_offset": 0.5,
            "min_size": 0.0,
        },
        "box_head": box_head,
        "mask_head": {
            "channels": len(tensors["mask_head/_deconv/bias"]),
            "depth": count(tensors, r"mask_head/_convs/(\d+)/kernel"),
            "class_agnostic": len(masks) == 1 and len(scores) > 2,
        },
        "min_size": SIDE,
        "max_size": SIDE,
        "canvas": [SIDE, SIDE],
        "size_rule": "half_even",
        "sampling_ratio": 1,
        "roi_shift": 0.5,
        "roi_levels": 5,
    }


def check_parts(tensors: Tensors) -> None:
    """Raises a ValueError where this is no Mask R-CNN with a feature pyramid of P2 to P6 and one box head."""
    for part in ("rpn_head/_classifier", "detection_head/0/_classifier", "mask_head/_mask_regressor"):
        if f"{part}/kernel" not in tensors:
            raise ValueError(
                f"has no {part}, so it is not a Mask R-CNN; Model Garden's other models cannot be imported"
            )
    if any(name.startswith("detection_head/1/") for name in tensors):
        raise ValueError("has several box heads: a Cascade R-CNN, which cannot be imported")
    anchors = len(tensors["rpn_head/_classifier/bias"])
    if anchors != 3:
        raise ValueError(
            f"has {anchors} anchors a place, not 3: give sizes and aspect ratios in a config (--config)"
        )
    laterals = [tensors.get(f"decoder/lateral_{level}/kernel") for level in (2, 3, 4, 5)]
    widths = [kernel.shape[2] for kernel in laterals if kernel is not None and kernel.ndim == 4]
    if len(widths) < 4 or widths != [widths[0] * 2**i for i in range(4)]:
        raise ValueError(
            "its decoder is no feature pyramid of the levels 2 to 6, the only one that can be imported"
        )


def class_count(tensors: Tensors) -> int | None:
    """K."""
    return len(tensors["detection_head/0/_classifier/bias"]) - 1


def ignored(name: str) -> str | None:
    """Why a tensor is of no use, if it is."""
    if SLOT in name:
        slot = name.split(SLOT)[1].split("/")[1]
        return "the moving average of a weight" if slot == "average" else "the optimizer's"
    if name.startswith("optimizer/"):
        return "the optimizer's"
    if name.removesuffix(END) in ("global_step", "save_counter"):
        return "counts steps"
    return None


def moves(model: MaskRCNN, tensors: Tensors) -> list[Move]:
    """Which weight comes from which tensor.

    The norms of the heads are multiplied into the layers before them; those of backbone, pyramid and RPN stay.

    Raises:
        ValueError: the model, of a config, lacks what all of Model Garden's have.
    """
    check_model(model)
    body, fpn, rpn, box, mask = model.backbone, model.fpn, model.rpn, model.box_head, model.mask_head
    out = conv_moves(body.stem, f"{BACKBONE}0", f"{BACKBONE}1")
    for number, block in enumerate(body.blocks, 2):
        name = f"{BACKBONE}{number}"
        if block.shortcut is not None:
            out += conv_moves(block.shortcut, f"{name}/_shortcut", f"{name}/_norm0")
        for j, conv in enumerate(block.convs, 1):
            out += conv_moves(conv, f"{name}/_conv{j}", f"{name}/_norm{j}")

    for level, conv in enumerate(fpn.laterals, 2):
        out += conv_moves(conv, f"decoder/lateral_{level}")
    for level, conv in enumerate(fpn.outputs[:-1], 2):
        out += conv_moves(conv, f"decoder/post_hoc_{level}", f"decoder/norm_{level}", bias=True)
    out += conv_moves(fpn.outputs[-1], "decoder/post_hoc_5") + norm_moves(fpn.norm5, "decoder/norm_5")
    out += conv_moves(fpn.output6, "decoder/coarser_6", "decoder/norm_6", bias=True)

    for i, conv in enumerate(rpn.hidden):
        out += conv_moves(conv, f"rpn_head/_convs/{i}")
    for i, norm in enumerate(rpn.norms):
        out += norm_moves(norm, f"rpn_head/_norms/{i // rpn.depth}/{i % rpn.depth}")
    out += conv_moves(rpn.objectness, "rpn_head/_classifier")
    out += conv_moves(rpn.deltas, "rpn_head/_box_regressor")

    head = "detection_head/0/"
    for i, conv in enumerate(box.convs):
        out += folded_moves(conv, f"{head}_convs/{i}", f"{head}_conv_norms/{i}")
    for i, layer in enumerate(box.hidden):
        out += folded_moves(layer, f"{head}_fcs/{i}", f"{head}_fc_norms/{i}")
    out += layer_moves(box.classes, f"{head}_classifier")
    skip = 0 if box.class_agnostic else 4
    for move in layer_moves(box.deltas, f"{head}_box_regressor"):
        out.append(
            move._replace(convert=lambda value: value[..., skip:], how="without background" if skip else "")
        )

    for i, conv in enumerate(mask.convs):
        out += folded_moves(conv, f"mask_head/_convs/{i}", f"mask_head/_conv_norms/{i}")
    out += deconv_moves(mask.deconv, "mask_head/_deconv", "mask_head/_deconv_bn")
    first, how = (0, "") if mask.class_agnostic else (1, "without background")
    return [
        *out,
        Move(mask.kernel, "mask_head/_mask_regressor/kernel", lambda value: value[0, 0].T[first:], how),
        Move(mask.bias, "mask_head/_mask_regressor/bias", lambda value: value[first:], how),
    ]


def check_model(model: MaskRCNN) -> None:
    """See `moves`."""
    batch = ("frozen_batch", "batch", "sync_batch")
    for key, value, allowed in (
        ("backbone.dialect", model.backbone.dialect, ("model_garden",)),
        ("backbone.norm", model.backbone.norm, batch),
        ("fpn.norm", model.fpn.norm, batch),
        ("fpn.lateral_norm", model.fpn.lateral_norm, (False,)),
        ("fpn.coarsest", model.fpn.coarsest, ("conv",)),
        ("rpn.norm", model.rpn.norm, batch),
        ("box_head.norm", model.box_head.norm, (None,)),
        ("mask_head.norm", model.mask_head.norm, (None,)),
    ):
        if value not in allowed:
            needed = " or ".join(map(repr, allowed))
            raise ValueError(f"model.{key} is {value!r}; for Model Garden's weights it must be {needed}")


def layer_moves(layer: Conv | keras.layers.Dense, name: str) -> list[Move]:
    """Of a layer with kernel and bias, which has Keras' layout on both sides."""
    return [Move(layer.kernel, f"{name}/kernel", as_is), Move(layer.bias, f"{name}/bias", as_is)]


def norm_moves(norm: BatchNorm, name: str, bias: str | None = None) -> list[Move]:
    """Of a batch norm; `bias`: that of the convolution before it, which has none here."""
    gamma, beta, mean, variance = (f"{name}/{end}" for end in NORM)
    out = [Move(norm.gamma, gamma, as_is), Move(norm.beta, beta, as_is)]
    if bias is None:
        out.append(Move(norm.moving_mean, mean, as_is))
    else:
        out.append(Move(norm.moving_mean, (mean, bias), lambda m, b: m - b, "less the convolution's bias"))
    missing = EPSILON - norm.epsilon
    if missing:
        how = f"with {missing:.0e}, by which this norm's epsilon is smaller"
        out.append(Move(norm.moving_variance, variance, lambda value: value + missing, how))
    else:
        out.append(Move(norm.moving_variance, variance, as_is))
    return out


def conv_moves(conv: Conv, name: str, norm: str | None = None, bias: bool = False) -> list[Move]:
    """Of a convolution, and of the norm `norm` behind it; `bias`: the file has one in between, too."""
    if norm is None:
        return layer_moves(conv, name)
    kernel = Move(conv.kernel, f"{name}/kernel", as_is)
    return [kernel, *norm_moves(conv.norm, norm, f"{name}/bias" if bias else None)]


def folded_moves(layer: Conv | keras.layers.Dense, name: str, norm: str) -> list[Move]:
    """Of a layer with kernel and bias that the batch norm `norm` behind it is multiplied into."""
    kernel, bias = f"{name}/kernel", f"{name}/bias"
    gamma, beta, mean, variance = (f"{norm}/{end}" for end in NORM)
    how = "batch norm multiplied in"

    def factor(gamma: np.ndarray, variance: np.ndarray) -> np.ndarray:
        return gamma / np.sqrt(variance.astype(np.float64) + EPSILON)

    return [
        Move(layer.kernel, (kernel, gamma, variance), lambda w, g, v: w * factor(g, v), how),
        Move(
            layer.bias,
            (bias, gamma, beta, mean, variance),
            lambda b, g, shift, m, v: (b - m.astype(np.float64)) * factor(g, v) + shift,
            how,
        ),
    ]


def deconv_moves(conv: Conv, name: str, norm: str) -> list[Move]:
    """Of a 2x2 deconvolution of stride 2 and its norm, which are a 1x1 convolution to four times the channels here."""
    kernel, bias = folded_moves(conv, name, norm)
    how = f"as a 1x1 convolution, {kernel.how}"

    def places(value: np.ndarray, *others: np.ndarray) -> np.ndarray:
        # [y, x, out, in] -> [1, 1, in, (y, x, out)]
        folded = kernel.convert(value.swapaxes(2, 3), *others)
        return folded.transpose(2, 0, 1, 3).reshape(1, 1, folded.shape[2], -1)

    return [
        kernel._replace(convert=places, how=how),
        bias._replace(convert=lambda *values: np.tile(bias.convert(*values), 4), how=how),
    ]
