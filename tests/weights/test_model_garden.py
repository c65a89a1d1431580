"""TensorFlow Model Garden's Mask R-CNN against what it computed itself (tests/golden/make_model_garden_golden.py)."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from mrcnn_tf.importer import import_model
from mrcnn_tf.layers.conv import Conv
from mrcnn_tf.layers.fpn import FPN
from mrcnn_tf.layers.heads import BoxHead, MaskHead
from mrcnn_tf.layers.resnet import ResidualBlock, ResNet
from mrcnn_tf.layers.rpn import RPN
from mrcnn_tf.models.mask_rcnn import MaskRCNN
from mrcnn_tf.training.checkpoints import load_model
from mrcnn_tf.weights import model_garden
from mrcnn_tf.weights.transfer import Move, transfer
from tests.golden.drawn import draw, picture, sample
from tests.harness import check_layer

GOLDEN = Path(__file__).parent.parent / "golden" / "model_garden_r50.npz"
END = "/.ATTRIBUTES/VARIABLE_VALUE"


def norm(name: str, channels: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}/{end}": (channels,) for end in ("gamma", "beta", "moving_mean", "moving_variance")}


def layer(name: str, *shape: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}/kernel": shape, f"{name}/bias": (shape[-1],)}


def shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors of a ResNet-50-FPN with 90 classes, as its trainer's checkpoint has them."""
    out = {"backbone/layer_with_weights-0/kernel": (7, 7, 3, 64), **norm("backbone/layer_with_weights-1", 64)}
    number, channels = 2, 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for i in range(blocks):
            name = f"backbone/layer_with_weights-{number}"
            if i == 0:
                out[f"{name}/_shortcut/kernel"] = (1, 1, channels, 4 * width)
                out |= norm(f"{name}/_norm0", 4 * width)
            sides, widths = (1, 3, 1), (width, width, 4 * width)
            for j, (side, after) in enumerate(zip(sides, widths, strict=True), 1):
                out[f"{name}/_conv{j}/kernel"] = (side, side, channels, after)
                out |= norm(f"{name}/_norm{j}", after)
                channels = after
            number += 1
    for i, before in enumerate((2048, 1024, 512, 256)):
        out |= layer(f"decoder/layer_with_weights-{i}", 1, 1, before, 256)
    for i in range(4, 9):
        out |= layer(f"decoder/layer_with_weights-{i}", 3, 3, 256, 256)
    for i in range(9, 14):
        out |= norm(f"decoder/layer_with_weights-{i}", 256)
    out |= layer("rpn_head/_convs/0", 3, 3, 256, 256)
    for i in range(5):
        out |= norm(f"rpn_head/_norms/{i}/0", 256)
    out |= layer("rpn_head/_classifier", 1, 1, 256, 3) | layer("rpn_head/_box_regressor", 1, 1, 256, 12)
    for head in ("detection_head/0", "mask_head"):
        for i in range(4):
            out |= layer(f"{head}/_convs/{i}", 3, 3, 256, 256) | norm(f"{head}/_conv_norms/{i}", 256)
    box = "detection_head/0"
    out |= layer(f"{box}/_fcs/0", 7 * 7 * 256, 1024) | norm(f"{box}/_fc_norms/0", 1024)
    out |= layer(f"{box}/_classifier", 1024, 91) | layer(f"{box}/_box_regressor", 1024, 4 * 91)
    out |= layer("mask_head/_deconv", 2, 2, 256, 256) | norm("mask_head/_deconv_bn", 256)
    return out | layer("mask_head/_mask_regressor", 1, 1, 256, 91)


@pytest.fixture(scope="module")
def golden():
    return dict(np.load(GOLDEN))


@pytest.fixture(scope="module")
def imported(golden, tmp_path_factory):
    """The model and the report."""
    adjust = dict(zip(golden["adjust_names"].tolist(), golden["adjust"].tolist(), strict=True))
    tensors = {name + END: draw(name, shape, int(golden["seed"]), adjust) for name, shape in shapes().items()}
    tensors[f"detection_head/0/_classifier/bias{END}"] = golden["class_bias"]
    first = "backbone/layer_with_weights-0/kernel"
    for kind in ("momentum", "average"):
        tensors[f"{first}/.OPTIMIZER_SLOT/optimizer/{kind}{END}"] = np.ones(3, np.float32)
    tensors |= {f"global_step{END}": np.int64(7), f"optimizer/momentum{END}": np.float32(0.9)}
    path = tmp_path_factory.mktemp("model_garden") / "weights.npz"
    np.savez(path, **tensors)
    height, width = golden["canvas"].tolist()
    overrides = [f"model.canvas=[{height}, {width}]", f"model.min_size={height}", f"model.max_size={width}"]
    return import_model(path, "model-garden", overrides=overrides)


def image_of(golden) -> np.ndarray:
    return picture(*golden["image"].tolist(), int(golden["seed"]))


def near(name: str, out, expected: np.ndarray, bound: float) -> None:
    np.testing.assert_allclose(np.asarray(out), expected, atol=bound, rtol=0, err_msg=name)


def test_every_stage(imported, golden):
    model, image = imported[0], image_of(golden)
    images, sizes = model.preprocess(tf.constant(image))
    canvas = model.limits(images, sizes)  # boxes may fill it there, padding included
    near("size", sizes[0] / image.shape[:2], golden["image_info"][2], 1e-6)
    bottom_up = model.backbone(model.normalize(images, sizes))
    features = model.fpn(bottom_up)
    logits, deltas = model.rpn(features)
    anchors = model.rpn.anchors(features)
    proposals, proposal_scores, valid = model.rpn.propose(logits, deltas, anchors, canvas)
    pooled = model.align(features, proposals, model.box_head.roi_size)
    class_logits, box_deltas = model.box_head(pooled)
    boxes, scores, classes, _ = model.select(proposals, valid, class_logits, box_deltas, canvas)
    count = len(golden["boxes"])
    assert not (classes[0, count:] > 0).numpy().any()
    boxes, scores, classes = boxes[:, :count], scores[:, :count], classes[:, :count]
    np.testing.assert_array_equal(classes[0], golden["classes"])
    masks = tf.sigmoid(model.mask_head(model.align(features, boxes, model.mask_head.roi_size), classes))

    background = np.zeros((1000, 1, 4))  # of no use, and not here
    box_deltas = np.concatenate([background, box_deltas[0]], 1)
    is_background = np.broadcast_to(np.arange(91)[:, None] == 0, box_deltas.shape)
    expected = golden | {"box_deltas": np.where(sample(is_background), 0, golden["box_deltas"])}
    found = {f"backbone_{level}": x for level, x in enumerate(bottom_up, 2)}
    for name, levels in (
        ("fpn", features),
        ("rpn_scores", logits),
        ("rpn_deltas", deltas),
        ("anchors", anchors),
    ):
        found |= {f"{name}_{level}": x for level, x in enumerate(levels, 2)}
    found |= {"class_logits": class_logits, "box_deltas": box_deltas, "roi_features": pooled}
    for name, value in found.items():
        near(name, sample(value), expected[name], 1e-4 * max(1.0, np.abs(expected[name]).max()))
    near("proposals", proposals[0], golden["proposals"], 0.02)
    near("proposal_scores", proposal_scores[0], golden["proposal_scores"], 1e-4)
    near("boxes", boxes[0], golden["boxes"], 0.05)
    near(
        "image_boxes", boxes[0] * np.tile(image.shape[:2] / sizes[0].numpy(), 2), golden["image_boxes"], 0.05
    )
    near("scores", scores[0], golden["scores"], 1e-4)
    near("masks", masks[0], golden["masks"], 1e-3)  # kept there with 16 bits


def test_report_and_detections(imported, golden):
    model, report = imported
    assert not report.fresh and model.num_classes == 90 and model.class_names[17] == "dog"
    slots = "backbone/layer_with_weights-0/kernel/.OPTIMIZER_SLOT/optimizer"
    assert report.left_out == {
        f"{slots}/momentum{END}": "the optimizer's",
        f"{slots}/average{END}": "the moving average of a weight",
        f"global_step{END}": "counts steps",
        f"optimizer/momentum{END}": "the optimizer's",
    }
    text = str(report)
    assert "(batch norm multiplied in)" in text and "\nremapped    mask_head/_deconv_bn/gamma -> " in text
    assert report.summary().startswith("weights.npz: 313 tensors loaded, 82 remapped, 4 left out; 0 weights")
    found = model.detect(image_of(golden))
    np.testing.assert_array_equal(found.class_ids, golden["classes"])
    near("boxes", found.boxes, golden["image_boxes"], 0.05)
    near("scores", found.scores, golden["scores"], 1e-4)
    height, width = image_of(golden).shape[:2]
    assert (found.boxes > [height, width, height, width]).any()  # into the padding


def small_model(coarsest: str = "conv") -> MaskRCNN:
    """One with all the options."""
    return MaskRCNN(
        ["a", "b"],
        backbone=ResNet(50, dialect="model_garden", width=8),
        fpn=FPN(8, norm="frozen_batch", lateral_norm=False, coarsest=coarsest),
        rpn=RPN(8, norm="frozen_batch", anchor_offset=0.5, post_nms=(50, 50), min_size=0.0),
        box_head=BoxHead(2, units=16, depth=1, conv_depth=1, conv_channels=8),
        mask_head=MaskHead(2, channels=8, depth=1),
        min_size=64,
        max_size=64,
        canvas=(64, 64),
        sampling_ratio=1,
        roi_shift=0.5,
        roi_levels=5,
        score_threshold=0.0,
    )


def test_file(tmp_path):
    keras.utils.set_random_seed(0)
    model, rng = small_model(), np.random.default_rng(0)
    for w in model.weights:
        # Branches that are small keep the features, and with them the boxes, from growing out of bounds.
        factor = 0.3 if w.path.endswith("conv3/norm/gamma") else 1.0
        w.assign(factor * w + rng.uniform(-0.01, 0.01, w.shape))
    model.save(tmp_path / "model.keras")
    images, sizes = model.preprocess(tf.constant(picture(40, 64, 0)))
    batch = {"images": images, "image_sizes": sizes}
    found, again = model(batch), load_model(tmp_path / "model.keras")(batch)
    assert (found["classes"] > 0).numpy().any()
    for name, value in found.items():
        np.testing.assert_array_equal(value, again[name], err_msg=name)


def test_a_config_of_another_model():
    with pytest.raises(ValueError, match=r"model\.fpn\.coarsest is 'subsample'; for .* it must be 'conv'"):
        model_garden.moves(small_model("subsample"), {})


def test_names_of_the_model_saved_alone():
    names = {f"decoder/layer_with_weights-{i}/kernel" for i in range(14)}
    tensors = {f"model/{name}{END}": np.zeros(1) for name in names}
    tensors[f"model/_config_dict/detection_head/_fcs/0/kernel{END}"] = np.zeros(1)
    tensors[f"model/backbone/layer_with_weights-0/kernel{END}"] = np.zeros(1)
    tidy = model_garden.tidy(tensors)
    assert {"detection_head/0/_fcs/0/kernel", "backbone/layer_with_weights-0/kernel"} < set(tidy)
    assert {"decoder/post_hoc_5/kernel", "decoder/post_hoc_2/kernel", "decoder/norm_6/kernel"} < set(tidy)
    assert model_garden.recognised(tidy) and model_garden.tidy(tidy).keys() == tidy.keys()


@pytest.mark.parametrize(
    "change,message",
    [
        (
            {"mask_head/_mask_regressor/kernel": None},
            "no mask_head/_mask_regressor, so it is not a Mask R-CNN",
        ),
        ({"detection_head/1/_classifier/kernel": (4, 4)}, "several box heads: a Cascade R-CNN"),
        ({"decoder/layer_with_weights-14/kernel": (1,)}, "no feature pyramid of the levels 2 to 6"),
        (
            {"decoder/layer_with_weights-3/kernel": (1, 1, 200, 256)},
            "no feature pyramid of the levels 2 to 6",
        ),
        (
            {"backbone/layer_with_weights-17/_conv3/kernel": None},
            "backbone is none of ResNet-50, 101 and 152",
        ),
        ({"rpn_head/_classifier/bias": (9,)}, "has 9 anchors a place, not 3"),
    ],
)
def test_other_models(change, message):
    # Arrays without contents: a view of one number.
    changed = {name: shape for name, shape in (shapes() | change).items() if shape is not None}
    tensors = {name: np.broadcast_to(np.float32(1), shape) for name, shape in changed.items()}
    with pytest.raises(ValueError, match=message):
        model_garden.settings(model_garden.tidy(tensors))


def test_settings_are_those_of_the_published_config():
    tensors = {name: np.broadcast_to(np.float32(1), shape) for name, shape in shapes().items()}
    section = model_garden.settings(model_garden.tidy(tensors))
    assert section["canvas"] == [1024, 1024] and section["min_size"] == section["max_size"] == 1024
    assert section["backbone"] == {"depth": 50, "dialect": "model_garden", "width": 64}
    assert section["box_head"] == {
        "conv_depth": 4,
        "depth": 1,
        "units": 1024,
        "class_agnostic": False,
        "conv_channels": 256,
    }


# --- A weight made of several tensors ---------------------------------------------------------------------


def test_move_of_several_tensors():
    weight, other = keras.Variable(np.zeros(2)), keras.Variable(np.zeros(2))
    moves = [Move(weight, ("a", "b"), lambda a, b: a + b, "summed"), Move(other, "c", lambda c: c)]
    tensors = {"a": np.array([1.0, 2]), "b": np.array([3.0, 4]), "c": np.array([5.0, 6])}
    report = transfer(tensors, moves, [weight, other], source="f")
    np.testing.assert_array_equal(weight, [4, 6])
    assert report.remapped == [("a", weight.path, "summed"), ("b", weight.path, "summed")]
    assert report.loaded == [("c", other.path)] and "1 tensors loaded, 2 remapped" in report.summary()
    del tensors["b"]
    with pytest.raises(ValueError, match="f: has no tensor b;"):
        transfer(tensors, moves, [weight], source="f")
    report = transfer(tensors, moves, [weight, other], source="f", allow_missing=True)
    assert report.left_out == {"a": "a tensor that it goes with is missing"} and report.fresh == [weight.path]
    tensors["b"] = np.zeros(3)
    with pytest.raises(
        ValueError, match=r"a has shape \[2\] and b has shape \[3\], which does not fit .* \[2\]"
    ):
        transfer(tensors, moves, [weight], source="f")


# --- What the layers needed for it --------------------------------------------------------------------------


def drawn(*shape: int, seed: int = 0) -> tf.Tensor:
    return tf.constant(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


@pytest.mark.parametrize("size,strides,side", [(3, 2, 8), (3, 2, 9), (7, 2, 8), (1, 2, 8), (3, 1, 8)])
def test_same_padding_is_tensorflows(size, strides, side):
    conv, x = Conv(4, size, strides, same_padding=True), drawn(2, side, side + 2, 6)
    conv.build(x.shape)
    expected = tf.nn.conv2d(x, conv.kernel.value, strides, "SAME")
    for training in (False, True):
        np.testing.assert_allclose(conv(x, training=training), expected, atol=1e-5)
    pytorch = Conv(4, size, strides)
    pytorch.build(x.shape)
    pytorch.kernel.assign(conv.kernel)
    # On even sides the two differ, so that a mix-up would show.
    assert np.allclose(pytorch(x), expected, atol=1e-5) == (size == 1 or strides == 1 or side % 2 == 1)


def test_same_padding_harness(tmp_path):
    def make():
        layer = Conv(8, 3, 2, norm="frozen_batch", same_padding=True, groups=2)
        layer.build((None, None, None, 6))
        return layer

    check_layer(make, lambda layer: layer(tf.cast(drawn(2, 8, 6, 6), layer.compute_dtype)), tmp_path)


def test_resnet_by_hand():
    """Stem, pool and the first block with a stride, from TensorFlow's own operations."""
    body = ResNet(50, dialect="model_garden", width=8)
    body.build()
    rng = np.random.default_rng(0)
    for w in body.weights:
        w.assign(rng.uniform(0.5, 1.0, w.shape) if len(w.shape) == 1 else rng.normal(size=w.shape) * 0.2)
    assert body.stem.epsilon == body.blocks[3].convs[1].epsilon == 1e-4

    def apply(conv, x, strides):
        y = tf.nn.conv2d(x, conv.kernel.value, strides, "SAME")
        n = conv.norm
        return (y - n.moving_mean) / tf.sqrt(n.moving_variance + 1e-4) * n.gamma + n.beta

    x = drawn(1, 64, 96, 3)
    c2, c3, *_ = body(x)
    y = tf.nn.max_pool2d(tf.nn.relu(apply(body.stem, x, 2)), 3, 2, "SAME")
    for block in body.blocks[:3]:
        y = block(y)
    np.testing.assert_allclose(c2, y, rtol=1e-4, atol=1e-3)
    block = body.blocks[3]
    first, second, third = block.convs
    z = tf.nn.relu(apply(second, tf.nn.relu(apply(first, y, 1)), 2))
    z = tf.nn.relu(apply(third, z, 1) + apply(block.shortcut, y, 2))
    for block in body.blocks[4:7]:
        z = block(z)
    np.testing.assert_allclose(c3, z, rtol=1e-4, atol=1e-3)


def test_deformable_convolutions_are_pytorchs():
    with pytest.raises(ValueError, match="same_padding must be false"):
        ResidualBlock(8, deformable=True, same_padding=True)
    with pytest.raises(ValueError, match="same_padding must be false"):
        ResNet(50, dialect="model_garden", deformable=[3])


@pytest.mark.parametrize("kind", [None, "frozen_batch", "group"])
def test_fpn_harness(kind, tmp_path):
    def make():
        layer = FPN(8, norm=kind, lateral_norm=False, coarsest="conv")
        layer.build([4, 6, 8, 10])
        return layer

    maps = [drawn(2, 128 // s, 128 // s, c) for s, c in zip((4, 8, 16, 32), (4, 6, 8, 10), strict=True)]
    check_layer(make, lambda layer: layer([tf.cast(x, layer.compute_dtype) for x in maps]), tmp_path)


def test_fpn_makes_p6_of_p5_before_its_norm():
    layer = FPN(8, norm="batch", lateral_norm=False, coarsest="conv")
    layer.build([4, 4, 4, 4])
    rng = np.random.default_rng(0)
    for w in layer.weights:
        w.assign(rng.uniform(0.5, 1.5, w.shape))
    assert [conv.norm for conv in layer.laterals] == [None] * 4
    maps = [drawn(1, 64 // s, 64 // s, 4) for s in (4, 8, 16, 32)]
    *_, p5, p6 = layer(maps)
    before = layer.outputs[-1](layer.laterals[-1](maps[-1]))
    scale, shift = layer.norm5.scale_and_shift()
    np.testing.assert_allclose(p5, before * scale + shift, rtol=1e-5)
    scale, shift = layer.output6.norm.scale_and_shift()
    expected = tf.nn.conv2d(before, layer.output6.kernel.value, 2, "SAME") * scale + shift
    np.testing.assert_allclose(p6, expected, rtol=1e-5)
    mean = layer.norm5.moving_mean.numpy()
    layer(maps, training=True)
    assert (layer.norm5.moving_mean.numpy() != mean).all()
    with pytest.raises(ValueError, match="coarsest is 'pool'"):
        FPN(coarsest="pool")


def small_rpn(**kwargs) -> RPN:
    layer = RPN(8, anchor_sizes=((8,), (16,), (24,), (32,), (48,)), **kwargs)
    layer.build(6)
    return layer


def test_rpn_harness(tmp_path):
    maps = [drawn(2, n, n, 6) for n in (16, 8, 4, 2, 1)]
    check_layer(
        lambda: small_rpn(norm="batch", depth=2),
        lambda layer: layer([tf.cast(x, layer.compute_dtype) for x in maps]),
        tmp_path,
    )


def test_rpn_norms_are_each_levels_own():
    layer = small_rpn(norm="batch")
    maps = [drawn(1, 4, 4, 6)] * 5
    rng = np.random.default_rng(0)
    for norm in layer.norms:
        for w in norm.weights:
            w.assign(rng.uniform(0.5, 1.5, w.shape))
    logits, _ = layer(maps)
    x = tf.nn.conv2d(maps[0], layer.hidden[0].kernel.value, 1, "SAME")
    for norm, found in zip(layer.norms, logits, strict=True):
        y = (x - norm.moving_mean) / tf.sqrt(norm.moving_variance + 1e-5) * norm.gamma + norm.beta
        np.testing.assert_allclose(found, tf.reshape(layer.objectness(tf.nn.relu(y)), [1, -1]), atol=1e-5)
    before = [norm.moving_mean.numpy() for norm in layer.norms]
    layer(maps, training=True)
    assert all((norm.moving_mean.numpy() != was).all() for norm, was in zip(layer.norms, before, strict=True))
    with pytest.raises(ValueError, match="norm is 'group'"):
        RPN(norm="group")
