"""Bytes that a device holds in a training step, estimated from the tensors that the step keeps."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import keras
import numpy as np

from mrcnn_tf.layers.conv import BatchNorm, Conv
from mrcnn_tf.models.mask_rcnn import MaskRCNN
from mrcnn_tf.planning import work
from mrcnn_tf.schema import Config


def training_memory(
    config: Config,
    model: MaskRCNN,
    optimizer: keras.optimizers.Optimizer,
    images: float,
    *,
    devices: int = 1,
    checkpointing: bool | None = None,
) -> dict[str, float]:
    """Bytes of a device by what they are for; their sum is the estimate.

    Not all of these are alive at one time; on the other hand, what a framework takes for itself (CUDA's context,
    cuDNN's workspace, the gaps of an allocator) is not in it. docs/plan.md has it beside measured figures.

    Args:
        config: whose precision, canvas and ground truth count.
        model: of that config, and its built `optimizer`.
        images: of a step on this device.
        devices: of all workers; with several, gradients and their sums are both there.
        checkpointing: instead of the config's `backbone.checkpointing`.
    """
    size = compute_size(config)
    if checkpointing is None:
        checkpointing = model.backbone.checkpointing
    trainable = count(model.trainable_weights)
    operations = work.training(model, config.data.canvas, checkpointing)
    height, width = config.data.canvas
    truth = config.data.max_instances * (config.data.mask_size**2 + 24)
    kept = sum(o.kept * size + o.kept32 * 4 for o in operations)
    return {
        "weights": held(model.variables),
        "gradients": 4.0 * trainable * (2 if devices > 1 else 1),
        "optimizer": held(optimizer.variables),
        "working copies": float(working_copies(model, size, checkpointing)),
        "batch": images * (height * width * 3 * (4 + size) + truth),
        "activations": images * kept,
        "in flight": images * in_flight(model, config.data.canvas, operations, size),
    }


def compute_size(config: Config) -> int:
    """Bytes of a number that layers compute with."""
    return 4 if config.precision == "float32" else 2


def count(variables: Iterable[Any]) -> int:
    """How many numbers the variables hold."""
    return sum(math.prod(v.shape) for v in variables)


def held(variables: Iterable[Any]) -> float:
    """Bytes of the variables."""
    return float(sum(math.prod(v.shape) * np.dtype(v.dtype).itemsize for v in variables))


def working_copies(model: MaskRCNN, size: int, checkpointing: bool = False) -> int:
    """Bytes of the kernels as the forward pass uses them and leaves them, where those are not the weights themselves.

    A frozen norm is multiplied into its convolution's kernel, and 16-bit layers, of `size` 2, compute with casts. What
    is computed again (`checkpointing`) is not left.
    """
    again = {id(layer) for block in model.backbone.blocks for layer in block._flatten_layers()}
    layers = [x for x in model._flatten_layers() if not (checkpointing and id(x) in again)]
    if size < 4:
        return size * sum(count(x._trainable_variables) for x in layers if x.trainable)
    convs = [layer for layer in layers if isinstance(layer, Conv) and layer.trainable]
    folded = [c for c in convs if isinstance(c.norm, BatchNorm) and not c.norm.uses_batch_statistics(True)]
    return size * count(c.kernel for c in folded)


def in_flight(model: MaskRCNN, canvas: work.Size, operations: list[work.Operation], size: int) -> float:
    """Bytes, for one image, of what is neither kept nor a weight: gradients on their way, where they are largest.

    Either at the pyramid: each of those who read it, the RPN and every RoIAlign, sends a gradient of its size back, and
    RoIAlign has its samples in float32 before it averages them, as `crop_and_resize` does on a GPU. Or at the layer
    with the largest output: the gradient behind its ReLU and the one before it.
    """
    sets, channels = work.roi_sets(model), model.fpn.channels
    pyramid = sum(work.pyramid_cells(canvas)) * channels * size
    samples = max(1, model.roi_align["sampling_ratio"]) ** 2
    at_pyramid = (1 + len(sets)) * pyramid + max(
        4 * rois * samples * bins**2 * channels for rois, bins in sets
    )
    return max(at_pyramid, 2 * max(o.kept * size + o.kept32 * 4 for o in operations))
