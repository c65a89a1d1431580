import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from mrcnn_tf.layers.preprocess import Normalize, resize, resized_shape


@pytest.mark.parametrize(
    "size,expected",
    [
        ((480, 640), (800, 1067)),  # 1066.67 rounds up
        ((640, 480), (1067, 800)),
        ((400, 1000), (533, 1333)),  # the longer side decides
        ((1, 3000), (1, 1333)),  # never 0
        ((800, 1333), (800, 1333)),
    ],
)
def test_resized_shape(size, expected):
    assert tuple(resized_shape(*size, 800, 1333).numpy()) == expected


@pytest.mark.parametrize(
    "size,rule,expected",
    [
        ((427, 640), "floor", (800, 1199)),  # 1199.06
        ((427, 641), "floor", (800, 1200)),  # 1200.9
        ((427, 641), "round", (800, 1201)),
        ((427, 641), "short_first", (800, 1200)),
        ((333, 1000), "floor", (443, 1333)),  # 443.9 and 1333
        ((333, 1000), "short_first", (444, 1333)),  # 443.9 rounds first, then 444 * 1000 / 333 = 1333.3
        ((1365, 2134), "half_even", (800, 1251)),
        ((1599, 2666), "half_even", (800, 1333)),  # 799.5
        ((1597, 2666), "half_even", (798, 1333)),  # 798.5
        ((1597, 2666), "round", (799, 1333)),
        ((3, 62), "round", (64, 1333)),  # 64.5 but for the last bit, as detectron2 has it
    ],
)
def test_size_rules(size, rule, expected):
    assert tuple(resized_shape(*size, 800, 1333, rule).numpy()) == expected
    in_graph = tf.function(lambda h, w: resized_shape(h, w, 800, 1333, rule))
    assert tuple(in_graph(*map(tf.constant, size)).numpy()) == expected


def test_pil_resize_averages_when_it_shrinks():
    image = tf.constant([[[0.0] * 3, [0.0] * 3, [90.0] * 3, [101.0] * 3]])
    # The triangle of a pixel twice as wide reaches two pixels to both sides: weights 3, 3, 1 of 7.
    np.testing.assert_array_equal(resize(image, tf.constant([1, 2]), "pil")[0, :, 0], [13, 82])
    np.testing.assert_array_equal(resize(image, tf.constant([1, 2]))[0, :, 0], [0, 95.5])


@pytest.mark.parametrize("size", [(64, 96), (40, 54), (64, 162)])
def test_pil_resize_is_pillows(size):
    image = np.random.default_rng(0).integers(0, 256, (51, 77, 3), np.uint8)
    expected = np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR), np.float32)
    out = resize(tf.constant(image), tf.constant(size), "pil").numpy()
    # Pillow's weights have 22 bits: half a level may fall to either side.
    assert np.abs(out - expected).max() <= 1
    assert (out != expected).mean() < 0.01


def test_resize_has_half_pixel_centres():
    image = tf.constant([[[0.0] * 3, [100.0] * 3]])
    # Centres of four pixels fall on 0.25, 0.75, 1.25, 1.75 of two; corner-aligned resizing would give 0, 33, 67, 100.
    np.testing.assert_allclose(resize(image, [1, 4])[0, :, 0], [0, 25, 75, 100])


def test_normalize():
    layer = Normalize((10.0, 20.0, 30.0), (1.0, 2.0, 5.0))
    images = tf.fill([1, 2, 2, 3], tf.constant(40, tf.uint8))
    out = layer(images, tf.constant([[2.0, 1.0]])).numpy()
    np.testing.assert_allclose(out[0, 0, 0], [30, 10, 2])
    np.testing.assert_array_equal(
        out[0, :, 1], 0
    )  # beyond the image: zero, not what the canvas was filled with


def test_normalize_bgr():
    layer = Normalize((10.0, 20.0, 30.0), (1.0, 1.0, 1.0), bgr=True)
    out = layer(tf.constant([[[[11.0, 22.0, 33.0]]]]), tf.constant([[1.0, 1.0]]))
    np.testing.assert_allclose(out[0, 0, 0], [3, 2, 1])


def test_normalize_keeps_precision_in_16_bits():
    layer = Normalize((123.0,) * 3, (1.0,) * 3, dtype="mixed_bfloat16")
    out = layer(tf.fill([1, 1, 1, 3], 123.25), tf.constant([[1.0, 1.0]]))
    assert out.dtype == tf.bfloat16
    # bfloat16 has 8 bits: 123.25 would have become 123 before the subtraction.
    np.testing.assert_allclose(tf.cast(out, tf.float32), 0.25)
