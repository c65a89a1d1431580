"""Suppression of each kind against a literal loop over pairs."""

import math
from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mrcnn_tf.postprocess.suppress import best_first, group_numbers, suppress, wanted
from tests.postprocess.drawn import SIZE, dense_iou, encode, instances, plain_box_iou, rank

GROUPS = {"class": lambda c: c, "all": lambda c: 0, ((1, 3),): lambda c: 1 if c == 3 else c}


def reference(drawn, *, iou_threshold, measure, groups, method, sigma, score_threshold):
    """Bodla et al. 2017, figure 3, pair by pair in Python's floats; returns `[(index, score)]`."""
    boxes, scores, class_ids, masks = drawn
    order = rank(boxes, scores, class_ids, masks)
    score = {i: float(scores[i]) for i in order}
    left = [
        i
        for i in order
        if score[i] > score_threshold
        and (boxes[i][2] - boxes[i][0]) * (boxes[i][3] - boxes[i][1]) > 0
        and (measure == "box" or masks[i].any())
    ]
    kept = []
    while left:
        best = max(left, key=lambda i: score[i])
        kept.append((best, score[best]))
        left.remove(best)
        for i in list(left):
            if GROUPS[groups](class_ids[i]) != GROUPS[groups](class_ids[best]):
                continue
            iou = (
                dense_iou(masks[best], masks[i])
                if measure == "mask"
                else plain_box_iou(boxes[best], boxes[i])
            )
            if method == "hard" and iou > iou_threshold:
                left.remove(i)
            elif method != "hard":
                if method == "linear" and iou > iou_threshold:
                    score[i] *= 1 - iou
                elif method == "gaussian":
                    score[i] *= math.exp(-iou * iou / sigma)
                if score[i] <= score_threshold:
                    left.remove(i)
    return kept


choices = st.fixed_dictionaries(
    {
        "iou_threshold": st.sampled_from([0.0, 0.3, 0.5, 0.8, 1.0]),
        "measure": st.sampled_from(["box", "mask"]),
        "groups": st.sampled_from(list(GROUPS)),
        "method": st.sampled_from(["hard", "linear", "gaussian"]),
        "sigma": st.sampled_from([0.1, 0.5]),
        "score_threshold": st.sampled_from([0.0, 0.05, 0.4]),
    }
)


def run(drawn, **chosen):
    boxes, scores, class_ids, masks = drawn
    codes = [encode(m) for m in masks] if chosen.get("measure") == "mask" else None
    return suppress(boxes, scores, class_ids, masks=codes, **chosen)


def contents(drawn, indices, scores):
    boxes, _, class_ids, masks = drawn
    return [
        (tuple(boxes[i]), class_ids[i], masks[i].tobytes(), s) for i, s in zip(indices, scores, strict=True)
    ]


@given(instances(), choices)
@settings(max_examples=150, deadline=None)
def test_is_the_literal_loop(drawn, chosen):
    # Boxes tell nothing of masks, so equal scores are broken by what is given.
    known = drawn if chosen["measure"] == "mask" else (*drawn[:3], np.zeros_like(drawn[3]))
    indices, scores = run(known, **chosen)
    expected = reference(known, **chosen)
    np.testing.assert_allclose(scores, [s for _, s in expected], rtol=1e-12)
    assert [c[:3] for c in contents(known, indices, scores)] == [
        c[:3] for c in contents(known, [i for i, _ in expected], scores)
    ]


@given(instances(), choices, st.randoms(use_true_random=False))
@settings(max_examples=80, deadline=None)
def test_order_of_the_input_does_not_matter(drawn, chosen, random):
    order = list(range(len(drawn[1])))
    random.shuffle(order)
    known = drawn if chosen["measure"] == "mask" else (*drawn[:3], np.zeros_like(drawn[3]))
    moved = tuple(part[order] for part in known)
    assert contents(known, *run(known, **chosen)) == contents(moved, *run(moved, **chosen))


@given(instances(), choices)
@settings(max_examples=50, deadline=None)
def test_hard_suppression_twice_is_once(drawn, chosen):
    chosen["method"] = "hard"
    indices, _ = run(drawn, **chosen)
    again, _ = run(tuple(part[indices] for part in drawn), **chosen)
    assert again.tolist() == list(range(len(indices)))


ROW = [[0, 0, 10, 10], [20, 0, 24, 4], [40, 0, 60, 5], [70, 70, 70, 90]]


def test_sizes_in_pixels_and_as_a_share():
    def kept(**bounds):
        return suppress(ROW, [0.9, 0.8, 0.7, 0.6], [1, 1, 1, 1], **bounds)[0].tolist()

    assert kept() == [0, 1, 2]  # and never the box without area
    assert kept(min_size=4.5) == [0, 2]
    assert kept(min_size=4, max_size=4) == [1]  # the bounds themselves are allowed
    assert kept(max_size=9.9) == [1]
    assert kept(min_size=0.1, size_unit="share", image_size=(50, 200)) == [0, 2]
    assert kept(min_size=0.1, size_unit="share", image_size=(100, 101)) == []
    assert wanted(ROW, [0.9] * 4, [1] * 4, max_size=5).tolist() == [False, True, False, False]


def test_thresholds_by_class():
    scores, classes = [0.9, 0.5, 0.2], [1, 2, 3]
    assert suppress(ROW[:3], scores, classes, score_threshold={1: 0.9, 2: 0.4})[0].tolist() == [1, 2]
    assert suppress(ROW[:3], scores, classes, score_threshold=defaultdict(lambda: 0.3, {2: 0.6}))[
        0
    ].tolist() == [0]


def test_a_soft_score_that_decays_to_its_class_threshold_is_dropped():
    boxes = [[0, 0, 10, 10], [0, 0, 10, 8]]
    settings = {"method": "linear", "groups": "all"}
    indices, scores = suppress(boxes, [0.9, 0.8], [1, 2], score_threshold={2: 0.15}, **settings)
    assert indices.tolist() == [0, 1]
    assert scores.tolist() == pytest.approx([0.9, 0.16])
    assert suppress(boxes, [0.9, 0.8], [1, 2], score_threshold={2: 0.17}, **settings)[0].tolist() == [0]


def test_the_most_to_return():
    for method in ("hard", "linear", "gaussian"):
        whole = suppress(ROW, [0.5, 0.9, 0.7, 0.8], [1, 1, 1, 1], method=method)
        part = suppress(ROW, [0.5, 0.9, 0.7, 0.8], [1, 1, 1, 1], method=method, max_detections=2)
        assert part[0].tolist() == whole[0][:2].tolist() == [1, 2]


def test_empty_masks_are_left_out_whatever_is_measured():
    masks = [encode(np.zeros(SIZE)), encode(np.ones(SIZE))]
    assert suppress(ROW[:2], [0.9, 0.8], [1, 1], masks=masks)[0].tolist() == [1]


def test_nothing_in_nothing_out():
    indices, scores = suppress([], [], [], masks=[], measure="mask")
    assert (indices.dtype, indices.shape, scores.shape) == (np.int64, (0,), (0,))
    assert best_first([], [], []).shape == (0,)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "soft"}, "'hard', 'linear' or 'gaussian', not 'soft'"),
        ({"measure": "mask"}, "'mask' with masks given"),
        ({"groups": "classes"}, "groups must be 'class', 'all' or lists"),
        ({"groups": [[1, 2], [2]]}, "class 2 is named twice"),
        ({"iou_threshold": 1.5}, r"in \[0, 1\], not 1.5"),
        ({"sigma": 0}, "sigma must be above 0"),
        ({"max_detections": 0}, "at least 1, not 0"),
        ({"size_unit": "cm"}, "'pixels' or 'share', not 'cm'"),
        ({"size_unit": "share", "min_size": 0.1}, "need image_size"),
        ({"scores": [0.5, float("nan")]}, "must be finite"),
        ({"scores": [0.5]}, "2 boxes, 1 scores, 2 class_ids"),
        ({"masks": []}, "and 0 masks"),
        ({"scores": [0.5, -0.1], "method": "linear", "score_threshold": -1}, "not negative"),
    ],
)
def test_what_cannot_be_is_refused(change, message):
    values = {"boxes": ROW[:2], "scores": [0.5, 0.4], "class_ids": [1, 2]} | change
    with pytest.raises(ValueError, match=message):
        suppress(values.pop("boxes"), values.pop("scores"), values.pop("class_ids"), **values)


def test_group_numbers_keep_other_classes_for_themselves():
    numbers = group_numbers([1, 2, 3, 4, 1], [[1, 3]])
    assert numbers[0] == numbers[2] == numbers[4]
    assert len(set(numbers.tolist())) == 3
