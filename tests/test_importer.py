"""`mrcnn import`: what is read and refused, and the report. That outputs are equal: tests/weights/test_parity.py."""

from __future__ import annotations

import json
import os
import pickle
import re

import numpy as np
import pytest
import tensorflow as tf

from mrcnn_tf.build import build_model
from mrcnn_tf.cli import main
from mrcnn_tf.commands import import_weights
from mrcnn_tf.config import make_config
from mrcnn_tf.importer import SOURCES, import_model
from mrcnn_tf.training.checkpoints import load_model
from mrcnn_tf.weights import detectron2, maskrcnn_benchmark, torchvision
from tests.golden.drawn import draw

CLASSES = 3


def small_torchvision(prefix: str = "backbone.body.") -> dict[str, tuple[int, ...]]:
    """Names and shapes of a torchvision-like Mask R-CNN on ResNet-18 for three classes."""
    shapes: dict[str, tuple[int, ...]] = {}

    def conv(name: str, out: int, into: int, size: int, norm: str | None = None, bias: bool = False) -> None:
        shapes[f"{name}.weight"] = (out, into, size, size)
        if bias:
            shapes[f"{name}.bias"] = (out,)
        for end in ("weight", "bias", "running_mean", "running_var") if norm else ():
            shapes[f"{norm}.{end}"] = (out,)

    conv(f"{prefix}conv1", 64, 3, 7, f"{prefix}bn1")
    into = 64
    for stage in range(4):
        out = 64 * 2**stage
        for i in range(2):
            name = f"{prefix}layer{stage + 1}.{i}"
            conv(f"{name}.conv1", out, into, 3, f"{name}.bn1")
            conv(f"{name}.conv2", out, out, 3, f"{name}.bn2")
            if into != out:
                conv(f"{name}.downsample.0", out, into, 1, f"{name}.downsample.1")
            into = out
    for i in range(4):
        conv(f"backbone.fpn.inner_blocks.{i}.0", 256, 64 * 2**i, 1, bias=True)
        conv(f"backbone.fpn.layer_blocks.{i}.0", 256, 256, 3, bias=True)
    conv("rpn.head.conv.0.0", 256, 256, 3, bias=True)
    conv("rpn.head.cls_logits", 3, 256, 1, bias=True)
    conv("rpn.head.bbox_pred", 12, 256, 1, bias=True)
    dense = {"box_head.fc6": (1024, 256 * 49), "box_head.fc7": (1024, 1024)}
    dense |= {
        "box_predictor.cls_score": (CLASSES + 1, 1024),
        "box_predictor.bbox_pred": (4 * (CLASSES + 1), 1024),
    }
    for name, shape in dense.items():
        shapes |= {f"roi_heads.{name}.weight": shape, f"roi_heads.{name}.bias": shape[:1]}
    for i in range(4):
        conv(f"roi_heads.mask_head.{i}.0", 256, 256, 3, bias=True)
    conv("roi_heads.mask_predictor.conv5_mask", 256, 256, 2, bias=True)
    conv("roi_heads.mask_predictor.mask_fcn_logits", CLASSES + 1, 256, 1, bias=True)
    return shapes


@pytest.fixture(scope="module")
def weights():
    return {name: draw(name, shape, 0) for name, shape in small_torchvision().items()}


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "names.txt").write_text("cell\nnucleus\n\nmitosis\n")
    return tmp_path


def test_command(here, weights, capsys):
    np.savez("m.npz", **weights, extra=np.zeros(3))
    arguments = ["import", "m.npz", "--from", "torchvision", "--out", "m.keras", "--classes", "names.txt"]
    assert main(arguments) == 1
    assert re.search(
        r"m\.npz: nothing in the model takes extra; .*--allow-unexpected", capsys.readouterr().err
    )
    assert not os.path.exists("m.keras")
    assert main([*arguments, "--allow-unexpected", "model.min_size=320", "model.backbone.epsilon=0.001"]) == 0
    out = capsys.readouterr().out
    assert re.search(
        r"m\.npz: \d+ tensors loaded, \d+ remapped, 1 left out; 0 weights freshly initialised", out
    )
    report = (here / "m.report.txt").read_text().splitlines()
    assert "left out    extra (nothing in the model takes it)" in report
    assert any(line.startswith("loaded      backbone.body.conv1.weight -> res_net") for line in report)
    assert any("x, y, width, height to y, x, height, width, without background" in line for line in report)
    assert report[0] == "ResNet-18-FPN, dialect torchvision, epsilon 0.001, 3 classes"
    assert len(report) == 3 + 2 + len(weights) + 1  # what it is, the summary, a line for every tensor
    model = load_model("m.keras")
    assert model.class_names == ["cell", "nucleus", "mitosis"] and model.category_ids == [1, 2, 3]
    assert (model.min_size, model.backbone.epsilon, model.backbone.depth) == (320, 0.001, 18)
    assert main(["import", "m.npz", "--from", "torchvision", "--out", "m.pth"]) == 1
    assert "a model file's name ends in .keras" in capsys.readouterr().err


def test_values_by_hand(weights, here):
    """Where each value goes that is not simply transposed."""
    np.savez("m.npz", **weights)
    model = import_model("m.npz", "torchvision", classes="names.txt")[0]
    fc6 = weights["roi_heads.box_head.fc6.weight"].reshape(1024, 256, 7, 7)
    assert np.array(model.box_head.hidden[0].kernel)[(3 * 7 + 5) * 256 + 11, 9] == fc6[9, 11, 3, 5]
    scores = weights["roi_heads.box_predictor.cls_score.weight"]
    np.testing.assert_array_equal(model.box_head.classes.kernel, scores.T)  # background is first in both
    deltas = weights["roi_heads.box_predictor.bbox_pred.weight"]
    row = 4 * 2  # of class 2, whose second number is dy: the first here
    np.testing.assert_array_equal(np.array(model.box_head.deltas.kernel)[:, 4 * 1 + 0], deltas[row + 1])
    np.testing.assert_array_equal(np.array(model.box_head.deltas.kernel)[:, 4 * 1 + 3], deltas[row + 2])
    deconv = weights["roi_heads.mask_predictor.conv5_mask.weight"]
    assert np.array(model.mask_head.deconv.kernel)[0, 0, 7, (2 * 1 + 0) * 256 + 19] == deconv[7, 19, 1, 0]
    logits = weights["roi_heads.mask_predictor.mask_fcn_logits.weight"]
    np.testing.assert_array_equal(np.array(model.mask_head.kernel)[2], logits[3, :, 0, 0])


@pytest.mark.parametrize(
    "change,message",
    [
        (
            lambda w: w.pop("rpn.head.cls_logits.bias"),
            r"has no tensor rpn\.head\.cls_logits\.bias; .*--allow-missing",
        ),
        (
            lambda w: w.update({"roi_heads.box_head.fc7.weight": np.zeros((512, 1024))}),
            r"fc7\.weight has shape \[512, 1024\], which does not fit .*fc2/kernel \[1024, 1024\]",
        ),
        (
            lambda w: w.update({"backbone.body.bn1.bias": np.full(64, np.nan)}),
            r"backbone\.body\.bn1\.bias holds values that are not finite",
        ),
        (
            lambda w: w.update(
                {"backbone.body.layer4.2.conv1.weight": w["backbone.body.layer4.1.conv1.weight"]}
            ),
            r"no ResNet that is known here: its stages have \(2, 2, 2, 3\) blocks",
        ),
        (
            lambda w: w.pop("backbone.body.conv1.weight"),
            r"has no names of torchvision's .*; it holds backbone\.body\.bn1",
        ),
    ],
)
def test_what_does_not_fit(here, weights, change, message):
    changed = dict(weights)
    change(changed)
    np.savez("m.npz", **changed)
    with pytest.raises(ValueError, match=r"m\.npz: .*" + message):
        import_model("m.npz", "torchvision", classes="names.txt")


def test_missing_weights_may_be_initialised(here, weights):
    keep = "mask_fcn_logits"
    np.savez("m.npz", **{k: v for k, v in weights.items() if "mask" not in k or keep in k})
    with pytest.raises(ValueError, match=r"has no tensor roi_heads\.mask"):
        import_model("m.npz", "torchvision", classes="names.txt", overrides=["model.mask_head.depth=1"])
    model, report = import_model(
        "m.npz", "torchvision", classes="names.txt", overrides=["model.mask_head.depth=1"], allow_missing=True
    )
    assert report.fresh and all("mask_head" in name for name in report.fresh)
    assert len(model.mask_head.convs) == 1


def test_classes(here, weights):
    np.savez("m.npz", **weights)
    with pytest.raises(
        ValueError, match=r"m\.npz: has 3 classes, which are not COCO's; give their names with --classes"
    ):
        import_model("m.npz", "torchvision")
    (here / "two.txt").write_text("a\nb")
    with pytest.raises(ValueError, match=r"two\.txt: names 2 classes, but m\.npz has 3"):
        import_model("m.npz", "torchvision", classes="two.txt")
    categories = [{"id": 9, "name": "z"}, {"id": 4, "name": "y"}, {"id": 7, "name": "x"}]
    (here / "truth.json").write_text(json.dumps({"images": [], "annotations": [], "categories": categories}))
    model = import_model("m.npz", "torchvision", classes="truth.json")[0]
    assert (model.class_names, model.category_ids) == (["y", "x", "z"], [4, 7, 9])


@pytest.mark.parametrize(
    "text,message",
    [
        ('{"categories": [{"name": "a"}]}', "is neither a text file .*KeyError\\('id'\\)"),
        ('["a", "b", "c"]', "is neither a text file"),
        ('{"categories": ', "is neither a text file .*JSONDecodeError"),
        ("a\nb\na\n", "names a twice"),
        ("\n", r"names 0 classes, but m\.npz has 3"),
    ],
)
def test_bad_class_files(here, weights, text, message):
    np.savez("m.npz", **weights)
    (here / "classes").write_text(text)
    with pytest.raises(ValueError, match="classes: " + message):
        import_model("m.npz", "torchvision", classes="classes")


@pytest.mark.parametrize("project", ["torchvision", "detectron2"])
def test_other_detectors_are_refused(here, weights, project):
    """Faster R-CNN of torchvision; Faster, Cascade and Keypoint R-CNN of detectron2."""
    if project == "torchvision":
        np.savez("m.npz", **{name: value for name, value in weights.items() if "mask" not in name})
        with pytest.raises(ValueError, match=r"m\.npz: has no mask head, so it is not a Mask R-CNN"):
            import_model("m.npz", project, classes="names.txt")
        return
    body = {"backbone.bottom_up.stem.conv1.weight": np.zeros((64, 3, 7, 7), np.float32)}
    scores = {"roi_heads.box_predictor.cls_score.weight": np.zeros((81, 1024), np.float32)}
    for extra, message in (
        ({}, "has no roi_heads.box_predictor.cls_score, so it is not a Mask R-CNN"),
        (scores, "has no roi_heads.mask_head.predictor, so it is not a Mask R-CNN"),
        ({"roi_heads.box_predictor.0.cls_score.weight": np.zeros(1)}, "a Cascade R-CNN"),
    ):
        np.savez("m.npz", **body, **extra)
        with pytest.raises(ValueError, match=message):
            import_model("m.npz", project)


def test_overrides_that_do_not_fit(here, weights):
    np.savez("m.npz", **weights)
    options = {"classes": "names.txt"}
    for overrides, message in (
        (
            ["model.backbone.norm=null"],
            "another architecture .* has a norm backbone.body.bn1, the model has none",
        ),
        (["model.backbone.depth=34"], "has no tensor backbone.body.layer1.2"),
        (["precision=mixed_bfloat16"], "precision=mixed_bfloat16: only keys of the model"),
        (["model.backbone.depht=34"], "model.backbone.depht: unknown key"),
    ):
        with pytest.raises(ValueError, match=message):
            import_model("m.npz", "torchvision", overrides=overrides, **options)
    with pytest.raises(ValueError, match="source is 'mmdet'; it must be one of torchvision"):
        import_model("m.npz", "mmdet", **options)


def test_the_command_offers_what_can_be_read():
    assert tuple(SOURCES) == import_weights.SOURCES


def test_the_wrong_project_is_named(here, weights):
    np.savez("m.npz", **weights)
    with pytest.raises(ValueError, match=r"has no names of detectron2's .*; try --from torchvision"):
        import_model("m.npz", "detectron2")


def test_maskrcnn_benchmark_is_torchvision_under_other_names(here, weights):
    back = [
        (r"^backbone\.body\.(conv1|bn1)", r"backbone.body.stem.\1"),
        (r"^rpn\.head\.conv\.0\.0", "rpn.head.conv"),
        (r"^roi_heads\.box_head\.", "roi_heads.box.feature_extractor."),
        (r"^roi_heads\.box_predictor\.", "roi_heads.box.predictor."),
        (r"^roi_heads\.mask_predictor\.", "roi_heads.mask.predictor."),
    ]
    theirs = {}
    for name, value in weights.items():
        name = re.sub(r"fpn\.(inner|layer)_blocks\.(\d)\.0", lambda m: f"fpn.fpn_{m[1]}{int(m[2]) + 1}", name)
        name = re.sub(
            r"mask_head\.(\d)\.0", lambda m: f"mask.feature_extractor.mask_fcn{int(m[1]) + 1}", name
        )
        for ours, original in back:
            name = re.sub(ours, original, name)
        theirs[f"module.{name}"] = value
    theirs |= {f"module.rpn.anchor_generator.cell_anchors.{i}": np.zeros((3, 4)) for i in range(5)}
    assert not set(theirs) & set(weights)
    with open("m.pkl", "wb") as file:
        pickle.dump({"model": theirs, "optimizer": {"state": {}}, "iteration": 90000}, file)
    model, report = import_model("m.pkl", "maskrcnn-benchmark", classes="names.txt")
    assert not report.fresh and set(report.left_out.values()) == {"anchors are computed"}
    assert (model.rpn.anchor_rounding, model.rpn.anchor_offset, model.roi_end) == ("detectron", 0.5, -1.0)
    assert model.normalize.bgr and model.size_rule == "short_first" and not model.settings["aligned"]
    np.savez("m.npz", **weights)
    other = import_model("m.npz", "torchvision", classes="names.txt")[0]
    for a, b in zip(model.weights, other.weights, strict=True):
        np.testing.assert_array_equal(a, b)


def test_old_torchvision_names(weights):
    old = {
        re.sub(r"(inner|layer)_blocks\.(\d)\.0", r"\1_blocks.\2", name).replace("conv.0.0.", "conv."): value
        for name, value in weights.items()
    }
    old = {
        re.sub(r"mask_head\.(\d)\.0", lambda m: f"mask_head.mask_fcn{int(m[1]) + 1}", name): value
        for name, value in old.items()
    }
    assert set(old) != set(weights)
    assert set(torchvision.tidy(old)) == set(weights)


def test_detectron2_settings_follow_from_the_tensors():
    tensors = {
        "backbone.bottom_up.stem.conv1.weight": np.zeros((64, 3, 7, 7)),
        "backbone.bottom_up.stem.conv1.norm.weight": np.zeros(64),
        "backbone.bottom_up.stem.conv1.norm.running_mean": np.zeros(64),
        "roi_heads.box_predictor.cls_score.weight": np.zeros((81, 1024)),
        "roi_heads.box_predictor.bbox_pred.weight": np.zeros((4, 1024)),
        "roi_heads.box_head.fc1.weight": np.zeros(1),
        "roi_heads.box_head.conv1.weight": np.zeros(1),
        "roi_heads.box_head.conv1.norm.weight": np.zeros(1),
        "roi_heads.mask_head.predictor.weight": np.zeros((80, 256, 1, 1)),
        "roi_heads.mask_head.mask_fcn1.weight": np.zeros(1),
        "proposal_generator.rpn_head.conv.conv0.weight": np.zeros(1),
        "proposal_generator.rpn_head.conv.conv1.weight": np.zeros(1),
        "pixel_mean": np.array([1.0, 2.0, 3.0]).reshape(3, 1, 1),
        "pixel_std": np.array([4.0, 5.0, 6.0]).reshape(3, 1, 1),
    }
    for stage, count in zip(range(2, 6), (3, 4, 23, 3), strict=True):
        for i in range(count):
            tensors[f"backbone.bottom_up.res{stage}.{i}.conv1.weight"] = np.zeros(1)
            if stage > 2:
                tensors[f"backbone.bottom_up.res{stage}.{i}.conv2_offset.weight"] = np.zeros((27, 1, 3, 3))
    tensors["backbone.bottom_up.res2.0.conv2.weight"] = np.zeros((256, 8, 3, 3))
    found = detectron2.settings(tensors)
    assert found["backbone"] == {
        "depth": 101,
        "dialect": "torchvision",
        "norm": "frozen_batch",
        "groups": 32,
        "width_per_group": 8,
        "deformable": [3, 4, 5],
        "modulated": True,
    }
    assert found["normalize"] == {"mean": [3, 2, 1], "std": [6, 5, 4], "bgr": True}
    assert found["rpn"]["depth"] == 2
    assert found["box_head"] == {"conv_depth": 1, "depth": 1, "norm": "group", "class_agnostic": True}
    assert found["mask_head"] == {"depth": 1, "norm": None, "class_agnostic": False}


def test_names_of_class_agnostic_and_deformable_detectron2_models():
    """What deformable convolution computes is tested with the layer."""
    section = {
        "backbone": {"depth": 50, "deformable": [5], "modulated": True},
        "box_head": {"class_agnostic": True, "conv_depth": 1, "depth": 1, "norm": "group"},
    }
    built = build_model(make_config({"model": section}), ["a", "b"], [1, 2])
    moves = detectron2.moves(built, {})
    names = {move.tensor for move in moves}
    assert {
        f"backbone.bottom_up.res5.{i}.conv2_offset.{end}" for i in range(3) for end in ("weight", "bias")
    } <= names
    assert {"roi_heads.box_head.conv1.norm.weight", "roi_heads.box_head.conv1.norm.bias"} <= names
    assert len(moves) == len(built.weights) == len({id(move.weight) for move in moves})


def test_benchmark_models_are_not_taken_for_torchvisions():
    names = {"backbone.body.stem.conv1.weight": 0, "rpn.anchor_generator.cell_anchors.0": 0}
    assert maskrcnn_benchmark.recognised(maskrcnn_benchmark.tidy(names))
    assert not torchvision.recognised(torchvision.tidy(names))
    assert not maskrcnn_benchmark.recognised(maskrcnn_benchmark.tidy({"backbone.body.conv1.weight": 0}))


def test_reader_of_backbones_keeps_the_heads_fresh(here, weights):
    body = {k.removeprefix("backbone.body."): v for k, v in weights.items() if k.startswith("backbone.body.")}
    np.savez("r18.npz", **body, **{"fc.weight": np.zeros((3, 512)), "fc.bias": np.zeros(3)})
    model, report = import_model("r18.npz", "torchvision")
    assert set(report.left_out) == {"fc.weight", "fc.bias"} and model.class_names == ["none yet"]
    assert len(report.loaded) == len(body)
    kernel = tf.convert_to_tensor(model.backbone.stem.kernel)
    np.testing.assert_array_equal(kernel, body["conv1.weight"].transpose(2, 3, 1, 0))
