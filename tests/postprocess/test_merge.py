"""Groups of redundant masks and their merged mask, against dense arithmetic."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mrcnn_tf.postprocess.merge import group_masks, merge_masks, vote
from mrcnn_tf.postprocess.suppress import suppress
from tests.postprocess.drawn import decode, dense_iou, encode, instances, rank

THRESHOLDS = st.sampled_from([0.0, 0.2, 0.5, 0.9])
RULES = st.sampled_from(["connected", "greedy"])
KEEPS = st.sampled_from(["best", "union", "intersection", "vote"])
GROUPS = st.sampled_from(["class", "all"])


def reference_groups(drawn, threshold, rule, groups):
    """Sets of indices: by transitive closure of the table of pairs, or by taking what the best overlaps."""
    _, scores, class_ids, masks = drawn
    n = len(scores)
    link = np.array(
        [
            [
                i == j
                or (
                    dense_iou(masks[i], masks[j]) > threshold
                    and (groups == "all" or class_ids[i] == class_ids[j])
                )
                for j in range(n)
            ]
            for i in range(n)
        ],
        bool,
    ).reshape(n, n)
    if rule == "connected":
        for _ in range(n):
            link = (link.astype(int) @ link.astype(int)) > 0
    boxes = _tight(masks)
    found, left = [], rank(boxes, scores, class_ids, masks)
    while left:
        group = [i for i in left if link[left[0]][i]]
        found.append(group)
        left = [i for i in left if i not in group]
    return found


def _tight(masks):
    boxes = []
    for mask in masks:
        y, x = np.nonzero(mask)
        boxes.append([y.min(), x.min(), y.max() + 1, x.max() + 1] if len(y) else [0, 0, 0, 0])
    return boxes


def reference_mask(parts, weights, keep):
    """The kept mask, dense; weights in tenths, so that halves are exact."""
    if keep == "best":
        return parts[0]
    if keep == "union":
        return parts.any(axis=0)
    tenths = np.round(np.asarray(weights) * 10).astype(int)
    made = parts.all(axis=0) if keep == "intersection" else 2 * np.tensordot(tenths, parts, 1) >= tenths.sum()
    return made if made.any() else parts[0]


@given(instances(), THRESHOLDS, RULES, KEEPS, GROUPS)
@settings(max_examples=150, deadline=None)
def test_is_the_dense_way(drawn, threshold, rule, keep, groups):
    _, scores, class_ids, masks = drawn
    made = merge_masks(
        [encode(m) for m in masks],
        scores,
        class_ids,
        keep=keep,
        iou_threshold=threshold,
        rule=rule,
        groups=groups,
    )
    expected = reference_groups(drawn, threshold, rule, groups)
    # Copies that agree in everything may stand for each other.
    names = [(m.tobytes(), s, c) for m, s, c in zip(masks, scores, class_ids, strict=True)]
    assert [[names[i] for i in g] for g in made.sources] == [[names[i] for i in g] for g in expected]
    assert sorted(i for g in made.sources for i in g) == list(range(len(scores)))
    for rle, score, class_id, group in zip(
        made.masks, made.scores, made.class_ids, made.sources, strict=True
    ):
        assert score == scores[group].max()
        assert class_id == class_ids[group[0]]
        np.testing.assert_array_equal(decode(rle), reference_mask(masks[group], scores[group], keep))
        assert rle["counts"] == encode(decode(rle))["counts"]


@given(instances(), THRESHOLDS, RULES, KEEPS, st.randoms(use_true_random=False))
@settings(max_examples=80, deadline=None)
def test_order_of_the_input_does_not_matter(drawn, threshold, rule, keep, random):
    order = list(range(len(drawn[1])))
    random.shuffle(order)

    def run(parts):
        codes = [encode(m) for m in parts[3]]
        made = merge_masks(codes, *parts[1:3], keep=keep, iou_threshold=threshold, rule=rule)
        names = [(parts[3][i].tobytes(), parts[1][i], parts[2][i]) for i in range(len(codes))]
        sources = [sorted(names[i] for i in g) for g in made.sources]
        return [m["counts"] for m in made.masks], made.scores.tolist(), made.class_ids.tolist(), sources

    assert run(drawn) == run(tuple(part[order] for part in drawn))


@given(instances(), THRESHOLDS, GROUPS)
@settings(max_examples=40, deadline=None)
def test_the_best_of_greedy_groups_are_what_suppression_keeps(drawn, threshold, groups):
    masks = [encode(m) for m in drawn[3]]
    boxes = np.array(_tight(drawn[3]), float).reshape(-1, 4)
    found = group_masks(masks, *drawn[1:3], iou_threshold=threshold, rule="greedy", groups=groups)
    kept, _ = suppress(
        boxes, *drawn[1:3], masks=masks, iou_threshold=threshold, measure="mask", groups=groups
    )
    assert [g[0] for g in found if drawn[3][g[0]].any()] == kept.tolist()


@given(instances(), THRESHOLDS, KEEPS)
@settings(max_examples=40, deadline=None)
def test_merging_greedily_by_the_best_twice_is_once(drawn, threshold, keep):
    masks = [encode(m) for m in drawn[3]]
    once = merge_masks(masks, *drawn[1:3], keep="best", iou_threshold=threshold, rule="greedy")
    twice = merge_masks(*once[:3], keep=keep, iou_threshold=threshold, rule="greedy")
    assert [m["counts"] for m in once.masks] == [m["counts"] for m in twice.masks]


def bars(*spans, size=(1, 12)):
    masks = np.zeros((len(spans), *size), bool)
    for mask, (start, stop) in zip(masks, spans, strict=True):
        mask[:, start:stop] = True
    return masks


def test_a_chain_is_one_connected_group_and_two_greedy_ones():
    masks = bars((0, 6), (2, 8), (4, 10))  # each with the next: 4 of 8; the first with the last: 2 of 10
    codes, scores = [encode(m) for m in masks], [0.9, 0.5, 0.7]
    assert group_masks(codes, scores, [1, 1, 1], iou_threshold=0.4) == [[0, 2, 1]]
    assert group_masks(codes, scores, [1, 1, 1], iou_threshold=0.4, rule="greedy") == [[0, 1], [2]]
    assert group_masks(codes, scores, [1, 2, 1], iou_threshold=0.4) == [[0], [2], [1]]
    assert group_masks(codes, scores, [1, 2, 3], iou_threshold=0.4, groups=[[1, 2]]) == [[0, 1], [2]]


def test_no_common_pixel_leaves_the_best_mask():
    masks = bars((0, 4), (2, 6), (4, 8))
    made = merge_masks(
        [encode(m) for m in masks], [0.5, 0.9, 0.4], [1] * 3, keep="intersection", iou_threshold=0.3
    )
    assert made.sources == [[1, 0, 2]]
    np.testing.assert_array_equal(decode(made.masks[0]), masks[1])


def test_half_of_the_votes_is_enough_and_zero_scores_count_alike():
    a, b = (encode(m) for m in bars((0, 6), (3, 9)))
    assert decode(vote([a, b], [0.3, 0.3])).sum() == 9
    assert decode(vote([a, b], [0.3, 0.2])).tolist() == decode(a).tolist()
    assert decode(vote([a, b], [0, 0])).sum() == 9
    # 0.1 + 0.2 is not 0.3 in floats; half of the votes is half all the same.
    c = encode(bars((8, 10))[0])
    assert np.flatnonzero(decode(vote([a, b, c], [0.1, 0.2, 0.3]))[0]).tolist() == [3, 4, 5, 8, 9]


@pytest.mark.parametrize("mask", [np.zeros((3, 4)), np.ones((3, 4)), np.eye(3, 4)])
def test_a_vote_of_one_is_its_mask(mask):
    assert vote([encode(mask)], [0.7]) == encode(mask)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"keep": "mean"}, "keep must be 'best'"),
        ({"rule": "first"}, "'connected' or 'greedy', not 'first'"),
        ({"iou_threshold": -1}, r"in \[0, 1\], not -1"),
        ({"scores": [0.5]}, "1 scores"),
        ({"scores": [0.5, -0.5], "keep": "vote"}, "not negative"),
        ({"masks": [encode(np.ones((2, 2))), encode(np.ones((2, 3)))]}, "one size"),
    ],
)
def test_what_cannot_be_is_refused(change, message):
    values = {"masks": [encode(np.ones((2, 2)))] * 2, "scores": [0.5, 0.4], "class_ids": [1, 1]} | change
    with pytest.raises(ValueError, match=message):
        merge_masks(values.pop("masks"), values.pop("scores"), values.pop("class_ids"), **values)
