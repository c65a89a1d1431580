"""The commands as a user types them; mistakes end in one line and exit status 1."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from mrcnn_tf.cli import main, parser
from mrcnn_tf.data.shapes import generate_shapes
from mrcnn_tf.training.checkpoints import save_aside
from tests.tiny import make_model

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """An untrained model and four generated images."""
    folder = tmp_path_factory.mktemp("cli")
    model = save_aside(make_model(), folder / "m.keras")
    annotations, images = generate_shapes(folder / "set", num_images=4, size=64, seed=1)
    return model, annotations, images


def error_of(capsys, *arguments):
    """The message of a command that must fail, which is one line."""
    assert main([str(a) for a in arguments]) == 1
    message = (
        capsys.readouterr().err.strip().split("\r")[-1].strip()
    )  # behind a progress bar, if there is one
    assert message.startswith("error: ") and "\n" not in message, message
    return message


@pytest.mark.parametrize("command", ["train", "evaluate", "predict", "check-data", "export"])
def test_help(command, capsys):
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert "example" in text and "\n" in text


def test_help_is_quick():
    """It must not wait for TensorFlow."""
    code = "import sys; sys.modules['tensorflow'] = None; from mrcnn_tf.cli import main; main(['--help'])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "check-data" in done.stdout


def test_scripts_are_subcommands():
    for script, command in (("train.py", "train"), ("evaluate.py", "evaluate")):
        done = subprocess.run([sys.executable, script, "--help"], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0 and f"mrcnn {command}" in done.stdout


def test_default_config_is_the_quickstart():
    options = parser().parse_args(["train", "train.steps=3"])
    assert options.config is None and options.overrides == ["train.steps=3"]


def test_evaluate_a_results_file(made, tmp_path, capsys):
    _, annotations, _ = made
    truth = json.loads(annotations.read_text())
    results = [
        {k: row[k] for k in ("image_id", "category_id", "bbox", "segmentation")} | {"score": 0.9}
        for row in truth["annotations"]
    ]
    # Results carry masks as RLE.
    results = [r for r in results if isinstance(r["segmentation"], dict)]
    path = tmp_path / "r.json"
    path.write_text(json.dumps(results))
    assert (
        main(["evaluate", "--annotations", str(annotations), "--results", str(path), "--out", str(tmp_path)])
        == 0
    )
    assert "mask" in capsys.readouterr().out
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert 0 < metrics["segm/AP"] <= 1


def test_evaluate_a_model(made, tmp_path, capsys):
    model, annotations, images = made
    arguments = [
        "evaluate",
        "--model",
        model,
        "--annotations",
        annotations,
        "--images",
        images,
        "--out",
        tmp_path,
    ]
    assert main([str(a) for a in arguments]) == 0
    out = capsys.readouterr().out
    assert "images/s" in out and "recall@1000" in out
    assert isinstance(json.loads((tmp_path / "predictions.json").read_text()), list)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["images"] == 4 and {"bbox/AP", "segm/AP", "proposals/recall@300"} <= set(metrics)


def test_predict(made, tmp_path, capsys):
    model, _, images = made
    pictures = sorted(images.iterdir())
    (tmp_path / "bad.jpg").write_bytes(pictures[0].read_bytes()[:200])
    video = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(video), cv2.VideoWriter.fourcc(*"MJPG"), 5, (64, 64))
    for _ in range(3):
        writer.write(cv2.imread(str(pictures[0])))
    writer.release()
    out = tmp_path / "found"
    status = main(
        ["predict", str(model), str(images), str(pictures[0]), str(tmp_path / "*.jpg"), str(video)]
        + ["--out", str(out), "--score", "0.05"]
    )
    message = capsys.readouterr()
    assert status == 1  # one file is corrupt; the others are done all the same
    assert "bad.jpg" in message.err and "5 of 6 files done" in message.out
    assert {p.name for p in out.iterdir()} == {f"{p.stem}.png" for p in pictures} | {
        "clip.mp4",
        "predictions.json",
    }
    for row in json.loads((out / "predictions.json").read_text()):
        assert {"image_id", "category_id", "bbox", "score", "segmentation", "file_name"} <= set(row)
        assert row["score"] >= 0.05 and row["category_id"] in (3, 5, 7, 11, 13, 90)


def test_export(made, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    model = tmp_path / "run" / "model.keras"
    model.write_bytes(made[0].read_bytes())
    (tmp_path / "run" / "metrics.json").write_text('{"bbox/AP": 0.25}')
    assert main(["export", str(model), "--out", str(tmp_path / "s"), "--no-check"]) == 0
    assert str(tmp_path / "s" / "1") in capsys.readouterr().out
    card = json.loads((tmp_path / "s" / "1" / "assets.extra" / "model_card.json").read_text())
    assert card["metrics"] == {"bbox/AP": 0.25} and card["config"] is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--format", "onnx", "--full-masks"], "--full-masks is not for --format onnx"),
        (["--format", "onnx", "--precision", "int8"], "--precision int8 is not for --format onnx"),
        (["--size", "64x64"], "--size is not for --format saved_model"),
        (["--precision", "int8"], "precision is 'int8'; it must be one of float32, bfloat16"),
        (["--format", "litert", "--precision", "int8"], "int8 needs calibration images"),
        (["--format", "litert", "--annotations", "a.json"], "needs --images, the folder"),
        (["--format", "litert", "--size", "60x64"], "size is 60x64; both sides must be multiples of 32"),
    ],
)
def test_export_mistakes(made, tmp_path, capsys, given, message):
    assert message in error_of(capsys, "export", made[0], "--out", tmp_path / "s", *given)
    with pytest.raises(SystemExit):
        main(["export", str(made[0]), "--out", "x", "--size", "64"])
    assert "'64'; give height and width in pixels, such as 480x640" in capsys.readouterr().err


def test_check_data(made, tmp_path, capsys):
    _, annotations, images = made
    arguments = [
        "check-data",
        "--annotations",
        str(annotations),
        "--images",
        str(images),
        "--out",
        str(tmp_path),
    ]
    assert main(arguments) == 0
    assert (tmp_path / "report.json").exists() and (tmp_path / "samples.png").exists()
    broken = json.loads(annotations.read_text())
    broken["annotations"][0]["category_id"] = 99
    path = tmp_path / "broken.json"
    path.write_text(json.dumps(broken))
    assert main(["check-data", "--annotations", str(path), "--images", str(images)]) == 1
    assert "99" in capsys.readouterr().out


def test_mistakes(made, tmp_path, capsys):
    model, annotations, images = made
    assert "no such config file" in error_of(capsys, "train", "--config", "none.yaml")
    assert "unknown key" in error_of(
        capsys, "train", "--config", ROOT / "configs/base.yaml", "train.batches=1"
    )
    assert "give --config" in error_of(capsys, "evaluate")
    assert "needs --images" in error_of(capsys, "evaluate", "--model", model, "--annotations", annotations)
    assert "no such model file" in error_of(capsys, "predict", "none.keras", ".", "--out", tmp_path)
    assert "no such file, folder or pattern" in error_of(
        capsys, "predict", model, "nothing*", "--out", tmp_path
    )
    message = error_of(
        capsys, "evaluate", "--model", annotations, "--annotations", annotations, "--images", images
    )
    assert "annotations.json: is not a `.keras` model file" in message
    missing = error_of(
        capsys, "evaluate", "--model", model, "--annotations", annotations, "--images", tmp_path / "x"
    )
    assert str(tmp_path / "x") in missing


def test_other_classes(made, tmp_path, capsys):
    """A data set may have fewer classes than the model, in another order, but none that it does not know."""
    model, annotations, images = made
    data = json.loads(annotations.read_text())
    data["categories"] = data["categories"][1::-1]
    kept = [category["id"] for category in data["categories"]]
    data["annotations"] = [a for a in data["annotations"] if a["category_id"] in kept]
    path = tmp_path / "two.json"
    path.write_text(json.dumps(data))
    arguments = ["evaluate", "--model", model, "--annotations", path, "--images", images, "--out", tmp_path]
    assert main([str(a) for a in arguments]) == 0
    found = json.loads((tmp_path / "predictions.json").read_text())
    assert {entry["category_id"] for entry in found} <= set(kept)
    capsys.readouterr()
    data["categories"][0]["name"] = "hexagon"
    path.write_text(json.dumps(data))
    message = error_of(capsys, "evaluate", "--model", model, "--annotations", path, "--images", images)
    assert "two.json: has classes that the model does not know (hexagon)" in message


def test_corrupt_image_while_evaluating(made, tmp_path, capsys):
    model, annotations, images = made
    folder = tmp_path / "images"
    folder.mkdir()
    for path in images.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    victim = sorted(folder.iterdir())[1]
    victim.write_bytes(victim.read_bytes()[:100])
    message = error_of(capsys, "evaluate", "--model", model, "--annotations", annotations, "--images", folder)
    assert victim.name in message


def test_the_picture_is_the_size_of_the_image_or_larger(made, tmp_path):
    model, _, images = made
    first = sorted(images.iterdir())[0]
    main(["predict", str(model), str(first), "--out", str(tmp_path)])
    assert np.array(cv2.imread(str(tmp_path / f"{first.stem}.png")).shape[:2]).min() >= 64
