import keras
import numpy as np
import pytest
import tensorflow as tf

from mrcnn_tf.build import build_model
from mrcnn_tf.config import _merge, make_config
from mrcnn_tf.models.mask_rcnn import MaskRCNN, box_cost
from mrcnn_tf.models.targets import roi_targets, truth_of
from tests.harness import POLICIES, check_model, jittered
from tests.tiny import CLASSES, CONFIG, make_batch, make_model


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    return make_model(score_threshold=0.0)


@pytest.mark.parametrize("policy", POLICIES)
def test_saving_precision_and_gradients(policy, tmp_path):
    keras.config.set_dtype_policy(policy)
    try:
        keras.utils.set_random_seed(0)
        # Every anchor is sampled, those of the top levels too: no weight may be without a gradient by chance.
        model = make_model(score_threshold=0.0, rpn_samples=1200)
    finally:
        keras.config.set_dtype_policy("float32")
    model.set_weights(jittered(model))
    loaded = check_model(model, make_batch(), tmp_path / "m.keras")
    assert loaded.class_names == CLASSES and loaded.category_ids == [3, 5, 7, 11, 13, 90]


# What other projects' weights need; that the numbers are theirs is shown in tests/weights/.
CONVENTIONS = {
    "torchvision": {"aligned": False, "size_rule": "floor", "rpn": {"anchor_rounding": "torchvision"}},
    "detectron2": {"interpolation": "pil", "sampling_ratio": 0},
    "maskrcnn-benchmark": {
        "roi_end": -1.0,
        "size_rule": "short_first",
        "rpn": {"anchor_rounding": "detectron"},
    },
    "model-garden": {
        "canvas": [64, 96],
        "roi_shift": 0.5,
        "roi_levels": 5,
        "sampling_ratio": 1,
        "rpn": {"norm": "frozen_batch"},
        "fpn": {"norm": "frozen_batch", "lateral_norm": False, "coarsest": "conv"},
    },
}


@pytest.mark.parametrize("project", CONVENTIONS)
def test_conventions_of_other_projects_save_train_and_detect(project, tmp_path):
    keras.utils.set_random_seed(0)
    section = _merge(CONFIG["model"], CONVENTIONS[project])
    section |= {"score_threshold": 0.0, "rpn_samples": 2000, "roi_samples": 64}
    config = make_config({"model": section, "data": {"canvas": section.get("canvas", [64, 64])}})
    model = build_model(config, CLASSES, range(1, 7))
    model.set_weights(jittered(model))
    loaded = check_model(model, make_batch(), tmp_path / "m.keras")
    image = np.random.default_rng(0).integers(0, 256, (41, 60, 3), np.uint8)
    found, again = model.detect(image), loaded.detect(image)
    assert len(found.scores) > 0
    np.testing.assert_array_equal(found.boxes, again.boxes)
    # Model Garden's boxes may fill the canvas, the others' end with the image.
    limit = np.array([64, 96, 64, 96]) / 64 * 60 if project == "model-garden" else np.array([41, 60, 41, 60])
    assert (found.boxes >= 0).all() and (found.boxes <= limit + 1e-3).all()


def test_norm_padding_decides_what_group_norms_see():
    """With it an image's features depend on how much padding its canvas has, as in detectron2."""
    image = tf.constant(np.random.default_rng(0).uniform(0, 255, (1, 64, 64, 3)), tf.float32)
    padded = tf.pad(image, [[0, 0], [0, 64], [0, 64], [0, 0]])
    size = tf.constant([[64.0, 64.0]])
    differences = []
    for norm_padding in (False, True):
        keras.utils.set_random_seed(0)
        model = make_model(norm_padding=norm_padding)
        one, other = (model.pyramid(x, size)[0] for x in (image, padded))
        differences.append(float(tf.reduce_max(tf.abs(one[:, :4, :4] - other[:, :4, :4]))))
    assert differences[1] > 3 * differences[0]


def test_outputs(model):
    batch = make_batch(3)
    out = model({"images": batch["images"], "image_sizes": tf.constant([[64.0, 64], [64, 40], [30, 64]])})
    assert out["boxes"].shape == (3, 20, 4) and out["masks"].shape == (3, 20, 28, 28)
    assert out["proposals"].shape == (3, 30, 4)
    scores = out["scores"].numpy()
    assert (np.diff(scores, axis=1) <= 0).all() and scores.min() >= 0 and scores.max() <= 1
    boxes = out["boxes"].numpy()
    assert boxes.min() >= 0 and boxes[1, :, 3].max() <= 40 and boxes[2, :, 2].max() <= 30
    found = out["classes"].numpy() > 0
    assert set(np.unique(out["classes"])) <= {-1, 1, 2, 3, 4, 5, 6}
    assert not scores[~found].any() and not boxes[~found].any()


def test_a_batch_is_its_images_one_by_one(model):
    batch = make_batch(2)
    both = model({"images": batch["images"], "image_sizes": batch["image_sizes"]})
    for i in range(2):
        one = model({"images": batch["images"][i : i + 1], "image_sizes": batch["image_sizes"][i : i + 1]})
        np.testing.assert_allclose(one["boxes"][0], both["boxes"][i], atol=1e-3)
        np.testing.assert_allclose(one["masks"][0], both["masks"][i], atol=1e-4)


def test_padding_does_not_change_what_is_found(model):
    batch = make_batch(1)
    image = batch["images"][:, :32]
    size = tf.constant([[32.0, 64.0]])
    tight = model({"images": image, "image_sizes": size})
    # Whatever the canvas is filled with below the image.
    padded = tf.concat([image, tf.fill([1, 32, 64, 3], 77.0)], 1)
    wide = model({"images": padded, "image_sizes": size})
    features = (
        model.pyramid(padded, size)[0],
        model.pyramid(tf.concat([image, tf.zeros([1, 32, 64, 3])], 1), size)[0],
    )
    np.testing.assert_array_equal(*features)
    assert wide["boxes"].shape == tight["boxes"].shape and wide["boxes"].numpy()[..., 2].max() <= 32


@pytest.mark.parametrize("size", [(256, 256), (320, 288)])
def test_a_wider_canvas_does_not_change_the_features(model, size):
    """Group norm over the padding, too, would: what was learnt on padded images was not found on others."""
    image = tf.constant(np.random.default_rng(0).uniform(0, 255, (1, 192, 224, 3)), tf.float32)
    sizes = tf.constant([[192.0, 224.0]])
    tight = model.pyramid(image, sizes)[0]
    padded = tf.pad(image, [[0, 0], [0, size[0] - 192], [0, size[1] - 224], [0, 0]])
    wide = model.pyramid(padded, sizes)[0][:, : tight.shape[1], : tight.shape[2]]
    # Convolutions see what lies across the border, and hand it on; away from it nothing may change.
    difference = np.abs(wide - tight)[:, :16, :16].max()
    assert difference < 0.02 * np.abs(tight).max()


def test_detect_is_in_original_pixels(model):
    image = np.random.default_rng(0).integers(0, 256, (128, 256, 3), np.uint8)
    found = model.detect(image)
    # 256 pixels become 64: the canvas has a quarter of the coordinates.
    canvas, size = model.preprocess(tf.constant(image))
    assert canvas.shape == (1, 32, 64, 3) and size.numpy().tolist() == [[32, 64]]
    raw = model({"images": canvas, "image_sizes": size})
    count = len(found)
    assert 0 < count <= 20
    np.testing.assert_allclose(found.boxes, raw["boxes"][0, :count] * 4, rtol=1e-4, atol=1e-3)
    assert found.image_size == (128, 256)
    assert all(
        model.category_ids[c - 1] == k for c, k in zip(found.class_ids, found.category_ids, strict=True)
    )
    assert all(CLASSES[c - 1] == name for c, name in zip(found.class_ids, found.class_names, strict=True))
    several = model.detect([image, image[:64]])
    np.testing.assert_array_equal(several[0].boxes, found.boxes)
    assert len(model.detect(image, score_threshold=float(found.scores[0]))) == 0


@pytest.mark.parametrize(
    "image", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros((4, 4, 4), np.uint8)]
)
def test_detect_refuses_what_is_no_image(model, image):
    with pytest.raises(ValueError, match=r"an image must be uint8 \[height, width, 3\]"):
        model.detect([image])


def test_select_by_hand():
    model = make_model(score_threshold=0.3, nms_threshold=0.5)
    proposals = tf.constant([[[0.0, 0, 20, 20], [0, 0, 20, 21], [30, 30, 50, 50], [0, 0, 0, 0]]])
    probability = np.full((4, 7), 1e-6)
    probability[0, [1, 2]] = 0.5, 0.4  # two classes on one place: both stay
    probability[1, 1] = 0.9  # suppresses the first's class 1
    probability[2, 3] = 0.2  # below the threshold
    probability[3, 4] = 0.99  # padding
    probability[:, 0] = 1 - probability[:, 1:].sum(1)
    deltas = np.zeros((1, 4, 6, 4), np.float32)
    deltas[0, 1, 0, 0] = 1.0  # a tenth of the height (weight 10), 2 pixels down
    valid = tf.constant([[True, True, True, False]])
    logits = tf.constant(np.log(probability)[None], tf.float32)
    boxes, scores, classes, row = model.select(
        proposals, valid, logits, tf.constant(deltas), tf.constant([[64.0, 64.0]])
    )
    np.testing.assert_array_equal(classes[0, :3], [1, 2, -1])
    np.testing.assert_array_equal(row[0, :2], [1, 0])
    np.testing.assert_allclose(scores[0, :3], [0.9, 0.4, 0], rtol=1e-4)
    np.testing.assert_allclose(boxes[0, :2], [[2, 0, 22, 21], [0, 0, 20, 20]], atol=1e-4)


def test_box_cost_uses_the_weights():
    reference = tf.constant([[0.0, 0, 10, 20]])
    goal = tf.constant([[1.0, 0, 11, 20]])
    zero = tf.zeros([1, 4])

    def cost(name, weights=(10.0, 10.0, 5.0, 5.0)):
        return float(box_cost(zero, reference, goal, name=name, beta=1.0, weights=weights)[0])

    # The delta is 0.1 heights times weight 10.
    assert cost("l1") == pytest.approx(1.0)
    assert cost("smooth_l1") == pytest.approx(0.5)
    assert cost("iou", (1.0,) * 4) == pytest.approx(1 - 180 / 220, abs=1e-6)


@pytest.mark.parametrize(
    "settings",
    [
        {
            "class_loss": "sigmoid_focal",
            "rpn_class_loss": "sigmoid_focal",
            "mask_loss": "dice",
            "box_loss": "giou",
            "rpn_box_loss": "iou",
        },
        {"box_loss": "l1", "rpn_box_loss": "smooth_l1", "proposal_source": "truth", "min_proposals": 5},
    ],
)
def test_every_loss_trains(settings):
    keras.utils.set_random_seed(1)
    model = make_model(**settings)
    batch = make_batch(2, seed=3)
    model.compile(optimizer=keras.optimizers.Adam(2e-3), jit_compile=False)
    step = tf.function(model.train_step, autograph=False)
    history = [step(batch) for _ in range(25)]
    first, last = history[0], history[-1]
    assert all(np.isfinite(v) for v in last.values())
    assert last["loss"] < 0.9 * first["loss"]


def test_losses_against_a_loop():
    """Classification and mask losses, written out with NumPy for the RoIs that the model draws."""
    keras.utils.set_random_seed(2)
    model = make_model()
    batch = make_batch(2, 3, seed=5)
    values, figures = model.losses_of(batch, tf.constant(7))
    from mrcnn_tf.models import targets

    truth, sizes = truth_of(batch), batch["image_sizes"]
    features = model.pyramid(batch["images"], sizes, training=True)
    logits, deltas = model.rpn(features)
    proposals, _, valid = model.rpn.propose(logits, deltas, model.rpn.anchors(features), sizes, training=True)
    seed = targets.seeds(tf.constant(7), batch["image_ids"], 1)
    rois = roi_targets(proposals, valid, truth, seed=seed, **model.roi_sampling)
    class_logits, _ = model.box_head(model.align(features, rois.boxes, 7))
    x = class_logits.numpy().astype(np.float64)
    log_p = x - np.log(np.exp(x).sum(-1, keepdims=True))
    chosen = np.take_along_axis(log_p, rois.classes.numpy()[..., None], -1)[..., 0]
    used = rois.valid.numpy()
    assert float(values["class"]) == pytest.approx(-chosen[used].sum() / used.sum(), rel=1e-5)
    assert float(figures["roi_positives"]) == pytest.approx(rois.positive.numpy().sum() / 2)

    mask_logits = (
        model.mask_head(model.align(features, rois.boxes, 14), rois.classes).numpy().astype(np.float64)
    )
    goal = targets.mask_targets(rois.boxes, rois.matched, truth, 28).numpy()
    cost = np.maximum(mask_logits, 0) - mask_logits * goal + np.log1p(np.exp(-np.abs(mask_logits)))
    positive = rois.positive.numpy()
    assert float(values["mask"]) == pytest.approx(cost.mean((2, 3))[positive].mean(), rel=1e-5)


def test_images_without_instances_or_masks_contribute_no_loss():
    keras.utils.set_random_seed(0)
    model = make_model()
    batch = make_batch(2)
    empty = {**batch, "gt_classes": tf.fill([2, 6], -1)}
    values, figures = model.losses_of(empty, tf.constant(0))
    assert values["rpn_box"] == values["box"] == values["mask"] == 0.0
    assert np.isfinite(values["rpn_class"]) and values["class"] > 0
    assert figures["roi_positives"] == 0
    boxes_only = {**batch, "gt_has_mask": tf.zeros([2, 6], tf.bool)}
    values, _ = model.losses_of(boxes_only, tf.constant(0))
    assert values["mask"] == 0.0 and values["box"] > 0
    # One image's masks missing: the loss is the mean over the other's.
    half = {**batch, "gt_has_mask": tf.concat([batch["gt_has_mask"][:1], tf.zeros([1, 6], tf.bool)], 0)}
    only = {k: v[:1] for k, v in batch.items()}
    both, _ = model.losses_of(half, tf.constant(0))
    alone, _ = model.losses_of(only, tf.constant(0))
    assert float(both["mask"]) == pytest.approx(float(alone["mask"]), rel=1e-4)


@pytest.mark.parametrize(
    "settings,message",
    [
        ({"class_loss": "hinge"}, "unknown loss 'hinge'"),
        ({"proposal_source": "selective search"}, "proposal_source is 'selective search'"),
        ({"loss_weights": {"masks": 2.0}}, "loss_weights has masks"),
    ],
)
def test_bad_arguments(settings, message):
    with pytest.raises(ValueError, match=message):
        make_model(**settings)


def test_heads_for_another_number_of_classes():
    part = make_model()
    with pytest.raises(ValueError, match="box_head is for 6 classes, but class_names has 2"):
        MaskRCNN(["a", "b"], backbone=part.backbone, fpn=part.fpn, rpn=part.rpn, box_head=part.box_head)
    with pytest.raises(ValueError, match="a name twice"):
        MaskRCNN(["a", "a"])
