import numpy as np
import pytest
import tensorflow as tf

from mrcnn_tf.layers.rpn import RPN
from tests.harness import check_layer


def features(dtype=tf.float32, channels=6):
    rng = np.random.default_rng(0)
    return [tf.constant(rng.normal(size=(2, n, n, channels)), dtype) for n in (16, 8, 4, 2, 1)]


def small(**kwargs):
    layer = RPN(
        8, anchor_sizes=((8,), (16,), (24,), (32,), (48,)), pre_nms=(40, 30), post_nms=(20, 10), **kwargs
    )
    layer.build(6)
    return layer


def test_harness(tmp_path):
    check_layer(small, lambda layer: layer(features(layer.compute_dtype)), tmp_path)


def test_order_of_logits_is_that_of_anchors():
    layer = small()
    maps = features()
    logits, deltas = layer(maps)
    anchors = layer.anchors(maps)
    assert [x.shape[1] for x in logits] == [x.shape[0] for x in anchors] == [768, 192, 48, 12, 3]
    x = maps[1]
    hidden = layer.hidden[0](x)
    # Place (y, x) = (3, 5), second ratio: index (3 * 8 + 5) * 3 + 1.
    index = (3 * 8 + 5) * 3 + 1
    np.testing.assert_allclose(logits[1][1, index], layer.objectness(hidden)[1, 3, 5, 1], rtol=1e-6)
    np.testing.assert_allclose(deltas[1][1, index], layer.deltas(hidden)[1, 3, 5, 4:8], rtol=1e-6)
    np.testing.assert_allclose(anchors[1][index], [3 * 8 - 8, 5 * 8 - 8, 3 * 8 + 8, 5 * 8 + 8], atol=1e-4)


def test_nine_anchors_and_512_filters():
    layer = RPN(512, anchor_sizes=[[s, s * 1.3, s * 1.6] for s in (32, 64, 128, 256, 512)])
    layer.build(256)
    assert layer.objectness.filters == 9 and layer.deltas.filters == 36 and layer.hidden[0].filters == 512


def test_proposals_by_hand():
    layer = small(nms_threshold=0.5)
    anchors = [tf.constant([[0.0, 0, 8, 8], [1, 0, 9, 8], [20, 20, 28, 28]])] + [tf.zeros([0, 4])] * 3
    anchors.append(tf.constant([[0.0, 0, 8, 8], [30, 30, 60, 60]]))
    logits = [tf.constant([[2.0, 3.0, 1.0]])] + [tf.zeros([1, 0])] * 3 + [tf.constant([[0.5, -1.0]])]
    deltas = [tf.zeros([1, n.shape[0], 4]) for n in anchors]
    box, score, valid = layer.propose(logits, deltas, anchors, tf.constant([[40.0, 50.0]]))
    # The first anchor is suppressed by the second; the same box on another level is not; the last is clipped.
    expected = [[1, 0, 9, 8], [20, 20, 28, 28], [0, 0, 8, 8], [30, 30, 40, 50]]
    np.testing.assert_allclose(box[0, :4], expected)
    np.testing.assert_allclose(score[0, :4], 1 / (1 + np.exp([-3.0, -1.0, -0.5, 1.0])), rtol=1e-5)
    np.testing.assert_array_equal(valid[0], [True] * 4 + [False] * 6)
    assert not box[0, 4:].numpy().any() and not score[0, 4:].numpy().any()


def test_small_proposals_go():
    layer = small(min_size=5.0)
    anchors = [tf.constant([[0.0, 0, 4, 30], [0, 0, 6, 6]])] + [tf.zeros([0, 4])] * 4
    logits = [tf.constant([[3.0, 0.0]])] + [tf.zeros([1, 0])] * 4
    deltas = [tf.zeros([1, a.shape[0], 4]) for a in anchors]
    box, _, valid = layer.propose(logits, deltas, anchors, tf.constant([[40.0, 40.0]]))
    assert valid.numpy().sum() == 1
    np.testing.assert_allclose(box[0, 0], [0, 0, 6, 6])


def test_wrong_number_of_levels():
    with pytest.raises(ValueError, match="anchor_sizes"):
        RPN(anchor_sizes=((32,), (64,)))
