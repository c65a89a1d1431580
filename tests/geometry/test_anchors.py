"""Anchors against hand-written values."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from mrcnn_tf.geometry import anchors


def test_cell_anchors_by_hand():
    out = anchors.cell_anchors([32, 64], [0.25, 1, 4])
    expected = [
        [-8, -32, 8, 32],
        [-16, -16, 16, 16],
        [-32, -8, 32, 8],
        [-16, -64, 16, 64],
        [-32, -32, 32, 32],
        [-64, -16, 64, 16],
    ]
    np.testing.assert_allclose(out, expected, rtol=1e-6)
    assert out.dtype == np.float32


def test_area_and_ratio():
    out = anchors.cell_anchors([100], [0.5, 1, 2])
    height, width = out[:, 2] - out[:, 0], out[:, 3] - out[:, 1]
    np.testing.assert_allclose(height * width, 1e4, rtol=1e-5)
    np.testing.assert_allclose(height / width, [0.5, 1, 2], rtol=1e-5)


def test_level_order_and_places():
    out = anchors.level_anchors(2, 3, 8, [4], [1, 4]).numpy()
    assert out.shape == (12, 4)
    centres = (out[:, :2] + out[:, 2:]) / 2
    # Rows, then columns, then the two anchors of a cell.
    expected = [[y, x] for y in (0, 8) for x in (0, 8, 16) for _ in range(2)]
    np.testing.assert_allclose(centres, expected, atol=1e-6)
    np.testing.assert_allclose(out[0], [-2, -2, 2, 2])
    np.testing.assert_allclose(out[11], [8 - 4, 16 - 1, 8 + 4, 16 + 1])


def test_offset_is_a_share_of_the_stride():
    plain = anchors.level_anchors(2, 2, 16, [32], [1])
    shifted = anchors.level_anchors(2, 2, 16, [32], [1], offset=0.5)
    np.testing.assert_allclose(shifted - plain, np.full((4, 4), 8.0))


def test_dynamic_size():
    @tf.function(input_signature=[tf.TensorSpec([None, None])])
    def of(feature_map):
        return anchors.level_anchors(tf.shape(feature_map)[0], tf.shape(feature_map)[1], 4, [8], [0.5, 1])

    np.testing.assert_array_equal(of(np.zeros([3, 5])), anchors.level_anchors(3, 5, 4, [8], [0.5, 1]))
    assert of(np.zeros([0, 5])).shape == (0, 4)


def test_pyramid():
    out = anchors.pyramid_anchors([(4, 6), (2, 3)], [8, 16], [[16], [32, 40]], [1, 2, 3], offset=0.5)
    assert [level.shape[0] for level in out] == [4 * 6 * 3, 2 * 3 * 6]
    np.testing.assert_array_equal(out[1], anchors.level_anchors(2, 3, 16, [32, 40], [1, 2, 3], offset=0.5))


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"anchor sizes must be one or more positive numbers, not \[32, 0\]"):
        anchors.cell_anchors([32, 0], [1])
    with pytest.raises(ValueError, match="anchor aspect_ratios must be"):
        anchors.cell_anchors([32], [])
    with pytest.raises(ValueError, match="not 2 shapes, 1 strides and 2 lists"):
        anchors.pyramid_anchors([(4, 6), (2, 3)], [8], [[16], [32]], [1])
