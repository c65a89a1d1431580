"""LiteRT files give what the model gives, from operations that every interpreter has."""

from __future__ import annotations

import json
import sys
import zipfile

import cv2
import keras
import numpy as np
import pytest
import tensorflow as tf

from mrcnn_tf.data.coco import CocoDataset
from mrcnn_tf.data.shapes import generate_shapes
from mrcnn_tf.export.litert import export_litert, operations
from mrcnn_tf.export.litert_model import LiteRTModel, agreement, compare_litert, evaluate_litert
from mrcnn_tf.export.static import letterbox, preset
from mrcnn_tf.geometry.masks import rasterize
from mrcnn_tf.models.mask_rcnn import MaskRCNN
from mrcnn_tf.models.mask_refining_rcnn import MaskRefiningRCNN
from tests.tiny import CLASSES, make_model

KINDS = [MaskRCNN, MaskRefiningRCNN]
SIZE = (64, 96)
IMAGES = [
    np.random.default_rng(i).integers(0, 256, shape, np.uint8)
    for i, shape in enumerate([(64, 96, 3), (80, 60, 3)])
]


def batch_norm_model(kind):
    """Of which int8 takes the whole backbone."""
    keras.utils.set_random_seed(0)
    config = make_model(kind, score_threshold=0.0).get_config()
    config["backbone"]["config"]["norm"] = "batch"
    return kind.from_config(config)


@pytest.fixture(scope="module", params=KINDS)
def made(request, tmp_path_factory):
    """A model, and its files by precision."""
    model = batch_norm_model(request.param)
    folder = tmp_path_factory.mktemp("litert")
    reports = {
        precision: export_litert(
            model, folder / f"{precision}.tflite", size=SIZE, precision=precision, calibration=IMAGES
        )
        for precision in ("float32", "float16", "int8")
    }
    return model, reports


def check_equal(model, run, atol=1e-3):
    """Every output for every image, against the Keras model with its own RoIAlign."""
    for image in IMAGES:
        canvas, used = letterbox(image, SIZE)
        outputs = run(image=canvas, image_size=used)
        wanted = model.detect_batch(
            tf.constant(canvas, tf.float32), *[tf.constant(used[None], tf.float32)] * 2
        )
        count = int((wanted["classes"].numpy() > 0).sum())
        assert count > 5 and outputs["num_detections"].tolist() == [count]
        for name in ("boxes", "scores", "classes", "masks"):
            got = outputs[f"detection_{name}"]
            assert got.dtype == wanted[name].dtype.as_numpy_dtype
            np.testing.assert_allclose(got, wanted[name], atol=atol, err_msg=name)


def interpreter(file, plain=False):
    kinds = tf.lite.experimental.OpResolverType
    kind = kinds.BUILTIN_WITHOUT_DEFAULT_DELEGATES if plain else kinds.AUTO
    return tf.lite.Interpreter(model_path=str(file), experimental_op_resolver_type=kind)


pytestmark = pytest.mark.filterwarnings("ignore:.*tf.lite.Interpreter is deprecated")


@pytest.mark.parametrize("plain", [False, True], ids=["XNNPACK", "no delegate"])
def test_float32_is_the_model(made, plain):
    model, reports = made
    check_equal(model, interpreter(reports["float32"].file, plain).get_signature_runner())


def test_inputs_and_outputs(made):
    model, reports = made
    for report in reports.values():
        runner = interpreter(report.file).get_signature_runner()
        inputs = {k: (tuple(v["shape"]), v["dtype"]) for k, v in runner.get_input_details().items()}
        assert inputs == {"image": ((1, *SIZE, 3), np.uint8), "image_size": ((2,), np.int32)}
        d = model.max_detections
        assert {k: (tuple(v["shape"]), v["dtype"]) for k, v in runner.get_output_details().items()} == {
            "num_detections": ((1,), np.int32),
            "detection_boxes": ((1, d, 4), np.float32),
            "detection_scores": ((1, d), np.float32),
            "detection_classes": ((1, d), np.int32),
            "detection_masks": ((1, d, 28, 28), np.float32),
        }
        with zipfile.ZipFile(report.file) as archive:
            known = json.loads(archive.read("classes.json"))
        assert known == {
            "class_names": CLASSES,
            "category_ids": [3, 5, 7, 11, 13, 90],
            "interpolation": "bilinear",
        }


def test_built_in_operations_only(made):
    _, reports = made
    for report in reports.values():
        assert not [name for name in report.operations if name.startswith("custom")]
        assert report.operations["NON_MAX_SUPPRESSION_V4"] >= 2 and report.operations["CONV_2D"] > 20
        # Counted by the interpreter, too.
        details = interpreter(report.file, plain=True)._get_ops_details()
        assert sum(report.operations.values()) == len([o for o in details if o["op_name"] != "DELEGATE"])


def test_custom_operations_are_seen():
    function = tf.function(tf.linalg.det, input_signature=[tf.TensorSpec([3, 3])]).get_concrete_function()
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function], tf.Module())
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS, tf.lite.OpsSet.SELECT_TF_OPS]
    assert operations(converter.convert()) == {"custom FlexMatrixDeterminant": 1}


def test_sizes_and_agreement(made):
    _, reports = made
    full = reports["float32"]
    assert full.num_bytes == full.file.stat().st_size
    assert full.agreement.images == 2 and full.agreement.again == full.agreement.detections > 10
    assert max(full.agreement.boxes[1], full.agreement.scores[1], full.agreement.masks[1]) < 1e-3
    half = reports["float16"]
    # The graph itself is a large part of so small a model.
    assert half.num_bytes < 0.8 * full.num_bytes
    assert half.agreement.again >= 0.9 * half.agreement.detections
    assert 0 < half.agreement.scores[0] < 2e-3 and half.agreement.boxes[0] < 0.5
    whole = reports["int8"]
    assert whole.num_bytes < 0.7 * full.num_bytes
    assert whole.agreement.again >= 0.3 * whole.agreement.detections
    assert 0 < whole.agreement.scores[0] < 0.05 and whole.agreement.boxes[0] < 3


def test_int8_computes_features_in_integers_and_boxes_not(made):
    _, reports = made
    runner = interpreter(reports["int8"].file, plain=True)
    dtypes = {d["index"]: d["dtype"] for d in runner.get_tensor_details()}
    kinds = {}
    for o in runner._get_ops_details():
        kinds.setdefault(o["op_name"], []).append(dtypes[o["inputs"][0]])
    for name in ("CONV_2D", "FULLY_CONNECTED", "MAX_POOL_2D", "PAD"):
        assert set(kinds[name]) == {np.int8}, name
    assert np.int8 in kinds["ADD"]  # the shortcuts
    for name in ("NON_MAX_SUPPRESSION_V4", "EXP", "GATHER", "TOPK_V2", "SUB", "MUL", "SOFTMAX"):
        assert np.int8 not in kinds[name], name


def test_group_norm_and_mixed_precision(tmp_path):
    """A model trained in bfloat16 is written in float32; one with group norms keeps them out of int8."""
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = make_model(MaskRefiningRCNN, score_threshold=0.0)
    finally:
        keras.config.set_dtype_policy("float32")
    report = export_litert(model, tmp_path / "m.tflite", size=SIZE)
    assert report.agreement is None
    plain = make_model(MaskRefiningRCNN, score_threshold=0.0)
    plain.set_weights(model.get_weights())
    check_equal(plain, interpreter(report.file).get_signature_runner())
    # The model itself is as it was.
    assert model.compute_dtype == "bfloat16" and model.roi_align["backend"] == "auto"


def test_detect_is_in_the_images_own_pixels(made):
    model, reports = made
    lite = LiteRTModel(reports["float32"].file)
    assert lite.size == SIZE
    small = cv2.resize(IMAGES[1], (24, 32), interpolation=cv2.INTER_AREA)
    large = np.repeat(np.repeat(small, 8, 0), 8, 1)  # 256 x 192: four times too high
    found = lite.detect(large)
    canvas, used = letterbox(large, SIZE)
    assert used.tolist() == [64, 48]
    outputs = lite.run(image=canvas, image_size=used)
    count = outputs["num_detections"][0]
    np.testing.assert_allclose(found.boxes, 4 * outputs["detection_boxes"][0, :count], atol=1e-3)
    assert found.image_size == (256, 192) and len(found) == count > 5
    assert found.class_names == [CLASSES[c - 1] for c in found.class_ids]
    assert set(found.category_ids) <= {3, 5, 7, 11, 13, 90}
    threshold = float(np.median(found.scores))
    assert len(lite.detect(large, score_threshold=threshold)) == (found.scores > threshold).sum() < count


def test_letterbox_against_opencv():
    image = np.random.default_rng(0).integers(0, 256, (40, 80, 3), np.uint8)
    image = cv2.GaussianBlur(image, (0, 0), 2)
    canvas, used = letterbox(image, (64, 64))
    assert canvas.dtype == np.uint8 and canvas.shape == (1, 64, 64, 3) and used.tolist() == [32, 64]
    expected = cv2.resize(image, (64, 32), interpolation=cv2.INTER_LINEAR)
    assert np.abs(canvas[0, :32].astype(int) - expected).max() <= 1
    assert not canvas[0, 32:].any()
    # One that fits stays as it is.
    canvas, used = letterbox(image, (64, 80))
    np.testing.assert_array_equal(canvas[0, :40], image)
    # So thin that a side would round to nothing.
    assert letterbox(image[:1], (32, 32))[1].tolist() == [1, 32]


class Truth:
    """Stands for a file that finds exactly what there is; the input is less high than wide."""

    size, interpolation, class_names = (96, 128), "bilinear", CLASSES

    def __init__(self, dataset):
        self.category_ids = dataset.category_ids
        self.left = [self.answer(dataset, i) for i in range(len(dataset))]

    def answer(self, dataset, index):
        instances, (height, width) = dataset.instances(index), dataset.size(index)
        count = len(instances)
        masks = [
            rasterize(segmentation, box, 112, height, width)
            for segmentation, box in zip(instances.segmentations, instances.boxes, strict=True)
        ]
        scale = min(96 / height, 128 / width)
        return {
            "num_detections": np.array([count]),
            "detection_boxes": instances.boxes[None] * scale,
            "detection_scores": np.linspace(1, 0.5, count, dtype=np.float32)[None],
            "detection_classes": instances.classes[None],
            "detection_masks": np.array(masks, np.float32)[None],
        }

    def run(self, image, image_size):
        assert image.shape == (1, 96, 128, 3) and image_size.tolist() == [96, 96]
        return self.left.pop(0)


def test_evaluation_of_a_perfect_file(tmp_path):
    dataset = CocoDataset(*generate_shapes(tmp_path / "shapes", num_images=3, size=128))
    metrics = evaluate_litert(Truth(dataset), dataset)
    assert metrics["bbox/AP"] > 0.999 and metrics["segm/AP"] > 0.9 and metrics["images"] == 3
    metrics = evaluate_litert(Truth(dataset), dataset, first=2)
    assert metrics["bbox/AP"] > 0.999 and metrics["images"] == 2
    other = CocoDataset(
        {**dataset.ground_truth(), "categories": [{"id": 1, "name": "cat"}], "annotations": []}, None
    )
    with pytest.raises(ValueError, match="cat"):
        evaluate_litert(Truth(dataset), other)


def test_comparison_table(made, tmp_path):
    model, reports = made
    dataset = CocoDataset(*generate_shapes(tmp_path / "shapes", num_images=2, size=64))
    table = compare_litert(model, [reports["float32"].file], dataset, first=1).splitlines()
    assert (
        len(table) == 4 and table[2].startswith("| Keras | ") and table[3].startswith("| float32.tflite | ")
    )
    size = float(table[3].split("|")[2])
    assert size == pytest.approx(reports["float32"].num_bytes / 1e6, abs=0.051)


def test_agreement_counts_what_is_lost(made):
    model, reports = made
    lite = LiteRTModel(reports["float32"].file)
    inputs = [letterbox(image, SIZE) for image in IMAGES]
    whole = agreement(model, lite, inputs)
    run, count = lite.run, 4

    def fewer(**kwargs):
        return {**run(**kwargs), "num_detections": np.array([count])}

    lite.run = fewer
    assert agreement(model, lite, inputs).again == 2 * count < whole.again
    count = 0
    assert agreement(model, lite, inputs).again == 0


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": (64, 100)}, "64x100.*multiples of 32"),
        ({"size": (0, 64)}, "multiples of 32"),
        ({"precision": "int4"}, "'int4'.*float32, float16, int8"),
        ({"precision": "int8"}, "int8 needs calibration images"),
        ({"calibration": []}, "no images"),
        ({"calibration": [np.zeros((4, 4), np.uint8)]}, r"uint8 \[height, width, 3\].*\(4, 4\)"),
        ({"calibration": [np.zeros((4, 4, 3))]}, "float64"),
    ],
)
def test_bad_arguments(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        export_litert(make_model(), tmp_path / "m.tflite", **settings)
    assert not list(tmp_path.iterdir())


def test_adaptive_sampling_has_no_fixed_form(tmp_path):
    with pytest.raises(ValueError, match="sampling_ratio=2"):
        export_litert(make_model(sampling_ratio=0), tmp_path / "m.tflite")


def test_calibration_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="none: no such folder"):
        export_litert(make_model(), tmp_path / "m.tflite", calibration=tmp_path / "none")
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(FileNotFoundError, match="no images in this folder"):
        export_litert(make_model(), tmp_path / "m.tflite", calibration=tmp_path)


def test_int8_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ai_edge_quantizer", None)
    with pytest.raises(RuntimeError, match=r"mrcnn_tf\[litert\]"):
        export_litert(make_model(), tmp_path / "m.tflite", precision="int8", calibration=IMAGES)


def test_what_cannot_be_written_harms_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("mrcnn_tf.export.litert.convert", lambda *_, **__: b"")
    target = tmp_path / "m.tflite"
    target.mkdir()  # a folder in the file's place
    with pytest.raises(OSError, match="m.tflite: could not be written"):
        export_litert(make_model(), target)
    assert [path.name for path in tmp_path.iterdir()] == ["m.tflite"]


def test_other_files_are_refused(tmp_path):
    other = tmp_path / "other.tflite"
    other.write_bytes(b"something")
    with pytest.raises(ValueError, match="other.tflite: not a LiteRT file"):
        LiteRTModel(other)


def test_presets():
    assert preset(make_model(min_size=100, max_size=200), None) == (128, 224)
    assert preset(make_model(canvas=(96, 128)), None) == (96, 128)
    assert preset(make_model(), (32, 64)) == (32, 64)
