from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from mrcnn_tf.layers.conv import Conv
from mrcnn_tf.layers.deformable import DeformableConv, deformable_conv2d
from tests.harness import check_layer

GOLDEN = Path(__file__).parents[1] / "golden" / "deform.npz"
NAMES = ("x", "offsets", "kernel", "modulation")


def image(shape=(2, 5, 6, 4), seed=0):
    return tf.constant(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


def reference(x, offsets, kernel, modulation, strides, groups):
    """Dai et al., equations 2 to 4, and Zhu et al., equation 1, as they stand."""
    batch, height, width, channels = x.shape
    size, _, depth, filters = kernel.shape
    out = np.zeros((*offsets.shape[:3], filters))

    def cell(image, y, x):
        return image[y, x] if 0 <= y < height and 0 <= x < width else np.zeros(channels)

    for b, i, j in np.ndindex(*out.shape[:3]):
        for tap in range(size * size):
            y = i * strides - size // 2 + tap // size + offsets[b, i, j, 2 * tap]
            z = j * strides - size // 2 + tap % size + offsets[b, i, j, 2 * tap + 1]
            y0, z0 = int(np.floor(y)), int(np.floor(z))
            sample = sum(
                max(0, 1 - abs(y - u)) * max(0, 1 - abs(z - v)) * cell(x[b], u, v)
                for u in (y0, y0 + 1)
                for v in (z0, z0 + 1)
            )
            sample = sample * modulation[b, i, j, tap]
            for f in range(filters):
                first = f // (filters // groups) * depth
                out[b, i, j, f] += sample[first : first + depth] @ kernel[tap // size, tap % size, :, f]
    return out


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**20),
    height=st.integers(1, 5),
    width=st.integers(1, 5),
    size=st.sampled_from([1, 3]),
    strides=st.sampled_from([1, 2]),
    groups=st.sampled_from([1, 2]),
    reach=st.sampled_from([0.0, 0.5, 3.0, 20.0, 1e6, 1e30]),
    whole=st.booleans(),
)
def test_is_the_papers(seed, height, width, size, strides, groups, reach, whole):
    rng = np.random.default_rng(seed)
    places = (2, -(-height // strides), -(-width // strides))
    x = rng.normal(size=(2, height, width, 4))
    offsets = rng.normal(size=(*places, 2 * size * size)) * reach
    if whole:
        offsets = np.round(offsets)
    kernel = rng.normal(size=(size, size, 4 // groups, 6))
    modulation = rng.uniform(size=(*places, size * size))
    out = deformable_conv2d(
        *map(tf.constant, (x, offsets, kernel, modulation)), strides=strides, groups=groups
    )
    np.testing.assert_allclose(
        out, reference(x, offsets, kernel, modulation, strides, groups), rtol=1e-9, atol=1e-9
    )


@pytest.mark.parametrize("case", sorted({name.split("/")[0] for name in np.load(GOLDEN)}))
def test_is_torchvisions(case):
    """Values and gradients; tests/golden/make_deform_golden.py recorded them."""
    golden = {
        name.split("/")[1]: tf.constant(value)
        for name, value in np.load(GOLDEN).items()
        if name.startswith(f"{case}/")
    }
    strides, groups = (int(part[-1]) for part in case.split("_")[1:])
    names = [name for name in NAMES if name in golden]

    @tf.function(autograph=False)
    def run(*inputs):
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            out = deformable_conv2d(*inputs, strides=strides, groups=groups)
            loss = tf.reduce_sum(out * golden["upstream"])
        return out, *tape.gradient(loss, inputs)

    results = run(*(golden[name] for name in names))
    for name, value in zip(["out", *(f"{name}_gradient" for name in names)], results, strict=True):
        np.testing.assert_allclose(value, golden[name], atol=1e-5, err_msg=name)


@pytest.mark.parametrize("strides,groups", [(1, 2), (2, 1)])
def test_gradients_by_differences(strides, groups):
    rng = np.random.default_rng(0)
    places = (2, 4 // strides, 4 // strides)
    inputs = {
        "x": rng.normal(size=(2, 4, 4, 2)),
        # Off whole numbers, where the samples have kinks.
        "offsets": np.floor(rng.normal(size=(*places, 18)) * 2) + rng.uniform(0.1, 0.9, (*places, 18)),
        "kernel": rng.normal(size=(3, 3, 2 // groups, 2)),
        "modulation": rng.uniform(size=(*places, 9)),
    }
    inputs = {name: tf.constant(value) for name, value in inputs.items()}
    upstream = tf.constant(rng.normal(size=(*places, 2)))

    @tf.function(autograph=False)
    def loss(*values):
        return tf.reduce_sum(deformable_conv2d(*values, strides=strides, groups=groups) * upstream)

    values = [inputs[name] for name in NAMES]
    with tf.GradientTape() as tape:
        tape.watch(values)
        total = loss(*values)
    for i, gradient in enumerate(tape.gradient(total, values)):
        for _ in range(5):
            way = rng.normal(size=values[i].shape)
            up, down = ([*values[:i], values[i] + sign * 1e-6 * way, *values[i + 1 :]] for sign in (1, -1))
            slope = (loss(*up) - loss(*down)) / 2e-6
            np.testing.assert_allclose(np.sum(gradient * way), slope, rtol=1e-6, atol=1e-7, err_msg=NAMES[i])


@pytest.mark.parametrize("modulated,strides,groups", [(False, 1, 1), (True, 2, 2)])
def test_harness(modulated, strides, groups, tmp_path):
    # Offsets lie off whole numbers, where the gradient of a place jumps.
    def make():
        layer = DeformableConv(
            6, modulated=modulated, strides=strides, groups=groups, norm="frozen_batch", relu=False
        )
        layer.build((None, None, None, 4))
        return layer

    check_layer(make, lambda layer: layer(tf.cast(image(), layer.compute_dtype)), tmp_path)


@pytest.mark.parametrize("norm", [None, "frozen_batch", "batch", "group"])
@pytest.mark.parametrize("strides,groups", [(1, 1), (2, 2)])
def test_starts_as_the_plain_convolution(norm, strides, groups):
    own = {"strides": strides, "groups": groups, "norm": norm, "relu": True}
    plain, layer, half = Conv(8, **own), DeformableConv(8, **own), DeformableConv(8, modulated=True, **own)
    x = image()
    for other in (plain, layer, half):
        other.build(x.shape)
        other.kernel.assign(image((3, 3, 4 // groups, 8), 1))
    assert layer.offset.kernel.shape == (3, 3, 4, 18) and half.offset.bias.shape == (27,)
    for training in (False, True):
        expected = plain(x, training=training)
        out = layer(x, training=training)
        np.testing.assert_allclose(out, expected, atol=1e-5)
        assert layer.compute_output_shape(x.shape) == out.shape
        if norm in (None, "frozen_batch"):
            np.testing.assert_allclose(2 * half(x, training=training), expected, atol=1e-5)


def test_channels_of_the_offset_convolution_are_detectron2s():
    layer = DeformableConv(3, modulated=True, use_bias=False)
    x = image((1, 7, 7, 2))
    layer.build(x.shape)
    # The last tap, bottom right, moves by (1, -2) and weighs sigmoid(2); the others weigh next to nothing.
    bias = np.full(27, -50.0)
    bias[:18] = 0
    bias[16:18], bias[26] = (1, -2), 2
    layer.offset.bias.assign(bias)
    moved = np.zeros((1, 7, 7, 2), np.float32)
    moved[:, :5, 1:] = x.numpy()[:, 2:, :6]
    expected = moved @ layer.kernel.numpy()[2, 2] / (1 + np.exp(-2))
    np.testing.assert_allclose(layer(x), expected, atol=1e-5)


def test_offsets_that_are_no_numbers_show_and_do_not_crash():
    x, kernel = image((1, 4, 4, 2)), image((3, 3, 2, 3), 1)
    offsets = np.zeros((1, 4, 4, 18), np.float32)
    offsets[0, 1, 1, 0], offsets[0, 2, 2, 1], offsets[0, 3, 3, 2] = np.nan, np.inf, -np.inf
    offsets = tf.constant(offsets)
    with tf.GradientTape() as tape:
        tape.watch((x, offsets, kernel))
        out = deformable_conv2d(x, offsets, kernel)
    bad = np.isnan(out.numpy()).any(-1)[0]
    assert bad[1, 1] and bad.sum() == 1
    for gradient in tape.gradient(out, (x, offsets, kernel)):
        assert gradient is not None


def test_gradients_have_the_same_bits_in_every_run():
    # All samples lie in a few cells, where the order of a sum would show.
    x, kernel = image((1, 24, 24, 32)), image((3, 3, 32, 32), 1)
    offsets = -tf.stack(tf.meshgrid(tf.range(24.0), tf.range(24.0), indexing="ij"), -1)
    offsets = tf.tile(offsets, [1, 1, 9])[None] + image((1, 24, 24, 18), 2)

    @tf.function(autograph=False)
    def run():
        out = deformable_conv2d(x, offsets, kernel)
        return tf.gradients(tf.reduce_sum(tf.sin(out)), [x, offsets, kernel])

    first = run()
    for _ in range(5):
        for value, expected in zip(run(), first, strict=True):
            np.testing.assert_array_equal(value, expected)


def test_saved_model(tmp_path):
    layer = DeformableConv(6, modulated=True, groups=2, strides=2)
    layer.build((None, None, None, 4))
    layer.offset.kernel.assign(image((3, 3, 4, 27), 3))
    module = tf.Module()
    module.layer = layer
    module.run = tf.function(layer, input_signature=[tf.TensorSpec([None, None, None, 4])], autograph=False)
    tf.saved_model.save(module, tmp_path)
    loaded = tf.saved_model.load(tmp_path)
    np.testing.assert_allclose(loaded.run(image()), layer(image()), atol=1e-5)
