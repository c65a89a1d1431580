"""ImageNet weights of `keras.applications` for ResNet-50, 101 and 152."""

from __future__ import annotations

import keras

from mrcnn_tf.layers.resnet import ResNet
from mrcnn_tf.weights.keras_models import resnet_moves, tensors_of
from mrcnn_tf.weights.transfer import transfer

APPLICATIONS = {50: "ResNet50", 101: "ResNet101", 152: "ResNet152"}


def load_imagenet(backbone: ResNet) -> None:
    """Downloads (once; Keras keeps a copy) and loads the classification weights.

    Raises:
        ValueError: the backbone is not one that `keras.applications` has.
        OSError: the download failed.
    """
    plain = backbone.width == 64 and backbone.groups == 1
    if backbone.depth not in APPLICATIONS or backbone.dialect != "keras" or not plain:
        raise ValueError(
            f"keras.applications has weights for plain ResNets of depth {', '.join(map(str, APPLICATIONS))} in dialect "
            f"keras, not for depth {backbone.depth} in dialect {backbone.dialect}"
        )
    name = APPLICATIONS[backbone.depth]
    try:
        source = getattr(keras.applications, name)(include_top=False, weights="imagenet")
    except Exception as error:
        raise OSError(
            f"the ImageNet weights of {name} could not be downloaded ({error}). With no network, put Keras' file "
            "into ~/.keras/models by hand, or set model.backbone.weights=null to start from random weights"
        ) from error
    moves = resnet_moves(backbone, application=True)
    # A backbone with another norm takes the kernels alone.
    transfer(tensors_of(source), moves, backbone.weights, source=name, allow_unexpected=True)
