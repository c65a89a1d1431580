"""TFRecord files of `tf.train.Example`, without TensorFlow.

The processes that convert a data set import this instead of TensorFlow, which takes seconds and hundreds of megabytes
in each of them, and TensorFlow has no public way to read one record from the middle of a file.

A TFRecord file (tensorflow/core/lib/io/record_writer.h) is a sequence of records: the length as uint64, the masked
CRC-32C of these 8 bytes as uint32, the data, the masked CRC-32C of the data as uint32, all little-endian.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import google_crc32c
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.descriptor_pb2 import FieldDescriptorProto as Field
from google.protobuf.message import DecodeError

_HEAD, _TAIL = 12, 4  # bytes before and behind a record's data

Features = dict[str, list[Any]]  # name -> values, all bytes, all int or all float


def write_records(path: str | Path, records: Iterable[bytes]) -> None:
    """Writes a TFRecord file."""
    with open(path, "wb") as file:
        for data in records:
            length = struct.pack("<Q", len(data))
            file.write(length + _masked_crc(length) + data + _masked_crc(data))


def read_record(path: str | Path, offset: int, length: int) -> bytes:
    """One record of a TFRecord file, verified.

    Args:
        path: the file.
        offset: where the record begins in the file, in bytes.
        length: of its data, in bytes.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if there is no such record there, or it is damaged.
    """
    with _opened(path) as file:
        file.seek(offset)
        data = _next_record(file, path, offset)
    if data is None or len(data) != length:
        raise ValueError(
            f"{path}: has no record of {length} bytes at byte {offset}; the file is not the one that was indexed"
        )
    return data


def read_records(path: str | Path, digest: Any = None) -> Iterator[tuple[int, bytes]]:
    """All records of a TFRecord file, verified, each with the byte at which it begins.

    Args:
        path: the file.
        digest: an object of `hashlib` that is fed with the whole file.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is damaged, breaks off or is not a TFRecord file.
    """
    offset = 0
    with _opened(path) as file:
        while (data := _next_record(file, path, offset)) is not None:
            yield offset, data
            offset += _HEAD + len(data) + _TAIL
        if digest is not None:
            file.seek(0)
            _feed(digest, file)


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a file's content, in hexadecimal digits; FileNotFoundError if there is none."""
    digest = hashlib.sha256()
    with _opened(path) as file:
        _feed(digest, file)
    return digest.hexdigest()


def encode_example(features: Features) -> bytes:
    """A serialised `tf.train.Example`, the same bytes for the same features; empty lists are left out."""
    example = _example_type()()
    for name, values in features.items():
        if values:
            kind = {bytes: "bytes_list", int: "int64_list", float: "float_list"}[type(values[0])]
            getattr(example.features.feature[name], kind).value.extend(values)
    return example.SerializeToString(deterministic=True)


def decode_example(data: bytes) -> Features:
    """The features of a serialised `tf.train.Example`; ValueError if the bytes are none."""
    try:
        example = _example_type().FromString(data)
    except DecodeError:
        raise ValueError("is not a tf.train.Example") from None
    # A feature has one of three lists.
    return {
        name: [value for _, values in feature.ListFields() for value in values.value]
        for name, feature in example.features.feature.items()
    }


def _feed(digest: Any, file: Any) -> None:
    while block := file.read(1 << 20):
        digest.update(block)


def _opened(path: str | Path) -> Any:
    try:
        return open(path, "rb")
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file") from None


def _next_record(file: Any, path: str | Path, offset: int) -> bytes | None:
    """The data of the record that begins here; None at the end of the file."""
    head = file.read(_HEAD)
    if not head:
        return None
    if head[8:] != _masked_crc(head[:8]):
        if offset == 0 and head[:2] in (b"\x1f\x8b", b"\x78\x9c"):
            raise ValueError(
                f"{path}: is compressed; unpack it first, a record cannot be found in it otherwise"
            )
        what = "is damaged" if len(head) == _HEAD else "breaks off"
        why = "copy it again" if offset else "copy it again, if it is a TFRecord file at all"
        raise ValueError(f"{path}: {what} in the record that begins at byte {offset}; {why}")
    (length,) = struct.unpack("<Q", head[:8])
    data, tail = file.read(length), file.read(_TAIL)
    if len(data) < length or len(tail) < _TAIL:
        raise ValueError(f"{path}: breaks off in the record that begins at byte {offset}; copy it again")
    if tail != _masked_crc(data):
        raise ValueError(f"{path}: wrong checksum of the record that begins at byte {offset}; copy it again")
    return data


def _masked_crc(data: bytes) -> bytes:
    crc = google_crc32c.value(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


@cache
def _example_type() -> Any:
    """The message `tf.train.Example` (tensorflow/core/example/feature.proto), in a pool of its own."""
    file = descriptor_pb2.FileDescriptorProto(name="example.proto", package="records", syntax="proto3")

    def message(name: str, *fields: tuple[str, int, str]) -> descriptor_pb2.DescriptorProto:
        made = file.message_type.add(name=name)
        for number, (field, label, of) in enumerate(fields, 1):
            scalar = {"bytes": Field.TYPE_BYTES, "float": Field.TYPE_FLOAT, "int64": Field.TYPE_INT64}
            scalar["string"] = Field.TYPE_STRING
            added = made.field.add(name=field, number=number, label=label)
            added.type = scalar.get(of, Field.TYPE_MESSAGE)
            if of not in scalar:
                added.type_name = f".records.{of}"
        return made

    one, many = Field.LABEL_OPTIONAL, Field.LABEL_REPEATED
    lists = {"bytes_list": "bytes", "float_list": "float", "int64_list": "int64"}
    for kind, of in lists.items():
        message(kind, ("value", many, of))
    message("Feature", *((kind, one, kind) for kind in lists))
    features = message("Features", ("feature", many, "Features.FeatureEntry"))
    entry = message("FeatureEntry", ("key", one, "string"), ("value", one, "Feature"))
    entry.options.map_entry = True
    features.nested_type.append(entry)
    file.message_type.remove(entry)
    message("Example", ("features", one, "Features"))
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("records.Example"))
