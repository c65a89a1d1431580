"""`init_from` a config: the phases of MR R-CNN in one command."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import tensorflow as tf
import yaml

from mrcnn_tf.config import ConfigError, dump_config, load_config
from mrcnn_tf.models.mask_refining_rcnn import MaskRefiningRCNN
from mrcnn_tf.training.checkpoints import load_model
from mrcnn_tf.training.phases import phase_config
from mrcnn_tf.training.train import run_phase, train
from tests.tiny import CONFIG
from tests.training.test_train import REFINING, Interrupt


@pytest.fixture
def configs(tmp_path, monkeypatch):
    """`first.yaml`, a Mask R-CNN, and `second.yaml`, an MR R-CNN on top of it, not in the current folder."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "configs"
    folder.mkdir()
    first = {**CONFIG, "name": "first", "evaluation": {"every": 0, "pictures": 0}}
    first["train"] = {**CONFIG["train"], "steps": 2}
    (folder / "first.yaml").write_text(yaml.safe_dump(first))
    second = {"base": "first.yaml", "name": "second", "init_from": "first.yaml", "seed": 3}
    second |= {"model": {"refining": REFINING}, "train": {"learning_rate": 1e-12}}
    second |= {"evaluation": {"pictures": 3, "picture_score": 0.0}, "output": "out/{name}/s3"}
    (folder / "second.yaml").write_text(yaml.safe_dump(second))
    return folder


def test_both_phases_of_a_training_that_was_broken_off_in_the_first(configs, monkeypatch):
    config = load_config(configs / "second.yaml", ["data.flip=false"])
    fit = MaskRefiningRCNN.__mro__[1].fit
    calls = []

    def interrupted(model, *args, callbacks, **kwargs):
        calls.append(type(model).__name__)
        return fit(model, *args, callbacks=callbacks + ([Interrupt(0)] if len(calls) == 1 else []), **kwargs)

    monkeypatch.setattr(MaskRefiningRCNN.__mro__[1], "fit", interrupted)
    stopped = train(config)
    assert not stopped.finished and stopped.folder == Path("out/first/s3")
    run = train(config, resume=True)
    assert calls == ["MaskRCNN", "MaskRCNN", "MaskRefiningRCNN"]
    rows = Path("out/first/s3/history.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows[1:]] == ["1", "2"]

    assert run.finished and isinstance(run.model, MaskRefiningRCNN)
    # The first phase lies beside the second, and has its seed and data.
    before = load_config("out/first/s3/config.yaml")
    assert (before.seed, before.data.flip, before.train.learning_rate) == (3, False, 0.01)
    source = load_model("out/first/s3/model.keras")
    for mine, other in (
        (run.model.backbone, source.backbone),
        (run.model.refining_box_head, source.box_head),
        (run.model.mask_head, source.mask_head),
    ):
        for a, b in zip(mine.get_weights(), other.get_weights(), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-8)
    assert cv2.imread("out/second/s3/comparison.png").std() > 5
    metrics = json.loads(Path("out/second/s3/metrics.json").read_text())
    assert metrics["bbox/AP"] >= 0
    assert load_config("out/second/s3/config.yaml") == config


@pytest.mark.parametrize(
    "overrides,again",
    [
        ([], None),
        (["train.log_every=3", "evaluation.every=2", "name=other", "model.refining.alpha=0.5"], None),
        (["data.flip=false"], "data.flip: True there, False here"),
        (["model.fpn.channels=24"], "model.fpn.channels: 16 there, 24 here"),
        (["seed=4", "output=out/{name}/s3"], "seed: 3 there, 4 here"),
    ],
)
def test_a_finished_phase_is_trained_again_only_if_it_would_be_another_model(
    configs, monkeypatch, capsys, overrides, again
):
    module = sys.modules["mrcnn_tf.training.train"]
    first = phase_config(load_config(configs / "second.yaml"))
    first.run_folder.mkdir(parents=True)
    (first.run_folder / "config.yaml").write_text(dump_config(first))
    (first.run_folder / "model.keras").touch()
    (first.run_folder / "metrics.json").touch()
    calls = []

    def fake(config, resume=False):
        calls.append((config.name, resume))
        return module.Run(config.run_folder, None, {}, None, finished=True)

    monkeypatch.setattr(module, "train", fake)
    phase = phase_config(load_config(configs / "second.yaml", overrides))
    assert run_phase(phase, "first.yaml", tf.distribute.get_strategy()) is None
    out = capsys.readouterr().out
    assert calls == ([("first", False)] if again else [])
    assert (again or "starting from out/first/s3/model.keras") in out


@pytest.mark.parametrize("left", [[], ["model.keras"]])
def test_a_phase_that_was_killed_is_gone_on_with(configs, monkeypatch, left):
    """Before its first checkpoint (training begins at step 0, and nothing is moved aside), or while it evaluated."""
    module = sys.modules["mrcnn_tf.training.train"]
    phase = phase_config(load_config(configs / "second.yaml"))
    phase.run_folder.mkdir(parents=True)
    (phase.run_folder / "config.yaml").write_text(dump_config(phase))
    for name in left:
        (phase.run_folder / name).touch()
    resumed = []

    def fake(config, resume=False):
        resumed.append(resume)
        return module.Run(config.run_folder, None, {}, None, finished=True)

    monkeypatch.setattr(module, "train", fake)
    run_phase(phase, "first.yaml", tf.distribute.get_strategy())
    assert resumed == [True]


def test_two_phases_cannot_share_a_folder(configs):
    with pytest.raises(ConfigError, match="would write to here like this config; give each a name"):
        train(load_config(configs / "second.yaml", ["output=here"]))


def test_a_config_that_is_not_there(configs):
    with pytest.raises(ConfigError, match=r"none\.yaml: no such config file"):
        train(load_config(configs / "second.yaml", ["init_from=none.yaml"]))
