import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from mrcnn_tf.layers.deformable import DeformableConv
from mrcnn_tf.layers.resnet import ResidualBlock, ResNet
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


@pytest.mark.parametrize(
    "own",
    [
        {"groups": 4, "width_per_group": 32},
        {"deformable": True},
        {"groups": 2, "deformable": True, "modulated": True, "strides": 2},
    ],
)
def test_harness_of_blocks(own, tmp_path):
    def make():
        layer = ResidualBlock(8, project=True, **own)
        layer.build((None, None, None, 6))
        randomize(layer)
        return layer

    x = tf.constant(np.random.default_rng(0).normal(size=(2, 7, 6, 6)).astype(np.float32))
    check_layer(make, lambda layer: layer(tf.cast(x, layer.compute_dtype)), tmp_path)


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


@pytest.mark.parametrize(
    "own,expected",
    [
        ({"depth": 34}, 21_284_672),
        ({"depth": 152}, 58_143_808),
        ({"depth": 50, "groups": 32, "width_per_group": 4}, 22_979_904),
        ({"depth": 101, "groups": 32, "width_per_group": 8}, 86_742_336),
    ],
)
def test_parameters_are_torchvisions(own, expected):
    layer = ResNet(**own, norm="batch", freeze_at=0)
    # Counted from shapes: nobody needs to fill 350 MB with random numbers.
    with keras.StatelessScope(initialize_variables=False):
        layer.build()
    assert sum(int(np.prod(w.shape)) for w in layer.trainable_weights) == expected


def test_deformable_stages():
    layer = ResNet(50, deformable=[4], modulated=True, width=8)
    layer.build()
    stages = {block.name[:6] for block in layer.blocks if isinstance(block.convs[1], DeformableConv)}
    assert stages == {"stage4"} and layer.get_config()["deformable"] == [4]
    paths = [w.path for w in layer.blocks[7].weights]
    assert any(path.endswith("stage4_block1/conv2/offset/kernel") for path in paths)
    for block in layer.blocks:
        shape = (1, 10, 14, block.convs[0].kernel.shape[2])
        assert block(tf.zeros(shape)).shape == block.compute_output_shape(shape)


@pytest.mark.parametrize(
    "dialect,epsilon,expected",
    [("keras", None, 1.001e-5), ("torchvision", None, 1e-5), ("torchvision", 0.0, 0.0)],
)
def test_epsilon(dialect, epsilon, expected):
    layer = ResNet(18, dialect=dialect, epsilon=epsilon, width=8)
    convs = [layer.stem, *(conv for block in layer.blocks for conv in block.convs)]
    assert {conv.norm.epsilon for conv in convs} == {expected}


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


@pytest.mark.parametrize(
    "own",
    [
        {"depth": 18, "freeze_at": 0},
        {"depth": 50, "freeze_at": 4, "groups": 2, "deformable": [5], "modulated": True},
    ],
)
def test_checkpointing_changes_nothing(own):
    plain = ResNet(**own, norm="frozen_batch", width=8)
    saving = ResNet(**own, norm="frozen_batch", width=8, checkpointing=True)
    for layer in (plain, saving):
        layer.build()
        randomize(layer)

    def gradients(layer):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(layer(images(), training=True)[-1] ** 2)
        return [loss, *tape.gradient(loss, [w.value for w in layer.trainable_weights])]

    for x, y in zip(gradients(plain), tf.function(gradients)(saving), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-3)


def test_config():
    own = {"groups": 4, "width_per_group": 32, "epsilon": 0.0, "deformable": [4, 5], "modulated": True}
    layer = ResNet(50, width=8, **own)
    config = json.loads(json.dumps(layer.get_config()))
    assert {name: config[name] for name in own} == own
    assert ResNet.from_config(config).get_config() == layer.get_config()
    inner = [block.convs[1] for block in layer.blocks]
    # 8 / 64 of 32 channels a group in the first stage.
    assert {conv.filters for conv in inner} == {16, 32, 64, 128} and {conv.groups for conv in inner} == {4}


@pytest.mark.parametrize(
    "bad,message",
    [
        ({"depth": 51}, "depth is 51"),
        ({"dialect": "x"}, "dialect is 'x'"),
        ({"freeze_at": 6}, "freeze_at is 6"),
        ({"epsilon": -1e-5}, "epsilon is -1e-05"),
        (
            {"depth": 18, "groups": 32},
            "groups, width_per_group and deformable need a depth from 50 on, not 18",
        ),
        ({"depth": 34, "deformable": [5]}, "deformable need a depth from 50 on, not 34"),
        ({"deformable": [2, 3]}, r"deformable is \(2, 3\); it must name stages from 3 to 5"),
        ({"modulated": True}, "modulated acts only with deformable"),
        ({"width": 8, "width_per_group": 4}, "width_per_group 4, which at 8 filters leaves no width"),
    ],
)
def test_bad_arguments(bad, message):
    with pytest.raises(ValueError, match=message):
        ResNet(**bad)


def test_basic_blocks_have_no_groups():
    with pytest.raises(ValueError, match="need a bottleneck"):
        ResidualBlock(8, bottleneck=False, deformable=True)
