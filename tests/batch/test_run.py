"""Batch inference: every good image once, every bad one in the dead letters, and shards that stay."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("apache_beam")

import cv2
import pyarrow.parquet
import tensorflow as tf
from pycocotools import mask as coco_mask

from mrcnn_tf.batch import predict, shards
from mrcnn_tf.batch.run import predict_batch
from mrcnn_tf.data.images import read_image
from mrcnn_tf.data.results import check_entry
from mrcnn_tf.data.scene import draw_scene
from mrcnn_tf.models.mask_rcnn import MaskRCNN

HERE = ["--direct_running_mode=in_memory", "--direct_num_workers=1"]
BAD = {
    "010.jpg": (b"", "empty: no bytes of an image"),
    "025.jpg": (b"not an image at all", "neither a JPEG nor a PNG file"),
    "026.jpg": (None, "damaged or incomplete image file"),
}


@pytest.fixture(scope="module", autouse=True)
def loaded_once():
    """Loading takes most of the time of a run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(predict, "load", cache(predict.load))
        yield


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """40 files, 3 of them bad, and one that the list names but is not there."""
    folder = tmp_path_factory.mktemp("images")
    for i in range(40):
        image = draw_scene(np.random.default_rng(i), 64, 0.3)[0][: 64 - i % 3 * 8]
        data = cv2.imencode(".jpg", image[..., ::-1])[1].tobytes()
        name = f"{i:03d}.jpg"
        if name in BAD:
            data = data[: len(data) // 2] if BAD[name][0] is None else BAD[name][0]
        (folder / name).write_bytes(data)
    return folder


@pytest.fixture(scope="module")
def listed(images):
    path = images / "list.txt"
    path.write_text(
        "".join(f"{p}\n" for p in [*sorted(images.glob("*.jpg")), images / "gone.jpg", images / "000.jpg"])
    )
    return str(path)


@pytest.fixture(scope="module")
def served(export_tiny):
    model, folder = export_tiny(MaskRCNN)
    return model, str(folder)


@pytest.fixture(scope="module")
def first(listed, served, tmp_path_factory):
    """A whole run, and the prefix of its files."""
    output = tmp_path_factory.mktemp("first") / "found"
    return predict_batch(listed, served[1], str(output), shard_size=12, beam_options=HERE), output


def rows(output, suffix="jsonl"):
    paths = sorted(output.parent.glob(f"{output.name}-*-of-*[0-9].{suffix}"))
    return [json.loads(line) for path in paths for line in path.read_text().splitlines()]


def files(output):
    """Each file's content and what shows that it was not written again."""
    return {p.name: (p.read_bytes(), p.stat().st_ino) for p in sorted(output.parent.iterdir())}


def test_every_image_once(first, images):
    summary, output = first
    assert summary[:5] == (37, 4, 1, 4, 0)
    assert summary.images_per_second > 0 and summary.peak_bytes > 50 << 20
    good = [str(p) for p in sorted(images.glob("*.jpg")) if p.name not in BAD]
    assert [row["source"] for row in rows(output)] == good
    reasons = {row["file_name"]: row["reason"] for row in rows(output, "failed.jsonl")}
    gone = reasons.pop("gone.jpg")
    assert reasons == {name: reason for name, (_, reason) in BAD.items()}
    assert "cannot be read" in gone and "No such file" in gone
    assert not [*output.parent.glob("*.partial")]
    assert len(rows(output, "failed.jsonl")) == 4


def test_results_are_the_models_own(first, images, served):
    model, _ = served
    sizes = {}
    found = {row["file_name"]: row for row in rows(first[1])}
    for name in ("000.jpg", "001.jpg"):
        image = read_image(images / name)
        wanted, row = model.detect(image), found[name]
        wanted = replace(wanted, masks=np.round(wanted.masks * 255) / np.float32(255))  # what is exported
        assert (row["height"], row["width"]) == image.shape[:2]
        assert len(row["detections"]) == len(wanted) > 0
        for entry, truth in zip(row["detections"], wanted.to_coco(row["image_id"]), strict=True):
            check_entry(entry, name, sizes)
            assert entry["image_id"] == row["image_id"] == int(name[:3]) + 1
            assert entry["category_id"] == truth["category_id"]
            np.testing.assert_allclose(entry["score"], truth["score"], atol=2e-5)
            np.testing.assert_allclose(entry["bbox"], truth["bbox"], atol=0.02)
            masks = [coco_mask.decode(e["segmentation"]) for e in (entry, truth)]
            assert (masks[0] != masks[1]).sum() <= 2


def test_finished_shards_stay(first, listed, served, tmp_path):
    output = tmp_path / "found"
    for path in first[1].parent.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    before = files(output)
    summary = predict_batch(listed, served[1], str(output), shard_size=12, beam_options=HERE)
    assert summary[:5] == (37, 4, 1, 4, 4) and summary.images_per_second == 0
    assert files(output) == before

    (tmp_path / "found-00000-of-00004.done.json").unlink()
    damaged = tmp_path / "found-00002-of-00004.jsonl"
    damaged.write_bytes(damaged.read_bytes()[:-9])
    (tmp_path / "found-00003-of-00004.done.json").write_text("{")  # both damaged
    (tmp_path / "found-00000-of-00004.jsonl.0123.partial").touch()  # what a kill leaves
    summary = predict_batch(listed, served[1], str(output), shard_size=12, beam_options=HERE)
    assert summary[:5] == (37, 4, 1, 4, 1)
    after = files(output)
    assert after.keys() == before.keys()
    for name in before:
        again = any(f"-0000{i}-of" in name for i in (0, 2, 3))
        assert after[name][0] == before[name][0] or name.endswith("done.json")
        assert (after[name][1] != before[name][1]) == again


def test_another_model_or_setting_is_refused(first, listed, served, images, export_tiny, tmp_path):
    output = first[1]
    before = files(output)
    settings = {"shard_size": 12, "beam_options": HERE}
    for inputs, model, more, message in [
        (listed, served[1], {"score": 0.5}, "otherwise .score: None then, 0.5 now.;"),
        (
            listed,
            served[1],
            {"form": "parquet", "batch_size": 2},
            "format: jsonl then, parquet now; batch_size: 1 then, 2",
        ),
        (f"{images}/*.jpg", served[1], {}, r"inputs: 41 paths \(\w{8}\) then, 40 paths \(\w{8}\) now"),
    ]:
        with pytest.raises(ValueError, match=message):
            predict_batch(inputs, model, str(output), **settings, **more)
    other = tmp_path / "other"
    tf.io.gfile.makedirs(str(other / "variables"))
    (other / "saved_model.pb").write_bytes(b"another")
    with pytest.raises(ValueError, match=rf"model: .* \(\w{{8}}\) then, {other} \(\w{{8}}\) now"):
        predict_batch(listed, str(other), str(output), **settings)
    assert files(output) == before


def test_shards_of_a_deleted_manifest(first, listed, served, tmp_path):
    """Files of the right name that another setting made are not taken for this one's."""
    for path in first[1].parent.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "found.manifest.json").unlink()
    run = {"inputs": listed, "model": served[1], "output": str(tmp_path / "found"), "beam_options": HERE}
    assert predict_batch(**run, shard_size=12, score=0.9)[:5] == (37, 4, 1, 4, 0)
    assert all(e["score"] >= 0.9 for row in rows(tmp_path / "found") for e in row["detections"])


def test_damaged_manifest(first, listed, served, tmp_path):
    (tmp_path / "found.manifest.json").write_text('{"settings": ')
    with pytest.raises(ValueError, match="found.manifest.json: damaged"):
        predict_batch(listed, served[1], str(tmp_path / "found"), beam_options=HERE)
    assert [p.name for p in tmp_path.iterdir()] == ["found.manifest.json"]


def test_parquet_and_score(first, listed, served, tmp_path):
    scores = [e["score"] for row in rows(first[1]) for e in row["detections"]]
    score = float(np.float32(np.median(scores)))
    predict_batch(listed, served[1], str(tmp_path / "p"), form="parquet", score=score, beam_options=HERE)
    (path,) = tmp_path.glob("*.parquet")
    table = pyarrow.parquet.read_table(path).to_pylist()
    for row, wanted in zip(table, rows(first[1]), strict=True):
        assert {k: v for k, v in row.items() if k != "detections"} == {
            **{k: v for k, v in wanted.items() if k != "detections"},
            "image_id": str(wanted["image_id"]),
        }
        kept = [e for e in wanted["detections"] if e["score"] >= score + 1e-6]
        assert len(kept) <= len(row["detections"]) <= len(kept) + 3  # rounding to 6 digits
        for entry, truth in zip(row["detections"], kept, strict=False):
            assert entry["counts"] == truth["segmentation"]["counts"]
            assert entry["category_id"] == truth["category_id"]
            np.testing.assert_allclose(entry["bbox"], truth["bbox"], rtol=1e-6)
            np.testing.assert_allclose(entry["score"], truth["score"], rtol=1e-5)


def test_records_in_batches(images, served, tmp_path):
    for part, numbers in enumerate([range(24, 28), range(3)]):
        with tf.io.TFRecordWriter(f"{tmp_path}/x.tfrecord-0000{part}-of-00002") as writer:
            for i in numbers:
                data = tf.train.Feature(
                    bytes_list=tf.train.BytesList(value=[(images / f"{i:03d}.jpg").read_bytes()])
                )
                example = tf.train.Example(features=tf.train.Features(feature={"image/encoded": data}))
                writer.write(example.SerializeToString())
    output = tmp_path / "out" / "found"
    summary = predict_batch(
        f"{tmp_path}/x.tfrecord*", served[1], str(output), batch_size=3, beam_options=HERE
    )
    assert summary[:4] == (5, 2, 0, 2)
    name = "x.tfrecord-0000{}-of-00002#{}"
    good = [name.format(0, 0), name.format(0, 3), *(name.format(1, i) for i in range(3))]
    assert [row["image_id"] for row in rows(output)] == good
    assert Counter(row["reason"] for row in rows(output, "failed.jsonl")) == Counter(
        BAD[n][1] for n in ("025.jpg", "026.jpg")
    )
    with pytest.raises(ValueError, match="a TFRecord file is a shard"):
        predict_batch(f"{tmp_path}/x.tfrecord*", served[1], str(output), shard_size=5)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"form": "csv"}, ValueError, "form is 'csv'; it must be one of jsonl, parquet"),
        ({"batch_size": 0}, ValueError, "must be at least 1"),
        ({"score": 1.5}, ValueError, r"score must be in \[0, 1\], not 1.5"),
        ({"output": "{}/"}, ValueError, "is a folder; give the beginning of file names"),
        ({"model": "{}"}, FileNotFoundError, "there is no saved_model.pb in it$"),
        ({"model": "{}/saved"}, FileNotFoundError, "give a version's folder, such as .*saved/1$"),
        ({"beam_options": ["--direct_num_wokers=2"]}, ValueError, "knows no option --direct_num_wokers;"),
        ({"beam_options": ["b.jpg", "c.jpg"]}, ValueError, "'b.jpg' is no option .* put a pattern in quotes"),
    ],
)
def test_bad_arguments(listed, served, tmp_path, change, error, message):
    (tmp_path / "saved" / "1").mkdir(parents=True)
    (tmp_path / "saved" / "1" / "saved_model.pb").touch()
    change = {k: v.format(tmp_path) if isinstance(v, str) else v for k, v in change.items()}
    arguments = {"inputs": listed, "model": served[1], "output": str(tmp_path / "found"), **change}
    with pytest.raises(error, match=message):
        predict_batch(**arguments)
    assert [p.name for p in tmp_path.iterdir()] == ["saved"]


def test_output_that_cannot_be_written(listed, served, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(
        OSError, match="file/found.inputs.txt: could not be written .File exists|Not a directory"
    ):
        predict_batch(listed, served[1], str(tmp_path / "file" / "found"), beam_options=HERE)


def test_full_disk(listed, served, tmp_path, monkeypatch):
    """The shard on which it happens is not there; the next run makes it."""
    whole = shards.json.dumps

    def full(row, **kwargs):
        if row.get("file_name") == "030.jpg":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return whole(row, **kwargs)

    monkeypatch.setattr(shards, "json", SimpleNamespace(dumps=full, loads=json.loads))
    with pytest.raises(RuntimeError, match="found-00002-of-00004.jsonl: could not be written .No space left"):
        predict_batch(listed, served[1], str(tmp_path / "found"), shard_size=12, beam_options=HERE)
    assert not [p for p in tmp_path.iterdir() if "partial" in p.name or "00002" in p.name]
    monkeypatch.undo()
    assert predict_batch(listed, served[1], str(tmp_path / "found"), shard_size=12, beam_options=HERE)[
        :4
    ] == (37, 4, 1, 4)


def test_model_without_the_signature(listed, tmp_path):
    tf.saved_model.save(tf.Module(), str(tmp_path / "bare"))
    with pytest.raises(RuntimeError, match="bare: has no signature 'compact'; write it with `mrcnn export`"):
        predict_batch(listed, str(tmp_path / "bare"), str(tmp_path / "found"), beam_options=HERE)


def test_killed_and_resumed(first, images, listed, served, tmp_path):
    """Two processes, killed with some shards finished; what goes on here ends with an undisturbed run's results."""
    output, stuck, inputs = tmp_path / "found", tmp_path / "stuck.jpg", tmp_path / "list.txt"
    os.mkfifo(stuck)  # whoever reads it waits: not all can be finished before the kill
    inputs.write_text(f"{(images / 'list.txt').read_text()}{stuck}\n")
    code = (
        "import sys; from mrcnn_tf.batch.run import predict_batch; predict_batch(*sys.argv[1:], shard_size=2)"
    )
    command = [sys.executable, "-c", code, str(inputs), served[1], str(output)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True)
    end = time.monotonic() + 60
    try:
        while len([*tmp_path.glob("*.done.json")]) < 3:
            assert process.poll() is None, process.stderr.read().decode()
            assert time.monotonic() < end
            time.sleep(0.02)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    stuck.unlink()
    stuck.write_bytes((images / "001.jpg").read_bytes())
    kept = {p: p.stat().st_ino for p in tmp_path.glob("*.done.json")}
    assert 3 <= len(kept) < 21
    summary = predict_batch(str(inputs), served[1], str(output), shard_size=2, beam_options=HERE)
    assert summary[:5] == (38, 4, 1, 21, len(kept))
    assert {p: os.stat(p).st_ino for p in kept} == kept
    assert [row["source"] for row in rows(output)] == [*(row["source"] for row in rows(first[1])), str(stuck)]
    assert rows(output, "failed.jsonl") == rows(first[1], "failed.jsonl")
