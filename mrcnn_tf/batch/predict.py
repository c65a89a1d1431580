"""What a worker does: one shard after another through the exported model, by Beam's RunInference."""

from __future__ import annotations

import itertools
import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from apache_beam.ml.inference.base import ModelHandler

from mrcnn_tf.batch.inputs import Item, Shard, read_shard
from mrcnn_tf.batch.shards import checksum, names_of, row_of, write_failed, write_note, write_rows
from mrcnn_tf.models.detections import Detections
from mrcnn_tf.serving.client import detections_of_reply

SIGNATURE = "compact"


class Job(NamedTuple):
    """What all shards of a run share.

    Attributes:
        run: a name of this run, which notes of finished shards carry.
        settings: checksum of what decides the results, which they carry, too.
        model: folder of the SavedModel.
        listing: file of the inputs.
        records: whether these are TFRecord files.
        output: prefix of the result files.
        form: `"jsonl"` or `"parquet"`.
        batch_size: images that go through the model together.
        score: detections from this score on; None for the model's own threshold.
        threads: of TensorFlow in each worker; 0: as many as there are cores.
    """

    run: str
    settings: str
    model: str
    listing: str
    records: bool
    output: str
    form: str
    batch_size: int
    score: float | None
    threads: int


class ShardPredictor(ModelHandler[Shard, dict[str, Any], Any]):
    """Predicts and writes whole shards, for RunInference.

    Beam's own handlers for TensorFlow load with `keras.models.load_model`, which in Keras 3 refuses SavedModels, and
    need tensorflow_hub. That an element is a shard and not an image has reasons, too: memory is that of one batch of
    images, whatever a runner keeps between its stages; a shard is finished when its files are renamed, long before the
    pipeline is; and a runner that works on an element twice writes the same files twice.
    """

    def __init__(self, job: Job) -> None:
        """See `Job`."""
        super().__init__(min_batch_size=1, max_batch_size=1)
        self.job = job

    def load_model(self) -> Any:
        """Once in a worker process."""
        return load(self.job.model, self.job.threads)

    def run_inference(
        self, batch: Sequence[Shard], model: Any, inference_args: dict[str, Any] | None = None
    ) -> Iterator[dict[str, Any]]:
        """The notes of finished shards."""
        for shard in batch:
            yield predict_shard(self.job, shard, model)


def load(folder: str, threads: int = 0) -> Any:
    """An exported model, with TensorFlow alone.

    Args:
        folder: of a SavedModel, see `mrcnn_tf.export.saved_model`.
        threads: of TensorFlow in this process; 0: as many as there are cores.

    Raises:
        ValueError: the model has no signature `compact`.
    """
    import tensorflow as tf

    with suppress(RuntimeError):  # of a process that uses TensorFlow already
        if threads:
            tf.config.threading.set_intra_op_parallelism_threads(threads)
            tf.config.threading.set_inter_op_parallelism_threads(threads)
        for gpu in tf.config.list_physical_devices("GPU"):
            # Otherwise the first process takes all of its memory, and the others have none.
            tf.config.experimental.set_memory_growth(gpu, True)
    model = tf.saved_model.load(folder)
    if SIGNATURE not in model.signatures:
        raise ValueError(f"{folder}: has no signature '{SIGNATURE}'; write it with `mrcnn export`")
    return model


def predict_shard(job: Job, shard: Shard, model: Any) -> dict[str, Any]:
    """Predicts a shard and writes its files; the note that it is finished, which it returns, comes last."""
    names = names_of(job.output, shard, job.form)
    start = time.perf_counter()
    items = read_shard(job.listing, shard, job.records)
    predicted = failed = 0
    with write_failed(names.failed) as fail, write_rows(names.results, job.form) as write:
        while batch := list(itertools.islice(items, job.batch_size)):
            for item, outcome in zip(batch, predict(batch, model, job.score), strict=True):
                if isinstance(outcome, str):
                    failed += 1
                    fail(
                        {
                            "image_id": item.image_id,
                            "file_name": item.file_name,
                            "source": item.source,
                            "reason": outcome,
                        }
                    )
                else:
                    predicted += 1
                    write(row_of(item, outcome))
    note = {
        "run": job.run,
        "settings": job.settings,
        "predicted": predicted,
        "failed": failed,
        "seconds": round(time.perf_counter() - start, 3),
        "peak_bytes": peak_memory(),
        "sha256": {"results": checksum(names.results), "failed": checksum(names.failed)},
    }
    write_note(names.done, note)
    return note


def predict(items: Sequence[Item], model: Any, score: float | None = None) -> list[Detections | str]:
    """The detections of each image, or why there are none.

    Args:
        items: the images of one batch.
        model: of `load`.
        score: detections from this score on; None for the model's own threshold.
    """
    import tensorflow as tf

    outcomes: list[Detections | str] = [item.reason for item in items]
    there = [i for i, item in enumerate(items) if not item.reason]
    if not there:
        return outcomes
    # The signature leaves out what is up to the threshold, and takes a negative one for the model's own.
    own = -1.0 if score is None else max(float(np.nextafter(np.float32(score), np.float32(-1))), 0.0)
    try:
        outputs = model.signatures[SIGNATURE](
            image_bytes=tf.constant([items[i].data for i in there]),
            score_threshold=tf.fill([len(there)], own),
            iou_threshold=tf.fill([len(there)], -1.0),
        )
    except (tf.errors.InvalidArgumentError, tf.errors.ResourceExhaustedError) as error:
        # One image that the model cannot take, such as one too large for the memory, must not fail the others.
        if len(there) == 1:
            outcomes[there[0]] = f"the model fails: {error.message.splitlines()[0]}"
        else:
            for i in there:
                (outcomes[i],) = predict([items[i]], model, score)
        return outcomes
    arrays = {key: value.numpy() for key, value in outputs.items()}
    for row, i in enumerate(there):
        values = {key: value[row] for key, value in arrays.items()}
        status = values["status"].decode()
        outcomes[i] = detections_of_reply(values, items[i].source) if status == "ok" else status
    return outcomes


def peak_memory() -> int:
    """Bytes that this process has had in memory at most (its RSS)."""
    # Not getrusage: a process inherits its figure from the one that started it.
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{os.getpid()}/status").read_text())
    return int(found[1]) * 1024 if found else 0
