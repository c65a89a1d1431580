"""The files of a shard: results, dead letters, and the note that it is finished. On any of Beam's file systems."""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from apache_beam.io.filesystem import CompressionTypes
from apache_beam.io.filesystems import FileSystems

from mrcnn_tf.batch.inputs import Item, Shard, open_file
from mrcnn_tf.models.detections import Detections

FORMATS = ("jsonl", "parquet")
ROWS = 64  # of Parquet that are written at a time

Write = Callable[[dict[str, Any]], None]


class Names(NamedTuple):
    """The files of a shard: results, dead letters, and the note that both are whole."""

    results: str
    failed: str
    done: str


def names_of(output: str, shard: Shard, form: str) -> Names:
    """Where a shard's files are."""
    stem = f"{output}-{shard.number:05d}-of-{shard.total:05d}"
    return Names(f"{stem}.{form}", f"{stem}.failed.jsonl", f"{stem}.done.json")


def row_of(item: Item, found: Detections) -> dict[str, Any]:
    """The results of one image; its `detections` are entries of COCO's results format."""
    height, width = found.image_size
    return {
        "image_id": item.image_id,
        "file_name": item.file_name,
        "source": item.source,
        "height": height,
        "width": width,
        "detections": found.to_coco(item.image_id),
    }


@contextmanager
def write_rows(path: str, form: str) -> Iterator[Write]:
    """Gives a function that writes one image's results; the file is there, whole, once the block ends without an error.

    Raises:
        OSError: it cannot be written.
    """
    with aside(path) as name:
        yield from (_parquet if form == "parquet" else _lines)(name)


@contextmanager
def write_failed(path: str) -> Iterator[Write]:
    """As `write_rows`, for dead letters: JSON lines."""
    with aside(path) as name:
        yield from _lines(name)


def write_note(path: str, value: dict[str, Any]) -> None:
    """A JSON file, written aside and renamed."""
    with aside(path) as name, create(name) as file:
        file.write(json.dumps(value, indent=1).encode())


def read_note(path: str) -> dict[str, Any] | None:
    """A file of `write_note`; None if there is none.

    Raises:
        ValueError: it is damaged.
    """
    if not FileSystems.exists(path):
        return None
    with open_file(path) as file:
        data = file.read()
    try:
        value = json.loads(data)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise ValueError(
            f"{path}: damaged: not a JSON object; delete it to make its part of the results again"
        )
    return value


def is_finished(names: Names, settings: str) -> bool:
    """Whether the shard's files are there as they were written, with these settings (their checksum)."""
    try:
        done = read_note(names.done)
    except ValueError:
        return False
    return (
        done is not None
        and done.get("settings") == settings
        and all(
            FileSystems.exists(path) and checksum(path) == done.get("sha256", {}).get(kind)
            for kind, path in (("results", names.results), ("failed", names.failed))
        )
    )


def checksum(path: str) -> str:
    """SHA-256 of a file."""
    digest = hashlib.sha256()
    with open_file(path) as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()


@contextmanager
def aside(path: str) -> Iterator[str]:
    """A name to write to, which becomes `path` if the block ends without an error, and vanishes if not.

    As `mrcnn_tf.files.written_aside`, but on any of Beam's file systems, and with a name of this attempt's own:
    runners may work on a shard twice.

    Raises:
        OSError: it cannot be written; names the file.
    """
    name = f"{path}.{uuid.uuid4().hex[:12]}.partial"
    try:
        yield name
        FileSystems.rename([name], [path])
    except OSError as error:
        # What is read meanwhile may fail as well, and says so itself.
        if error.errno is None or error.filename not in (None, name, os.path.dirname(path)):
            raise
        raise OSError(f"{path}: could not be written ({error.strerror or error})") from error
    finally:
        if FileSystems.exists(name):
            FileSystems.delete([name])


def create(path: str) -> Any:
    """A new file of any of Beam's file systems, and the folders to it."""
    return FileSystems.create(path, compression_type=CompressionTypes.UNCOMPRESSED)


def _lines(path: str) -> Iterator[Write]:
    with create(path) as file:
        yield lambda row: file.write(json.dumps(row).encode() + b"\n")


def _parquet(path: str) -> Iterator[Write]:
    import pyarrow as pa
    from pyarrow import parquet

    detection = {
        "category_id": pa.int64(),
        "score": pa.float32(),
        "bbox": pa.list_(pa.float32(), 4),
        "counts": pa.string(),
    }
    schema = pa.schema(
        {
            "image_id": pa.string(),
            "file_name": pa.string(),
            "source": pa.string(),
            "height": pa.int32(),
            "width": pa.int32(),
            "detections": pa.list_(pa.struct(detection)),
        }
    )
    waiting: list[dict[str, Any]] = []
    with create(path) as file, parquet.ParquetWriter(file, schema, compression="zstd") as writer:

        def flush() -> None:
            if waiting:
                writer.write_table(pa.Table.from_pylist(waiting, schema))
                waiting.clear()

        def write(row: dict[str, Any]) -> None:
            detections = [
                {**entry, "counts": entry["segmentation"]["counts"] if "segmentation" in entry else None}
                for entry in row["detections"]
            ]
            waiting.append({**row, "image_id": str(row["image_id"]), "detections": detections})
            if len(waiting) == ROWS:
                flush()

        yield write
        flush()
