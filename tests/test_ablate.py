"""`mrcnn ablate` with a training that takes no time, its statistics, and the sweep over alpha."""

from __future__ import annotations

import csv
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mrcnn_tf import ablate as module
from mrcnn_tf.ablate import ablate, plan
from mrcnn_tf.cli import main, parser
from mrcnn_tf.config import dump_config, load_config
from mrcnn_tf.evaluation import run as evaluation_run

METRICS = ("bbox/AP", "segm/AP")
# What the fake trainings measure, by config and seed.
BOX_AP = {"plain": [0.30, 0.32, 0.31], "aware": [0.33, 0.34, 0.35], "other": [0.30, 0.30, 0.30]}
CHILD = """
import json, pathlib, sys
folder, metrics, log = pathlib.Path(sys.argv[1]), sys.argv[2], sys.argv[3]
with open(log, "a") as file:
    print(folder.parent.name, folder.name, file=file)
if metrics == "broken":
    sys.exit(1)
(folder / "metrics.json").write_text(metrics)
"""


@pytest.fixture
def configs(tmp_path):
    for name in BOX_AP:
        (tmp_path / f"{name}.yaml").write_text(f"name: {name}\ntrain: {{steps: 5, warmup_steps: 0}}\n")
    return [str(tmp_path / f"{name}.yaml") for name in ("plain", "aware")]


@pytest.fixture
def training(tmp_path, monkeypatch):
    """Replaces `mrcnn train`; tells which runs were started, and makes chosen ones fail."""

    class Training:
        fails: set[tuple[str, int]] = set()
        log = tmp_path / "log"

        @property
        def started(self):
            return (
                [tuple(line.split()) for line in self.log.read_text().splitlines()]
                if self.log.exists()
                else []
            )

    def command(run):
        run.folder.mkdir(parents=True, exist_ok=True)
        (run.folder / "config.yaml").write_text(dump_config(run.config))
        name, seed = run.config.name, run.config.seed
        metrics = {"bbox/AP": BOX_AP[name][seed], "segm/AP": -1, "images": 4, "per_class": {}}
        text = "broken" if (name, seed) in Training.fails else json.dumps(metrics)
        return [sys.executable, "-c", CHILD, str(run.folder), text, str(Training.log)]

    monkeypatch.setattr(module, "command", command)
    return Training()


def table(out):
    with (out / "table.csv").open(newline="") as file:
        return {(row["config"], row["metric"]): row for row in csv.DictReader(file)}


class TestRuns:
    def test_table(self, configs, training, tmp_path, capsys):
        out = tmp_path / "out"
        assert ablate(configs, seeds=[0, 1, 2], out=out, metrics=METRICS)
        # All configs of a seed before the next.
        assert training.started[:3] == [("plain", "seed0"), ("aware", "seed0"), ("plain", "seed1")]
        row = table(out)["aware", "bbox/AP"]
        assert float(row["mean"]) == pytest.approx(0.34) and float(row["spread"]) == pytest.approx(0.01)
        # Differences 0.03, 0.02, 0.04: mean 0.03, standard deviation 0.01.
        assert row["baseline"] == "plain" and float(row["difference"]) == pytest.approx(0.03)
        assert float(row["high"]) - 0.03 == pytest.approx(4.30265 * 0.01 / math.sqrt(3))
        assert [float(row[f"seed {s}"]) for s in range(3)] == BOX_AP["aware"]
        assert table(out)["aware", "segm/AP"]["mean"] == ""  # -1 is COCO's "nothing to find", not a number
        text = (out / "table.md").read_text()
        assert "| plain | 3 of 3 | 0.3100 ± 0.0100 |  | - |  |" in text
        assert "| aware | 3 of 3 | 0.3400 ± 0.0100 | +0.0300 [+0.0052, +0.0548] | - | - |" in text
        shown = capsys.readouterr().out
        assert "[4/6] aware, seed 1, about 0 min left" in shown and text in shown

    def test_finished_runs_are_kept(self, configs, training, tmp_path, capsys):
        out = tmp_path / "out"
        ablate(configs[:1], seeds=[0], out=out, metrics=METRICS)
        ablate(configs, seeds=[0, 1], out=out, metrics=METRICS)
        assert training.started == [
            ("plain", "seed0"),
            ("aware", "seed0"),
            ("plain", "seed1"),
            ("aware", "seed1"),
        ]
        assert "1 of 4 runs are finished already" in capsys.readouterr().out
        ablate(configs, seeds=[0, 1], out=out, metrics=["bbox/AP"], baseline="aware")
        assert len(training.started) == 4  # another table of the same runs costs nothing
        assert float(table(out)["plain", "bbox/AP"]["difference"]) == pytest.approx(-0.025)

    def test_a_failure_does_not_stop_the_others(self, configs, training, tmp_path, capsys):
        out = tmp_path / "out"
        training.fails.add(("plain", 1))
        assert not ablate(configs, seeds=[0, 1, 2], out=out, metrics=METRICS)
        assert len(training.started) == 6
        message = capsys.readouterr().err
        assert "1 of 6 runs failed" in message and "plain, seed 1: exit status 1" in message
        row = table(out)["aware", "bbox/AP"]
        # Three seeds of its own, two that the baseline has too: differences 0.03 and 0.04.
        assert (row["seeds"], row["pairs"]) == ("3", "2") and float(row["difference"]) == pytest.approx(0.035)
        training.fails.clear()
        assert ablate(configs, seeds=[0, 1, 2], out=out, metrics=METRICS)
        assert training.started[6:] == [("plain", "seed1")]

    def test_one_config_one_seed(self, configs, training, tmp_path):
        assert ablate(configs[:1], seeds=[2], out=tmp_path / "out", metrics=["bbox/AP"])
        text = (tmp_path / "out" / "table.md").read_text()
        assert "| plain | 1 of 1 | 0.3100 |" in text and "difference" not in text.lower()

    def test_an_unknown_metric(self, configs, training, tmp_path, capsys):
        out = tmp_path / "out"
        assert ablate(configs, seeds=[0], out=out, metrics=["box/AP"])
        assert capsys.readouterr().err.count("warning: metric box/AP: not in") == 1
        with pytest.raises(ValueError, match=r"metric box/AP: not in .*there are bbox/AP, segm/AP, images"):
            ablate(configs, seeds=[0], out=out, metrics=["box/AP"])

    def test_a_run_of_another_config(self, configs, training, tmp_path):
        out = tmp_path / "out"
        ablate(configs, seeds=[0], out=out, metrics=METRICS)
        with pytest.raises(
            ValueError, match=r"train\.steps: 5 there, 6 here\); choose another --out, or delete"
        ):
            ablate(configs, seeds=[0], out=out, metrics=METRICS, overrides=["train.steps=6"])
        assert len(training.started) == 2
        (out / "plain" / "seed0" / "config.yaml").unlink()
        with pytest.raises(ValueError, match="has a metrics.json but no config.yaml"):
            ablate(configs, seeds=[0], out=out, metrics=METRICS)

    def test_damaged_metrics(self, configs, training, tmp_path):
        ablate(configs, seeds=[0], out=tmp_path, metrics=METRICS)
        (tmp_path / "plain" / "seed0" / "metrics.json").write_text("{")
        with pytest.raises(ValueError, match=r"metrics\.json: not valid JSON; delete the folder"):
            ablate(configs, seeds=[0], out=tmp_path, metrics=METRICS)


def test_does_not_wait_for_tensorflow(tmp_path):
    """The trainings are other processes; this one holds none of their memory."""
    code = (
        "import sys; sys.modules['tensorflow'] = None; from mrcnn_tf.cli import main; "
        "sys.exit(main(['ablate', 'none.yaml', '--out', 'x']))"
    )
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.returncode == 1 and "none.yaml: no such config file" in done.stderr


class TestCommand:
    def test_is_what_the_command_line_takes(self, configs, tmp_path):
        out = tmp_path / "a folder: with, {odd} #letters"
        with pytest.raises(ValueError, match="name"):
            plan(configs, [3], out)  # braces are for {name}
        out = tmp_path / "a folder: with #letters"
        for run in plan(configs, [3], out, ["train.batch_size=7"]):
            options = parser().parse_args(module.command(run)[3:])
            config = load_config(options.config, options.overrides)
            assert config == run.config and not options.resume
            assert config.run_folder == out / config.name / "seed3"
            assert config.seed == 3 and config.train.batch_size == 7 and not config.export.saved_model

    def test_goes_on_from_a_checkpoint(self, configs, tmp_path):
        run = plan(configs, [0], tmp_path)[0]
        (run.folder / "checkpoints").mkdir(parents=True)
        assert "--resume" not in module.command(run)
        (run.folder / "checkpoints" / "step_0000002.keras").touch()
        assert "--resume" in module.command(run)

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_a_stop_waits_for_the_child(self, number, tmp_path):
        """As a terminal does it, SIGINT goes to both; SIGTERM is handed on."""
        code = (
            "import signal, sys, time, pathlib\n"
            "def stop(*_):\n    time.sleep(0.5)\n    pathlib.Path('saved').touch()\n    sys.exit(130)\n"
            "for n in (signal.SIGINT, signal.SIGTERM):\n    signal.signal(n, stop)\n"
            "pathlib.Path('ready').touch()\ntime.sleep(30)\n"
        )
        parent = (
            "import sys\nfrom mrcnn_tf.ablate import run_child\n"
            f"print(run_child([sys.executable, '-c', {code!r}]))"
        )
        root = Path(__file__).resolve().parents[1]
        process = subprocess.Popen(
            [sys.executable, "-c", parent],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(root)},
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        for _ in range(300):
            if (tmp_path / "ready").exists():
                break
            time.sleep(0.1)
        if number == signal.SIGINT:
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
        assert process.communicate(timeout=20)[0].strip() == "(130, True)"
        assert (tmp_path / "saved").exists()

    def test_stopped(self, configs, training, tmp_path, monkeypatch, capsys):
        monkeypatch.setattr(module, "run_child", lambda arguments: (130, True))
        arguments = ["ablate", *configs, "--seeds", "0", "--out", str(tmp_path / "out")]
        assert main(arguments) == 130
        assert "the same command goes on" in capsys.readouterr().err


class TestMistakes:
    def error(self, capsys, *arguments):
        assert main(["ablate", *map(str, arguments)]) == 1
        message = capsys.readouterr().err.strip()
        assert message.startswith("error: ") and "\n" not in message
        return message

    def test_each(self, configs, training, tmp_path, capsys):
        out = ("--out", tmp_path / "out")
        twin = tmp_path / "twin.yaml"
        twin.write_text("name: plain\n")
        assert "twin.yaml: has the name plain, like" in self.error(capsys, *configs, twin, *out)
        child = tmp_path / "child.yaml"
        child.write_text("name: child\ninit_from: plain.yaml\n")
        assert "plain: is what child starts from" in self.error(capsys, child, *configs, *out)
        assert "no such config file" in self.error(capsys, "none.yaml", *out)
        assert "baseline x: no config has this name; there are plain, aware" in self.error(
            capsys, *configs, *out, "--baseline", "x"
        )
        assert "one is given twice" in self.error(capsys, *configs, *out, "--seeds", "1", "1")
        assert "seed is what tells the runs apart" in self.error(capsys, *configs, *out, "seed=4")
        assert "unknown key" in self.error(capsys, *configs, "train.step=4", *out)
        assert "there is no config" in self.error(capsys, "train.steps=4", *out)
        assert not training.started and not (tmp_path / "out").exists()

    def test_overrides_may_come_last(self, configs, training, tmp_path):
        out = tmp_path / "out"
        arguments = [*configs, "--seeds", "0", "--out", str(out), "train.steps=9", "--metrics", "bbox/AP"]
        assert main(["ablate", *arguments, "seed_is_no_key=1"]) == 1
        assert main(["ablate", *arguments, "train.batch_size=3"]) == 0
        config = load_config(out / "aware" / "seed0" / "config.yaml")
        assert (config.train.steps, config.train.batch_size) == (9, 3)
        assert {metric for _, metric in table(out)} == {"bbox/AP"}

    @pytest.mark.parametrize("stray", ["word", "--no=1"])
    def test_other_words_may_not(self, stray, configs, tmp_path, capsys):
        with pytest.raises(SystemExit) as end:
            main(["ablate", *configs, "--out", str(tmp_path), stray])
        assert end.value.code == 2 and f"unrecognized arguments: {stray}" in capsys.readouterr().err


class TestAlpha:
    @pytest.fixture
    def model(self, monkeypatch):
        class Refining:
            alphas: list[float] = []

            refine_classes = True

            def set_alpha(self, value):
                self.alphas.append(value)

        def evaluate(model, dataset, *, bar, first):
            assert dataset == "set" and first == 3
            alpha = model.alphas[-1]
            metrics = {"bbox/AP": alpha / 10, "segm/AP": -1.0, "huddled/same@0.1/bbox/AP": 0.5, "images": 3}
            return evaluation_run.EvaluationResult(metrics, [])

        monkeypatch.setattr(evaluation_run, "evaluate_model", evaluate)
        return Refining()

    def test_sweep(self, model, tmp_path, capsys):
        from mrcnn_tf.commands.evaluate import save_sweep

        rows = evaluation_run.sweep_alpha(model, "set", [0, 0.5, 10], first=3)
        assert model.alphas == [0, 0.5, 10] and [row["bbox/AP"] for row in rows] == [0, 0.05, 1]
        save_sweep(str(tmp_path), [0, 0.5, 10], rows)
        text = (tmp_path / "alpha.md").read_text()
        assert text.splitlines()[0] == "| alpha | bbox/AP | segm/AP | huddled/same@0.1/bbox/AP |"
        assert "| 0.5 | 0.050 | - | 0.500 |" in text and text in capsys.readouterr().out + "\n"
        with (tmp_path / "alpha.csv").open(newline="") as file:
            assert [float(row["bbox/AP"]) for row in csv.DictReader(file)] == [0, 0.05, 1]

    def test_mistakes(self, model, capsys):
        with pytest.raises(ValueError, match="alpha must be a number from 0 on, not -1"):
            evaluation_run.sweep_alpha(model, "set", [0, -1])
        with pytest.raises(ValueError, match="not nan"):
            evaluation_run.sweep_alpha(model, "set", [float("nan")])
        assert model.alphas == []
        with pytest.raises(ValueError, match="object has no alpha"):
            evaluation_run.sweep_alpha(object(), "set", [1.0])
        assert main(["evaluate", "--annotations", "a", "--results", "b", "--alpha", "1"]) == 1
        assert "--alpha needs a model" in capsys.readouterr().err
