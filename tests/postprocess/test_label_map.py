"""One instance a pixel, against painting dense masks; and the files."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mrcnn_tf.postprocess.label_map import separate, write_label_map
from tests.postprocess.drawn import SIZE, decode, encode, instances


def run(drawn):
    return separate([encode(m) for m in drawn[3]], *drawn[1:3], image_size=SIZE)


@given(instances())
@settings(max_examples=80, deadline=None)
def test_each_pixel_belongs_to_the_best_there(drawn):
    _, scores, class_ids, masks = drawn
    indices, trimmed, labels = run(drawn)
    assert (labels > 0).tolist() == masks.any(axis=0).tolist()
    for y, x in np.argwhere(labels):
        there = np.flatnonzero(masks[:, y, x])
        owner = indices[labels[y, x] - 1]
        assert owner in there
        assert (-scores[owner], class_ids[owner]) == min((-scores[i], class_ids[i]) for i in there)
    assert np.all(np.diff(scores[indices]) <= 0)
    assert sorted(np.unique(labels[labels > 0])) == list(range(1, len(indices) + 1))
    for number, rle in enumerate(trimmed, start=1):
        np.testing.assert_array_equal(decode(rle), labels == number)


@given(instances(), st.randoms(use_true_random=False))
@settings(max_examples=50, deadline=None)
def test_order_of_the_input_does_not_matter(drawn, random):
    order = list(range(len(drawn[1])))
    random.shuffle(order)
    _, trimmed, labels = run(drawn)
    _, trimmed_too, labels_too = run(tuple(part[order] for part in drawn))
    assert trimmed == trimmed_too
    np.testing.assert_array_equal(labels, labels_too)


def test_a_hidden_instance_takes_no_number():
    whole, part, other = (np.zeros(SIZE, bool) for _ in range(3))
    whole[:4], part[1:3], other[3:6] = True, True, True
    indices, trimmed, labels = separate(
        [encode(m) for m in (part, other, whole)], [0.5, 0.4, 0.9], [1, 1, 1], image_size=SIZE
    )
    assert indices.tolist() == [2, 1]
    assert labels[:, 0].tolist() == [1, 1, 1, 1, 2, 2, 0]
    assert decode(trimmed[1]).sum() == 2 * SIZE[1]


def test_a_mask_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r"size \[2, 2\], its image \[7, 9\]"):
        separate([encode(np.ones((2, 2)))], [0.5], [1], image_size=SIZE)


def test_sixteen_bits_as_png_and_more_as_tiff(tmp_path):
    small = np.array([[0, 1, 300], [65535, 2, 0]], np.int32)
    path = write_label_map(tmp_path / "a.b", small)
    assert path == tmp_path / "a.b.png"
    read = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert read.dtype == np.uint16
    np.testing.assert_array_equal(read, small)
    large = np.arange(300 * 300, dtype=np.int32).reshape(300, 300)
    path = write_label_map(tmp_path / "large", large)
    assert path == tmp_path / "large.tif"
    np.testing.assert_array_equal(np.asarray(Image.open(path)), large)
    np.testing.assert_array_equal(cv2.imread(str(path), cv2.IMREAD_UNCHANGED), large)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.b.png", "large.tif"]


def test_negative_labels_are_refused(tmp_path):
    with pytest.raises(ValueError, match="negative"):
        write_label_map(tmp_path / "a", np.array([[-1]]))
    assert not list(tmp_path.iterdir())
