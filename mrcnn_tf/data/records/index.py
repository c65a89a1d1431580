"""Where every record of a set of shards lies, and what it holds in short."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mrcnn_tf.data.records.examples import fate_of, read_example
from mrcnn_tf.data.records.files import read_records
from mrcnn_tf.data.records.workers import in_processes, progress
from mrcnn_tf.data.structure import parse_box, parse_segmentation

Index = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Scan:
    """What a shard holds.

    Attributes:
        size, sha256: of the file.
        source_ids: image ids as in the records: int of our own shards, str of foreign ones.
        index: `offset`, `length` int64 `[N]`, of the records in bytes; `sizes` int32 `[N, 2]`, heights and widths;
            `rows` int64 `[N]`, annotations an image; and of these, one after the other, `category` int64 `[M]` and
            `fate` uint8 `[M]`, see `fate_of`.
        names: class names by label, as far as the records tell.
    """

    size: int
    sha256: str
    source_ids: list[int | str]
    index: Index
    names: dict[int, str]


def scan(path: str | Path) -> Scan:
    """Reads a shard from beginning to end, and verifies every record.

    Raises:
        FileNotFoundError, ValueError: see `read_records` and `read_example`.
    """
    digest, ids = hashlib.sha256(), []
    names: dict[int, str] = {}
    found: dict[str, list[Any]] = {key: [] for key in _DTYPES}
    for offset, data in read_records(path, digest):
        where = f"{path}, record at byte {offset}"
        features, record, rows = read_example(data, where, masks=False)
        height, width = record["height"], record["width"]
        ids.append(record["id"])
        for key, value in (
            ("offset", offset),
            ("length", len(data)),
            ("sizes", (height, width)),
            ("rows", len(rows)),
        ):
            found[key].append(value)
        for row in rows:
            # The outline is not looked at where there is a box.
            outline = row.get("segmentation") if row.get("bbox") is None else None
            box = parse_box(row, parse_segmentation(outline, height, width))
            found["category"].append(row["category_id"])
            found["fate"].append(fate_of(box, height, width))
        texts = features.get("image/object/class/text", [])
        for label, text in zip(features.get("image/object/class/label", []), texts, strict=bool(texts)):
            if names.setdefault(label, text.decode()) != text.decode():
                raise ValueError(f"{where}: class {label} is {text.decode()!r}, and {names[label]!r} before")
    index = {key: np.array(found[key], dtype) for key, dtype in _DTYPES.items()}
    index["sizes"] = index["sizes"].reshape(-1, 2)
    return Scan(os.path.getsize(path), digest.hexdigest(), ids, index, names)


_DTYPES = {
    "offset": np.int64,
    "length": np.int64,
    "sizes": np.int32,
    "rows": np.int64,
    "category": np.int64,
    "fate": np.uint8,
}


def join(scans: Sequence[Scan]) -> Index:
    """The index of a whole set: that of its shards one after the other, with `shard` and `id` of every image.

    Ids are the records' own if they all are different whole numbers, and else 1, 2, ... in the order of the records.
    """
    index = {key: np.concatenate([s.index[key] for s in scans]) for key in _DTYPES}
    index["shard"] = np.repeat(np.arange(len(scans), dtype=np.int32), [len(s.source_ids) for s in scans])
    found = [str(source) for s in scans for source in s.source_ids]
    whole = all(re.fullmatch(r"-?\d{1,18}", text) for text in found)
    ids = np.array([int(text) for text in found] if whole else [], np.int64)
    unique = whole and len(np.unique(ids)) == len(found)
    index["id"] = ids if unique else np.arange(1, len(found) + 1)
    return index


def names_of(scans: Sequence[Scan]) -> list[dict[str, Any]]:
    """Categories, as a COCO file lists them, from the names in the records.

    Raises:
        ValueError: if a label has no name, or two.
    """
    names: dict[int, str] = {}
    for found in scans:
        for label, name in found.names.items():
            if names.setdefault(label, name) != name:
                raise ValueError(f"class {label} is {name!r} in one shard and {names[label]!r} in another")
    used = {int(label) for s in scans for label in np.unique(s.index["category"])}
    if nameless := sorted(used - names.keys()):
        raise ValueError(
            f"the records do not name class {nameless[0]}; "
            "give their names with `mrcnn convert-data --records PATTERN --labels MAP --out DIR`"
        )
    return [{"id": label, "name": names[label]} for label in sorted(names)]


def scan_all(paths: Iterable[Path], workers: int | None = 1) -> list[Scan]:
    """Scans of shards, in their order, in as many processes."""
    paths = list(paths)
    scans: dict[int, Scan] = {}
    with progress(len(paths), "shards") as advance:
        for i, found in in_processes(scan, paths, workers):
            scans[i] = found
            advance(1)
    return [scans[i] for i in range(len(paths))]
