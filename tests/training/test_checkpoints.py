import platform
import re
import resource
import zipfile
from dataclasses import replace

import keras
import numpy as np
import pytest
import tensorflow as tf

import mrcnn_tf
from mrcnn_tf.training.checkpoints import Checkpoints, intact, load_model, save_aside
from mrcnn_tf.training.optimizers import Schedule, make_optimizer
from mrcnn_tf.training.state import state_at_start, versions
from tests.tiny import make_model
from tests.training.test_train import tiny


def small(value=1.0):
    model = keras.Sequential([keras.layers.Input((300,)), keras.layers.Dense(300)])
    for w in model.weights:
        w.assign(np.full(w.shape, value))
    optimizer = make_optimizer(model, name="sgd", schedule=Schedule(0.1), ema=0.9)
    model.compile(optimizer=optimizer)
    return model


def state(model, step=0, values=None, **changes):
    """That of a tiny run whose config is changed by `values`; the model is only asked for its shapes."""
    model.class_names = ["cat", "dog"]
    return replace(state_at_start(tiny(**(values or {})), model, [3, 1, 2]), step=step, **changes)


def restored(checkpoints, model):
    return checkpoints.restore(model, checkpoints.newest(), state(model))


def test_restore_has_everything(tmp_path):
    checkpoints = Checkpoints(tmp_path / "c", keep=2)
    model = small(1.0)
    for w in model.optimizer.variables:
        w.assign(np.full(w.shape, 3))
    for step in (10, 20, 30):
        made = [{"step": step, "segm/AP": 0.1, "per_class": {"cat": float("nan")}}]
        checkpoints.save(model, state(model, step, best=step / 100, validations=made))
    assert checkpoints.steps() == [20, 30]  # the oldest went
    assert [p.name for p in (tmp_path / "c").iterdir() if "step" not in p.name] == []
    fresh = small(0.0)
    found = restored(checkpoints, fresh)
    assert (found.step, found.best, found.validations[0]["segm/AP"]) == (30, 0.3, 0.1)
    assert found.config["train"]["learning_rate"] == 0.01 and found.config["seed"] == 0
    assert found.versions == {
        "mrcnn_tf": mrcnn_tf.__version__,
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }
    for a, b in zip(
        fresh.weights + fresh.optimizer.variables, model.weights + model.optimizer.variables, strict=True
    ):
        np.testing.assert_array_equal(a, b)


def cut(data):
    return data[:-1000]


def one_bit(data):
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


@pytest.mark.parametrize("damage", [cut, one_bit, lambda data: b"", lambda data: data[: len(data) // 2]])
def test_a_damaged_checkpoint_is_passed_over_and_kept(tmp_path, capsys, damage):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (10, 20):
        checkpoints.save(small(step / 10), state(small(), step))
    newest = checkpoints.path(20)
    bad = damage(newest.read_bytes())
    newest.write_bytes(bad)
    assert not intact(newest)
    model = small(0.0)
    assert restored(checkpoints, model).step == 10
    assert model.weights[0].numpy()[0, 0] == 1.0
    assert "step_0000020.keras: damaged, now step_0000020.keras.damaged" in capsys.readouterr().out
    # It neither counts as one of those to keep nor is it overwritten.
    checkpoints.save(small(2.0), state(small(), 20))
    assert checkpoints.steps() == [10, 20]
    assert (tmp_path / "step_0000020.keras.damaged").read_bytes() == bad


def test_whatever_bit_is_wrong_it_is_only_damaged(tmp_path):
    """In the archive's own headers, too, where a bit speaks of encryption, other compressions or places outside."""
    path = tmp_path / "step_0000001.keras"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("metadata.json", "config.json", "model.weights.h5"):
            archive.writestr(name, b"x")
    whole = path.read_bytes()
    assert intact(path)
    found = 0
    for bit in range(8 * len(whole)):
        path.write_bytes(bytes(b ^ (1 << bit % 8) * (i == bit // 8) for i, b in enumerate(whole)))
        found += not intact(path)
    # Dates, versions and permissions may be what they like.
    assert found > 0.5 * 8 * len(whole)
    assert not intact(tmp_path / "none.keras")
    with pytest.raises(OSError, match=r"folder\.keras: cannot be read"):
        (tmp_path / "folder.keras").mkdir()
        intact(tmp_path / "folder.keras")


def test_nothing_to_go_on_from(tmp_path):
    assert Checkpoints(tmp_path / "none").newest() is None
    checkpoints = Checkpoints(tmp_path)
    path = checkpoints.save(small(), state(small(), 10))
    path.write_bytes(cut(path.read_bytes()))
    for _ in range(2):  # the second time it has its other name already
        with pytest.raises(
            ValueError, match=r"no good checkpoint is left, only step_0000010\.keras\.damaged; put a copy"
        ):
            checkpoints.newest()


@pytest.mark.parametrize(
    "values,changes,message",
    [
        (
            {"model__fpn__channels": 24},
            {"shapes": [[1]]},
            "is of another model (model.fpn.channels: 16 there, 24 here)",
        ),
        (
            {"train__optimizer": "adamw"},
            {"shapes": []},
            "is of another model (train.optimizer: sgd there, adamw here)",
        ),
        ({}, {"class_names": ["dog", "cat"]}, "another model (classes: cat, dog there, dog, cat here)"),
    ],
)
def test_a_checkpoint_of_another_model(tmp_path, values, changes, message):
    checkpoints = Checkpoints(tmp_path)
    path = checkpoints.save(small(1.0), state(small(), 10))
    before, model = path.read_bytes(), small(0.5)
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        checkpoints.restore(model, 10, replace(state(model, 0, values), **changes))
    assert str(error.value).startswith(str(path)) and "init_from" in str(error.value)
    assert path.read_bytes() == before and model.weights[0].numpy()[0, 0] == 0.5


def test_other_settings_images_and_versions_are_told(tmp_path, capsys):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(small(1.0), state(small(), 10, versions={**versions(), "keras": "3.11.0"}))
    model = small()
    here = replace(state(model, 0, {"train__learning_rate": 0.5}), images=5)
    assert checkpoints.restore(model, 10, here).step == 10
    out = capsys.readouterr().out
    assert "going on with other settings than before: train.learning_rate: 0.01 there, 0.5 here" in out
    assert "going on with other training images than before" in out
    assert f"made with keras 3.11.0, here {keras.__version__}: the last bits may differ" in out
    checkpoints.save(small(1.0), state(small(), 20))
    restored(checkpoints, small())
    assert capsys.readouterr().out == ""


def test_a_checkpoint_of_another_version(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    model = small(0.5)
    path = checkpoints.save(small(1.0), state(small(), 10, format=7, versions={"mrcnn_tf": "9.0"}))
    with pytest.raises(
        ValueError,
        match=r"step_0000010\.keras: has a training state of format 7, .* made it \(mrcnn_tf 9\.0\)",
    ):
        restored(checkpoints, model)
    unreadable = {**state(small()).config, "moon": 1}
    checkpoints.save(small(1.0), state(small(), 10, config=unreadable, versions={"mrcnn_tf": "9.0"}))
    with pytest.raises(
        ValueError, match=r"cannot read \(config: moon: unknown key.* made with mrcnn_tf 9\.0"
    ):
        restored(checkpoints, model)
    save_aside(small(1.0), path)
    with pytest.raises(ValueError, match=r"a model without the state of a training; start .* init_from="):
        restored(checkpoints, model)
    assert model.weights[0].numpy()[0, 0] == 0.5


def test_full_disk_keeps_the_previous_checkpoint(tmp_path):
    """The operating system's limit on a file's size stands in for a full disk: writing fails half-way, for real."""
    checkpoints = Checkpoints(tmp_path)
    path = checkpoints.save(small(1.0), state(small(), 10))
    before = path.read_bytes()
    later = state(small(), 20)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Python ignores SIGXFSZ, so that the write fails with an error instead of ending the process.
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(
            OSError, match=r"step_0000020\.keras: could not be written .*free some disk space"
        ):
            checkpoints.save(small(2.0), later)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert restored(checkpoints, small(0.0)).step == 10


def test_load_model(tmp_path):
    model = make_model()
    path = save_aside(model, tmp_path / "m.keras")
    loaded = load_model(path)
    for a, b in zip(loaded.weights, model.weights, strict=True):
        np.testing.assert_array_equal(a, b)


def test_files_that_are_no_models(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.keras: no such model file"):
        load_model(tmp_path / "none.keras")
    text = tmp_path / "text.keras"
    text.write_text("hello")
    with pytest.raises(ValueError, match=r"text\.keras: is not a `\.keras` model file"):
        load_model(text)
    with pytest.raises(ValueError, match="is a folder"):
        load_model(tmp_path)
    other = tmp_path / "other.keras"
    small().save(other)
    with pytest.raises(ValueError, match=r"other\.keras: holds a Sequential, not a model of mrcnn_tf"):
        load_model(other)
