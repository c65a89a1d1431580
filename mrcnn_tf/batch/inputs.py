"""What is to be predicted: the listing of inputs, its division into shards, and the images of a shard."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from apache_beam.io.filesystem import CompressionTypes
from apache_beam.io.filesystems import FileSystems

# A pattern may match a film or a disk image; without a limit, one such file would take a worker's memory.
MAX_BYTES = 256 << 20
RECORDS = re.compile(r"\.tfrecords?(-\d+-of-\d+)?$")


class Shard(NamedTuple):
    """Inputs that are predicted together and whose results are one file.

    Attributes:
        number: of it, from 0.
        total: how many shards there are.
        start, stop: where its lines are in the listing, in bytes.
        first: the number of its first line, from 1.
    """

    number: int
    total: int
    start: int
    stop: int
    first: int


class Item(NamedTuple):
    """One image, or what was there instead.

    Attributes:
        source: where it was read: the file, or `FILE#INDEX` in a TFRecord file, from 0.
        image_id: of COCO's results format; a file's number in the listing, or the record's `image/source_id`.
        file_name: without folders; the record's `image/filename`.
        data: the bytes of the image file.
        reason: why there are none, or empty.
    """

    source: str
    image_id: int | str
    file_name: str
    data: bytes = b""
    reason: str = ""


class Inputs(NamedTuple):
    """The inputs of a run.

    Attributes:
        paths: image files, or TFRecord files; sorted if they come from a pattern.
        records: whether they are TFRecord files.
        repeated: how many more there were that name a path again.
    """

    paths: list[str]
    records: bool
    repeated: int

    def listing(self) -> bytes:
        """One path a line, as a file."""
        return "".join(f"{path}\n" for path in self.paths).encode()

    def sha256(self) -> str:
        """Checksum of the listing."""
        return hashlib.sha256(self.listing()).hexdigest()

    def shards(self, size: int) -> list[Shard]:
        """The shards, of `size` lines of the listing each; the last may be shorter."""
        ends = [0]
        for path in self.paths:
            ends.append(ends[-1] + len(path.encode()) + 1)
        firsts = range(0, len(self.paths), size)
        last = len(self.paths)
        return [
            Shard(i, len(firsts), ends[first], ends[min(first + size, last)], first + 1)
            for i, first in enumerate(firsts)
        ]


def expand(text: str) -> Inputs:
    """The inputs that a pattern or a text file names.

    Args:
        text: a pattern of Beam's file systems (`*` within a folder, `**` across folders), or a `.txt` file with one
            path a line, relative ones to the working directory. Files whose names end in `.tfrecord`, also with
            `-00000-of-00010` behind it, are TFRecord files, all others images.

    Raises:
        FileNotFoundError: no such file, or nothing that matches.
        ValueError: a folder, images and TFRecord files together, or a path with a line break.
    """
    if text.endswith(".txt") and not re.search(r"[*?\[]", text):
        with open_file(text) as file:
            found = [line.strip() for line in file.read().decode().splitlines()]
        found = [line for line in found if line]
        if not found:
            raise ValueError(f"{text}: lists no paths; give one a line")
    else:
        if os.path.isdir(text):
            raise ValueError(f"{text}: is a folder; give a pattern such as '{os.path.join(text, '*.jpg')}'")
        found = sorted(match(text))
        if not found:
            raise FileNotFoundError(f"{text}: no file matches this pattern")
    paths = list(dict.fromkeys(absolute(path) for path in found))
    broken = next((path for path in paths if "\n" in path or "\r" in path), None)
    if broken is not None:
        raise ValueError(f"{broken!r}: a file name with a line break cannot be listed; rename the file")
    records = [path for path in paths if RECORDS.search(path)]
    if records and len(records) < len(paths):
        other = next(path for path in paths if not RECORDS.search(path))
        raise ValueError(
            f"{text}: names TFRecord files ({records[0]}) and others ({other}); predict them separately"
        )
    return Inputs(paths, bool(records), len(found) - len(paths))


def read_shard(listing: str, shard: Shard, records: bool) -> Iterator[Item]:
    """The images of a shard in the listing's order, one in memory at a time.

    Args:
        listing: the file of `Inputs.listing`.
        shard: which of its lines.
        records: whether they name TFRecord files.
    """
    with open_file(listing) as file:
        file.seek(shard.start)
        paths = file.read(shard.stop - shard.start).decode().splitlines()
    for number, path in enumerate(paths, shard.first):
        if records:
            yield from read_records(path)
        else:
            yield read_image_file(path, number)


def read_image_file(path: str, number: int) -> Item:
    """One image file's bytes; whether they are an image is for the model to say."""
    item = Item(path, number, path.rsplit("/", 1)[-1])
    try:
        with open_file(path) as file:
            return checked(item, file.read(MAX_BYTES + 1))
    except OSError as error:
        return item._replace(reason=f"cannot be read: {error.strerror or error}")


def read_records(path: str) -> Iterator[Item]:
    """The images of a TFRecord file, in the feature names of the TF Object Detection API.

    What follows a damaged record cannot be read: it is one item with the reason.
    """
    import tensorflow as tf  # for workers: who starts the pipeline needs none

    name, index = path.rsplit("/", 1)[-1], 0
    try:
        for record in tf.data.TFRecordDataset(path).as_numpy_iterator():
            yield parse(record, f"{path}#{index}", f"{name}#{index}")
            index += 1
    except tf.errors.OpError as error:
        reason = f"this and any later records of the file cannot be read: {error.message}"
        yield Item(f"{path}#{index}", f"{name}#{index}", f"{name}#{index}", reason=reason)


def parse(record: bytes, source: str, name: str) -> Item:
    """The image of a `tf.train.Example`; it has this name where it brings none."""
    import tensorflow as tf
    from google.protobuf.message import DecodeError

    item = Item(source, name, name)
    try:
        features = tf.train.Example.FromString(record).features.feature
    except DecodeError:
        return item._replace(reason="not a tf.train.Example")

    def value(key: str) -> bytes | None:
        return next(iter(features[key].bytes_list.value), None) if key in features else None

    data, file_name, image_id = (value(f"image/{key}") for key in ("encoded", "filename", "source_id"))
    if file_name:
        item = item._replace(file_name=file_name.decode(errors="replace"))
    if image_id:
        text = image_id.decode(errors="replace")
        item = item._replace(image_id=int(text) if re.fullmatch(r"\d{1,18}", text, re.ASCII) else text)
    if data is None:
        return item._replace(reason="a record without bytes in the feature 'image/encoded'")
    return checked(item, data)


def checked(item: Item, data: bytes) -> Item:
    """The item with its bytes, or the reason why they are not used."""
    if len(data) > MAX_BYTES:
        return item._replace(reason=f"larger than the {MAX_BYTES >> 20} MiB allowed")
    return item._replace(data=data)


def open_file(path: str) -> Any:
    """A file of any of Beam's file systems for reading, as it is.

    Raises:
        OSError: it cannot be read.
    """
    return FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED)


def match(pattern: str) -> list[str]:
    """The files that match a pattern, on any of Beam's file systems."""
    return [found.path for found in FileSystems.match([pattern])[0].metadata_list]


def absolute(path: str) -> str:
    """The path as workers elsewhere need it."""
    return path if "://" in path else os.path.abspath(path)
