"""TFRecord files and examples, compared with TensorFlow's own."""

import re

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mrcnn_tf.data.records.files import (
    decode_example,
    encode_example,
    read_record,
    read_records,
    write_records,
)

FLOATS = st.lists(st.floats(width=32, allow_nan=False), max_size=4)
WHOLE = st.lists(st.integers(-(2**63), 2**63 - 1), max_size=4)
VALUES = st.one_of(FLOATS, WHOLE, st.lists(st.binary(max_size=9), max_size=4))
FEATURES = st.dictionaries(st.text(max_size=8), VALUES, max_size=5)
FEW = settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@FEW
@given(st.lists(st.binary(max_size=40), max_size=5))
def test_files_are_those_of_tensorflow(tmp_path, records):
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    write_records(ours, records)
    with tf.io.TFRecordWriter(str(theirs)) as writer:
        for data in records:
            writer.write(data)
    assert ours.read_bytes() == theirs.read_bytes()
    found = list(read_records(theirs))
    assert [data for _, data in found] == records
    for offset, data in found:
        assert read_record(ours, offset, len(data)) == data


@FEW
@given(FEATURES)
def test_examples_are_those_of_tensorflow(features):
    data = encode_example(features)
    example = tf.train.Example.FromString(data)
    kept = {name: values for name, values in features.items() if values}
    assert set(example.features.feature) == set(kept)
    for name, values in kept.items():
        feature = example.features.feature[name]
        kind = {bytes: "bytes_list", int: "int64_list", float: "float_list"}[type(values[0])]
        assert list(getattr(feature, kind).value) == values
    assert decode_example(example.SerializeToString()) == kept
    assert encode_example(dict(reversed(features.items()))) == data  # in whatever order


def test_numbers_that_were_not_packed_are_read():
    """proto2 writers put each number on its own."""

    def field(number, content):
        return bytes([number << 3 | 2, len(content)]) + content

    value = bytes([1 << 3 | 5]) + np.float32(1.5).tobytes()
    feature = field(2, value * 2)  # float_list
    data = field(1, field(1, field(1, b"f") + field(2, feature)))
    assert decode_example(data) == {"f": [1.5, 1.5]}


@pytest.fixture
def shard(tmp_path):
    path = tmp_path / "shard"
    write_records(path, [b"first record", b"second"])
    return path


def damaged(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("at", [3, 10, 14, 25, 29, 45])
def test_any_changed_byte_is_found(shard, at):
    damaged(shard, at)
    begins = 0 if at < 28 else 28
    with pytest.raises(
        ValueError, match=f"{re.escape(str(shard))}: .*record that begins at byte {begins}; copy it"
    ):
        list(read_records(shard))
    if at >= 28:  # the first is still good
        assert read_record(shard, 0, 12) == b"first record"


@pytest.mark.parametrize("size", [5, 20, 27, 33, 49])
def test_a_file_that_breaks_off_is_named(shard, size):
    shard.write_bytes(shard.read_bytes()[:size])
    with pytest.raises(ValueError, match=f"{re.escape(str(shard))}: breaks off in the record"):
        list(read_records(shard))


def test_other_files_are_refused(tmp_path, shard):
    with pytest.raises(FileNotFoundError, match="none: no such file"):
        list(read_records(tmp_path / "none"))
    with pytest.raises(ValueError, match="has no record of 5 bytes at byte 28"):
        read_record(shard, 28, 5)
    packed = tmp_path / "packed"
    with tf.io.TFRecordWriter(str(packed), options="GZIP") as writer:
        writer.write(b"text")
    with pytest.raises(ValueError, match="packed: is compressed; unpack it first"):
        list(read_records(packed))
    with pytest.raises(ValueError, match=r"is not a tf\.train\.Example"):
        decode_example(b"no example at all")
