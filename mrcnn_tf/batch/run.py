"""Starts batch inference: checks what is there, runs the pipeline, and counts what came out."""

from __future__ import annotations

import hashlib
import json
import os
import time
import uuid
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import apache_beam as beam
from apache_beam.io.filesystems import FileSystems
from apache_beam.ml.inference.base import RunInference
from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions
from apache_beam.portability.api import beam_provision_api_pb2
from apache_beam.runners.portability.fn_api_runner.fn_runner import ExtendedProvisionInfo, FnApiRunner
from apache_beam.runners.portability.portable_runner import JobServiceHandle

from mrcnn_tf.batch.inputs import Inputs, Shard, absolute, expand, match, open_file
from mrcnn_tf.batch.pipeline import run_watched
from mrcnn_tf.batch.predict import Job, ShardPredictor
from mrcnn_tf.batch.shards import (
    FORMATS,
    Names,
    aside,
    checksum,
    create,
    is_finished,
    names_of,
    read_note,
    write_note,
)

SHARD_SIZE = 200  # images
WORKERS = 4  # at most, of the local runner, unless told otherwise: each has the model in its memory


class Summary(NamedTuple):
    """What came out of a run.

    Attributes:
        predicted: images with results, those of earlier runs included.
        failed: inputs in the dead letters, those of earlier runs included.
        repeated: inputs that were listed again and are predicted once.
        shards: all shards.
        kept: those that an earlier run had finished.
        images_per_second: of this run, from its start to its end, the loading of the model included.
        peak_bytes: the most memory (RSS) that one worker has had.
    """

    predicted: int
    failed: int
    repeated: int
    shards: int
    kept: int
    images_per_second: float
    peak_bytes: int


def predict_batch(
    inputs: str,
    model: str,
    output: str,
    *,
    form: str = "jsonl",
    batch_size: int = 1,
    score: float | None = None,
    shard_size: int | None = None,
    beam_options: Sequence[str] = (),
) -> Summary:
    """Predicts any number of images with an exported model, on any of Beam's runners.

    Results are in files `OUTPUT-00000-of-00010.FORM`, dead letters beside them in `.failed.jsonl`; a `.done.json` with
    checksums makes a shard finished. Started again, it makes only the shards that are not.

    Args:
        inputs: pattern of images or of TFRecord files, or a `.txt` file of paths; see `expand`.
        model: folder of a version of a SavedModel.
        output: prefix of the files. Like all paths, of any of Beam's file systems; of one that all workers see.
        form: `"jsonl"` or `"parquet"`.
        batch_size: images that go through the model together. They share a canvas, padded for the largest, which
            changes scores a little; with 1, results are those of `model.detect`.
        score: detections from this score on, in [0, 1]; None for the model's own threshold.
        shard_size: images in a file; None: 200. A TFRecord file is a shard, whatever it holds.
        beam_options: Beam's pipeline options, as on a command line. Without a `--runner`, or with `DirectRunner`,
            processes of this machine: `--direct_num_workers`, the number of cores, at most 4.

    Raises:
        FileNotFoundError: no inputs, or no such model.
        ValueError: an argument outside its range; or results of another model, other inputs or other settings have
            this prefix.
        OSError: a file cannot be read or written.
        RuntimeError: the pipeline failed, or a worker was killed. Finished shards stay.
    """
    if form not in FORMATS:
        raise ValueError(f"form is {form!r}; it must be one of {', '.join(FORMATS)}")
    if batch_size < 1 or (shard_size is not None and shard_size < 1):
        raise ValueError(f"batch_size ({batch_size}) and shard_size ({shard_size}) must be at least 1")
    if score is not None and not 0 <= score <= 1:
        raise ValueError(f"score must be in [0, 1], not {score}")
    if output.endswith("/") or os.path.isdir(output):
        raise ValueError(
            f"{output}: is a folder; give the beginning of file names, such as '{output.rstrip('/')}/found'"
        )
    model, output = absolute(model), absolute(output)
    found = expand(inputs)
    if found.records and shard_size is not None:
        raise ValueError("shard_size is for images; a TFRecord file is a shard, however many it holds")
    size = 1 if found.records else shard_size or SHARD_SIZE
    shards = found.shards(size)
    settings = {
        "model": fingerprint(model),
        "inputs": found.sha256(),
        "format": form,
        "batch_size": batch_size,
        "score": score,
        "shard_size": size,
    }
    options, runner, threads = runner_of(beam_options, len(shards))
    listing = f"{output}.inputs.txt"
    claim(f"{output}.manifest.json", listing, settings, found, model)

    job = Job(
        run=uuid.uuid4().hex,
        settings=hashlib.sha256(json.dumps(settings).encode()).hexdigest(),
        model=model,
        listing=listing,
        records=found.records,
        output=output,
        form=form,
        batch_size=batch_size,
        score=score,
        threads=threads,
    )
    names = [names_of(output, shard, form) for shard in shards]
    start = time.perf_counter()
    pipeline = beam.Pipeline(runner, options)
    (
        pipeline
        | "Shards" >> beam.Create(shards)
        | "Unfinished" >> beam.ParDo(Unfinished(job))
        # Without it, a runner may leave all that a worker was given at first to that worker.
        | "Spread" >> beam.Reshuffle()
        | "Predict" >> RunInference(ShardPredictor(job))
    )
    run_watched(pipeline, done=lambda: len(match(f"{output}-*-of-*.done.json")), total=len(shards))
    seconds = time.perf_counter() - start
    left = match(f"{output}-*.partial")
    if left:
        FileSystems.delete(left)
    return summarise(names, job.run, found, seconds)


class Unfinished(beam.DoFn):
    """Lets the shards through whose files are not there, or not as they were written."""

    def __init__(self, job: Job) -> None:
        """See `Job`."""
        self.job = job

    def process(self, shard: Shard) -> Iterator[Shard]:
        """The shard, or nothing."""
        if not is_finished(names_of(self.job.output, shard, self.job.form), self.job.settings):
            yield shard


def fingerprint(model: str) -> str:
    """SHA-256 of the files of a SavedModel that decide what it computes.

    Raises:
        FileNotFoundError: it is not one.
    """
    graph = f"{model.rstrip('/')}/saved_model.pb"
    if not FileSystems.exists(graph):
        versions = match(f"{model.rstrip('/')}/*/saved_model.pb")
        hint = f"; give a version's folder, such as {os.path.dirname(max(versions))}" if versions else ""
        raise FileNotFoundError(f"{model}: no SavedModel: there is no saved_model.pb in it{hint}")
    digest = hashlib.sha256()
    for path in [graph, *sorted(match(f"{model.rstrip('/')}/variables/*"))]:
        digest.update(f"{os.path.basename(path)} {checksum(path)}\n".encode())
    return digest.hexdigest()


def claim(manifest: str, listing: str, settings: dict[str, Any], found: Inputs, model: str) -> None:
    """Makes the prefix this job's, or sees that it is.

    Raises:
        ValueError: it is another's; names what differs.
    """
    paths = {"model": model, "inputs": f"{len(found.paths)} paths"}
    before = read_note(manifest)
    if before is not None:
        differences = [
            f"{key}: {_shown(key, before.get('settings', {}), before.get('paths', {}))} then, "
            f"{_shown(key, settings, paths)} now"
            for key, value in settings.items()
            if before.get("settings", {}).get(key) != value
        ]
        if differences:
            raise ValueError(
                f"{manifest}: there are results of this prefix made otherwise ({'; '.join(differences)}); "
                "give another --output, or the same settings to go on"
            )
        if FileSystems.exists(listing) and checksum(listing) == settings["inputs"]:
            return
    with aside(listing) as name, create(name) as file:
        file.write(found.listing())
    write_note(manifest, {"settings": settings, "paths": paths, "classes": classes_of(model)})


def _shown(key: str, settings: dict[str, Any], paths: dict[str, str]) -> str:
    """A setting in an error message; of files also their checksum, as two can have the same name."""
    value = settings.get(key)
    return f"{paths[key]} ({str(value)[:8]})" if key in paths else str(value)


def classes_of(model: str) -> dict[str, str] | None:
    """Names by category id, which the results have; None if the export did not write them."""
    path = f"{model.rstrip('/')}/assets.extra/classes.json"
    if not FileSystems.exists(path):
        return None
    with open_file(path) as file:
        classes = json.loads(file.read())
    return dict(zip(map(str, classes["category_ids"]), classes["class_names"], strict=True))


def runner_of(flags: Sequence[str], shards: int) -> tuple[PipelineOptions, FnApiRunner | None, int]:
    """Who runs the pipeline.

    Beam's `DirectRunner` tries Prism first, a program that it downloads and that knows nothing of
    `--direct_num_workers`; here it is the runner behind it, of several Python processes.

    Args:
        flags: Beam's options, as on a command line.
        shards: how many there are: more processes than that would have nothing to do.

    Returns:
        Beam's options; the local runner, None for the one that the options name; and how many threads TensorFlow has
        in each worker (0: as many as it likes).

    Raises:
        ValueError: what no option of Beam can be, or one that the local runner does not know.
    """
    if flags and not flags[0].startswith("-"):
        raise ValueError(
            f"{flags[0]!r} is no option of Beam, and there is one input only; put a pattern in quotes, so that the "
            "shell leaves it as it is"
        )
    if PipelineOptions(list(flags)).view_as(StandardOptions).runner not in (None, "DirectRunner"):
        return PipelineOptions(list(flags)), None, 0
    cores = len(os.sched_getaffinity(0))
    workers = min(WORKERS, cores, shards)
    own = ["--direct_running_mode=multi_processing", f"--direct_num_workers={workers}"]
    options = PipelineOptions([*own, "--default_sdk_harness_log_level=ERROR", *flags])
    known = options.get_all_options()
    unknown = sorted(options.get_all_options(retain_unknown_options=True).keys() - known.keys())
    if unknown:
        raise ValueError(
            f"Beam knows no option {', '.join(f'--{name}' for name in unknown)}; see its pipeline options"
        )
    # Its workers get the options, such as those of file systems, in this way only.
    info = beam_provision_api_pb2.ProvisionInfo(
        pipeline_options=JobServiceHandle.encode_pipeline_options(known)
    )
    runner = FnApiRunner(provision_info=ExtendedProvisionInfo(info))
    return options, runner, max(1, cores // (known["direct_num_workers"] or cores))


def summarise(names: Sequence[Names], run: str, found: Inputs, seconds: float) -> Summary:
    """Adds up the notes of all shards.

    Raises:
        RuntimeError: one is not there.
    """
    notes = []
    for name in names:
        note = read_note(name.done)
        if note is None:
            raise RuntimeError(
                f"{name.done}: missing although the pipeline has ended; run the same command again"
            )
        notes.append(note)
    made = [note for note in notes if note["run"] == run]
    return Summary(
        predicted=sum(note["predicted"] for note in notes),
        failed=sum(note["failed"] for note in notes),
        repeated=found.repeated,
        shards=len(notes),
        kept=len(notes) - len(made),
        images_per_second=sum(note["predicted"] for note in made) / seconds,
        peak_bytes=max((note["peak_bytes"] for note in made), default=0),
    )
