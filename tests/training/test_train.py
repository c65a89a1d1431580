"""Training as a whole, on generated data of a few images."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import keras
import numpy as np
import pytest
import tensorflow as tf

import mrcnn_tf
from mrcnn_tf.config import ConfigError, load_config, make_config
from mrcnn_tf.training.callbacks import NotFinite, read_rows
from mrcnn_tf.training.checkpoints import save_aside
from mrcnn_tf.training.distribution import make_strategy
from mrcnn_tf.training.folder import move_aside, nobody_else, unrelated
from mrcnn_tf.training.state import read_state
from mrcnn_tf.training.train import train
from tests.tiny import CONFIG, make_model

REFINING = {"refining_samples": 8, "refined_boxes": 20}
ROOT = Path(__file__).resolve().parents[2]


def tiny(**changes):
    """`CONFIG` with dotted keys changed."""
    values = json.loads(json.dumps(CONFIG))
    for key, value in changes.items():
        section = values
        *path, last = key.split("__")
        for part in path:
            section = section.setdefault(part, {})
        section[last] = value
    return make_config(values)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def weights_of(path):
    return mrcnn_tf.load_model(path).get_weights()


def test_a_run_leaves_what_the_readme_promises(here):
    run = train(tiny(export__saved_model=True))
    assert run.finished and run.folder == Path("runs/tiny")
    assert {p.name for p in run.folder.iterdir()} == {
        "config.yaml",
        "history.csv",
        "losses.png",
        "ap.png",
        "metrics.json",
        "predictions.json",
        "validation.png",
        "checkpoints",
        "model.keras",
    }
    assert {p.name for p in (run.folder / "checkpoints").iterdir()} == {
        "best.keras",
        "step_0000002.keras",
        "step_0000004.keras",
    }
    metrics = json.loads((run.folder / "metrics.json").read_text())
    assert {f"{kind}/{name}" for kind in ("bbox", "segm") for name in ("AP", "AP50", "AP75", "AR100")} <= set(
        metrics
    )
    assert {"proposals/recall@100", "proposals/recall@300", "proposals/recall@1000"} <= set(metrics)
    rows = read_rows(run.folder / "history.csv")
    assert [r["step"] for r in rows] == [1, 2, 3, 4]
    assert {
        "loss",
        "mask_loss",
        "learning_rate",
        "images_per_second",
        "proposal_recall",
        "roi_positives",
    } <= set(rows[0])
    for name in ("losses.png", "ap.png", "validation.png"):
        assert cv2.imread(str(run.folder / name)).std() > 5
    assert (here / "saved_models/tiny/1/saved_model.pb").exists() and run.saved_model == Path(
        "saved_models/tiny/1"
    )
    card = json.loads((run.saved_model / "assets.extra/model_card.json").read_text())
    assert card["metrics"] == metrics and card["config"]["name"] == "tiny"


def test_an_earlier_run_is_moved_aside(here, capsys):
    for number in (1, 2):
        Path("runs/a").mkdir(parents=True)
        move_aside(Path("runs/a"))  # nothing is in it
        (Path("runs/a") / "model.keras").write_text(str(number))
        move_aside(Path("runs/a"))
        assert f"the earlier run in runs/a is now in runs/a.{number}" in capsys.readouterr().out
        assert Path(f"runs/a.{number}/model.keras").read_text() == str(number)


class Interrupt(keras.callbacks.Callback):
    """Sends Ctrl-C in the middle of a run."""

    def __init__(self, after):
        super().__init__()
        self.after = after

    def on_train_batch_begin(self, batch, logs=None):
        if batch == self.after:
            signal.raise_signal(signal.SIGINT)


def interrupt_evaluation(monkeypatch, after):
    """Sends SIGTERM in the middle of the evaluation after this step."""
    module = sys.modules["mrcnn_tf.training.train"]
    run_part = module.run_part

    def interrupted(model, *args, **kwargs):
        if int(model.optimizer.iterations) == after:
            signal.raise_signal(signal.SIGTERM)
        return run_part(model, *args, **kwargs)

    monkeypatch.setattr(module, "run_part", interrupted)


@pytest.mark.parametrize(
    "precision,optimizer,refining,where",
    [("float32", "sgd", None, "evaluation"), ("mixed_float16", "adamw", REFINING, "step")],
)
def test_interrupted_and_resumed_is_undisturbed_bit_for_bit(
    here, monkeypatch, precision, optimizer, refining, where
):
    changes = {
        "model__refining": refining,
        "precision": precision,
        "train__optimizer": optimizer,
        "train__steps": 5,
        "train__ema": 0.5,
        "train__checkpoint_every": 100,
        "evaluation__every": 2,
        "train__clip_norm": 1.0,
    }
    whole = train(tiny(name="whole", **changes))
    config = tiny(name="parts", **changes)
    if where == "step":
        stopped = train(config, callbacks=[Interrupt(2)])
    else:
        # A training is not asked to wait for an evaluation; it is made before the next step, or the time after that.
        with monkeypatch.context() as patch:
            interrupt_evaluation(patch, after=2)
            assert not train(config).finished
            stopped = train(config, resume=True)
    assert not stopped.finished
    kept = "step_0000003.keras" if where == "step" else "step_0000002.keras"
    checkpoints = Path("runs/parts/checkpoints")
    assert [p.name for p in checkpoints.glob("step_*")] == [kept]
    assert [v["step"] for v in read_state(checkpoints / kept).validations] == ([2] if where == "step" else [])
    resumed = train(config, resume=True)
    assert resumed.finished
    for a, b in zip(whole.model.get_weights(), resumed.model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(whole.model.optimizer.variables, resumed.model.optimizer.variables, strict=True):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(
        weights_of(checkpoints / "best.keras"), weights_of("runs/whole/checkpoints/best.keras"), strict=True
    ):
        np.testing.assert_array_equal(a, b)
    rows = read_rows(Path("runs/parts/history.csv"))
    assert [r["step"] for r in rows] == [1, 2, 3, 4, 5]
    timing = {"images_per_second"}
    ours, theirs = (
        [{k: v for k, v in entry.items() if k not in timing} for entry in (*states.validations, run.metrics)]
        for states, run in (
            (read_state(checkpoints / "step_0000005.keras"), resumed),
            (read_state(Path("runs/whole/checkpoints/step_0000005.keras")), whole),
        )
    )
    assert ours == theirs and [entry.get("step") for entry in ours] == [2, 4, None]


def test_two_trainings_in_one_folder_and_what_there_is_to_go_on_from(here, capsys):
    """Refused while another one writes there; resumed without a checkpoint it begins, and keeps what is finished."""
    config = tiny(evaluation__every=0, train__steps=2, data__val={"first": 1})
    Path("runs/tiny").mkdir(parents=True)
    with (
        nobody_else(Path("runs/tiny")),
        pytest.raises(ConfigError, match="another training writes to runs/tiny now"),
    ):
        train(config)
    with nobody_else(Path("runs/tiny")):  # given back
        pass
    Path("runs/tiny/checkpoints").mkdir()
    for left in ("runs/tiny/.7.partial.model.keras", "runs/tiny/checkpoints/.7.partial.step_0000002.keras"):
        Path(left).touch()  # by one that was killed while it wrote
    Path("runs/tiny/history.csv").write_text("step,loss\n1,0.5\n2,0.")
    assert train(config, resume=True).finished
    assert (
        "runs/tiny/checkpoints: has no checkpoint to go on from; training begins at step 0"
        in capsys.readouterr().out
    )
    assert not Path("runs/tiny.1").exists() and not list(Path("runs").rglob(".*"))
    assert [r["step"] for r in read_rows(Path("runs/tiny/history.csv"))] == [1, 2]
    other = tiny(evaluation__every=0, train__steps=2, model__fpn__channels=24)
    with pytest.raises(ValueError, match="is of another model .model.fpn.channels: 16 there, 24 here"):
        train(other, resume=True)
    assert load_config("runs/tiny/config.yaml").model.fpn.channels == 16
    assert unrelated(Path("runs/tiny")) is False
    for path in Path("runs/tiny/checkpoints").iterdir():
        path.unlink()
    assert unrelated(Path("runs/tiny")) is True


def test_rows_that_are_not_whole(tmp_path):
    path = tmp_path / "history.csv"
    assert read_rows(path) == []
    path.write_text("step,loss,rate\n1,0.5,0.1\n2,0.25,0.1\n3,0.2")
    assert read_rows(path) == [{"step": 1, "loss": 0.5, "rate": 0.1}, {"step": 2, "loss": 0.25, "rate": 0.1}]
    path.write_text("step,loss,rate\n1,0.5,0.1\n2,0.25\n3,0.2,0.1\n")
    assert [row["step"] for row in read_rows(path)] == [1, 3]
    path.write_text("step,lo")
    assert read_rows(path) == []


REPLICAS = """
import sys, numpy as np, tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
from tests.training.test_train import REFINING, tiny
from mrcnn_tf.training.train import train
for devices in eval(sys.argv[1]):
    run = train(tiny(name=f"r{devices}", precision=sys.argv[2], model__refining=REFINING,
                     train__devices=devices, train__batch_size=4, train__steps=3,
                     train__clip_norm=0.5, evaluation__every=0))
    np.savez(f"w{devices}.npz", *run.model.get_weights())
"""


@pytest.mark.parametrize("precision", ["float32", "mixed_float16"])
def test_two_replicas_are_one(here, precision):
    """Two replicas with two images each, against one with four: the same weights after three steps."""
    done = subprocess.run(
        [sys.executable, "-c", REPLICAS, "(1, 2)", precision],
        cwd=here,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    one, two = np.load("w1.npz"), np.load("w2.npz")
    for name in one.files:
        difference = np.abs(two[name] - one[name])
        if precision == "float32":
            assert difference.max() < 1e-5, name
        else:  # 16 bits can tip the choice of a single RoI, and with it single weights
            assert difference.mean() < 2e-4, name


def environment():
    return {**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}


def test_more_devices_than_there_are():
    devices = len(tf.config.list_logical_devices("CPU"))
    with pytest.raises(
        ConfigError, match=f"train.devices: is {devices + 1}, but there are {devices} CPU devices"
    ):
        make_strategy(devices + 1)


def test_batch_that_is_not_divisible(here):
    code = REPLICAS.replace("train__batch_size=4", "train__batch_size=3")
    done = subprocess.run(
        [sys.executable, "-c", code, "[2]", "float32"],
        env=environment(),
        capture_output=True,
        text=True,
    )
    last = done.stderr.strip().splitlines()[-1]
    assert "train.batch_size: is 3, not divisible by the 2 devices; take 4" in last


def test_loss_that_is_not_finite(here):
    config = tiny(train__learning_rate=1e30, train__steps=20, train__warmup_steps=0, evaluation__every=0)
    with pytest.raises(
        NotFinite, match=r"step \d+: .*_loss.* not finite, on images \d+, \d+\. Lower train.learning_rate"
    ):
        train(config)
    for path in Path("runs/tiny/checkpoints").glob("step_*.keras"):
        assert all(np.isfinite(w).all() for w in weights_of(path))


def test_init_from(here, capsys):
    keras.utils.set_random_seed(4)
    first = make_model()
    save_aside(first, Path("runs/a/model.keras"))
    second = train(tiny(name="b", init_from="runs/a/model.keras", train__steps=2, train__learning_rate=1e-12))
    for a, b in zip(first.trainable_weights, second.model.trainable_weights, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-8)
    with pytest.raises(ConfigError, match="another architecture"):
        train(tiny(name="c", init_from="runs/a/model.keras", model__fpn__channels=24))
    capsys.readouterr()
    third = train(
        tiny(
            name="d",
            init_from="runs/a/model.keras",
            train__steps=2,
            train__learning_rate=1e-12,
            data__train={"classes": ["star", "disc"]},
            data__val={"classes": ["star", "disc"]},
        )
    )
    printed = capsys.readouterr().out
    assert "2 kept: " in printed and "0 new" in printed and "4 left out: ellipse, square" in printed
    rows = [first.class_names.index(name) for name in third.model.class_names]
    theirs, ours = (np.array(model.mask_head.kernel) for model in (first, third.model))
    np.testing.assert_allclose(ours, theirs[rows], atol=1e-8)


def test_accumulated_options_train(here):
    """Colour and scale jitter, TensorBoard, gradient checkpointing, AdamW with focal, GIoU and Dice losses."""
    run = train(
        tiny(
            train__steps=2,
            train__optimizer="adamw",
            train__tensorboard=True,
            data__scale_jitter=[0.5, 1.5],
            data__colour_jitter=[0.4, 0.4, 0.4, 0.1],
            model__backbone__checkpointing=True,
            model__class_loss="sigmoid_focal",
            model__box_loss="giou",
            model__mask_loss="dice",
        )
    )
    assert run.finished and list((run.folder / "tensorboard").glob("events*"))


def test_missing_data(here):
    values = {"data": {"generated": None, "canvas": [64, 64]}, "model": {"min_size": 64, "max_size": 64}}
    with pytest.raises(ConfigError, match=r"data\.train\.annotations is not set"):
        train(make_config(values))
    values["data"]["train"] = {"annotations": "none.json", "images": "none"}
    with pytest.raises(FileNotFoundError, match=r"none\.json"):
        train(make_config(values))
