import keras
import numpy as np
import pytest
import tensorflow as tf

from mrcnn_tf.layers.resnet import ResNet
from mrcnn_tf.weights.imagenet import copy_backbone
from tests.harness import check_layer


def images(size=64):
    return tf.constant(np.random.default_rng(0).normal(size=(2, size, size, 3)).astype(np.float32))


def randomize(layer, seed=0):
    """Weights that keep activations of unit size, norm statistics included."""
    rng = np.random.default_rng(seed)
    for w in layer.weights:
        if "variance" in w.path:
            w.assign(rng.uniform(0.5, 1.5, w.shape))
        elif "gamma" in w.path:
            w.assign(rng.uniform(0.5, 1.0, w.shape))
        elif "kernel" in w.path:
            w.assign(rng.normal(size=w.shape) * np.sqrt(1.0 / np.prod(w.shape[:3])))
        else:
            w.assign(rng.normal(size=w.shape) * 0.1)


@pytest.mark.parametrize("depth,norm", [(18, "group"), (50, "frozen_batch")])
def test_harness(depth, norm, tmp_path):
    def make():
        layer = ResNet(depth, norm=norm, freeze_at=0, width=8)
        layer.build()
        randomize(layer)
        return layer

    def run(layer):
        return layer(tf.cast(images(), layer.compute_dtype))

    check_layer(make, run, tmp_path)


@pytest.mark.parametrize("depth,channels", [(18, [64, 128, 256, 512]), (101, [256, 512, 1024, 2048])])
def test_shapes_and_parameters(depth, channels):
    layer = ResNet(depth, norm="batch", freeze_at=0)
    layer.build()
    assert layer.channels == channels
    # torchvision's resnet18 and resnet101 without their classifier.
    expected = {18: 11_176_512, 101: 42_500_160}[depth]
    trainable = sum(int(np.prod(w.shape)) for w in layer.trainable_weights)
    assert trainable == expected
    if depth == 18:
        shapes = [tuple(x.shape) for x in layer(images(96))]
        assert shapes == [(2, 24, 24, 64), (2, 12, 12, 128), (2, 6, 6, 256), (2, 3, 3, 512)]


def test_keras_applications_weights_give_its_features():
    source = keras.applications.ResNet50(include_top=False, weights=None)
    randomize(source)
    own = ResNet(50, dialect="keras")
    own.build()
    copy_backbone(source, own)
    names = [f"conv{stage}_block{count}_out" for stage, count in ((2, 3), (3, 4), (4, 6), (5, 3))]
    reference = keras.Model(source.input, [source.get_layer(name).output for name in names])
    for x, y in zip(own(images()), reference(images()), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-4 * float(tf.reduce_max(tf.abs(y))))


@pytest.mark.parametrize(
    "freeze_at,first", [(0, "stem"), (1, "stage2_block1"), (2, "stage3_block1"), (5, None)]
)
def test_freezing(freeze_at, first):
    layer = ResNet(18, norm="batch", freeze_at=freeze_at, width=8)
    layer.build()
    trained = [w.path for w in layer.trainable_weights]
    assert (first in trained[0]) if first else not trained
    # What is frozen stays frozen when read from a config.
    again = ResNet.from_config(layer.get_config())
    again.build()
    assert len(again.trainable_weights) == len(trained)


def test_checkpointing_changes_nothing():
    plain = ResNet(18, norm="frozen_batch", freeze_at=0, width=8)
    saving = ResNet(18, norm="frozen_batch", freeze_at=0, width=8, checkpointing=True)
    for layer in (plain, saving):
        layer.build()
        randomize(layer)

    def gradients(layer):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(layer(images(), training=True)[-1] ** 2)
        return [loss, *tape.gradient(loss, [w.value for w in layer.trainable_weights])]

    for x, y in zip(gradients(plain), tf.function(gradients)(saving), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "bad,message",
    [
        ({"depth": 51}, "depth is 51"),
        ({"dialect": "x"}, "dialect is 'x'"),
        ({"freeze_at": 6}, "freeze_at is 6"),
    ],
)
def test_bad_arguments(bad, message):
    with pytest.raises(ValueError, match=message):
        ResNet(**bad)
