import numpy as np
import pytest
import tensorflow as tf

from mrcnn_tf.layers.heads import BoxHead, MaskHead, RefiningMaskHead
from tests.harness import check_layer


def features(size, dtype=tf.float32, channels=6):
    return tf.constant(np.random.default_rng(0).normal(size=(2, 3, size, size, channels)), dtype)


@pytest.mark.parametrize(
    "class_agnostic,convs",
    [(False, {}), (True, {"depth": 1, "conv_depth": 2, "conv_channels": 8, "norm": "batch"})],
)
def test_box_head_harness(class_agnostic, convs, tmp_path):
    def make():
        layer = BoxHead(4, 16, class_agnostic=class_agnostic, **convs)
        layer.build(6)
        return layer

    check_layer(make, lambda layer: layer(features(7, layer.compute_dtype)), tmp_path)
    logits, deltas = make()(features(7))
    assert logits.shape == (2, 3, 5) and deltas.shape == (2, 3, 1 if class_agnostic else 4, 4)
    assert logits.dtype == tf.float32


CLASSES = tf.constant([[1, 2, 3], [3, 1, 2]])


@pytest.mark.parametrize("class_agnostic,norm,size", [(False, None, 28), (True, "group", 56)])
def test_mask_head_harness(class_agnostic, norm, size, tmp_path):
    def make():
        layer = MaskHead(3, 8, 2, size, class_agnostic, norm)
        layer.build(6)
        return layer

    check_layer(make, lambda layer: layer(features(size // 2, layer.compute_dtype), CLASSES), tmp_path)
    assert make()(features(size // 2), CLASSES).shape == (2, 3, size, size)


def test_deconvolution_and_class_choice_against_transposed_convolution():
    layer = MaskHead(3, 8, 1, 8)
    layer.build(6)
    layer.kernel.assign(np.random.default_rng(1).normal(size=layer.kernel.shape))
    layer.bias.assign([0.1, 0.2, 0.3])
    x = features(4)
    out = layer(x, CLASSES).numpy()
    hidden = layer.convs[0](tf.reshape(x, [6, 4, 4, 6]))
    # Our 1x1 kernel [C, (dy, dx, out)] as the kernel of a transposed convolution, [dy, dx, out, C].
    kernel = layer.deconv.kernel.numpy().reshape(8, 2, 2, 8).transpose(1, 2, 3, 0)
    up = tf.nn.relu(tf.nn.conv2d_transpose(hidden, kernel, [6, 8, 8, 8], 2, "VALID")).numpy()
    every = np.einsum("nyxc,kc->nkyx", up, layer.kernel.numpy()) + layer.bias.numpy()[:, None, None]
    chosen = every[np.arange(6), CLASSES.numpy().ravel() - 1].reshape(2, 3, 8, 8)
    np.testing.assert_allclose(out, chosen, atol=1e-5)


@pytest.mark.parametrize("mask_flow", [True, False])
def test_refining_mask_head_harness(mask_flow, tmp_path):
    def make():
        layer = RefiningMaskHead(3, mask_flow=mask_flow, channels=8, depth=2)
        layer.build(6)
        return layer

    def run(layer):
        hidden = features(14, layer.compute_dtype, 8)
        return layer(features(14, layer.compute_dtype), hidden, CLASSES)

    check_layer(make, run, tmp_path)


def test_refining_mask_head_adds_the_first_heads_features():
    layer = RefiningMaskHead(3, channels=8, depth=1)
    layer.build(6)
    layer.kernel.assign(np.random.default_rng(1).normal(size=layer.kernel.shape))
    x, hidden = features(14), features(14, channels=8)
    plain = MaskHead.call(layer, x, CLASSES)
    # As it is born, the flow is nothing.
    np.testing.assert_array_equal(layer(x, hidden, CLASSES), plain)
    kernel = np.random.default_rng(2).normal(size=(1, 1, 8, 6)).astype(np.float32)
    layer.flow.kernel.assign(kernel)
    expected = MaskHead.call(layer, x + tf.einsum("bnyxc,cd->bnyxd", hidden, kernel[0, 0]), CLASSES)
    np.testing.assert_allclose(layer(x, hidden, CLASSES), expected, atol=1e-4)


def test_odd_mask_size():
    with pytest.raises(ValueError, match="mask_size is 27"):
        MaskHead(3, mask_size=27)
