"""ImageNet weights of `keras.applications` for ResNet-50 and ResNet-101."""

from __future__ import annotations

from collections.abc import Iterator

import keras

from mrcnn_tf.layers.conv import BatchNorm, Conv
from mrcnn_tf.layers.resnet import BLOCKS, ResNet

APPLICATIONS = {50: "ResNet50", 101: "ResNet101"}


def load_imagenet(backbone: ResNet) -> None:
    """Downloads (once; Keras keeps a copy) and loads the classification weights.

    Raises:
        ValueError: the backbone is not one that `keras.applications` has.
        OSError: the download failed.
    """
    if backbone.depth not in APPLICATIONS or backbone.dialect != "keras" or backbone.width != 64:
        raise ValueError(
            f"keras.applications has weights for depth {' and '.join(map(str, APPLICATIONS))} in dialect keras, not "
            f"for depth {backbone.depth} in dialect {backbone.dialect}"
        )
    name = APPLICATIONS[backbone.depth]
    try:
        source = getattr(keras.applications, name)(include_top=False, weights="imagenet")
    except Exception as error:
        raise OSError(
            f"the ImageNet weights of {name} could not be downloaded ({error}). With no network, put Keras' file "
            "into ~/.keras/models by hand, or set model.backbone.weights=null to start from random weights"
        ) from error
    copy_backbone(source, backbone)


def copy_backbone(source: keras.Model, backbone: ResNet) -> None:
    """Copies the weights of a `keras.applications` ResNet-50 or ResNet-101, layer by layer, by name."""
    for conv, name in _names(backbone):
        kernel, bias = source.get_layer(f"{name}_conv").get_weights()
        conv.kernel.assign(kernel)
        if conv.bias is not None:
            conv.bias.assign(bias)
        if isinstance(conv.norm, BatchNorm):
            norm = source.get_layer(f"{name}_bn").get_weights()
            own = (conv.norm.gamma, conv.norm.beta, conv.norm.moving_mean, conv.norm.moving_variance)
            for weight, value in zip(own, norm, strict=True):
                weight.assign(value)


def _names(backbone: ResNet) -> Iterator[tuple[Conv, str]]:
    """Each convolution of the backbone with its name in `keras.applications`."""
    yield backbone.stem, "conv1"
    blocks = iter(backbone.blocks)
    for stage, count in enumerate(BLOCKS[backbone.depth]):
        for i in range(count):
            block, prefix = next(blocks), f"conv{stage + 2}_block{i + 1}"
            if block.shortcut is not None:
                yield block.shortcut, f"{prefix}_0"
            for j, conv in enumerate(block.convs):
                yield conv, f"{prefix}_{j + 1}"
