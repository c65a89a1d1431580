"""Two workers on one machine, over the loopback interface, against one process on the same global batch."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from mrcnn_tf.config import ConfigError
from mrcnn_tf.layers.conv import BatchNorm
from mrcnn_tf.schema import Config
from mrcnn_tf.training import distribution, workers
from mrcnn_tf.training.callbacks import read_rows
from mrcnn_tf.training.train import train
from tests.training.test_train import tiny

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 500  # seconds after which workers are ended: none may hang a test
PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")
PATHS = {"annotations": "annotations.json", "images": "images"}
WRITES = ("open", "os.rename", "os.remove")


WORKERS = 2


class Interrupt(keras.callbacks.Callback):
    """Tells one worker alone to stop, in the middle of a step."""

    def on_train_batch_begin(self, batch, logs=None):
        if batch == 2 and number() == 1:
            signal.raise_signal(signal.SIGTERM)


def number() -> int:
    """Of this worker; 0 for one process alone."""
    return json.loads(os.environ.get("TF_CONFIG", '{"task": {"index": 0}}'))["task"]["index"]


def five_steps(precision: str, **changes: Any) -> Config:
    """A run of five steps on four images each; without evaluation but in float32."""
    settings = {"name": precision, "precision": precision, "train__batch_size": 4, "train__steps": 5}
    if precision == "float32":
        changes |= {
            "train__ema": 0.9,
            "train__clip_norm": 1.0,
            "evaluation__batch_size": 3,
            "evaluation__every": 4,
        }
    else:
        train_set = {key: f"data/shapes/train/{name}" for key, name in PATHS.items()}
        changes |= {"data__generated": None, "data__train": train_set}
    return tiny(**settings, **changes)


def train_all(alone: bool) -> None:
    """Trains in every precision and leaves the weights.

    Alone, 16 bits are on two devices of this process, which round their halves of a batch as two workers do.
    Workers are stopped in the first run, by a signal to one of them, and go on with it.
    """
    if alone:
        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * WORKERS)
    written = []
    sys.addaudithook(
        lambda event, args: written.append((event, *map(str, args))) if event in WRITES else None
    )
    for precision in PRECISIONS:
        devices = {"train__devices": WORKERS} if alone and precision != "float32" else {}
        config = five_steps(precision, **devices)
        stopped = precision == "float32" and not alone
        if stopped:
            assert not train(config, callbacks=[Interrupt()]).finished
        run = train(config, resume=stopped)
        np.savez(f"{precision}_{number()}.npz", *run.model.get_weights())
    mine = [w for w in written if "runs" in w[1] and (w[0] != "open" or "w" in w[2])]
    Path(f"written_{number()}.json").write_text(json.dumps(mine))


def addresses(count: int) -> list[str]:
    """Of ports that were free a moment ago."""
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    out = [f"127.0.0.1:{probe.getsockname()[1]}" for probe in probes]
    for probe in probes:
        probe.close()
    return out


def start(code: str, folders: list[Path], cluster: list[str] | None = None) -> list[subprocess.Popen]:
    """Processes that run Python code, each in its folder; together if they are given addresses."""
    processes = []
    for index, folder in enumerate(folders):
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
        if cluster:
            task = {"type": "worker", "index": index}
            environment["TF_CONFIG"] = json.dumps({"cluster": {"worker": cluster}, "task": task})
        options: dict[str, Any] = {"cwd": folder, "env": environment, "text": True}
        options |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        processes.append(subprocess.Popen([sys.executable, "-c", code], **options))
    return processes


def finish(processes: list[subprocess.Popen]) -> list[tuple[int, str, str]]:
    """Exit status, output and errors of each; all are ended when one takes too long."""
    out = []
    for process in processes:
        try:
            said = process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            for other in processes:
                other.kill()
            said = process.communicate()
        out.append((process.returncode, *said))
    return out


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """The folders of one process and of two workers that trained alike, and what the workers printed."""
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    code = "from tests.training.test_multi_worker import train_all; train_all({})"
    processes = start(code.format(False), [two] * WORKERS, addresses(WORKERS))
    said = finish(processes + start(code.format(True), [one]))
    for status, _, errors in said:
        assert status == 0, errors[-3000:]
    return one, two, [output for _, output, _ in said[:WORKERS]]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_two_workers_are_one_process(both, precision):
    """Though one of them, in float32, stopped both in the middle, and they went on."""
    one, two, _ = both
    expected = np.load(one / f"{precision}_0.npz")
    for worker in range(WORKERS):
        got = np.load(two / f"{precision}_{worker}.npz")
        for name in expected.files:
            np.testing.assert_allclose(got[name], expected[name], atol=1e-5, rtol=0)


def test_the_evaluation_is_split_and_gives_the_same_figures(both):
    one, two, _ = both
    expected, got = (json.loads((f / "runs/float32/metrics.json").read_text()) for f in (one, two))
    assert len([key for key in expected if key.startswith(("bbox/", "segm/"))]) >= 24
    timing = "images_per_second"
    assert {k: v for k, v in got.items() if k != timing} == {k: v for k, v in expected.items() if k != timing}
    entries = [json.loads((f / "runs/float32/predictions.json").read_text()) for f in (one, two)]
    assert [e["image_id"] for e in entries[0]] == [e["image_id"] for e in entries[1]] and entries[0]
    np.testing.assert_allclose([e["score"] for e in entries[1]], [e["score"] for e in entries[0]], atol=1e-5)


def test_only_the_chief_writes_and_reports(both):
    one, two, said = both
    assert {p.name for p in (two / "runs/float32").iterdir()} == {
        p.name for p in (one / "runs/float32").iterdir()
    }
    steps = [[row["step"] for row in read_rows(f / "runs/float32/history.csv")] for f in (one, two)]
    assert steps == [[1, 2, 3, 4, 5]] * 2
    for precision in PRECISIONS:
        losses = [[r["loss"] for r in read_rows(f / f"runs/{precision}/history.csv")] for f in (one, two)]
        np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)
    chief, other = (json.loads((two / f"written_{i}.json").read_text()) for i in (0, 1))
    assert any("model.keras" in name for _, name, *_ in chief)
    # What it found in its part of the evaluation goes through a file; for the rest it has no hands.
    assert {Path(name).name.partition(".partial")[2] for _, name, *_ in other} == {"..from_worker_1.pickle"}
    assert "stopped after step 3" in said[0] and "run folder" in said[0]
    assert [line for line in said[1].splitlines() if line] == [said[1].splitlines()[0]]
    assert said[1].startswith("worker 1 of 2, at 127.0.0.1:")


def agree() -> None:
    """Each of the workers' agreements once, with its failure; at the end worker 1 dies. Run by two workers."""
    # A folder of its own for each, and one for both: the current one's parent.
    strategy = distribution.make_strategy("auto")
    me, shared, own = workers.worker(strategy), Path("..").resolve(), Path.cwd()
    assert (workers.workers(strategy), workers.is_chief(strategy)) == (2, me == 0)
    assert workers.gathered(strategy, 2.0**53 - me) == [2.0**53, 2.0**53 - 1]
    assert [workers.anywhere(strategy, flag) for flag in (False, me == 1)] == [False, True]
    assert workers.from_chief(strategy, lambda: 5 + 1 // (1 - me)) == 6  # fails if it is called elsewhere
    workers.must_agree(strategy, 7, "seven")
    with pytest.raises(ConfigError, match="^who: worker 0 and worker 1 differ$"):
        workers.must_agree(strategy, me, "who")
    with workers.chief_first(strategy):
        assert (shared / "made").exists() == (me == 1)
        (shared / "made").touch()
    workers.check_shared(strategy, shared)
    workers.PATIENCE = 0.5
    with pytest.raises(
        ConfigError, match="as worker 0 sees it is not what worker 1 sees; all workers need one"
    ):
        workers.check_shared(strategy, own)
    values = workers.handed_to_chief(strategy, shared, {"from": np.arange(me + 1)})
    assert values is None if me else [v["from"].tolist() for v in values] == [[0], [0, 1]]
    workers.gathered(strategy, 0)
    assert not list(shared.glob(".*")) and not list(own.glob(".*"))
    with pytest.raises(
        ConfigError, match="batch_size: is 3, not divisible by the 2 devices of 2 workers; take 4"
    ):
        distribution.check_split(strategy, 3)

    batches = distribution.split_batches(
        strategy, lambda count, wanted: tf.data.Dataset.from_tensors((count, wanted[0]))
    )
    assert [int(strategy.experimental_local_results(v)[0]) for v in next(iter(batches))] == [2, me]

    x = np.random.default_rng(0).normal(2.0, 3.0, (4, 5, 6, 3)).astype(np.float32)
    mine, mean, variance = x[2 * me : 2 * me + 2], x.mean((0, 1, 2)), x.var((0, 1, 2))
    layer, out = normalised(strategy, "sync_batch", mine)
    np.testing.assert_allclose(out, (mine - mean) / np.sqrt(variance + 1e-5), atol=1e-4)
    np.testing.assert_allclose(layer.moving_mean, mean, rtol=1e-4)
    np.testing.assert_allclose(layer.moving_variance, variance, rtol=1e-4)
    # Without it each sees its own images, and only what inference will use is averaged.
    layer, out = normalised(strategy, "batch", mine)
    np.testing.assert_allclose(np.mean(out, (0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(layer.moving_mean, mean, rtol=1e-4)

    with workers.lost_workers_explained(strategy):
        workers.gathered(strategy, 0)
        if me == 1:
            os._exit(3)
        workers.leave_together(strategy)  # with its work done; but the other one would need it


def normalised(strategy: tf.distribute.Strategy, mode: str, x: np.ndarray) -> tuple[BatchNorm, np.ndarray]:
    """A batch norm that remembers nothing but this worker's training step, and what it made of `x`."""
    with strategy.scope():
        layer = BatchNorm(mode, momentum=0.0)
        layer.build(x.shape)
    out = tf.function(lambda: strategy.run(lambda: layer(tf.constant(x), training=True)))()
    return layer, strategy.experimental_local_results(out)[0].numpy()


def test_ctrl_c_ends_a_worker_that_waits_for_others(tmp_path):
    code = "from mrcnn_tf.cli import main; main(['train'])"
    (waiting,) = start(code, [tmp_path], addresses(2))
    first = waiting.stdout.readline()  # and then TensorFlow waits
    time.sleep(2)
    waiting.send_signal(signal.SIGINT)
    try:
        assert waiting.wait(timeout=60) == -signal.SIGINT and first.startswith("worker 0 of 2")
    finally:
        waiting.kill()
        waiting.communicate()


def test_what_workers_must_agree_on_and_one_that_dies(tmp_path):
    folders = [tmp_path / "0", tmp_path / "1"]
    for folder in folders:
        folder.mkdir()
    code = "from tests.training.test_multi_worker import agree; agree()"
    said = finish(start(code, folders, addresses(2)))
    assert said[1][0] == 3, said[1][2][-3000:]
    assert said[0][0] == 1
    last = said[0][2].strip().splitlines()[-1]
    assert last.startswith(
        "mrcnn_tf.training.workers.WorkerLost: worker 0 of 2: task 1 has gone; see what it said, then start all"
    ), last
