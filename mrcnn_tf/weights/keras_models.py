"""ResNets of `keras.applications` and of KerasHub, by their layers' names."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np

from mrcnn_tf.layers.conv import BatchNorm, Conv
from mrcnn_tf.layers.resnet import BLOCKS, ResNet
from mrcnn_tf.models.mask_rcnn import MaskRCNN
from mrcnn_tf.weights.files import read_tensors
from mrcnn_tf.weights.transfer import Move, Tensors, as_is, count


def read(path: str | Path) -> dict[str, np.ndarray]:
    """The weights of a `.h5` or `.keras` file, or of a KerasHub preset's folder, as `layer/kernel` and so on.

    Raises:
        FileNotFoundError, ValueError: as `read_tensors`; and for a preset where KerasHub is not installed, since such a
            folder does not say what its layers are.
    """
    path = Path(path)
    if path.is_dir() and (path / "config.json").exists():
        try:
            import keras_hub
        except ImportError:
            raise ValueError(
                f"{path}: is a KerasHub preset; reading one needs pip install keras-hub"
            ) from None
        return tensors_of(keras_hub.models.Backbone.from_preset(str(path)))
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            whole = "model.weights.h5" in archive.namelist()
        if whole:
            try:
                # `safe_mode` refuses what would run code of the file's.
                return tensors_of(keras.saving.load_model(path, compile=False, safe_mode=True))
            except Exception as error:
                raise ValueError(
                    f"{path}: Keras cannot load it ({str(error).strip().splitlines()[0]})"
                ) from error
    return read_tensors(path)


def tensors_of(model: keras.Model) -> dict[str, np.ndarray]:
    """A model's weights as `layer/kernel` and so on."""
    return {
        f"{layer.name}/{weight.name}": np.asarray(weight)
        for layer in model.layers
        for weight in layer.weights
    }


def tidy(tensors: Tensors) -> dict[str, np.ndarray]:
    """The tensors as they are."""
    return dict(tensors)


def recognised(tensors: Tensors) -> bool:
    """Whether the names are those of a Keras ResNet."""
    return "conv1_conv/kernel" in tensors and (
        is_application(tensors) or "stack0_block0_1_conv/kernel" in tensors
    )


def is_application(tensors: Tensors) -> bool:
    """Whether it is of `keras.applications`, not of KerasHub."""
    return "conv2_block1_1_conv/kernel" in tensors


def settings(tensors: Tensors) -> dict[str, Any]:
    """The `model` section of a config whose backbone is this file's."""
    if "conv1_bn/gamma" not in tensors:
        raise ValueError("is a ResNet of the second version or of the vd form, which are not supported")
    pattern = (
        r"conv{}_block(\d+)_1_conv/kernel" if is_application(tensors) else r"stack{}_block(\d+)_1_conv/kernel"
    )
    first = 2 if is_application(tensors) else 0
    blocks = tuple(count(tensors, pattern.format(first + stage)) for stage in range(4))
    last = "conv2_block1_3_conv" if is_application(tensors) else "stack0_block0_3_conv"
    bottleneck = f"{last}/kernel" in tensors
    depths = [depth for depth, counts in BLOCKS.items() if counts == blocks and (depth >= 50) == bottleneck]
    if not depths:
        raise ValueError(f"is no ResNet that is known here: its stages have {blocks} blocks")
    return {
        "backbone": {"depth": depths[0], "dialect": "keras" if is_application(tensors) else "torchvision"}
    }


def class_count(tensors: Tensors) -> int | None:
    """None: it classifies images."""
    return None


def ignored(name: str) -> str | None:
    """Why a tensor is of no use, if it is."""
    return "the classifier of images" if name.startswith("predictions/") else None


def moves(model: MaskRCNN, tensors: Tensors) -> list[Move]:
    """Which weight comes from which tensor."""
    return resnet_moves(model.backbone, is_application(tensors))


def resnet_moves(backbone: ResNet, application: bool) -> list[Move]:
    """Of a ResNet with the names of `keras.applications` or of KerasHub."""
    out = []
    for conv, name in _names(backbone, application):
        out.append(Move(conv.kernel, f"{name}_conv/kernel", as_is))
        if conv.bias is not None:
            out.append(Move(conv.bias, f"{name}_conv/bias", as_is))
        assert isinstance(conv.norm, BatchNorm)
        for end in ("gamma", "beta", "moving_mean", "moving_variance"):
            out.append(Move(getattr(conv.norm, end), f"{name}_bn/{end}", as_is))
    return out


def _names(backbone: ResNet, application: bool) -> Iterator[tuple[Conv, str]]:
    """Each convolution with what its name begins with."""
    yield backbone.stem, "conv1"
    blocks = iter(backbone.blocks)
    for stage, number in enumerate(BLOCKS[backbone.depth]):
        for i in range(number):
            block = next(blocks)
            prefix = f"conv{stage + 2}_block{i + 1}" if application else f"stack{stage}_block{i}"
            if block.shortcut is not None:
                yield block.shortcut, f"{prefix}_0"
            for j, conv in enumerate(block.convs, 1):
                yield conv, f"{prefix}_{j}"
