"""COCO files to TFRecord shards with a manifest: `mrcnn convert-data`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mrcnn_tf.data.coco import CocoDataset
from mrcnn_tf.data.images import read_bytes, to_rgb
from mrcnn_tf.data.records.examples import MASKS, to_example
from mrcnn_tf.data.records.files import file_sha256, write_records
from mrcnn_tf.data.records.index import Scan, join, names_of, scan, scan_all
from mrcnn_tf.data.records.manifest import (
    FORMAT,
    MANIFEST,
    VERSION,
    read_labels,
    read_manifest,
    save_set,
    shard_paths,
)
from mrcnn_tf.data.records.workers import in_processes, progress
from mrcnn_tf.data.structure import read_json
from mrcnn_tf.files import save_json, written_aside

IMAGES_PER_SHARD = 1000


@dataclass(frozen=True)
class _Task:
    """A shard that is to be made: a run of the images in the order of the annotation file."""

    path: Path
    records: list[dict[str, Any]]
    rows: list[list[dict[str, Any]]]
    images: Path
    class_names: dict[int, str]
    masks: str
    skip_damaged: bool
    made: dict[str, Any] | None  # its entry in the manifest, if it was finished before


def convert(
    annotations: str | Path,
    images: str | Path,
    out: str | Path,
    *,
    shards: int | None = None,
    workers: int | None = None,
    masks: str = "rle",
    skip_damaged: bool = False,
) -> Path:
    """Writes a data set as TFRecord shards, or goes on where an interrupted conversion stopped.

    Image i of the annotation file is record i of the shards one after the other. The image files' bytes are stored as
    they are, after each was read once to see that it can be. A shard is written aside, renamed, read back, and listed
    in the manifest with its checksum; listed shards that still have it are kept by a later call.

    Args:
        annotations: COCO JSON file.
        images: folder that its file names are relative to.
        out: folder of the shards, new, empty, or of the same conversion.
        shards: number of files, one for each 1000 images by default.
        workers: processes, as many as there are cores by default. With more than one, a script that calls this needs
            `if __name__ == "__main__":` around it, as these processes import the script.
        masks: "rle", "png" or "none", see `to_example`. The segmentations as the annotation file has them are always
            written, too, and are what training uses.
        skip_damaged: leave out images that are missing or cannot be read; the manifest lists them by shard.

    Returns:
        Path of the manifest, which is what `RecordDataset` takes.

    Raises:
        FileNotFoundError: if the annotation file, the folder or an image is missing.
        ValueError: if the annotations or an image are damaged, an argument is out of its range, or the folder holds
            something else.
        OSError: if a file cannot be written.
        RuntimeError: if one of the processes was killed.
    """
    if masks not in MASKS:
        raise ValueError(f"masks must be one of {', '.join(MASKS)}, not {masks}")
    if any(count is not None and count < 1 for count in (shards, workers)):
        raise ValueError(f"shards and workers must be at least 1, not {shards} and {workers}")
    coco, images, out = read_json(annotations), Path(images), Path(out)
    if not images.is_dir():
        raise FileNotFoundError(f"{images}: no such image folder")
    CocoDataset(coco, None if skip_damaged else images)  # refuses unsound annotations and missing images
    shards = min(shards or -(-len(coco["images"]) // IMAGES_PER_SHARD), len(coco["images"]))
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "source": {
            "annotations": str(annotations),
            "annotations_sha256": file_sha256(annotations),
            "images": str(images.resolve()),
        },
        "settings": {"shards": shards, "masks": masks, "skip_damaged": skip_damaged},
        "categories": coco["categories"],
    }
    made = _made_before(out, manifest)
    tasks = _tasks(coco, images, out, manifest, made)
    out.mkdir(parents=True, exist_ok=True)
    for left in out.glob(".*.partial.*"):
        left.unlink()
    entries: list[dict[str, Any] | None] = [made.get(task.path.name) for task in tasks]
    scans: dict[int, Scan] = {}
    with progress(len(coco["images"]), "images") as advance:
        for i, (entry, found) in in_processes(_make_shard, tasks, workers):
            entries[i], scans[i] = entry, found
            state = {**manifest, "shards": [e for e in entries if e], "complete": False}
            save_json(out / MANIFEST, state, indent=1)
            advance(len(tasks[i].records))
    return save_set(out, {**manifest, "shards": entries}, join([scans[i] for i in range(len(tasks))]))


def adopt(
    pattern: str, out: str | Path, *, labels: str | Path | None = None, workers: int | None = None
) -> Path:
    """Writes a manifest and an index for shards that others made, which stay where and as they are.

    Args:
        pattern: of the shards, with `*`; the names of their features are those of the Object Detection API.
        out: folder of the manifest, without one as yet.
        labels: see `RecordDataset`.
        workers: processes that read the shards, as many as there are cores by default.

    Returns:
        Path of the manifest.

    Raises:
        FileNotFoundError: if there are no such shards.
        ValueError: if a shard is damaged or holds something else, a class has no name, or there is a manifest.
    """
    out = Path(out)
    if (out / MANIFEST).exists():
        raise ValueError(f"{out / MANIFEST}: there is a manifest already; choose another folder")
    paths = shard_paths(pattern)
    scans = scan_all(paths, workers)
    entries = [
        {"file": os.path.relpath(path, out), "images": len(s.source_ids), "bytes": s.size, "sha256": s.sha256}
        for path, s in zip(paths, scans, strict=True)
    ]
    try:
        categories = names_of(scans) if labels is None else read_labels(labels)
    except ValueError as error:
        raise ValueError(f"{pattern}: {error}") from None
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "source": {"records": pattern},
        "categories": categories,
    }
    out.mkdir(parents=True, exist_ok=True)
    return save_set(out, {**manifest, "shards": entries}, join(scans))


def _made_before(out: Path, manifest: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Entries of the shards that an earlier call with the same arguments finished, by file name.

    Raises:
        ValueError: if the folder holds something else.
    """
    if not out.exists() or not any(out.iterdir()):
        return {}
    if not (out / MANIFEST).exists():
        # A conversion that was killed before its first shard was listed leaves parts of it.
        foreign = [p.name for p in out.iterdir() if not p.name.startswith((".", f"{out.resolve().name}-"))]
        if foreign:
            raise ValueError(f"{out}: is not empty and holds no {MANIFEST}; choose another folder")
        return {}
    before = read_manifest(out / MANIFEST)
    for part in ("source", "settings"):
        for key, value in manifest[part].items():
            was = before.get(part, {}).get(key)
            # The same content from another place is the same source.
            if was != value and key != "annotations":
                raise ValueError(
                    f"{out}: holds another conversion, whose {key.replace('_', ' ')} was {was} and not {value}; "
                    "repeat that one, or choose another folder"
                )
    return {entry["file"]: entry for entry in before["shards"]}


def _tasks(
    coco: dict[str, Any], images: Path, out: Path, manifest: dict[str, Any], made: dict[str, Any]
) -> list[_Task]:
    rows: dict[int, list[dict[str, Any]]] = {record["id"]: [] for record in coco["images"]}
    for row in coco.get("annotations", []):
        rows[row["image_id"]].append(row)
    settings, tasks = manifest["settings"], []
    for i, part in enumerate(np.array_split(np.arange(len(coco["images"])), settings["shards"])):
        name = f"{out.resolve().name}-{i:05d}-of-{settings['shards']:05d}.tfrecord"
        records = [coco["images"][j] for j in part]
        tasks.append(
            _Task(
                path=out / name,
                records=records,
                rows=[rows[record["id"]] for record in records],
                images=images,
                class_names={category["id"]: category["name"] for category in coco["categories"]},
                masks=settings["masks"],
                skip_damaged=settings["skip_damaged"],
                made=made.get(name),
            )
        )
    return tasks


def _make_shard(task: _Task) -> tuple[dict[str, Any], Scan]:
    """Writes a shard, unless it is there and whole; its entry in the manifest and what it holds."""
    if task.made is not None:
        with suppress(FileNotFoundError, ValueError):
            found = scan(task.path)
            if found.sha256 == task.made["sha256"]:
                return task.made, found
    skipped: list[str] = []
    with written_aside(task.path) as aside:
        write_records(aside, _examples(task, skipped))
    found = scan(task.path)
    entry = {
        "file": task.path.name,
        "images": len(found.source_ids),
        "bytes": found.size,
        "sha256": found.sha256,
        "skipped": skipped,
    }
    return entry, found


def _examples(task: _Task, skipped: list[str]) -> Iterator[bytes]:
    for record, rows in zip(task.records, task.rows, strict=True):
        path = task.images / record["file_name"]
        try:
            data = read_bytes(path)
            to_rgb(data, path, (record["height"], record["width"]))
        except (FileNotFoundError, ValueError) as error:
            if not task.skip_damaged:
                raise type(error)(f"{error} (--skip-damaged leaves such images out)") from None
            skipped.append(str(error))
            continue
        yield to_example(record, rows, data.tobytes(), class_names=task.class_names, masks=task.masks)
