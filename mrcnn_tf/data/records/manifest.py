"""The manifest of a set of shards, label maps, and which paths name records."""

from __future__ import annotations

import glob
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from mrcnn_tf.data.records.files import file_sha256
from mrcnn_tf.data.records.index import Index
from mrcnn_tf.data.structure import read_json
from mrcnn_tf.files import save_json, written_aside

FORMAT, VERSION = "mrcnn_tf records", 1
MANIFEST, INDEX = "manifest.json", "index.npz"


def is_records(path: str | Path) -> bool:
    """Whether a path names TFRecords (a manifest, a shard or a pattern of shards), and not a COCO file."""
    name = Path(path).name
    return name == MANIFEST or bool(re.search(r"[*?\[]|\.(tf_?)?records?\b", name))


def save_set(folder: Path, manifest: dict[str, Any], index: Index) -> Path:
    """Writes the index and then the manifest, which is complete with it; returns the manifest's path."""
    with written_aside(folder / INDEX) as aside:
        np.savez_compressed(aside, allow_pickle=False, **index)
    described = {"file": INDEX, "sha256": file_sha256(folder / INDEX)}
    counts = {"images": len(index["id"]), "annotations": len(index["category"])}
    save_json(folder / MANIFEST, {**manifest, **counts, "index": described, "complete": True}, indent=1)
    return folder / MANIFEST


def read_manifest(path: str | Path) -> dict[str, Any]:
    """A manifest, complete or not.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not a manifest, or one of another version.
    """
    try:
        manifest = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such manifest") from None
    except ValueError as error:
        raise ValueError(f"{path}: not a whole manifest ({error}); convert the data set again") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ValueError(f"{path}: not a manifest of records, which `mrcnn convert-data` writes")
    if manifest.get("version") != VERSION:
        raise ValueError(
            f"{path}: of version {manifest.get('version')}, but this mrcnn_tf reads version {VERSION}; "
            "convert the data set again into another folder, or install the mrcnn_tf that wrote it"
        )
    return manifest


def load_set(path: str | Path) -> tuple[dict[str, Any], Index, list[Path]]:
    """A complete manifest, its index and its shards, of which only the sizes are looked at.

    Raises:
        FileNotFoundError: if one of the files is missing.
        ValueError: if the conversion is not finished, or a file is not the one of the manifest.
    """
    manifest, folder = read_manifest(path), Path(path).parent
    if not manifest["complete"]:
        raise ValueError(
            f"{path}: the conversion is not finished; run `mrcnn convert-data` as before to go on"
        )
    if file_sha256(folder / manifest["index"]["file"]) != manifest["index"]["sha256"]:
        raise ValueError(f"{folder / manifest['index']['file']}: wrong checksum; copy it again")
    shards = [folder / shard["file"] for shard in manifest["shards"]]
    for file, shard in zip(shards, manifest["shards"], strict=True):
        if not file.exists():
            raise FileNotFoundError(f"{file}: no such file, but {path} lists it")
        if file.stat().st_size != shard["bytes"]:
            raise ValueError(
                f"{file}: has {file.stat().st_size} bytes, but {path} says {shard['bytes']}; copy it again"
            )
    with np.load(folder / manifest["index"]["file"]) as index:
        return manifest, dict(index), shards


def verify(path: str | Path) -> dict[str, Any]:
    """Reads every shard of a manifest and compares its checksum; returns the manifest.

    Raises:
        FileNotFoundError, ValueError: see `load_set`; or a checksum is wrong.
    """
    manifest, _, shards = load_set(path)
    for file, shard in zip(
        tqdm(shards, "shards", disable=None, leave=False), manifest["shards"], strict=True
    ):
        if file_sha256(file) != shard["sha256"]:
            raise ValueError(f"{file}: wrong checksum, it is not the file that {path} lists; copy it again")
    return manifest


def read_labels(path: str | Path) -> list[dict[str, Any]]:
    """Categories from a COCO annotation file or a label map of the Object Detection API (`item { id: name: }`).

    Raises:
        FileNotFoundError, ValueError: if there is no such file, or it names no class.
    """
    if str(path).endswith(".json"):
        return [{"id": c["id"], "name": c["name"]} for c in read_json(path).get("categories", [])]
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such label map") from None
    categories = []
    for item in re.findall(r"item\s*\{(.*?)\}", re.sub(r"#.*", "", text), re.DOTALL):
        number = re.search(r"\bid\s*:\s*(\d+)", item)
        # `name` is often a code such as /m/01g317.
        name = re.search(r"\bdisplay_name\s*:\s*(['\"])(.*?)\1", item) or re.search(
            r"\bname\s*:\s*(['\"])(.*?)\1", item
        )
        if not number or not name:
            raise ValueError(f"{path}: an item without 'id' or 'name': {' '.join(item.split())}")
        categories.append({"id": int(number[1]), "name": name[2]})
    if not categories:
        raise ValueError(f"{path}: holds no 'item {{ id: ... name: ... }}', so it is not a label map")
    return categories


def shard_paths(pattern: str | Path) -> list[Path]:
    """The files of a pattern (`*`, `?`, `[...]`), sorted; FileNotFoundError if there are none."""
    paths = sorted(Path(path) for path in glob.glob(str(pattern)))
    if not paths:
        raise FileNotFoundError(f"{pattern}: no such files")
    return paths
