"""The exported folder runs where this package is not, and gives what the model gives."""

from __future__ import annotations

import json
import os
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from mrcnn_tf.data.images import read_image
from mrcnn_tf.export import check, saved_model
from mrcnn_tf.export.check import ExportError, detections_of, run_alone
from mrcnn_tf.export.saved_model import export_saved_model, put_in_place
from mrcnn_tf.export.signatures import make_signatures
from mrcnn_tf.models.mask_rcnn import MaskRCNN
from mrcnn_tf.models.mask_refining_rcnn import MaskRefiningRCNN
from tests.tiny import CLASSES, make_model

KINDS = [MaskRCNN, MaskRefiningRCNN]


@pytest.fixture(scope="module", params=KINDS)
def exported(request, export_tiny):
    return export_tiny(request.param)


@pytest.fixture(scope="module")
def loaded(exported):
    return tf.saved_model.load(str(exported[1])).signatures


@pytest.fixture(scope="module")
def photographs(data_dir):
    return sorted((data_dir / "coco_mini" / "val2017").glob("*.jpg"))[:20]


def assert_same(got, expected):
    assert got.image_size == expected.image_size and len(got) == len(expected)
    np.testing.assert_allclose(got.boxes, expected.boxes, atol=0.01)
    np.testing.assert_allclose(got.scores, expected.scores, atol=1e-5)
    for name in ("class_ids", "category_ids", "class_names"):
        np.testing.assert_array_equal(getattr(got, name), getattr(expected, name))
    np.testing.assert_allclose(got.masks, expected.masks, atol=0.5 / 255 + 1e-5)


def test_photographs_without_the_package(exported, photographs, tmp_path):
    model, folder = exported
    own = np.array([-1], np.float32)
    calls = {}
    for i, path in enumerate(photographs):
        data = np.frombuffer(path.read_bytes(), np.uint8)
        calls |= {f"{s}/{i}/image_bytes/0": data for s in ("serving_default", "compact")}
        calls |= {f"compact/{i}/{name}_threshold": own for name in ("score", "iou")}
        calls[f"image/{i}/images"] = read_image(path)[None]
    out = run_alone(folder, calls, tmp_path)
    assert len({read_image(path).shape for path in photographs}) > 5
    for i, path in enumerate(photographs):
        expected = model.detect(read_image(path))
        assert len(expected)
        for signature in ("serving_default", "compact", "image"):
            start = f"{signature}/{i}/"
            outputs = {k.removeprefix(start): v for k, v in out.items() if k.startswith(start)}
            assert outputs["status"].tolist() == [b"ok"]
            assert_same(detections_of(outputs, 0), expected)
    # Neither Python calls nor sparse-matrix variants, which a lean server build may lack; and no variables.
    ops = set(out["operations"])
    assert {"CropAndResize", "NonMaxSuppressionV4"} <= ops
    refused = ("PyFunc", "EagerPyFunc", "SparseMatrix", "Mrcnn", "ReadVariable", "VarHandle")
    assert not [op for op in ops if op.startswith(refused)]


def test_padding_beyond_the_last_detection(exported, loaded):
    """A higher threshold leaves rows empty: every output says so in its own way."""
    model, _ = exported
    image = np.random.default_rng(0).integers(0, 256, (40, 56, 3), np.uint8)
    data = tf.io.encode_png(image)[None]
    scores = model.detect(image).scores
    threshold = float(scores[3])
    out = {
        k: v.numpy()
        for k, v in loaded["compact"](
            image_bytes=data, score_threshold=[threshold], iou_threshold=[-1.0]
        ).items()
    }
    count = out["num_detections"][0]
    assert 0 < count < len(scores) and (out["detection_scores"][0, :count] > threshold).all()
    assert not out["detection_boxes"][0, count:].any() and not out["detection_scores"][0, count:].any()
    assert (out["detection_classes"][0, count:] == -1).all()
    assert (out["detection_category_ids"][0, count:] == -1).all()
    for name in ("detection_class_names", "detection_masks_bytes"):
        assert (out[name][0, count:] == b"").all() and (out[name][0, :count] != b"").all()


def test_damaged_files_harm_nobody(exported, loaded, photographs):
    model, _ = exported
    good = photographs[0].read_bytes()
    files = [good, good[: len(good) // 2], b"text", b"", good]
    out = {k: v.numpy() for k, v in loaded["serving_default"](image_bytes=tf.constant(files)).items()}
    assert [s.decode().split()[0] for s in out["status"]] == ["ok", "damaged", "neither", "empty:", "ok"]
    assert (out["num_detections"] > 0).tolist() == [True, False, False, False, True]
    assert out["image_size"][1:4].tolist() == [[0, 0]] * 3
    assert not out["detection_boxes"][1:4].any() and np.isfinite(out["detection_boxes"]).all()
    for row in (0, 4):
        assert_same(detections_of(out, row), model.detect(read_image(photographs[0])))


def test_only_damaged_files(loaded):
    out = loaded["compact"](image_bytes=[b"text"], score_threshold=[-1.0], iou_threshold=[-1.0])
    assert out["num_detections"].numpy().tolist() == [0]


def test_thresholds_by_image(exported, loaded):
    model, _ = exported
    image = np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8)
    expected = model.detect(image)
    score = float(expected.scores[9])
    out = loaded["compact"](
        image_bytes=tf.repeat(tf.io.encode_png(image)[None], 2),
        score_threshold=[-1.0, score],
        iou_threshold=[-1.0, 0.05],
    )
    out = {k: v.numpy() for k, v in out.items()}
    assert_same(detections_of(out, 0), expected)
    again = type(model).from_config({**model.get_config(), "nms_threshold": 0.05})
    again.set_weights(model.get_weights())
    expected_again = again.detect(image, score_threshold=score)
    assert 0 < len(expected_again) < len(expected)
    assert_same(detections_of(out, 1), expected_again)


def test_full_masks(exported, loaded, photographs):
    model, _ = exported
    files = [path.read_bytes() for path in photographs[:2]]
    out = loaded["full_masks"](image_bytes=tf.constant(files))
    masks = out["detection_masks_reframed"].numpy()
    assert masks.dtype == np.uint8 and masks.max() == 1
    for row, path in enumerate(photographs[:2]):
        expected = model.detect(read_image(path)).dense_masks()
        count, height, width = expected.shape
        assert (masks[row, :count, :height, :width] != expected).mean() < 1e-4
        assert not masks[row, count:].any() and not masks[row, :, height:].any()


def test_norms_are_folded():
    """Every kernel of a convolution is a constant, in the type that it is used in."""
    model = make_model()
    config = model.get_config()
    config["backbone"]["config"]["norm"] = "batch"
    model = MaskRCNN.from_config(config)
    bytes_of = {}
    for precision, kind in (("float32", tf.float32), ("bfloat16", tf.bfloat16)):
        graph = make_signatures(model, precision=precision)["image"].graph.as_graph_def()
        bodies = [f.node_def for f in graph.library.function]
        kernels = []
        for nodes in bodies:
            by_name = {n.name: n for n in nodes}
            kernels += [by_name[n.input[1].split(":")[0]] for n in nodes if n.op == "Conv2D"]
        # The backbone's 20, the pyramid's 8, the RPN's 3 on each of 5 levels, the mask head's 2.
        assert len(kernels) == 45
        assert all(n.op == "Const" and n.attr["dtype"].type == kind.as_datatype_enum for n in kernels)
        assert not [n.name for nodes in bodies for n in nodes if n.op in ("Rsqrt", "ReadVariableOp")]
        bytes_of[precision] = sum(n.ByteSize() for n in kernels)
    assert bytes_of["bfloat16"] < 0.6 * bytes_of["float32"]
    assert model.compute_dtype == model.backbone.compute_dtype == "float32"


def test_assets(exported):
    model, folder = exported
    extra = folder / "assets.extra"
    classes = json.loads((extra / "classes.json").read_text())
    assert classes == {"class_names": CLASSES, "category_ids": [3, 5, 7, 11, 13, 90]}
    card = json.loads((extra / "model_card.json").read_text())
    assert card["model"] == type(model).__name__ and card["versions"]["tensorflow"] == tf.__version__
    assert card["settings"]["box_head"]["units"] == 32 and card["settings"]["min_size"] == 64


def test_versions_rise_and_never_replace_one(tmp_path):
    for name in ("1", "7", ".partial-x", "notes"):
        (tmp_path / "m" / name).mkdir(parents=True)
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "saved_model.pb").write_text("new")
    assert put_in_place(tmp_path / "new", tmp_path / "m").name == "8"


def test_two_exports_at_once(tmp_path, monkeypatch):
    """Another process took the number between looking and renaming."""
    for name in ("new", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "saved_model.pb").write_text(name)
    folder = tmp_path / "m"
    folder.mkdir()
    rename = os.rename

    def slow_rename(source, target):
        monkeypatch.setattr(saved_model.os, "rename", rename)
        rename(tmp_path / "other", folder / "1")
        rename(source, target)

    monkeypatch.setattr(saved_model.os, "rename", slow_rename)
    assert put_in_place(tmp_path / "new", folder).name == "2"
    assert [(folder / n / "saved_model.pb").read_text() for n in "12"] == ["other", "new"]


def test_the_check_passes_and_fails(export_tiny, monkeypatch):
    model, folder = export_tiny(MaskRCNN)
    run, outputs = check.run_alone, {}

    def run_once(*arguments):
        if not outputs:
            outputs.update(run(*arguments))
        return outputs

    monkeypatch.setattr(check, "run_alone", run_once)
    monkeypatch.chdir(folder.parent)
    check.check_folder(model, Path(folder.name))
    other = MaskRCNN.from_config(model.get_config())
    other.set_weights(model.get_weights())
    other.rpn.set_weights([w + 0.1 for w in other.rpn.get_weights()])
    with pytest.raises(ExportError, match="detections are not among the exported one's"):
        check.check_folder(other, folder)
    for name, value, message in (
        ("serving_default/damaged/status", np.array([b"ok"] * 4), "truncated.jpg has the status 'ok'"),
        ("operations", np.array(["Conv2D", "MrcnnRoiAlign"]), "no stock server has: MrcnnRoiAlign"),
    ):
        with monkeypatch.context() as patch:
            patch.setitem(outputs, name, value)
            with pytest.raises(ExportError, match=message):
                check.check_folder(model, folder)


def test_a_folder_that_cannot_be_loaded(export_tiny, tmp_path):
    with pytest.raises(ExportError, match="cannot run it without this package"):
        check.check_folder(export_tiny(MaskRCNN)[0], tmp_path)


def test_an_export_that_fails_its_check_does_not_appear(tmp_path, monkeypatch):
    def fails(*arguments, **settings):
        raise ExportError("not the same")

    monkeypatch.setattr(saved_model, "make_signatures", lambda *_, **__: {})
    monkeypatch.setattr(saved_model, "check_folder", fails)
    with pytest.raises(ExportError, match="not the same"):
        export_saved_model(make_model(), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("policy", "precision", "exact"),
    [
        ("float32", None, True),
        ("float32", "float32", True),
        ("float32", "bfloat16", False),
        ("mixed_bfloat16", None, False),
        ("mixed_bfloat16", "bfloat16", False),
        ("mixed_bfloat16", "float32", False),
        ("mixed_float16", None, False),
    ],
)
def test_only_float32_is_checked_exactly(tmp_path, monkeypatch, policy, precision, exact):
    """A training in 16 bits must not end with an export that its own roundings refuse."""
    seen = []
    monkeypatch.setattr(saved_model, "make_signatures", lambda *_, **__: {})
    monkeypatch.setattr(saved_model, "check_folder", lambda *_, exact: seen.append(exact))
    keras.config.set_dtype_policy(policy)
    try:
        model = make_model()
    finally:
        keras.config.set_dtype_policy("float32")
    export_saved_model(model, tmp_path, precision=precision)
    assert seen == [exact]


def test_what_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        export_saved_model(make_model(), tmp_path / "file")

    def full(*arguments, **settings):
        raise tf.errors.ResourceExhaustedError(None, None, "No space left on device")

    monkeypatch.setattr(saved_model, "make_signatures", full)
    with pytest.raises(OSError, match="No space left on device.*earlier versions are untouched"):
        export_saved_model(make_model(), tmp_path / "m")
    assert not list((tmp_path / "m").iterdir())
    with pytest.raises(ValueError, match="precision is 'int4'; it must be one of float32, bfloat16"):
        export_saved_model(make_model(), tmp_path / "m", precision="int4")


def test_settings_of_the_selection_are_in_the_graph():
    """Soft suppression, groups, masks' NMS and sizes in pixels of the image that came in."""
    image = np.random.default_rng(3).integers(0, 256, (48, 64, 3), np.uint8)
    settings = {"nms_groups": "all", "nms_method": "linear", "mask_nms_threshold": 0.3, "min_detection": 12.0}
    model = make_model(score_threshold=0.0, nms_threshold=0.9, **settings)
    out = make_signatures(model)["image"](images=tf.constant(image[None]))
    found = model.detect(image)
    count = int(out["num_detections"][0])
    assert count == len(found) > 1
    np.testing.assert_allclose(out["detection_boxes"][0, :count], found.boxes, atol=0.01)
    np.testing.assert_allclose(out["detection_scores"][0, :count], found.scores, atol=1e-5)
    sides = found.boxes[:, 2:] - found.boxes[:, :2]
    assert np.sqrt(sides.prod(1)).min() >= 12 - 1e-3
