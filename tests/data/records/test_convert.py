"""Conversion: interrupted, resumed, refused; and shards that were damaged since."""

import json
import os
import re
import signal
import subprocess
import sys

import pytest

from mrcnn_tf.data.coco import CocoDataset
from mrcnn_tf.data.records.convert import adopt, convert
from mrcnn_tf.data.records.dataset import RecordDataset
from mrcnn_tf.data.records.manifest import load_set, read_manifest, verify
from tests.data.helpers import coco, write
from tests.data.test_coco import content


@pytest.fixture
def source(tmp_path):
    return write(tmp_path / "source", content())


def files(folder):
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


def test_shards_do_not_depend_on_the_number_of_processes(tmp_path, source):
    one = convert(*source, tmp_path / "one" / "val", shards=3, workers=1).parent
    two = convert(*source, tmp_path / "two" / "val", shards=3, workers=2).parent
    assert files(one) == files(two)
    assert [shard["images"] for shard in read_manifest(one / "manifest.json")["shards"]] == [1, 1, 1]
    assert sorted(files(one)) == [
        "index.npz",
        "manifest.json",
        "val-00000-of-00003.tfrecord",
        "val-00001-of-00003.tfrecord",
        "val-00002-of-00003.tfrecord",
    ]
    assert verify(one / "manifest.json")["images"] == 3


KILLED = """
import os, signal, sys
from mrcnn_tf.data.records import convert as module
save = module.save_json
def save_and_die(path, value, **options):
    save(path, value, **options)
    if len(value["shards"]) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
module.save_json = save_and_die
module.convert(*sys.argv[1:], shards=6, workers=2)
"""


def test_a_killed_conversion_goes_on(tmp_path):
    source = write(tmp_path / "source", coco([(i, 64, 64) for i in range(12)], []))
    whole = convert(*source, tmp_path / "whole" / "set", shards=6, workers=1).parent
    out = tmp_path / "killed" / "set"
    call = [sys.executable, "-c", KILLED, *map(str, source), str(out)]
    # The pipes close, and the call returns, when the processes that work on shards have ended as well.
    ended = subprocess.run(call, capture_output=True, timeout=60, cwd=os.getcwd())
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()
    with pytest.raises(ValueError, match=r"manifest\.json: the conversion is not finished; run"):
        RecordDataset(out / "manifest.json")
    listed = [shard["file"] for shard in read_manifest(out / "manifest.json")["shards"]]
    assert len(listed) == 2
    (out / f".1.partial.{listed[0]}").write_bytes(b"left over")
    times = {name: (out / name).stat().st_mtime_ns for name in listed}
    convert(*source, out, shards=6, workers=1)
    assert files(out) == files(whole)
    assert times == {name: (out / name).stat().st_mtime_ns for name in listed}


def test_a_conversion_that_was_killed_before_its_first_shard(tmp_path, source):
    out = tmp_path / "val"
    out.mkdir()
    (out / "val-00000-of-00001.tfrecord").write_bytes(b"half")
    convert(*source, out, workers=1)
    assert verify(out / "manifest.json")["images"] == 3


def test_a_listed_shard_with_a_wrong_checksum_is_made_anew(tmp_path, source):
    folder = convert(*source, tmp_path / "val", shards=2, workers=1).parent
    before = files(folder)
    damage(folder / "val-00001-of-00002.tfrecord")
    (folder / "val-00000-of-00002.tfrecord").unlink()
    convert(*source, folder, shards=2, workers=1)
    assert files(folder) == before


def test_another_source_or_setting_is_refused(tmp_path, source):
    folder = convert(*source, tmp_path / "val", workers=1).parent
    before = files(folder)
    with pytest.raises(
        ValueError, match=r"holds another conversion, whose masks was rle and not png; repeat that"
    ):
        convert(*source, folder, masks="png", workers=1)
    with pytest.raises(ValueError, match="whose shards was 1 and not 2"):
        convert(*source, folder, shards=2, workers=1)
    source[0].write_text(json.dumps({**content(), "info": {}}))
    with pytest.raises(ValueError, match="whose annotations sha256 was"):
        convert(*source, folder, workers=1)
    assert files(folder) == before
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"other: is not empty and holds no manifest\.json"):
        convert(*source, other, workers=1)
    assert files(other) == {"thesis.txt": b"mine"}


@pytest.mark.parametrize("workers", [1, 2])
def test_an_image_that_cannot_be_read(tmp_path, source, workers):
    annotations, images = source
    (images / "3.png").write_bytes((images / "3.png").read_bytes()[:60])
    with pytest.raises(ValueError, match=r"3\.png: not a whole, readable image \(60 bytes\).*--skip-damaged"):
        convert(annotations, images, tmp_path / "strict", shards=3, workers=workers)
    (images / "7.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 3 images are missing, the first is 7\.png"):
        convert(annotations, images, tmp_path / "strict", shards=3, workers=workers)
    path = convert(annotations, images, tmp_path / "rest", shards=2, workers=workers, skip_damaged=True)
    assert RecordDataset(path).image_ids == [12]
    skipped = [
        re.sub(r".*/", "", line) for shard in read_manifest(path)["shards"] for line in shard["skipped"]
    ]
    assert [line.split(":")[0] for line in skipped] == ["7.png", "3.png"]


def test_arguments_out_of_their_range(tmp_path, source):
    for bad, message in (
        ({"masks": "jpeg"}, "masks must be one of rle, png, none, not jpeg"),
        ({"shards": 0}, "shards and workers must be at least 1, not 0 and None"),
        ({"workers": -1}, "not None and -1"),
    ):
        with pytest.raises(ValueError, match=message):
            convert(*source, tmp_path / "out", **bad)
    with pytest.raises(FileNotFoundError, match="nowhere: no such image folder"):
        convert(source[0], tmp_path / "nowhere", tmp_path / "out")
    broken = content()
    broken["annotations"][0]["category_id"] = 5
    source[0].write_text(json.dumps(broken))
    with pytest.raises(ValueError, match="category 5 is not among"):
        convert(*source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def damage(path, at=-20):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


@pytest.fixture
def made(tmp_path, source):
    return convert(*source, tmp_path / "val", shards=2, workers=1)


def test_damaged_shards_are_named(made):
    shard = made.parent / "val-00001-of-00002.tfrecord"
    whole = shard.read_bytes()
    damage(shard)
    with pytest.raises(
        ValueError, match=f"^{re.escape(str(shard))}: wrong checksum, it is not the file that"
    ):
        verify(made)
    dataset = RecordDataset(made)  # sizes are right, so it is found when the record is read
    dataset.image(0)
    with pytest.raises(
        ValueError, match=f"^{re.escape(str(shard))}: wrong checksum of the record that begins at byte 0"
    ):
        dataset.image(2)
    shard.write_bytes(whole[:-1])
    with pytest.raises(
        ValueError, match=rf"00001-of-00002.tfrecord: has {len(whole) - 1} bytes, but .* {len(whole)}"
    ):
        RecordDataset(made)
    shard.unlink()
    with pytest.raises(
        FileNotFoundError, match=r"00001-of-00002.tfrecord: no such file, but .*manifest\.json lists it"
    ):
        RecordDataset(made)


def test_other_manifests_are_refused(made):
    manifest = json.loads(made.read_text())
    damage(made.parent / "index.npz")
    with pytest.raises(ValueError, match=r"index\.npz: wrong checksum"):
        load_set(made)
    for text, message in (
        (json.dumps({**manifest, "version": 9}), "of version 9, but this mrcnn_tf reads version 1"),
        (json.dumps({"images": []}), "not a manifest of records"),
        (made.read_text()[:50], "not a whole manifest"),
    ):
        made.write_text(text)
        with pytest.raises(ValueError, match=f"^{re.escape(str(made))}: {message}"):
            RecordDataset(made)
        assert made.read_text() == text
    source = content()  # going on with the conversion overwrites none of them either
    annotations, images = write(made.parent.parent / "source", source)
    with pytest.raises(ValueError, match="not a whole manifest"):
        convert(annotations, images, made.parent)
    made.unlink()
    with pytest.raises(FileNotFoundError, match=r"manifest\.json: no such manifest"):
        RecordDataset(made)


def test_adopted_shards_stay_where_they_are(tmp_path, source, made):
    pattern = str(made.parent / "*.tfrecord")
    before = files(made.parent)
    path = adopt(pattern, tmp_path / "index", labels=source[0], workers=1)
    assert files(made.parent) == before
    dataset, truth = RecordDataset(path), CocoDataset(*source)
    assert dataset.image_ids == truth.image_ids
    assert dataset.class_names == truth.class_names
    assert verify(path)["images"] == 3
    with pytest.raises(ValueError, match="there is a manifest already"):
        adopt(pattern, tmp_path / "index", workers=1)
    with pytest.raises(FileNotFoundError, match="no such files"):
        adopt(str(tmp_path / "*.records"), tmp_path / "none")
    assert not (tmp_path / "none").exists()
