from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from mrcnn_tf.importer import import_model
from mrcnn_tf.layers.resnet import BLOCKS
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


def test_a_preset_needs_keras_hub(tmp_path, monkeypatch):
    import sys

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
