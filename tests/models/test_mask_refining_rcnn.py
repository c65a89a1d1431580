"""MR R-CNN: what the refining module computes, learns from, and starts from."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from mrcnn_tf.geometry import boxes as box_ops
from mrcnn_tf.models.mask_rcnn import MaskRCNN, deltas_of_class
from mrcnn_tf.models.mask_refining_rcnn import MaskRefiningRCNN
from tests.harness import POLICIES, check_model, jittered
from tests.tiny import make_batch, make_model


def refining_model(**settings) -> MaskRefiningRCNN:
    return make_model(
        MaskRefiningRCNN, score_threshold=0.0, refining_samples=12, refined_boxes=15, **settings
    )


@pytest.fixture(scope="module")
def trained():
    """A Mask R-CNN whose weights are not those it was born with."""
    keras.utils.set_random_seed(0)
    model = make_model(score_threshold=0.0)
    model.set_weights(jittered(model))
    return model


@pytest.fixture(scope="module")
def inputs():
    batch = make_batch(2)
    return {"images": batch["images"], "image_sizes": batch["image_sizes"]}


@pytest.mark.parametrize("policy", POLICIES)
def test_saving_precision_and_gradients(policy, tmp_path):
    keras.config.set_dtype_policy(policy)
    try:
        keras.utils.set_random_seed(0)
        model = refining_model(rpn_samples=1200)
    finally:
        keras.config.set_dtype_policy("float32")
    model.set_weights(jittered(model))
    check_model(model, make_batch(), tmp_path / "m.keras")


def test_start_from_gives_the_box_heads_scores_on_b_and_the_mask_heads_masks(trained, inputs):
    model = refining_model(shape_aware=False)
    model.start_from(trained)
    features = model.pyramid(inputs["images"], inputs["image_sizes"])
    boxes = tf.constant([[[4.0, 6, 40, 50], [20, 20, 60, 63]]] * 2)
    classes = tf.constant([[1, 4]] * 2)
    hidden, probabilities = model.first_masks(features, boxes, classes, training=False)
    logits, deltas = model.second_look(features, boxes, probabilities)
    expected = trained.box_head(trained.align(features, boxes, 7))
    np.testing.assert_array_equal(logits, expected[0])
    np.testing.assert_array_equal(deltas, expected[1])
    pooled = model.align(features, boxes, 14)
    np.testing.assert_array_equal(
        model.refining_mask_head(pooled, hidden, classes), trained.mask_head(pooled, classes)
    )
    np.testing.assert_array_equal(tf.sigmoid(trained.mask_head(pooled, classes)), probabilities)


def test_shape_aware_features_are_dimmed_by_the_map(trained, inputs):
    model = refining_model()
    model.start_from(trained)
    features = model.pyramid(inputs["images"], inputs["image_sizes"])
    boxes = tf.constant([[[4.0, 6, 40, 50]]] * 2)
    plain = trained.box_head(trained.align(features, boxes, 7))[0]
    ones, _ = model.second_look(features, boxes, tf.ones([2, 1, 28, 28]))
    np.testing.assert_allclose(ones, plain, atol=1e-5)
    zeros, _ = model.second_look(features, boxes, tf.zeros([2, 1, 28, 28]))
    nothing = trained.box_head(tf.zeros([2, 1, 7, 7, 16]))[0]
    np.testing.assert_allclose(zeros, nothing, atol=1e-6)
    assert np.abs(zeros - plain).max() > 1e-3


def test_inference_by_hand(trained, inputs):
    """Every step again, with NumPy where a choice is made."""
    model = refining_model(alpha=0.5, refining_nms_threshold=1.0, nms_threshold=1.0, max_detections=90)
    model.start_from(trained)
    model.set_weights(jittered(model))
    sizes = inputs["image_sizes"]
    features, proposals, valid, logits, deltas = model.propose(inputs["images"], sizes, False)
    scores = tf.nn.softmax(logits).numpy()[..., 1:]
    scores[~valid.numpy()] = -1
    out = model(inputs)
    for b in range(2):
        order = np.argsort(-scores[b].max(-1), kind="stable")[:15]
        classes = scores[b][order].argmax(-1) + 1
        own = deltas_of_class(tf.gather(deltas[b], order)[None], tf.constant(classes)[None])
        boxes = box_ops.decode(own, tf.gather(proposals[b], order)[None], model.box_weights)
        boxes = box_ops.clip(boxes, sizes[b : b + 1])
        level = [f[b : b + 1] for f in features]
        _, probabilities = model.first_masks(level, boxes, tf.constant(classes)[None], False)
        new_logits, new_deltas = model.second_look(level, boxes, probabilities)
        fused = (tf.gather(logits[b], order).numpy() + 0.5 * new_logits[0].numpy()) / 1.5
        final = tf.nn.softmax(fused).numpy()[:, 1:]
        best = np.argsort(-final.ravel(), kind="stable")[:5]
        np.testing.assert_allclose(out["scores"][b, :5], final.ravel()[best], rtol=1e-4)
        np.testing.assert_array_equal(out["classes"][b, :5], best % 6 + 1)
        rows, columns = best // 6, best % 6
        refined = box_ops.decode(
            new_deltas[0].numpy()[rows, columns], boxes.numpy()[0, rows], model.box_weights
        )
        np.testing.assert_allclose(
            out["boxes"][b, :5], box_ops.clip(refined[None], sizes[b : b + 1])[0], atol=1e-3
        )


def test_alpha_zero_leaves_the_scores(trained, inputs):
    model = refining_model(refine_boxes=False, refining_nms_threshold=1.0)
    model.start_from(trained)
    model.set_weights(jittered(model))
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    with_one = model.detect(image).scores
    model.set_alpha(0.0)
    without = model.detect(image).scores
    off = refining_model(refine_classes=False, refine_boxes=False, refining_nms_threshold=1.0)
    off.set_weights(model.get_weights())
    np.testing.assert_array_equal(without, off.detect(image).scores)
    assert np.abs(with_one - without).max() > 1e-4
    assert model.get_config()["alpha"] == 0.0


@pytest.mark.parametrize(
    "switch,silent",
    [
        ("refine_classes", "refined_class"),
        ("refine_boxes", "refined_box"),
        ("refine_masks", "refined_mask"),
    ],
)
def test_switches(switch, silent, inputs):
    keras.utils.set_random_seed(0)
    model = refining_model(**{switch: False})
    model.set_weights(jittered(model))
    losses, _ = model.losses_of(make_batch(), tf.constant(0))
    assert {name for name, loss in losses.items() if loss == 0} == {silent}
    model.compile(keras.optimizers.SGD(0.01), jit_compile=False)
    before = model.get_weights()
    model.train_step(make_batch())  # weights that nothing reaches have a gradient of zero
    assert any((a != b).any() for a, b in zip(before, model.get_weights(), strict=True))
    model.set_weights(before)
    on = refining_model()
    on.set_weights(model.get_weights())
    changed = {
        "refine_classes": {"scores", "boxes", "classes", "masks"},
        "refine_boxes": {"boxes", "scores", "classes", "masks"},
        "refine_masks": {"masks"},
    }
    first, second = model(inputs), on(inputs)
    differing = {k for k in first if not np.array_equal(first[k], second[k])}
    assert differing and differing <= changed[switch]


def test_the_maps_gradient_is_a_setting():
    batch = make_batch()
    reached = {}
    for through in (False, True):
        keras.utils.set_random_seed(0)
        model = refining_model(map_gradient=through)
        model.set_weights(jittered(model))
        with tf.GradientTape() as tape:
            losses, _ = model.losses_of(batch, tf.constant(0))
        gradient = tape.gradient(losses["refined_class"], model.mask_head.kernel.value)
        reached[through] = gradient is not None and np.abs(tf.convert_to_tensor(gradient)).max() > 0
    assert reached == {False: False, True: True}


def test_background_rois_get_the_best_foreground_class(monkeypatch):
    """The pseudo foreground label: P of a background RoI is the mask of its highest-scored class."""
    keras.utils.set_random_seed(0)
    model = refining_model()
    model.set_weights(jittered(model))
    seen = {}
    stage, masks = model.first_stage, model.first_masks

    def first_stage(*args):
        out = stage(*args)
        seen["first"] = out[2]
        return out

    def first_masks(features, boxes, classes, training):
        seen["boxes"], seen["classes"] = boxes, classes
        return masks(features, boxes, classes, training)

    monkeypatch.setattr(model, "first_stage", first_stage)
    monkeypatch.setattr(model, "first_masks", first_masks)
    model.losses_of(make_batch(), tf.constant(0))
    first = seen["first"]
    label = first.rois.classes.numpy()
    best = first.class_logits.numpy()[..., 1:].argmax(-1) + 1
    expected = np.where(label > 0, label, best)
    assert (label == 0).any() and (label > 0).any()
    deltas = deltas_of_class(first.box_deltas, tf.constant(expected))
    boxes = box_ops.clip(box_ops.decode(deltas, first.rois.boxes, model.box_weights), first.limits).numpy()
    checked = 0
    for b in range(2):
        for box, chosen in zip(seen["boxes"][b].numpy(), seen["classes"][b].numpy(), strict=True):
            rows = np.flatnonzero(np.abs(boxes[b] - box).max(-1) < 1e-4)
            if box.any():
                assert chosen in expected[b][rows]
                checked += 1
    assert checked > 12


def test_bad_arguments():
    with pytest.raises(ValueError, match="are all false; use MaskRCNN"):
        refining_model(refine_classes=False, refine_boxes=False, refine_masks=False)
    with pytest.raises(ValueError, match="loss_weights has refined"):
        refining_model(loss_weights={"refined": 1.0})
    with pytest.raises(ValueError, match="loss_weights has refined_mask"):
        make_model(loss_weights={"refined_mask": 1.0})
    from mrcnn_tf.layers.heads import RefiningMaskHead

    with pytest.raises(ValueError, match="refining_mask_head has channels 16, mask_head has 8"):
        refining_model(refining_mask_head=RefiningMaskHead(6, channels=16))
    with pytest.raises(ValueError, match="refining_mask_head is for 2 classes, but class_names has 6"):
        refining_model(refining_mask_head=RefiningMaskHead(2, channels=8))


def test_it_is_a_mask_rcnn():
    assert isinstance(refining_model(), MaskRCNN)
