"""IoU of boxes and run-length codes against loops over pairs and pixels."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mrcnn_tf.geometry.overlap import box_iou, compressed, iou_with, mask_boxes, mask_iou
from tests.postprocess.drawn import dense_iou, encode, instances, plain_box_iou

numbers = st.floats(-50, 50, allow_nan=False).map(lambda v: round(v, 2))
boxes = st.lists(st.lists(numbers, min_size=4, max_size=4), max_size=5)


@given(boxes, boxes)
@settings(max_examples=50, deadline=None)
def test_box_iou_is_that_of_each_pair(a, b):
    expected = [[plain_box_iou(p, q) for q in b] for p in a]
    assert box_iou(a, b).shape == (len(a), len(b))
    # Boxes turned inside out have no area, and so nothing in common with others.
    for i, p in enumerate(a):
        for j, q in enumerate(b):
            right = all(c[2] > c[0] and c[3] > c[1] for c in (p, q))
            assert box_iou(a, b)[i, j] == pytest.approx(expected[i][j] if right else 0, abs=1e-12)


@given(instances(), instances())
@settings(max_examples=40, deadline=None)
def test_mask_iou_is_that_of_the_pixels(one, other):
    a, b = [encode(m) for m in one[3]], [encode(m) for m in other[3]]
    expected = np.array([[dense_iou(p, q) for q in other[3]] for p in one[3]]).reshape(len(a), len(b))
    np.testing.assert_allclose(mask_iou(a, b), expected, atol=1e-12)


def test_codes_may_be_text_or_not_compressed():
    mask = np.zeros((4, 5), bool)
    mask[1:3, 2:4] = True
    code = encode(mask)
    text = {"size": [4, 5], "counts": code["counts"].decode()}
    plain = {"size": [4, 5], "counts": [9, 2, 2, 2, 5]}
    assert mask_iou([code, text, plain], [plain, text]).tolist() == [[1, 1]] * 3
    assert compressed(plain) == code
    assert mask_boxes([text, plain, {"size": [4, 5], "counts": [20]}]).tolist() == [[1, 2, 3, 4]] * 2 + [
        [0] * 4
    ]


@given(instances())
@settings(max_examples=30, deadline=None)
def test_one_instance_with_others_is_a_row_of_the_table(drawn):
    masks = [encode(m) for m in drawn[3]]
    others = np.arange(len(masks))[::-1]
    for i in range(len(masks)):
        row = iou_with(i, others, mask_boxes(masks), masks)
        np.testing.assert_array_equal(row, mask_iou(masks, masks)[i][::-1])
        np.testing.assert_array_equal(
            iou_with(i, others, drawn[0], None), box_iou(drawn[0], drawn[0])[i][::-1]
        )


def test_masks_of_two_sizes_are_refused():
    with pytest.raises(ValueError, match=r"one size, not \[\(2, 2\), \(2, 3\)\]"):
        mask_iou([encode(np.ones((2, 2)))], [encode(np.ones((2, 3)))])
