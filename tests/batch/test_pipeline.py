"""A pipeline whose worker fails or is killed ends with an error that says so."""

import os
import signal
import time
from pathlib import Path

import pytest

pytest.importorskip("apache_beam")

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions

from mrcnn_tf.batch import pipeline as module
from mrcnn_tf.batch.pipeline import reason_of, run_watched


class Fail(beam.DoFn):
    """Ends the process, or raises."""

    def process(self, kind):
        if kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        raise ValueError(f"no such thing: {kind}")


@pytest.mark.parametrize(
    ("kind", "mode", "message"),
    [
        ("kill", "multi_processing", "a worker process was killed .*137.*Finished shards stay"),
        ("that", "in_memory", "^the pipeline failed: no such thing: that$"),
    ],
)
def test_failing_worker(monkeypatch, kind, mode, message):
    monkeypatch.setattr(module, "PAUSE", 0.2)
    options = PipelineOptions([f"--direct_running_mode={mode}", "--direct_num_workers=2"])
    pipeline = beam.Pipeline("FnApiRunner", options)
    pipeline | beam.Create([kind, kind]) | beam.Reshuffle() | beam.ParDo(Fail())
    with pytest.raises(RuntimeError, match=message):
        run_watched(pipeline, done=lambda: 0, total=2)


class Sleep(beam.DoFn):
    """Says which process it is in, and works for long."""

    def process(self, path):
        Path(path).write_text(str(os.getpid()))
        time.sleep(60)


def test_interrupt_ends_the_workers(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "PAUSE", 0.2)
    path = tmp_path / "pid"

    def done():
        if path.exists() and path.read_text():
            raise KeyboardInterrupt
        return 0

    pipeline = beam.Pipeline("FnApiRunner", PipelineOptions(["--direct_running_mode=multi_processing"]))
    pipeline | beam.Create([str(path)]) | beam.ParDo(Sleep())
    with pytest.raises(KeyboardInterrupt):
        run_watched(pipeline, done=done, total=1)
    worker = Path(f"/proc/{path.read_text()}/stat")
    end = time.monotonic() + 10
    while worker.exists() and worker.read_text().split()[2] != "Z":
        assert time.monotonic() < end, "the worker is still there"
        time.sleep(0.05)


def test_reason_without_a_report():
    assert reason_of(KeyError()) == "KeyError"
    assert reason_of(OSError("the disk")) == "the disk"
