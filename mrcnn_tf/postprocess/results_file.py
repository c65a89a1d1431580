"""COCO results files of any size: read entry by entry or image by image, checked, and written whole or not at all."""

from __future__ import annotations

import json
import os
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from mrcnn_tf.data.results import Known, check_entry
from mrcnn_tf.files import written_aside
from mrcnn_tf.postprocess.json_list import list_items

__all__ = [
    "ImageResults",
    "read_entries",
    "read_images",
    "read_known",
    "write_entries",
]


class ImageResults(NamedTuple):
    """The results of one image.

    Attributes:
        image_id: its id.
        indices: for each entry its place in the file, from 0.
        entries: the entries, in the file's order.
    """

    image_id: Any
    indices: list[int]
    entries: list[dict[str, Any]]


def read_known(annotations: str | Path) -> Known:
    """Reads the images and categories of an annotation file in COCO's format.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not such a file.
    """
    try:
        truth = json.loads(Path(annotations).read_bytes())
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{annotations}: no such file; give the path of a COCO annotation JSON"
        ) from None
    except ValueError as error:
        raise ValueError(f"{annotations}: not valid JSON ({error}); is the file complete?") from None
    try:
        sizes = {image["id"]: [image.get("height"), image.get("width")] for image in truth["images"]}
        categories = {
            category["id"]: str(category.get("name", category["id"])) for category in truth["categories"]
        }
    except (KeyError, TypeError, AttributeError):
        raise ValueError(
            f"{annotations}: has no lists 'images' and 'categories' of objects with an 'id'"
        ) from None
    for image_id, size in sizes.items():
        if not all(side is None or (isinstance(side, int) and side > 0) for side in size):
            raise ValueError(
                f"{annotations}: image {image_id} has height and width {size}; they must be whole numbers above 0"
            )
    return Known(str(annotations), sizes, categories)


def read_entries(path: str | Path, *, known: Known | None = None) -> Iterator[dict[str, Any]]:
    """The entries of a results file in its order, each checked (see `check_entry`), one in memory at a time.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for damaged JSON and for a wrong entry, naming file and entry.
    """
    sizes: dict[Any, list[int]] = {}
    for index, (_, _, entry) in enumerate(list_items(path)):
        check_entry(entry, f"{path}: entry {index}", sizes, known)
        yield entry


def read_images(path: str | Path, *, known: Known | None = None) -> Iterator[ImageResults]:
    """The entries of a results file image by image, in the order in which the images first occur.

    The file is read twice: first to check every entry and to note where it lies, then to fetch those of each image
    from there. So whatever the order of the entries, memory is that of one image's entries and about 50 bytes an
    entry, and all errors come before the first image.

    Args:
        path: the file, a list of entries in COCO's results format. It must not change meanwhile.
        known: images and categories that entries may name; None to believe them.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for damaged JSON and for a wrong entry, naming file and entry.
    """
    sizes: dict[Any, list[int]] = {}
    members: dict[Any, array[int]] = {}
    starts, stops = array("q"), array("q")
    for index, (start, stop, entry) in enumerate(list_items(path)):
        check_entry(entry, f"{path}: entry {index}", sizes, known)
        members.setdefault(entry["image_id"], array("q")).append(index)
        starts.append(start)
        stops.append(stop)
    with open(path, "rb", buffering=0) as file:

        def entry_at(index: int) -> dict[str, Any]:
            return json.loads(os.pread(file.fileno(), stops[index] - starts[index], starts[index]))

        for image_id, indices in members.items():
            yield ImageResults(image_id, indices.tolist(), [entry_at(i) for i in indices])


@contextmanager
def write_entries(path: str | Path) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Gives a function that writes one entry; the file is there, whole, once the block ends without an error.

    Until then the entries are in a file beside it, which an error takes away; what was at `path` stays.

    Raises:
        OSError: if the file cannot be written.
    """
    with written_aside(path) as aside, open(aside, "w", encoding="utf-8") as file:
        before = "[\n"

        def write(entry: dict[str, Any]) -> None:
            nonlocal before
            file.write(before + json.dumps(entry))
            before = ",\n"

        yield write
        file.write("\n]\n" if before == ",\n" else "[]\n")
