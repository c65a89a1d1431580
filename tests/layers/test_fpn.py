import numpy as np
import pytest
import tensorflow as tf

from mrcnn_tf.layers.fpn import FPN, upsample_to
from tests.harness import check_layer


def features(size=64, channels=(4, 6, 8, 10), dtype=tf.float32):
    rng = np.random.default_rng(0)
    return [
        tf.constant(rng.normal(size=(2, size // s, size // s, c)), dtype)
        for s, c in zip((4, 8, 16, 32), channels, strict=True)
    ]


@pytest.mark.parametrize("norm", [None, "group"])
def test_harness(norm, tmp_path):
    def make():
        layer = FPN(8, norm=norm)
        layer.build([4, 6, 8, 10])
        return layer

    check_layer(make, lambda layer: layer(features(dtype=layer.compute_dtype)), tmp_path)


def test_levels():
    layer = FPN(8)
    layer.build([4, 6, 8, 10])
    out = layer(features())
    assert [tuple(x.shape) for x in out] == [(2, n, n, 8) for n in (16, 8, 4, 2, 1)]
    np.testing.assert_array_equal(out[4], out[3][:, ::2, ::2])


def test_top_down_path_by_hand():
    layer = FPN(1)
    layer.build([1, 1, 1, 1])
    for conv in layer.laterals:
        conv.kernel.assign([[[[1.0]]]])
    for conv in layer.outputs:
        kernel = np.zeros((3, 3, 1, 1), np.float32)
        kernel[1, 1] = 1
        conv.kernel.assign(kernel)
    maps = features(32, (1, 1, 1, 1))
    p2 = layer(maps)[0].numpy()
    sums = [m.numpy() for m in maps]
    for i in (2, 1, 0):
        sums[i] = sums[i] + sums[i + 1].repeat(2, 1).repeat(2, 2)
    np.testing.assert_allclose(p2, sums[0], atol=1e-6)


def test_upsample_to_odd_size():
    x = tf.constant([[[[1.0], [2.0]], [[3.0], [4.0]]]])
    out = upsample_to(x, tf.zeros([1, 3, 4, 1]))[0, :, :, 0]
    np.testing.assert_array_equal(out, [[1, 1, 2, 2], [1, 1, 2, 2], [3, 3, 4, 4]])
