"""The same data set from shards as from files; shards of others."""

import json
from dataclasses import fields

import cv2
import numpy as np
import pytest

from mrcnn_tf.build import build_datasets, open_dataset
from mrcnn_tf.data.coco import CocoDataset
from mrcnn_tf.data.pipeline import evaluation_batches, training_batches
from mrcnn_tf.data.records.convert import adopt, convert
from mrcnn_tf.data.records.dataset import RecordDataset
from mrcnn_tf.data.records.manifest import is_records, read_labels
from mrcnn_tf.data.shapes import generate_shapes
from mrcnn_tf.schema import Config, DataSource
from tests.data.helpers import annotation, coco, dense, rectangle, rle, write
from tests.data.records import foreign
from tests.data.test_coco import content


def by_id(rows):
    return sorted(rows, key=lambda row: row["id"])


def assert_same(found, wanted):
    """Everything that a data set tells, bit by bit."""
    for name in ("class_names", "category_ids", "image_ids", "dropped", "num_classes"):
        assert getattr(found, name) == getattr(wanted, name), name
    assert len(found) == len(wanted)
    np.testing.assert_array_equal(found.sizes, wanted.sizes)
    np.testing.assert_array_equal(found.instance_counts, wanted.instance_counts)
    for i in range(len(wanted)):
        np.testing.assert_array_equal(found.image(i), wanted.image(i))
        assert found.file_name(i) == wanted.file_name(i)
        assert found.size(i) == wanted.size(i)
        a, b = found.instances(i), wanted.instances(i)
        for field in fields(a):
            if field.name != "segmentations":
                x, y = getattr(a, field.name), getattr(b, field.name)
                assert x.dtype == y.dtype
                np.testing.assert_array_equal(x, y)
        for x, y in zip(a.segmentations, b.segmentations, strict=True):
            assert type(x) is type(y)
            if isinstance(x, list):
                assert all(np.array_equal(p, q) for p, q in zip(x, y, strict=True))
            else:
                assert x == y
    a, b = found.ground_truth(), wanted.ground_truth()
    assert a["images"] == b["images"]
    assert by_id(a["categories"]) == by_id(b["categories"])
    assert by_id(a["annotations"]) == by_id(b["annotations"])


@pytest.mark.parametrize("masks", ["rle", "png", "none"])
def test_shards_hold_the_same_data_set(tmp_path, masks):
    source = write(tmp_path, content())
    assert_same(
        RecordDataset(convert(*source, tmp_path / "out", shards=2, masks=masks, workers=1)),
        CocoDataset(*source),
    )


def test_annotations_that_lack_something(tmp_path):
    """A box or an outline, or both are written as nothing."""
    rows = [
        annotation(1, 1, (2, 3, 9, 12), segmentation={}),
        annotation(2, 1, (2, 3, 9, 12), segmentation=[]),
        {**annotation(3, 1, (0, 0, 1, 1), segmentation=rle(np.eye(20, 30) > 0)), "bbox": None},
        {**annotation(4, 1, (0, 0, 1, 1), segmentation=rectangle(2, 3, 9, 12.25)), "iscrowd": None},
        annotation(0, 1, (2, 3, 9, 12)),
    ]
    del rows[3]["bbox"], rows[4]["iscrowd"]
    source = write(tmp_path, coco([(1, 20, 30)], rows))
    assert_same(RecordDataset(convert(*source, tmp_path / "out", workers=1)), CocoDataset(*source))


@pytest.mark.parametrize(
    "subset",
    [
        {"classes": ["dog"]},
        {"keep_empty": False},
        {"classes": ["nut", "bee"], "keep_empty": False},
        {"fraction": 0.6, "seed": 3},
        {"first": 2},
    ],
)
def test_subsets_are_the_same(tmp_path, subset):
    source = write(tmp_path, content())
    path = convert(*source, tmp_path / "out", shards=3, workers=1)
    assert_same(RecordDataset(path, **subset), CocoDataset(*source, **subset))


def test_subsets_that_are_none(tmp_path):
    path = convert(*write(tmp_path, coco([(1, 8, 8)], [])), tmp_path / "out", workers=1)
    for subset, message in (
        ({"classes": ["cow"]}, r"manifest\.json: has no class 'cow'; did you mean one of cat"),
        ({"keep_empty": False}, r"manifest\.json: no image left of 1"),
        ({"classes": []}, "has no categories"),
    ):
        with pytest.raises(ValueError, match=message):
            RecordDataset(path, **subset)


def test_real_images_and_outlines(tmp_path, data_dir):
    for name, split in (("coco_mini", "val2017"), ("dsb2018", "val")):
        folder = data_dir / name
        source = folder / "annotations" / f"instances_{split}.json", folder / split
        found = RecordDataset(convert(*source, tmp_path / name, workers=1), first=12)
        assert_same(found, CocoDataset(*source, first=12))


def test_images_of_all_kinds_are_read_as_from_files(tmp_path):
    """16 bits, grey, transparent, and a JPEG with an EXIF rotation, with and without the annotations' heeding it."""
    sizes = [(1, 12, 18), (2, 12, 18), (3, 12, 18), (4, 18, 12), (5, 12, 18)]
    data = coco(sizes, [annotation(1, 1, (1, 1, 5, 5))])
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    deep = rng.integers(0, 65536, (12, 18, 3), np.uint16)
    cv2.imwrite(str(folder / "1.png"), deep)
    cv2.imwrite(str(folder / "2.png"), deep[..., 0] // 16)
    cv2.imwrite(str(folder / "3.png"), rng.integers(0, 256, (12, 18, 4), np.uint8))
    plain = cv2.imencode(".jpg", rng.integers(0, 256, (12, 18, 3), np.uint8))[1].tobytes()
    # TIFF header, one entry: orientation (0x0112), short, 1 value, 6 (turn right)
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    turned = plain[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + plain[2:]
    for name in ("4.png", "5.png"):  # whatever the name says
        (folder / name).write_bytes(turned)
    annotations = tmp_path / "annotations.json"
    annotations.write_text(json.dumps(data))
    wanted = CocoDataset(annotations, folder)
    assert wanted.image(3).shape == (18, 12, 3) and wanted.image(4).shape == (12, 18, 3)
    assert_same(RecordDataset(convert(annotations, folder, tmp_path / "out", workers=1)), wanted)


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shapes")
    source = generate_shapes(folder / "source", num_images=10, size=64, crowding=0.8)
    return source, convert(*source, folder / "records", shards=3, workers=1)


def test_training_batches_are_the_same_bit_for_bit(shapes):
    source, path = shapes
    settings = {
        "batch_size": 3,
        "canvas": (96, 64),
        "scale_jitter": (0.5, 1.5),
        "colour_jitter": (0.4, 0.4, 0.4, 0.1),
        "max_instances": 6,
        "mask_size": 28,
        "seed": 5,
        "start_step": 2,
    }
    files, records = CocoDataset(*source), RecordDataset(path)
    batches = [iter(training_batches(dataset, **settings)) for dataset in (files, records)]
    for _ in range(5):  # more than an epoch
        wanted, found = (next(batch) for batch in batches)
        assert wanted.keys() == found.keys()
        for key, value in wanted.items():
            np.testing.assert_array_equal(value.numpy(), found[key].numpy(), err_msg=key)


def test_evaluation_batches_are_the_same(shapes):
    source, path = shapes
    both = (
        evaluation_batches(d, batch_size=4, min_size=64) for d in (CocoDataset(*source), RecordDataset(path))
    )
    count = 0
    for wanted, found in zip(*both, strict=True):
        count += len(wanted["image_ids"])
        for key, value in wanted.items():
            np.testing.assert_array_equal(value.numpy(), found[key].numpy(), err_msg=key)
    assert count == 10


def test_configs_name_records_instead_of_a_coco_file(shapes):
    source, path = shapes
    pattern = str(path.parent / "records-*.tfrecord")
    data = {"train": {"annotations": str(path)}, "val": {"annotations": pattern, "first": 4}}
    train, val = build_datasets(Config.model_validate({"name": "records", "data": data}))
    assert_same(train, CocoDataset(*source))
    assert_same(val, CocoDataset(*source, first=4))
    other = open_dataset(DataSource(annotations=str(source[0]), images=str(source[1])), 0)
    assert type(other) is CocoDataset


def test_which_paths_are_records():
    for path in (
        "a/manifest.json",
        "x-00000-of-00010.tfrecord",
        "x.tfrecords",
        "coco_val.record-00001-of-00010",
        "a/x-*",
    ):
        assert is_records(path), path
    for path in ("instances_val2017.json", "records.json", "my.recordings.json", "a.tfrecord/instances.json"):
        assert not is_records(path), path


OBJECTS = [
    (18, "dog", (2, 3, 12, 20), (slice(2, 12), slice(3, 20)), 0),
    (44, "bottle", (5.5, 4.25, 15, 9.5), (slice(6, 15), slice(5, 9)), 0),
    (18, "dog", (0, 0, 20, 30), (slice(0, 20), slice(0, 30)), 1),
]


def garden(folder, *, named=True, ids=(139, 285, 632)):
    """Three images in two shards, the second without objects."""
    rng = np.random.default_rng(1)
    images = [cv2.resize(rng.integers(0, 256, (4, 4, 3), np.uint8), (30, 20)) for _ in ids]
    objects = []
    for label, name, box, where, crowd in OBJECTS:
        mask = np.zeros((20, 30), bool)
        mask[where] = True
        objects.append((label, name, box, mask, crowd))
    parts = [
        foreign.features(i, im, o, named=named)
        for i, im, o in zip(ids, images, (objects, [], objects[:1]), strict=True)
    ]
    foreign.write(folder / "val-00000-of-00002.tfrecord", parts[:2])
    foreign.write(folder / "val-00001-of-00002.tfrecord", parts[2:])
    return str(folder / "val-*.tfrecord"), images


def test_shards_of_the_model_garden(tmp_path):
    pattern, images = garden(tmp_path)
    dataset = RecordDataset(pattern)
    assert dataset.class_names == ("dog", "bottle")
    assert dataset.category_ids == (18, 44)
    assert dataset.image_ids == [139, 285, 632]
    assert dataset.instance_counts.tolist() == [3, 0, 1]
    for i, image in enumerate(images):
        np.testing.assert_array_equal(dataset.image(i), image)
    first = dataset.instances(0)
    np.testing.assert_allclose(first.boxes, [box for _, _, box, _, _ in OBJECTS], atol=1e-5)
    assert first.classes.tolist() == [1, 2, 1]
    assert first.crowd.tolist() == [False, False, True]
    assert first.has_mask.all()
    for segmentation, (_, _, _, where, _) in zip(first.segmentations, OBJECTS, strict=True):
        wanted = np.zeros((20, 30), bool)
        wanted[where] = True
        np.testing.assert_array_equal(dense(segmentation, 20, 30), wanted)
    truth = dataset.ground_truth()
    assert [row["id"] for row in truth["annotations"]] == [1, 2, 3, 4]
    assert [row["image_id"] for row in truth["annotations"]] == [139, 139, 139, 632]
    assert truth["annotations"][0]["area"] == 170
    batch = next(iter(training_batches(dataset, batch_size=3, canvas=(32, 32), min_sizes=(20,), max_size=32)))
    assert sorted(batch["image_ids"].numpy()) == [139, 285, 632]
    assert RecordDataset(pattern, classes=["bottle"], keep_empty=False).image_ids == [139]


LABEL_MAP = """
# of the Object Detection API
item { name: "/m/0bt9lr" id: 18 display_name: "dog" }
item {
  id: 44
  name: 'bottle'
}
item { id: 1 name: "person" }
"""


def test_classes_without_names_need_a_label_map(tmp_path):
    pattern, _ = garden(tmp_path, named=False)
    with pytest.raises(
        ValueError, match=r"do not name class 18; give their names with `mrcnn convert-data --records"
    ):
        RecordDataset(pattern)
    labels = tmp_path / "map.pbtxt"
    labels.write_text(LABEL_MAP)
    assert RecordDataset(pattern, labels=labels).class_names == ("person", "dog", "bottle")
    path = adopt(pattern, tmp_path / "index", labels=labels, workers=1)
    assert RecordDataset(path).class_names == ("person", "dog", "bottle")
    assert RecordDataset(path).instances(2).classes.tolist() == [2]
    labels.write_text('item { id: 18 name: "dog" }')
    with pytest.raises(ValueError, match=r"map\.pbtxt: does not name class 44, which .* has"):
        RecordDataset(pattern, labels=labels)


def test_label_maps(tmp_path):
    labels = tmp_path / "map.pbtxt"
    for text, message in (
        ("nothing", "holds no 'item"),
        ("item { id: 3 }", "an item without 'id' or 'name': id: 3"),
    ):
        labels.write_text(text)
        with pytest.raises(ValueError, match=f"map\\.pbtxt: {message}"):
            read_labels(labels)
    with pytest.raises(FileNotFoundError, match="none.pbtxt: no such label map"):
        read_labels(tmp_path / "none.pbtxt")


@pytest.mark.parametrize("ids", [("a.jpg", "b.jpg", "c.jpg"), (5, 5, 6), ("", "", "")])
def test_images_without_ids_of_their_own_are_numbered(tmp_path, ids):
    assert RecordDataset(garden(tmp_path, ids=ids)[0]).image_ids == [1, 2, 3]


def test_shards_that_name_a_class_twice(tmp_path):
    pattern, images = garden(tmp_path)
    objects = [(18, "cat", (2, 3, 12, 20), np.ones((20, 30), bool), 0)]
    foreign.write(tmp_path / "val-00002-of-00002.tfrecord", [foreign.features(9, images[0], objects)])
    with pytest.raises(ValueError, match="class 18 is 'cat' in one shard and 'dog' in another"):
        RecordDataset(pattern)
