import numpy as np
import tensorflow as tf

from mrcnn_tf.models import targets
from tests.tiny import make_batch


def truth(boxes, classes, crowd=None, masks=None, m=4):
    boxes = np.array([boxes], np.float32)
    classes = np.array([classes], np.int32)
    batch = {
        "gt_boxes": boxes,
        "gt_classes": classes,
        "gt_crowd": np.array([crowd or [False] * classes.shape[1]]),
        "gt_has_mask": classes > 0,
        "gt_masks": np.ones((*classes.shape, m, m), np.uint8)
        if masks is None
        else np.array([masks], np.uint8),
    }
    return targets.truth_of({k: tf.constant(v) for k, v in batch.items()})


def seed(n=1):
    return tf.zeros([n, 2], tf.int32)


def test_truth_is_cut_to_the_longest_list():
    batch = make_batch(2, 4, slots=6)
    batch["gt_classes"] = tf.constant([[1, 2, 3, -1, -1, -1], [1, -1, -1, -1, -1, -1]])
    cut = targets.truth_of(batch)
    assert cut.boxes.shape == (2, 3, 4)
    np.testing.assert_array_equal(cut.valid, [[True] * 3, [True, False, False]])
    batch["gt_classes"] = tf.fill([2, 6], -1)
    assert targets.truth_of(batch).boxes.shape == (
        2,
        1,
        4,
    )  # one row of padding: nothing may index an empty list


def test_seeds_do_not_depend_on_the_split():
    ids = tf.constant([5, 9, 7, 3], tf.int64)
    together = targets.seeds(tf.constant(3), ids, 1)
    np.testing.assert_array_equal(together[2:], targets.seeds(tf.constant(3), ids[2:], 1))
    other = targets.seeds(tf.constant(4), ids, 0)
    assert not np.any(np.all(together.numpy() == other.numpy(), -1))


def test_anchor_targets_by_hand():
    t = truth([[0, 0, 10, 10], [40, 40, 60, 60]], [1, 2])
    # IoU with the first: 1, 0.8, 0.5, 0; the second is reached by no anchor above 0.7, so it takes its best, 0.36.
    anchors = tf.constant(
        [[0.0, 0, 10, 10], [0, 0, 10, 8], [0, 0, 10, 5], [20, 20, 30, 30], [40, 40, 52, 52]]
    )
    index, positive, valid, matched = targets.anchor_targets(
        anchors, t, fg_iou=0.7, bg_iou=0.3, count=8, positive_fraction=0.5, seed=seed()
    )
    assert sorted(index[0].numpy()[positive[0]]) == [0, 1, 4]
    pairs = dict(zip(index[0].numpy()[positive[0]], matched[0].numpy()[positive[0]], strict=True))
    assert pairs == {0: 0, 1: 0, 4: 1}
    negatives = index[0].numpy()[valid[0].numpy() & ~positive[0].numpy()]
    assert list(negatives) == [3]  # 0.5 lies between the thresholds: ignored


def roi_targets(proposals, t, valid=None, **kwargs):
    proposals = tf.constant([proposals], tf.float32)
    valid = tf.ones(proposals.shape[:2], tf.bool) if valid is None else tf.constant([valid])
    settings = {
        "source": "rpn+truth",
        "min_proposals": 0,
        "fg_iou": 0.5,
        "bg_iou": 0.5,
        "count": 8,
        "positive_fraction": 0.5,
        "seed": seed(),
    }
    return targets.roi_targets(proposals, valid, t, **{**settings, **kwargs})


FAR = [[60, 60, 70, 70], [80, 80, 90, 90], [60, 80, 70, 90]]


def boxes_of(rois, flags):
    return sorted(map(tuple, rois.boxes[0].numpy()[np.asarray(flags[0])].tolist()))


def test_roi_targets_by_hand():
    t = truth([[0, 0, 10, 10]], [3])
    rois = roi_targets([[0, 0, 10, 9], *FAR], t)
    assert boxes_of(rois, rois.positive) == [(0, 0, 10, 9), (0, 0, 10, 10)]  # the true box is a proposal too
    np.testing.assert_array_equal(rois.classes[0], [3, 3, 0, 0, 0, 0, 0, 0])
    assert rois.valid.numpy().sum() == 5
    assert not rois.boxes[0, 5:].numpy().any()
    rois = roi_targets([[0, 0, 10, 9], *FAR], t, source="rpn")
    assert boxes_of(rois, rois.positive) == [(0, 0, 10, 9)]


def test_true_boxes_as_proposals_with_the_rpn_as_fallback():
    t = truth([[0, 0, 10, 10]], [3])
    # Three candidates at least: the true box and the two best proposals.
    rois = roi_targets([[0, 0, 10, 9], *FAR], t, source="truth", min_proposals=3)
    assert boxes_of(rois, rois.valid) == sorted([(0, 0, 10, 10), (0, 0, 10, 9), (60, 60, 70, 70)])
    rois = roi_targets(FAR, t, source="truth", min_proposals=0)
    assert boxes_of(rois, rois.valid) == [(0, 0, 10, 10)]
    # An image without instances falls back on all proposals.
    empty = truth([[0, 0, 0, 0]], [-1])
    rois = roi_targets(FAR, empty, source="truth", min_proposals=1)
    assert rois.valid.numpy().sum() == 3 and not rois.positive.numpy().any()


def test_padding_of_proposals_is_never_drawn():
    rois = roi_targets([*FAR, [0, 0, 0, 0]], truth([[0, 0, 10, 10]], [1]), valid=[True, True, True, False])
    assert rois.valid.numpy().sum() == 4


def test_crowd_is_neither_right_nor_wrong():
    t = truth([[0, 0, 40, 40], [50, 50, 60, 60]], [1, 2], crowd=[True, False])
    inside, across, outside = [5, 5, 15, 15], [0, 30, 10, 50], [60, 0, 70, 10]
    rois = roi_targets([inside, across, outside, [50, 50, 60, 60]], t)
    # `across` lies in the crowd to one half exactly: not more, so it is background.
    assert boxes_of(rois, rois.valid & ~rois.positive) == sorted([tuple(across), tuple(outside)])
    assert set(rois.matched.numpy()[rois.positive.numpy()]) == {1}


def test_mask_targets_by_hand():
    mask = [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1]]
    t = truth([[10, 20, 18, 28]], [1], masks=[mask])
    zero = tf.zeros([1, 1], tf.int32)

    def seen(box, size=4):
        return targets.mask_targets(tf.constant([[box]], tf.float32), zero, t, size)[0, 0].numpy()

    np.testing.assert_array_equal(seen([10, 20, 18, 28]), mask)  # the same box: the mask itself
    np.testing.assert_array_equal(seen([10, 20, 14, 24]), np.ones((4, 4)))  # its upper left quarter
    shifted = np.zeros((4, 4))
    shifted[2:, 2:] = 1  # the mask's first two rows and columns, moved to the lower right
    np.testing.assert_array_equal(seen([6, 16, 14, 24]), shifted)
    np.testing.assert_array_equal(seen([40, 40, 50, 50]), np.zeros((4, 4)))  # elsewhere


def test_mask_targets_against_the_dense_mask():
    """A disc in a large RoI: the target is the disc, rasterised at the RoI's own resolution."""
    m, size = 112, 28
    y, x = np.mgrid[:m, :m] + 0.5
    mask = ((y - 56) ** 2 + (x - 56) ** 2 <= 56**2).astype(np.uint8)
    t = truth([[30, 40, 70, 80]], [1], masks=[mask], m=m)
    roi = np.array([20, 36, 76, 92], np.float32)
    out = targets.mask_targets(tf.constant(roi[None, None]), tf.zeros([1, 1], tf.int32), t, size)[
        0, 0
    ].numpy()
    step = 56 / size
    yy, xx = (np.mgrid[:size, :size] + 0.5) * step + roi[:2, None, None]
    distance = np.hypot(yy - 50, xx - 60) - 20
    sure = np.abs(distance) > 0.3  # of a pixel: half a cell of the stored mask
    np.testing.assert_array_equal(out[sure], distance[sure] < 0)
