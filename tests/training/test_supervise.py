"""Restarts: by a stand-in for training that dies as it is told to, and of a training that is killed for real."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from mrcnn_tf.training import supervise
from mrcnn_tf.training.callbacks import read_rows
from mrcnn_tf.training.supervise import LOST, supervised
from mrcnn_tf.training.train import train
from tests.tiny import CONFIG
from tests.training.test_train import ROOT, environment, tiny, weights_of

# In place of Python: notes its arguments, writes the run's config if told to, and ends as the next line of `plan` says.
STAND_IN = """#!/bin/bash
echo "$@" >> calls
step=$(head -n 1 plan); sed -i 1d plan
case $step in
    *config*) mkdir -p run; echo x > run/new; mv run/new run/config.yaml ;;
esac
case $step in
    kill*) kill -9 $$ ;;
    wait*) trap 'exit 130' TERM; touch waiting; while true; do sleep 0.05; done ;;
    *) exit ${step%% *} ;;
esac
"""


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Runs `supervised` with a plan; gives its status and the arguments of each start."""
    monkeypatch.chdir(tmp_path)
    script = tmp_path / "python"
    script.write_text(STAND_IN)
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    monkeypatch.setattr(supervise, "PAUSE", 0.0)

    def run(plan: list[str], restarts: int = 3) -> tuple[int, list[str]]:
        Path("plan").write_text("".join(f"{line}\n" for line in plan))
        Path("calls").unlink(missing_ok=True)
        status = supervised(["--config", "c.yaml", "train.steps=3"], Path("run"), restarts)
        return status, [line.split("train ", 1)[1] for line in Path("calls").read_text().splitlines()]

    return run


PLAIN = "--config c.yaml train.steps=3"


@pytest.mark.parametrize("status", [0, 1, 2, 130])
def test_an_end_that_was_explained_is_one(stand_in, status):
    assert stand_in([str(status)]) == (status, [PLAIN])


def test_goes_on_from_what_it_made_itself(stand_in, capfd):
    plan = ["kill", "kill with config", f"{LOST}", "0"]
    assert stand_in(plan) == (0, [PLAIN, PLAIN, f"{PLAIN} --resume", f"{PLAIN} --resume"])
    errors = capfd.readouterr().err
    assert "training was killed by SIGKILL; restart 1 of 3" in errors
    assert "training lost a worker; restart 3 of 3" in errors


def test_an_earlier_run_is_not_gone_on_with(stand_in):
    Path("run").mkdir()
    Path("run/config.yaml").write_text("of an earlier run, which the first start would have moved aside")
    assert stand_in(["kill", "kill with config", "0"]) == (0, [PLAIN, PLAIN, f"{PLAIN} --resume"])


def test_restarts_end(stand_in):
    assert stand_in(["kill"] * 5, restarts=2) == (128 + 9, [PLAIN] * 3)
    assert stand_in([str(LOST)] * 5, restarts=1) == (LOST, [PLAIN] * 2)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_is_handed_on_and_ends_both(stand_in, number):
    before = signal.getsignal(number)

    def send():
        while not Path("waiting").exists():
            time.sleep(0.02)
        os.kill(os.getpid(), number)

    threading.Thread(target=send).start()
    assert stand_in(["wait with config", "0"]) == (130, [PLAIN])
    assert signal.getsignal(number) is before


def children(pid: int) -> list[int]:
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_killed_while_evaluating_and_while_writing_is_undisturbed_bit_for_bit(tmp_path, monkeypatch):
    """kill -9, once in each; the restarted run ends by itself with the weights of one that nobody touched."""
    monkeypatch.chdir(tmp_path)
    changes = {"train__steps": 5, "train__ema": 0.5, "evaluation__every": 3}
    values = json.loads(json.dumps(CONFIG))
    values["train"].update(steps=5, ema=0.5)
    values["evaluation"]["every"] = 3
    Path("killed.yaml").write_text(yaml.safe_dump({**values, "name": "killed"}))
    command = [
        sys.executable,
        "-m",
        "mrcnn_tf.cli",
        "train",
        "--config",
        "killed.yaml",
        "--max-restarts",
        "9",
    ]
    with open("log", "w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment())
    try:
        # The bar of an evaluation is drawn, and then: a file that is not whole yet is there.
        for seen in (
            lambda: "evaluating" in Path("log").read_text(),
            lambda: any(Path("runs/killed/checkpoints").glob(".*.partial.step_0000004.keras")),
        ):
            deadline = time.monotonic() + 300
            while not seen() and time.monotonic() < deadline:
                assert process.poll() is None, Path("log").read_text()[-3000:]
                time.sleep(0.001)
            os.kill(children(process.pid)[0], signal.SIGKILL)
            time.sleep(0.5)
        whole = train(tiny(name="whole", **changes))
        assert process.wait(timeout=300) == 0, Path("log").read_text()[-3000:]
    finally:
        process.kill()
    log = Path("log").read_text()
    assert log.count("was killed by SIGKILL") == 2 and log.count("going on from step 2") == 2
    for a, b in zip(weights_of("runs/killed/model.keras"), whole.model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    figures = [json.loads(Path(f"runs/{name}/metrics.json").read_text()) for name in ("killed", "whole")]
    assert figures[0].pop("images_per_second") and figures[1].pop("images_per_second")
    assert figures[0] == figures[1]
    assert [row["step"] for row in read_rows(Path("runs/killed/history.csv"))] == [1, 2, 3, 4, 5]
    assert sorted(p.name for p in Path("runs/killed/checkpoints").iterdir()) == [
        "best.keras",
        "step_0000004.keras",
        "step_0000005.keras",
    ]
    assert not (ROOT / "runs/killed").exists()
