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


def test_torchvision_rounds_the_corners():
    # 32 * sqrt(1/2) = 22.6 high and 45.3 wide: corners at 11.3 and 22.6.
    out = anchors.cell_anchors([32], [0.5, 1, 2], rounding="torchvision")
    np.testing.assert_array_equal(out, [[-11, -23, 11, 23], [-16, -16, 16, 16], [-23, -11, 23, 11]])


@pytest.mark.parametrize("size,stride", [(32, 4), (64, 8), (512, 64)])
def test_detectron_rounds_the_sides_in_strides(size, stride):
    # Detectron's generate_anchors on its base box of 16 pixels gives 23 x 12, 16 x 16 and 11 x 22; at stride 4 it is
    # round(sqrt(16 / 0.5)) = 6 wide and round(6 * 0.5) = 3 high, both times 8.
    out = anchors.cell_anchors([size], [0.5, 1, 2], rounding="detectron", stride=stride)
    sides = out[:, 2:] - out[:, :2]
    wide = {4: 6, 8: 11, 64: 91}[stride]
    high = {4: 3, 8: 6, 64: 46}[stride]  # round(5.5) is 6, round(45.5) is 46: half to even
    np.testing.assert_array_equal(sides[:2], np.array([[high, wide], [stride, stride]]) * size / stride)
    narrow = {4: 3, 8: 6, 64: 45}[stride]
    np.testing.assert_array_equal(sides[2], np.array([2 * narrow, narrow]) * size / stride)
    np.testing.assert_array_equal(out[:, :2], -out[:, 2:])


def test_canvas_sets_the_distance_of_cells():
    # 480 pixels are 15 cells of P5 and 8 of P6: torchvision puts those 480 // 8 = 60 apart.
    out = anchors.level_anchors(8, 10, 64, [512], [1], canvas=(480, 640)).numpy()
    centres = (out[:, :2] + out[:, 2:]) / 2
    np.testing.assert_array_equal(centres[[0, 1, 10]], [[0, 0], [0, 64], [60, 0]])


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
    with pytest.raises(ValueError, match="anchor rounding is 'up'"):
        anchors.cell_anchors([32], [1], rounding="up")
    with pytest.raises(ValueError, match="not 2 shapes, 1 strides and 2 lists"):
        anchors.pyramid_anchors([(4, 6), (2, 3)], [8], [[16], [32]], [1])
