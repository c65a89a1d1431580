"""Inputs: what a pattern names, how it is divided, and what is read."""

import pytest

pytest.importorskip("apache_beam")

import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from mrcnn_tf.batch import inputs
from mrcnn_tf.batch.inputs import Inputs, expand, read_records, read_shard


@given(
    st.lists(st.text("aé日 #*/.", min_size=1, max_size=6), min_size=1, max_size=30, unique=True),
    st.integers(1, 9),
)
@settings(max_examples=30, deadline=None)
def test_shards_are_a_partition(tmp_path_factory, names, size):
    listing = tmp_path_factory.mktemp("listing") / "inputs.txt"
    found = Inputs([f"/none/{name}" for name in names], records=False, repeated=0)
    listing.write_bytes(found.listing())
    shards = found.shards(size)
    read = [[*read_shard(str(listing), shard, records=False)] for shard in shards]
    items = [item for part in read for item in part]
    assert [item.source for item in items] == found.paths
    assert [item.image_id for item in items] == [*range(1, len(names) + 1)]
    assert all(len(part) == size for part in read[:-1]) and 1 <= len(read[-1]) <= size
    assert [(s.number, s.total) for s in shards] == [(i, len(shards)) for i in range(len(shards))]


def test_pattern_and_list(tmp_path, monkeypatch):
    for name in ("b.jpg", "a.jpg", "sub/c.jpg", "d.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert expand(f"{tmp_path}/*.jpg").paths == [f"{tmp_path}/a.jpg", f"{tmp_path}/b.jpg"]
    assert expand(f"{tmp_path}/**.jpg").paths == [f"{tmp_path}/{n}.jpg" for n in ("a", "b", "sub/c")]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list.txt").write_text(f"d.png\n\n{tmp_path}/b.jpg\n d.png\nmissing.jpg\n")
    found = expand("list.txt")
    assert found.paths == [f"{tmp_path}/{n}" for n in ("d.png", "b.jpg", "missing.jpg")]
    assert found.repeated == 1 and not found.records


@pytest.mark.parametrize(
    ("files", "text", "error", "message"),
    [
        ([], "*.jpg", FileNotFoundError, "no file matches this pattern"),
        ([], "list.txt", FileNotFoundError, "list.txt"),
        ([], "", ValueError, r"is a folder; give a pattern such as '.*\*.jpg'"),
        (["a.jpg", "a.tfrecord-00000-of-00002"], "*", ValueError, "predict them separately"),
        (["a\nb.jpg"], "*", ValueError, "a file name with a line break"),
        (["list.txt"], "list.txt", ValueError, "lists no paths"),
    ],
)
def test_bad_inputs(tmp_path, files, text, error, message):
    for name in files:
        (tmp_path / name).touch()
    with pytest.raises(error, match=message):
        expand(f"{tmp_path}/{text}")


def example(**features):
    values = {
        f"image/{key}": tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))
        for key, value in features.items()
    }
    return tf.train.Example(features=tf.train.Features(feature=values)).SerializeToString()


def write_records(path, records):
    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in records:
            writer.write(record)
    return str(path)


def test_records(tmp_path, monkeypatch):
    monkeypatch.setattr(inputs, "MAX_BYTES", 10)
    path = write_records(
        tmp_path / "x.tfrecord",
        [
            example(encoded=b"one", filename=b"one.jpg", source_id=b"397133"),
            example(encoded=b"two", source_id=b"a-2"),
            example(filename=b"three.jpg"),
            b"\xff\xff not an Example",
            example(encoded=b"six" * 6),
        ],
    )
    one, two, three, four, five = read_records(path)
    assert one == (f"{path}#0", 397133, "one.jpg", b"one", "")
    assert two == (f"{path}#1", "a-2", "x.tfrecord#1", b"two", "")
    assert "without bytes in the feature 'image/encoded'" in three.reason and three.file_name == "three.jpg"
    assert (four.image_id, four.reason) == ("x.tfrecord#3", "not a tf.train.Example")
    assert "larger than" in five.reason and not five.data


def test_damaged_record_file_keeps_what_is_before(tmp_path):
    path = write_records(tmp_path / "x.tfrecord", [example(encoded=b"%d" % i * 50) for i in range(4)])
    data = bytearray((tmp_path / "x.tfrecord").read_bytes())
    data[len(data) * 5 // 8] ^= 1
    (tmp_path / "x.tfrecord").write_bytes(data)
    *good, bad = read_records(path)
    assert [item.data[:1] for item in good] == [b"0", b"1"]
    assert bad.source == f"{path}#2" and "any later records of the file cannot be read" in bad.reason
    (missing,) = read_records(f"{tmp_path}/none.tfrecord")
    assert "cannot be read" in missing.reason
