"""What a model multiplies and keeps: its convolutions and matrix products, one by one, from their shapes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from mrcnn_tf.layers.conv import BatchNorm, Conv
from mrcnn_tf.layers.deformable import DeformableConv
from mrcnn_tf.layers.fpn import FPN
from mrcnn_tf.layers.heads import BoxHead, MaskHead
from mrcnn_tf.models.mask_rcnn import MaskRCNN
from mrcnn_tf.models.mask_refining_rcnn import MaskRefiningRCNN

PARTS = ("backbone", "fpn", "rpn", "box_head", "mask_head", "refining")
Size = tuple[int, int]


@dataclass(frozen=True)
class Operation:
    """A convolution or matrix product, for one image.

    Attributes:
        part: one of `PARTS`.
        name: of the layer.
        products: multiplications, each with its addition, of the forward pass.
        gradients: of its kernel and of its input; how many of the two a training step computes. Each has as many
            products as the forward pass.
        again: whether the backward pass computes it a second time (`backbone.checkpointing`).
        kept: numbers in the compute dtype that the forward pass leaves for the backward pass.
        kept32: the same in float32 whatever the policy.
    """

    part: str
    name: str
    products: int
    gradients: int = 0
    again: bool = False
    kept: int = 0
    kept32: int = 0

    @property
    def training_products(self) -> int:
        """Of the forward pass, of the gradients and of what is computed again."""
        return self.products * (1 + self.gradients + self.again)


def giga(products: int) -> float:
    """GFLOP: a product and its addition are two."""
    return 2 * products / 1e9


def by_part(operations: Iterable[Operation], training: bool = False) -> dict[str, float]:
    """GFLOP for one image of each part that there is."""
    out: dict[str, float] = {}
    for o in operations:
        out[o.part] = out.get(o.part, 0.0) + giga(o.training_products if training else o.products)
    return out


def detecting(model: MaskRCNN, canvas: Size) -> list[Operation]:
    """The operations of `model.call` for an image on a canvas of this height and width, in pixels.

    Detections are computed at their full number (`rpn.post_nms`, `max_detections`), found or not.
    """
    out = [
        Operation(o.part, o.name, o.products)
        for o in (*_backbone(model, canvas, False), *_pyramid(model, canvas))
    ]
    proposals, detections = model.rpn.post_nms[1], model.max_detections
    out += _box_head("box_head", model.box_head, proposals, model.fpn.channels, 0)
    if isinstance(model, MaskRefiningRCNN):
        looked = model.refined_boxes
        out += _mask_head("mask_head", model.mask_head, looked, model.fpn.channels)
        out += _box_head("refining", model.refining_box_head, looked, model.fpn.channels, 0)
        if model.refine_masks:
            return [*out, *_refining_mask_head(model, detections, 0)]
    return [*out, *_mask_head("mask_head", model.mask_head, detections, model.fpn.channels)]


def training(model: MaskRCNN, canvas: Size, checkpointing: bool | None = None) -> list[Operation]:
    """The operations of a training step for one image on a canvas of this height and width, in pixels.

    `checkpointing`: instead of the backbone's own setting.
    """
    if checkpointing is None:
        checkpointing = model.backbone.checkpointing
    out = _backbone(model, canvas, checkpointing) + _pyramid(model, canvas)
    rois, channels = model.roi_sampling["count"], model.fpn.channels
    out += _box_head("box_head", model.box_head, rois, channels, 2)
    out += _mask_head("mask_head", model.mask_head, _positive(model, rois), channels, 2, 2)
    if isinstance(model, MaskRefiningRCNN):
        again = model.refining_samples
        flow = model.refine_masks and model.refining_mask_head.mask_flow
        through = model.map_gradient and model.shape_aware
        out += _mask_head(
            "refining",
            model.mask_head,
            again,
            channels,
            2 * int(flow or through),
            2 * int(through),
            name="first_",
        )
        out += _box_head("refining", model.refining_box_head, again, channels, 2)
        if model.refine_masks:
            out += _refining_mask_head(model, _positive(model, again), 2)
    return out


def roi_sets(model: MaskRCNN) -> list[tuple[int, int]]:
    """Of each RoIAlign in a training step, how many RoIs of an image and how many bins along a side."""
    rois = model.roi_sampling["count"]
    out = [(rois, model.box_head.roi_size), (_positive(model, rois), model.mask_head.roi_size)]
    if isinstance(model, MaskRefiningRCNN):
        again = model.refining_samples
        out += [(again, model.mask_head.roi_size), (again, model.refining_box_head.roi_size)]
        if model.refine_masks:
            out.append((_positive(model, again), model.refining_mask_head.roi_size))
    return out


def pyramid_cells(canvas: Size) -> list[int]:
    """Cells of P2 to P6."""
    return [math.prod(_shrunk(canvas, stride)) for stride in FPN.strides]


def _positive(model: MaskRCNN, rois: int) -> int:
    """See `MaskRCNN.first_rois`."""
    return max(1, int(rois * model.roi_sampling["positive_fraction"]))


def _shrunk(size: Size, stride: int) -> Size:
    return -(-size[0] // stride), -(-size[1] // stride)


def _conv(part: str, conv: Conv, size: Size, below: bool, name: str = "") -> list[Operation]:
    """A convolution of an input of this height and width; `below`: whether the input's gradient is wanted."""
    cells, filters = math.prod(_shrunk(size, conv.strides)), conv.filters
    taps, _, depth, _ = conv.kernel.shape
    name, gradients = name or conv.name, int(conv.trainable) + int(below)
    kept = kept32 = 0
    if gradients:
        kept = cells * filters
        if conv.trainable and conv.strides > 1 and taps > 1 and not conv.same_padding:
            kept += math.prod(size) * depth * conv.groups  # a padded copy of the input
        # A norm that is not folded into the kernel keeps its input, if not fused in float32.
        if isinstance(conv.norm, BatchNorm):
            own = cells * filters if conv.norm.uses_batch_statistics(True) else 0
            kept, kept32 = kept + own * (conv.norm.mode == "batch"), own * (conv.norm.mode == "sync_batch")
        elif conv.norm is not None:
            kept32 = cells * filters
    out = [Operation(part, name, cells * taps**2 * depth * filters, gradients, kept=kept, kept32=kept32)]
    if isinstance(conv, DeformableConv):
        [offset] = _conv(part, conv.offset, size, below, f"{name}/offset")
        # Of every sample the numbers of four cells and their shares.
        samples = 8 * taps**2 * cells if gradients else 0
        out.append(replace(offset, kept=0, kept32=offset.kept + samples))
    return out


def _backbone(model: MaskRCNN, canvas: Size, checkpointing: bool) -> list[Operation]:
    resnet, size = model.backbone, _shrunk(canvas, 4)
    out = _conv("backbone", resnet.stem, canvas, below=False)
    # The pool's output, and where the stem learns, its padded input, which is four times as large.
    pooled = math.prod(size) * resnet.width
    kept = 5 * pooled if resnet.freeze_at == 0 else pooled if resnet.freeze_at == 1 else 0
    out.append(Operation("backbone", "pool", 0, kept=kept))
    below, most, most32 = resnet.stem.trainable, 0, 0
    for i, block in enumerate(resnet.blocks):
        inside: list[Operation] = []
        inner, learns = size, below or block.trainable
        if block.trainable and checkpointing:
            below = True  # `tf.recompute_grad` takes the gradient of what it is given, wanted or not
        for conv in block.convs:
            inside += _conv("backbone", conv, inner, learns if inside else below, f"{block.name}/{conv.name}")
            inner = _shrunk(inner, conv.strides)
        end = math.prod(inner) * block.convs[-1].filters
        if block.shortcut is not None:
            [o] = _conv("backbone", block.shortcut, size, below, f"{block.name}/shortcut")
            # The sum with it keeps nothing of it.
            inside.append(replace(o, kept=max(0, o.kept - end)))
        if block.trainable and checkpointing:
            most, most32 = max(most, sum(o.kept for o in inside)), max(most32, sum(o.kept32 for o in inside))
            inside = [replace(o, again=True, kept=0, kept32=0) for o in inside]
            inside.append(Operation("backbone", f"{block.name}/end", 0, kept=end))
        stage = block.name.partition("_")[0]
        if not learns and not resnet.blocks[min(i + 1, len(resnet.blocks) - 1)].name.startswith(f"{stage}_"):
            # What the layers after a frozen stage learn from.
            inside.append(Operation("backbone", f"{block.name}/end", 0, kept=end))
        out, size, below = out + inside, inner, learns
    # Of all blocks that are computed again, one at a time.
    return [*out, Operation("backbone", "again", 0, kept=most, kept32=most32)]


def _pyramid(model: MaskRCNN, canvas: Size) -> list[Operation]:
    """FPN and RPN."""
    fpn, rpn = model.fpn, model.rpn
    sizes = [_shrunk(canvas, stride) for stride in fpn.strides]
    out = []
    for level, (lateral, output, size) in enumerate(zip(fpn.laterals, fpn.outputs, sizes, strict=False), 2):
        out += _conv("fpn", lateral, size, below=level > model.backbone.freeze_at)
        out += _conv("fpn", output, size, below=True)
    if fpn.output6 is not None:
        out += _conv("fpn", fpn.output6, sizes[3], below=True)
    for level, size in enumerate(sizes, 2):
        for conv in rpn.hidden:
            [o] = _conv("rpn", conv, size, below=True, name=f"{conv.name}_p{level}")
            out.append(replace(o, kept=o.kept * (1 if rpn.norm is None else 2)))
        for conv in (rpn.objectness, rpn.deltas):
            [o] = _conv("rpn", conv, size, below=True, name=f"{conv.name}_p{level}")
            out.append(replace(o, kept=0))  # of these the backward pass needs only which were chosen
    return out


def _box_head(part: str, head: BoxHead, rois: int, channels: int, gradients: int) -> list[Operation]:
    out, size = [], head.roi_size
    kept = int(gradients > 0)
    out.append(Operation(part, f"{head.name}/pooled", 0, kept=kept * rois * size**2 * channels))
    out += _roi_convs(part, head.convs, rois, size, gradients)
    for dense in (*head.hidden, head.classes, head.deltas):
        units_in, units = dense.kernel.shape
        out.append(
            Operation(
                part,
                f"{head.name}/{dense.name}",
                rois * units_in * units,
                gradients,
                kept=kept * rois * units,
            )
        )
    return out


def _roi_convs(part: str, convs: Sequence[Conv], rois: int, size: int, gradients: int) -> list[Operation]:
    """Convolutions on RoI features of `size` by `size` bins."""
    out = []
    for conv in convs:
        [o] = _conv(part, conv, (size, size), below=True)
        kept = (o.kept * rois, o.kept32 * rois) if gradients else (0, 0)
        out.append(Operation(part, o.name, o.products * rois, gradients, False, *kept))
    return out


def _mask_head(
    part: str,
    head: MaskHead,
    rois: int,
    channels: int,
    hidden: int = 0,
    predict: int = 0,
    name: str = "",
) -> list[Operation]:
    """The head for so many RoIs; `hidden`, `predict`: gradients of its convolutions, and of what follows them."""
    size, masks = head.roi_size, rois * head.mask_size**2
    out = [Operation(part, f"{name}pooled", 0, kept=(hidden > 0) * rois * size**2 * channels)]
    out += _roi_convs(part, head.convs, rois, size, hidden)
    out += _roi_convs(part, [head.deconv], rois, size, predict)
    # Logits, their rearranged copy and the true masks.
    out.append(
        Operation(part, f"{name}masks", masks * head.channels, predict, kept32=3 * (predict > 0) * masks)
    )
    return out


def _refining_mask_head(model: MaskRefiningRCNN, rois: int, gradients: int) -> list[Operation]:
    head, channels = model.refining_mask_head, model.fpn.channels
    out = _roi_convs("refining", [head.flow], rois, head.roi_size, gradients) if head.mask_flow else []
    return [*out, *_mask_head("refining", head, rois, channels, gradients, gradients)]
