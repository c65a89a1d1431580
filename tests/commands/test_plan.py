"""`mrcnn plan`: its tables and JSON, a measured step, and options that do not fit together."""

from __future__ import annotations

import argparse
import json

import pytest
import yaml

from mrcnn_tf.commands import plan
from tests.tiny import CONFIG


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(CONFIG))
    return path


def run(*words):
    parser = argparse.ArgumentParser()
    plan.arguments(parser)
    return plan.run(parser.parse_args([str(word) for word in words]))


def test_tables_without_data_or_time(config, capsys):
    run("--config", config, "--workers", 1, 2)
    text = capsys.readouterr().out
    assert text.startswith("tiny: 6 classes, canvas 64 x 64, float32, 2 images a step on each device\n")
    assert "times: not known; give --measure, --step-seconds or --tflops" in text
    for part in ("backbone", "fpn", "rpn", "box_head", "mask_head", "together"):
        assert sum(line.startswith(f"{part} ") for line in text.splitlines()) >= 2
    assert "2 workers: each sends and receives" in text


def test_json_and_times(config, capsys):
    run(
        *("--config", config, "train.batch_per_device=2", "--json", "--devices-per-worker", 2),
        *("--step-seconds", 0.5, "--workers", 4, 1, "--bandwidth", 1, "--latency", 100),
    )
    found = json.loads(capsys.readouterr().out)
    one, four = found["scaling"]
    assert (one["images_per_second"], one["efficiency"], four["devices"]) == (8.0, 1.0, 8)
    parameters = sum(part["trained"] for part in found["parameters"].values())
    assert found["traffic"]["gradients"] == 4 * parameters
    data = 2 * 7 / 8 * (found["traffic"]["gradients"] + found["traffic"]["others"]) / 1e9
    assert four["all_reduce"] == pytest.approx(data + 6 * 1e-4 * found["traffic"]["messages"])
    training = sum(found["gflop_per_image"]["training"].values())
    assert found["reached_tflops"] == pytest.approx(training * 2 / 0.5 / 1000)
    run("--config", config, "--json", "--tflops", found["reached_tflops"])
    assert json.loads(capsys.readouterr().out)["step_seconds"] == pytest.approx(0.5)


def test_measured_here(config, capsys):
    run(
        "--config",
        config,
        "--measure",
        2,
        "--allreduce",
        "2=0.004",
        "model.fpn.channels=8",
        "--workers",
        1,
        2,
    )
    text = capsys.readouterr().out
    assert "measured here: 2 steps of 2 images on 1 CPU device(s), median" in text
    assert "memory at most: measured" in text
    assert "us (fitted to --allreduce), in a ring" in text
    assert "images were made up in memory" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--tflops", "1", "--measure"], "give one of them"),
        (["--step-seconds", "1", "--workers", "1", "2"], "give --bandwidth or --allreduce"),
        (["--bandwidth", "1", "--allreduce", "2=1"], "--bandwidth and --allreduce both"),
        (["--workers", "0"], "--workers: is 0; it must be 1 or more"),
        (["--classes", "0"], "--classes: is 0; it must be 1 or more"),
        (["--allreduce", "1=1"], "--allreduce: is 1; it must be 2 or more"),
        (["--allreduce", "2=x"], "'2=x' must look like 4=0.03"),
        (["--step-seconds", "-1"], "--step-seconds: is -1; it must be above 0"),
        (["--tflops", "nan"], "--tflops: is nan; it must be above 0"),
        (["--overlap", "2"], r"--overlap: is 2; it must be in \[0, 1\]"),
        (["--latency", "-1"], "--latency: is -1e-06 s; it must not be negative"),
        (["train.batch=1"], "train.batch: unknown key"),
        (["data.generated=null"], "data.train.annotations: is not set; give --classes N"),
        (
            ["data.generated=null", "data.train.annotations=no.json"],
            "no.json: no such file; give --classes N",
        ),
        (["--devices-per-worker", "3"], "is 2, not divisible by 3 devices"),
    ],
)
def test_what_cannot_be_planned_is_explained(config, words, message):
    with pytest.raises(ValueError, match=message):
        run("--config", config, *words)


def test_measuring_is_refused_within_a_cluster(config, monkeypatch):
    addresses = {"worker": ["localhost:1", "localhost:2"]}
    monkeypatch.setenv(
        "TF_CONFIG", json.dumps({"cluster": addresses, "task": {"type": "worker", "index": 0}})
    )
    with pytest.raises(ValueError, match="--measure: times one worker alone"):
        run("--config", config, "--measure")
