"""ResNets of `keras.applications` and of KerasHub, by their layers' names."""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np

from mrcnn_tf.layers.conv import BatchNorm, Conv
from mrcnn_tf.layers.resnet import BLOCKS, ResNet
from mrcnn_tf.models.mask_rcnn import MaskRCNN
from mrcnn_tf.weights.files import check_inflation, hdf5_arrays, hdf5_item, read_tensors, widened
from mrcnn_tf.weights.pickles import Refused
from mrcnn_tf.weights.transfer import Move, Tensors, as_is, count, resnet_depth

# The weights of a layer in the order in which Keras saves them, each with the setting without which it is not there.
DENSE = {"kernel": None, "bias": "use_bias"}
WEIGHTS: dict[str, dict[str, str | None]] = {
    "keras.layers.Conv2D": DENSE,
    "keras.layers.Dense": DENSE,
    "keras.layers.BatchNormalization": {
        "gamma": "scale",
        "beta": "center",
        "moving_mean": None,
        "moving_variance": None,
    },
}


def read(path: str | Path) -> dict[str, np.ndarray]:
    """The weights of a `.h5` or `.keras` file, or of a KerasHub preset's folder, as `layer/kernel` and so on.

    Of a `.keras` file only names and numbers are read; the classes that it names are not made, nor imported. A preset's
    folder is the one case that is left to another library: KerasHub loads it in its own way.

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
                return _read_archive(path)
            except Refused as error:
                raise ValueError(f"{path}: {error}") from None
            except Exception as error:
                # As in `read_tensors`: damage shows in many ways.
                reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
                raise ValueError(
                    f"{path}: cannot be read as a model file of Keras 3 ({reason}); if it is damaged, fetch it again"
                ) from error
    return read_tensors(path)


def _read_archive(path: Path) -> dict[str, np.ndarray]:
    """The weights of a `.keras` file, without Keras, which would make the classes that the file names."""
    with zipfile.ZipFile(path) as archive:
        check_inflation(archive, path)
        config, weights = (archive.read(name) for name in ("config.json", "model.weights.h5"))
    model = json.loads(config)
    if model["class_name"] not in ("Functional", "Sequential"):
        raise Refused(
            f"is a model of class {str(model['class_name'])[:100]!r}, whose layers its file does not list; save a "
            "functional or sequential model of its layers"
        )
    places: dict[str, str] = {}
    counts: Counter[str] = Counter()
    with h5py.File(io.BytesIO(weights)) as file:
        groups = hdf5_item(file, "layers")
        for layer in model["config"]["layers"]:
            # Keras numbers the layers of each class from the second one on.
            kind = _snake_case(layer["class_name"])
            group = f"{kind}_{counts[kind]}" if counts[kind] else kind
            counts[kind] += 1
            # As a list, since `in` alone would follow links.
            found = _variables(hdf5_item(groups, group)) if group in list(groups) else []
            for i, weight in enumerate(_weights(layer, found)):
                places[f"{layer['config']['name']}/{weight}"] = f"layers/{group}/vars/{i}"
        arrays = hdf5_arrays(file, places, len(weights))
    return {name: widened(array) for name, array in arrays.items()}


def _variables(group: h5py.Group) -> list[str]:
    """Where a layer has variables in its group; a random seed is one too, but none of its weights."""
    found: list[str] = []

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and "seed_generator" not in name.split("/"):
            found.append(name)

    group.visititems(visit)
    return sorted(found)


def _weights(layer: dict[str, Any], found: list[str]) -> list[str]:
    """What a layer's variables are called, in their order."""
    name, kind = layer["config"]["name"], f"{layer['module']}.{layer['class_name']}"
    if kind not in WEIGHTS:
        if not found:
            return []
        raise Refused(
            f"has weights in the layer {name[:100]!r} of class {kind[:100]!r}, which is not known here (known are "
            f"{', '.join(WEIGHTS)}); save a model without it"
        )
    known = WEIGHTS[kind].items()
    names = [weight for weight, setting in known if setting is None or layer["config"].get(setting, True)]
    if found != [f"vars/{i}" for i in range(len(names))]:
        raise Refused(
            f"has {len(found)} variables in the layer {name[:100]!r}, a plain {kind} has {', '.join(names)}; save "
            "the model as it was before it was quantized or otherwise changed"
        )
    return names


def _snake_case(name: str) -> str:
    """As Keras makes a group's name of a class's."""
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", re.sub(r"\W+", "", name))
    return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()


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
    dialect = "keras" if is_application(tensors) else "torchvision"
    return {"backbone": {"depth": resnet_depth(blocks, bottleneck), "dialect": dialect}}


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
        if isinstance(conv.norm, BatchNorm):
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
