"""The exported folder in the C++ loader that TensorFlow Serving uses, without Python, gives what `detect` gives."""

from __future__ import annotations

import hashlib
import os
import shlex
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from tensorflow.core.framework.tensor_pb2 import TensorProto

from mrcnn_tf.data.images import read_image
from mrcnn_tf.export.saved_model import export_saved_model
from mrcnn_tf.geometry.boxes import pairwise_iou
from mrcnn_tf.models.mask_rcnn import MaskRCNN
from mrcnn_tf.models.mask_refining_rcnn import MaskRefiningRCNN
from mrcnn_tf.ops.compile import cache_folder
from tests.tiny import make_model

SOURCE = Path(__file__).parent / "cpp" / "run_saved_model.cc"
# By how much the last layers' weights grow, so that an untrained model's results differ from each other.
FACTORS = {
    "classes/kernel": 100,
    "deltas/kernel": 100,
    "mask_head/kernel": 1000,
    "refining_mask_head/kernel": 1000,
}


@pytest.fixture(scope="module")
def program() -> Path:
    """The compiled program. It is kept beside the compiled ops: the next run has it at once."""
    if sys.platform != "linux":
        pytest.skip("the link flags are those of Linux")
    library = tf.sysconfig.get_lib()
    command = [
        *shlex.split(os.environ.get("CXX") or "g++"),
        str(SOURCE),
        *(flag.replace("-I", "-isystem", 1) for flag in tf.sysconfig.get_compile_flags()),
        f"-L{library}",
        f"-Wl,-rpath,{library}",
        # The sessions register themselves in the first library, of which the program names no function.
        "-Wl,--no-as-needed",
        "-l:libtensorflow_cc.so.2",
        "-l:libtensorflow_framework.so.2",
    ]
    digest = hashlib.sha256(repr((tf.__version__, command)).encode() + SOURCE.read_bytes()).hexdigest()[:16]
    target = cache_folder() / f"run_saved_model-{digest}"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = target.with_suffix(f".{os.getpid()}")
        try:
            done = subprocess.run([*command, "-o", str(aside)], capture_output=True, text=True)
        except FileNotFoundError:
            pytest.skip(f"there is no C++ compiler {command[0]} (CXX names one)")
        assert done.returncode == 0, done.stderr[-2000:]
        os.replace(aside, target)
    return target


@pytest.fixture(scope="module", params=[MaskRCNN, MaskRefiningRCNN])
def served(request, tmp_path_factory):
    """An untrained model and its exported folder."""
    keras.utils.set_random_seed(0)
    model = make_model(request.param, score_threshold=0.0)
    for weight in model.weights:
        weight.assign(weight * FACTORS.get("/".join(weight.path.split("/")[-2:]), 1))
    return model, export_saved_model(model, tmp_path_factory.mktemp("served") / "tiny", check=False)


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> list[Path]:
    """Files of several sizes: one grey, one to be turned. All fit the canvas that each would have alone."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    turned = Image.Exif()
    turned[0x0112] = 6
    for name, size in (("a.png", (80, 48)), ("b.jpg", (90, 150)), ("c.png", (64, 64)), ("d.jpg", (91, 70))):
        coarse = rng.integers(0, 256, (9, 9) if name == "c.png" else (9, 9, 3), np.uint8)
        picture = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
        picture.save(folder / name, exif=turned if name == "d.jpg" else b"")
    return sorted(folder.iterdir())


def run(program, folder, signature, paths, out, thresholds=(-1.0, -1.0)) -> dict[str, np.ndarray]:
    """The signature's outputs for one batch."""
    out.mkdir()
    done = subprocess.run(
        [str(a) for a in (program, folder, signature, *thresholds, out, *paths)],
        env={"TF_CPP_MIN_LOG_LEVEL": "2"},  # nothing that leads to a Python
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return {path.stem: tf.make_ndarray(TensorProto.FromString(path.read_bytes())) for path in out.iterdir()}


def assert_equals(outputs, row, expected) -> None:
    """One image's outputs against `Detections`, and what stands beyond them."""
    count = outputs["num_detections"][row]
    assert count == len(expected)
    assert outputs["status"][row] == b"ok"
    assert tuple(outputs["image_size"][row]) == expected.image_size
    own = {name: value[row] for name, value in outputs.items()}
    np.testing.assert_allclose(own["detection_boxes"][:count], expected.boxes, rtol=0, atol=0.01)
    np.testing.assert_allclose(own["detection_scores"][:count], expected.scores, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(own["detection_classes"][:count], expected.class_ids)
    np.testing.assert_array_equal(own["detection_category_ids"][:count], expected.category_ids)
    assert [name.decode() for name in own["detection_class_names"][:count]] == expected.class_names
    if "detection_masks" in own:
        masks = own["detection_masks"]
    else:
        masks = [np.frombuffer(m, np.uint8) for m in own["detection_masks_bytes"]]
        assert not any(len(m) for m in masks[count:])
    for mask, probability in zip(masks[:count], expected.masks, strict=True):
        # Half a level of rounding, and what two orders of the sums may differ by.
        np.testing.assert_allclose(
            np.reshape(mask, probability.shape) / 255, probability, rtol=0, atol=0.5 / 255 + 1e-5
        )
    for name, beyond in (("classes", -1), ("category_ids", -1), ("scores", 0), ("class_names", b"")):
        assert (own[f"detection_{name}"][count:] == beyond).all()


def overlap(boxes, classes) -> float:
    """The largest IoU of two boxes of one class."""
    same = (classes[:, None] == classes) & ~np.eye(len(classes), dtype=bool)
    return float(np.where(same, pairwise_iou(boxes, boxes), 0).max())


def test_files_of_several_sizes(program, served, images, tmp_path):
    model, folder = served
    outputs = run(program, folder, "serving_default", images, tmp_path / "out")
    assert outputs["image_size"].tolist() == [[48, 80], [150, 90], [64, 64], [91, 70]]
    for row, path in enumerate(images):
        found = model.detect(read_image(path))
        assert len(found)
        assert_equals(outputs, row, found)


def test_compact_with_thresholds_of_the_call(program, served, images, tmp_path):
    model, folder = served
    own = model.detect([read_image(path) for path in images])
    score = float(np.median(np.concatenate([found.scores for found in own])))
    outputs = run(program, folder, "compact", images, tmp_path / "out", thresholds=(score, 0.1))
    assert max(overlap(found.boxes, found.class_ids) for found in own) > 0.4
    for row, count in enumerate(outputs["num_detections"]):
        assert count and (outputs["detection_scores"][row, :count] > score).all()
        boxes, classes = (outputs[f"detection_{name}"][row, :count] for name in ("boxes", "classes"))
        assert overlap(boxes, classes) < 0.1 + 1e-5


def test_corrupt_files_harm_no_other(program, served, images, tmp_path):
    model, folder = served
    half, text = tmp_path / "half.jpg", tmp_path / "text.png"
    half.write_bytes(images[1].read_bytes()[:300])
    text.write_text("no image")
    batch = [images[0], half, images[1], text]
    outputs = run(program, folder, "compact", batch, tmp_path / "out")
    for row, reason in ((1, b"damaged"), (3, b"neither a JPEG nor a PNG")):
        assert reason in outputs["status"][row]
        assert outputs["num_detections"][row] == 0 and (outputs["detection_classes"][row] == -1).all()
        assert not any(outputs["detection_masks_bytes"][row])
        assert outputs["image_size"][row].tolist() == [0, 0]
    for row in (0, 2):
        assert_equals(outputs, row, model.detect(read_image(batch[row])))


def test_photographs(program, served, data_dir, tmp_path):
    model, folder = served
    paths = sorted((data_dir / "coco_mini" / "val2017").glob("*.jpg"))[:20]
    outputs = run(program, folder, "serving_default", paths, tmp_path / "out")
    images = [read_image(path) for path in paths]
    assert len({image.shape for image in images}) > 5
    for row, image in enumerate(images):
        assert_equals(outputs, row, model.detect(image))
