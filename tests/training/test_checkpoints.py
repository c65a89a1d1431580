import json
import resource

import keras
import numpy as np
import pytest

from mrcnn_tf.training.checkpoints import Checkpoints, intact, load_model, save_aside
from mrcnn_tf.training.optimizers import Schedule, make_optimizer
from tests.tiny import make_model


def small(value=1.0):
    model = keras.Sequential([keras.layers.Input((300,)), keras.layers.Dense(300)])
    for w in model.weights:
        w.assign(np.full(w.shape, value))
    optimizer = make_optimizer(model, name="sgd", schedule=Schedule(0.1), ema=0.9)
    model.compile(optimizer=optimizer)
    return model


def test_restore_has_everything(tmp_path):
    checkpoints = Checkpoints(tmp_path / "c", keep=2)
    model = small(1.0)
    for w in model.optimizer.variables:
        w.assign(np.full(w.shape, 3))
    for step in (10, 20, 30):
        checkpoints.save(model, step, best=step / 100)
    assert checkpoints.steps() == [20, 30]  # the oldest went
    assert json.loads((tmp_path / "c" / "state.json").read_text()).keys() == {"20", "30"}
    fresh = small(0.0)
    assert checkpoints.restore(fresh) == (30, 0.3)
    for a, b in zip(
        fresh.weights + fresh.optimizer.variables, model.weights + model.optimizer.variables, strict=True
    ):
        np.testing.assert_array_equal(a, b)


def test_a_damaged_checkpoint_is_passed_over(tmp_path, capsys):
    checkpoints = Checkpoints(tmp_path, keep=3)
    checkpoints.save(small(1.0), 10, None)
    checkpoints.save(small(2.0), 20, None)
    newest = checkpoints.path(20)
    newest.write_bytes(newest.read_bytes()[:-1000])
    assert not intact(newest)
    model = small(0.0)
    assert checkpoints.restore(model) == (10, None)
    assert model.weights[0].numpy()[0, 0] == 1.0
    assert "step_0000020.keras: damaged" in capsys.readouterr().out


def test_nothing_to_resume_from(tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint to resume from; start without --resume"):
        Checkpoints(tmp_path / "none").restore(small())


def test_full_disk_keeps_the_previous_checkpoint(tmp_path):
    """The operating system's limit on a file's size stands in for a full disk: writing fails half-way, for real."""
    checkpoints = Checkpoints(tmp_path)
    path = checkpoints.save(small(1.0), 10, None)
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Python ignores SIGXFSZ, so that the write fails with an error instead of ending the process.
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(
            OSError, match=r"step_0000020\.keras: could not be written .*free some disk space"
        ):
            checkpoints.save(small(2.0), 20, None)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir() if p.suffix == ".keras"] == [path.name]
    assert checkpoints.restore(small(0.0))[0] == 10


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
