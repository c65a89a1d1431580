from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from mrcnn_tf.models.class_rows import reclassed
from mrcnn_tf.models.mask_rcnn import MaskRCNN
from mrcnn_tf.models.mask_refining_rcnn import MaskRefiningRCNN
from tests.harness import jittered
from tests.tiny import CLASSES, make_model

OTHERS = ["star", "hexagon", "disc", "square"]  # permuted, one new, three dropped


def logits_of(model, features):
    """What the heads say of each class: class logits without background, deltas, mask logits, all by class name."""
    scores, deltas = model.box_head(features)
    hidden = model.mask_head.hidden(tf.repeat(tf.repeat(features, 2, 2), 2, 3))
    out = {}
    for row, name in enumerate(model.class_names):
        of = 0 if deltas.shape[2] == 1 else row
        masks = model.mask_head.predict(hidden, tf.fill([1, 3], row + 1))
        out[name] = np.concatenate(
            [np.ravel(scores[..., row + 1]), np.ravel(deltas[:, :, of]), np.ravel(masks)]
        )
    return out, np.ravel(scores[..., 0])


@pytest.mark.parametrize("kind", [MaskRCNN, MaskRefiningRCNN])
def test_what_is_kept_dropped_and_new(kind):
    trained = make_model(kind)
    trained.set_weights(jittered(trained))
    before = [np.array(w) for w in trained.weights]
    model, kept, new, dropped = reclassed(trained, OTHERS, [5, 6, 7, 8])
    assert (kept, new) == (["star", "disc", "square"], ["hexagon"])
    assert dropped == ["ellipse", "triangle", "cross"]
    assert type(model) is kind and model.class_names == OTHERS and model.category_ids == [5, 6, 7, 8]
    assert all(np.array_equal(a, w) for a, w in zip(before, trained.weights, strict=True))

    features = tf.constant(np.random.default_rng(0).normal(size=(1, 3, 7, 7, 16)).astype(np.float32))
    theirs, background = logits_of(trained, features)
    ours, same = logits_of(model, features)
    np.testing.assert_allclose(same, background, rtol=1e-5, atol=1e-6)
    for name in kept:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-5, atol=1e-6, err_msg=name)
    # The new class starts anew: initial rows have a spread of 0.001, the jittered ones are 0.005 away from zero.
    assert 0 < np.abs(np.array(model.mask_head.kernel)[OTHERS.index("hexagon")]).max() < 0.005


def test_a_permutation_gives_the_same_detections():
    trained = make_model()
    trained.set_weights(jittered(trained))
    order = CLASSES[::-1]
    model = reclassed(trained, order, range(1, 7)).model
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    first, second = trained.detect(image), model.detect(image)
    assert len(first.scores) > 0
    np.testing.assert_allclose(second.boxes, first.boxes, atol=1e-3)
    np.testing.assert_allclose(second.scores, first.scores, atol=1e-5)
    assert second.class_names == first.class_names


def test_class_agnostic_heads_lose_nothing():
    config = make_model().get_config()
    for part in ("box_head", "mask_head"):
        del config[part]["build_config"]  # so that the heads are built anew
        config[part]["config"]["class_agnostic"] = True
    trained = MaskRCNN.from_config(config)
    trained.set_weights(jittered(trained))
    model = reclassed(trained, ["star"], [1]).model
    np.testing.assert_array_equal(model.mask_head.kernel, trained.mask_head.kernel)
    np.testing.assert_array_equal(model.box_head.deltas.kernel, trained.box_head.deltas.kernel)


def test_settings_by_class_follow_the_classes():
    settings = {
        "class_score_thresholds": {"disc": 0.3, "cross": 0.5},
        "nms_groups": [["star", "ellipse", "disc"]],
    }
    model = reclassed(make_model(**settings), OTHERS, [5, 6, 7, 8]).model
    assert model.settings["class_score_thresholds"] == {"disc": 0.3}
    assert model.settings["nms_groups"] == [["star", "disc"]]
