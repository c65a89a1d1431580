from __future__ import annotations

import io
import json
import sys
import zipfile

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf

from mrcnn_tf.importer import import_model
from mrcnn_tf.layers.resnet import BLOCKS
from mrcnn_tf.weights import keras_models
from tests.golden.drawn import draw


def drawn_application(depth: int) -> keras.Model:
    model = getattr(keras.applications, f"ResNet{depth}")(weights=None, classes=3)
    for layer in model.layers:
        for weight in layer.weights:
            weight.assign(draw(f"{layer.name}/{weight.name}", weight.shape, 0))
    return model


@pytest.mark.parametrize("depth,ending", [(50, ".h5"), (101, ".keras")])
def test_features_of_keras_applications(depth, ending, tmp_path):
    source = drawn_application(depth)
    path = tmp_path / f"resnet{ending}"
    source.save(path)
    model, report = import_model(path, "keras")
    assert model.backbone.depth == depth and model.backbone.dialect == "keras" and model.normalize.bgr
    assert report.left_out == dict.fromkeys(
        ["predictions/kernel", "predictions/bias"], "the classifier of images"
    )
    assert not any("res_net" in name for name in report.fresh)
    names = [f"conv{stage}_block{count}_out" for stage, count in enumerate(BLOCKS[depth], 2)]
    reference = keras.Model(source.input, [source.get_layer(name).output for name in names])
    images = tf.constant(np.random.default_rng(0).normal(size=(1, 224, 224, 3)).astype(np.float32))
    for x, y in zip(model.backbone(images), reference(images), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-4 * float(tf.reduce_max(tf.abs(y))), rtol=0)


def test_other_keras_models_are_refused(tmp_path):
    keras.Sequential([keras.layers.Input((4,)), keras.layers.Dense(2)]).save(tmp_path / "other.keras")
    with pytest.raises(
        ValueError, match=r"other\.keras: has no names of keras's Mask R-CNN or ResNets; it holds dense"
    ):
        import_model(tmp_path / "other.keras", "keras")


def small_model() -> keras.Model:
    image = keras.layers.Input((8, 8, 3))
    x = keras.layers.Conv2D(4, 3, name="a")(image)
    x = keras.layers.Activation("relu", name="active")(x)
    x = keras.layers.Conv2D(4, 3, use_bias=False, name="b")(x)
    x = keras.layers.Dropout(0.5)(x + 1)
    x = keras.layers.BatchNormalization(scale=False, name="norm")(x)
    model = keras.Model(image, keras.layers.Dense(2, dtype="bfloat16", name="dense")(x))
    for layer in model.layers:
        for weight in layer.weights:
            weight.assign(draw(f"{layer.name}/{weight.name}", weight.shape, 0))
    return model


def rewritten(path, change):
    """The `.keras` file after `change` of its config and of its open HDF5 file."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(parts["config.json"])
    weights = io.BytesIO(parts["model.weights.h5"])
    with h5py.File(weights, "r+") as file:
        change({layer["config"]["name"]: layer for layer in config["config"]["layers"]}, file)
    parts |= {"config.json": json.dumps(config).encode(), "model.weights.h5": weights.getvalue()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in parts.items():
            archive.writestr(name, data)


def test_keras_files_are_read_as_keras_names_them(tmp_path):
    model = small_model()
    model.save(tmp_path / "a.keras")
    expected = keras_models.tensors_of(model)
    tensors = keras_models.read(tmp_path / "a.keras")
    assert sorted(tensors) == sorted(expected) and "norm/gamma" not in tensors
    for name, value in expected.items():
        np.testing.assert_array_equal(tensors[name], value, name)


@pytest.mark.parametrize("name, variables", [("active", False), ("a", True)])
def test_classes_that_a_keras_file_names_are_not_imported(tmp_path, monkeypatch, name, variables):
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / "a.keras"
    small_model().save(path)

    def change(layers, file):
        layers[name].update(module="evil", class_name="Evil", registered_name="evil>Evil")
        file.move(f"layers/{'conv2d' if variables else 'activation'}", "layers/evil")
        if variables:
            file.move("layers/conv2d_1", "layers/conv2d")

    rewritten(path, change)
    if variables:
        with pytest.raises(ValueError, match=r"a\.keras: has weights .* 'a' of class 'evil\.Evil'"):
            keras_models.read(path)
    else:
        assert len(keras_models.read(path)) == 8
    assert "evil" not in sys.modules and not (tmp_path / "ran").exists()


def test_keras_files_with_other_weights_than_their_layers(tmp_path):
    path, outside = tmp_path / "a.keras", tmp_path / "outside"
    outside.write_bytes(bytes(64))

    def leads_out(layers, file):
        del file["layers/conv2d/vars/1"]
        file.create_dataset("layers/conv2d/vars/1", (4,), "f4", external=[(str(outside), 0, 16)])

    def lacks(layers, file):
        del file["layers/conv2d/vars/1"]

    def subclassed(layers, file):
        layers["a"]["class_name"] = 5

    for change, reason in (
        (leads_out, "in other files"),
        (lacks, r"has 1 variables in the layer 'a', a plain keras\.layers\.Conv2D has kernel, bias"),
        (subclassed, "cannot be read as a model file of Keras 3"),
    ):
        small_model().save(path)
        rewritten(path, change)
        with pytest.raises(ValueError, match=rf"a\.keras: .*{reason}"):
            keras_models.read(path)


def test_a_preset_needs_keras_hub(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "keras_hub", None)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="is a KerasHub preset; reading one needs pip install keras-hub"):
        import_model(tmp_path, "keras")


def test_features_of_keras_hub(tmp_path):
    keras_hub = pytest.importorskip("keras_hub")
    source = keras_hub.models.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[7],
        stackwise_num_filters=[64, 128, 256, 512],
        stackwise_num_blocks=[3, 4, 6, 3],
        stackwise_num_strides=[1, 2, 2, 2],
        block_type="bottleneck_block",
    )
    for layer in source.layers:
        for weight in layer.weights:
            weight.assign(draw(f"{layer.name}/{weight.name}", weight.shape, 0))
    source.save_to_preset(tmp_path / "preset")
    model, report = import_model(tmp_path / "preset", "keras")
    assert model.backbone.depth == 50 and model.backbone.dialect == "torchvision" and not report.left_out
    images = tf.constant(np.random.default_rng(0).normal(size=(1, 96, 96, 3)).astype(np.float32))
    levels = source.pyramid_outputs
    reference = keras.Model(source.input, [levels[name] for name in sorted(levels)])
    for x, y in zip(model.backbone(images), reference(images), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-4 * float(tf.reduce_max(tf.abs(y))), rtol=0)
