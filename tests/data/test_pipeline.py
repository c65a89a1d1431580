"""Batches: fixed shapes, deterministic, resumable, with the pixels and the truth in one frame."""

import itertools
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from mrcnn_tf.data.coco import CocoDataset
from mrcnn_tf.data.pipeline import (
    evaluation_batches,
    explain,
    left_out,
    step_image_ids,
    training_batches,
)
from mrcnn_tf.data.shapes import generate_shapes
from mrcnn_tf.geometry.masks import paste
from mrcnn_tf.layers.preprocess import resize
from tests.data.helpers import annotation, coco, dense, rectangle, write

# Every augmentation at once.
SETTINGS = {
    "batch_size": 3,
    "canvas": (96, 128),
    "min_sizes": (60, 80),
    "max_size": 120,
    "vertical_flip": True,
    "colour_jitter": (0.3, 0.3, 0.3, 0.1),
    "max_instances": 6,
    "mask_size": 14,
    "seed": 5,
}
PLAIN = {"batch_size": 1, "flip": False, "mask_size": 28, "max_instances": 20}


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """Wide, tall and square images, some empty, some without masks, one with too many instances."""
    images = [(i, *((40, 60) if i % 3 else (60, 40))) for i in range(1, 11)] + [(11, 50, 50)]
    rows, key = [], itertools.count(1)
    for i in range(2, 12):
        for j in range(12 if i == 5 else i % 4):
            box = (2 + j, 3, 20 + j, 30 + j)
            mask = {} if j == 1 else {"segmentation": rectangle(*box)}
            rows.append(annotation(next(key), i, box, iscrowd=int(j == 2), **mask))
    return CocoDataset(*write(tmp_path_factory.mktemp("mixed"), coco(images, rows)))


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    return CocoDataset(*generate_shapes(tmp_path_factory.mktemp("shapes") / "s", num_images=6, seed=1))


def take(batches, count):
    return [{k: v.numpy() for k, v in batch.items()} for batch in batches.take(count)]


def assert_same(first, second):
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)


@pytest.mark.parametrize("jitter", [None, (0.3, 2.0)])
def test_shapes_and_types(mixed, jitter):
    batches = training_batches(mixed, **SETTINGS, scale_jitter=jitter)
    expected = {
        "image_sizes": ((3, 2), np.float32),
        "image_ids": ((3,), np.int64),
        "gt_boxes": ((3, 6, 4), np.float32),
        "gt_classes": ((3, 6), np.int32),
        "gt_crowd": ((3, 6), bool),
        "gt_has_mask": ((3, 6), bool),
        "gt_masks": ((3, 6, 14, 14), np.uint8),
    }
    for batch in take(batches, 8):
        assert batch.pop("images").shape in ((3, 96, 128, 3), (3, 128, 96, 3))
        assert {name: (value.shape, value.dtype) for name, value in batch.items()} == expected
        height, width = batch["image_sizes"].max(axis=0)
        real = batch["gt_classes"] > 0
        assert (batch["gt_boxes"][real].min(axis=0) >= 0).all()
        assert (batch["gt_boxes"][real][:, 2:] <= (height + 1e-3, width + 1e-3)).all()
        assert not batch["gt_boxes"][~real].any()
        assert not batch["gt_has_mask"][~real].any()
        assert not batch["gt_masks"][~batch["gt_has_mask"]].any()
    spec = batches.element_spec
    assert spec["images"].shape.as_list() == [3, None, None, 3]
    assert all(value.shape.is_fully_defined() for name, value in spec.items() if name != "images")


def test_static_shape_with_one_canvas(mixed):
    for change in ({"canvas": (96, 96)}, {"aspect_grouping": False}):
        batches = training_batches(mixed, **{**SETTINGS, **change})
        assert batches.element_spec["images"].shape.is_fully_defined()


@pytest.mark.parametrize("jitter", [None, (0.3, 2.0)])
def test_deterministic_and_resumable(mixed, jitter):
    settings = {**SETTINGS, "scale_jitter": jitter}
    straight = take(training_batches(mixed, **settings), 10)
    assert_same(straight, take(training_batches(mixed, **settings, num_parallel_calls=1), 10))
    for start in (1, 4, 9):
        assert_same(straight[start:], take(training_batches(mixed, **settings, start_step=start), 10 - start))
    other = take(training_batches(mixed, **{**settings, "seed": 6}), 10)
    assert any((a["image_ids"] != b["image_ids"]).any() for a, b in zip(straight, other, strict=True))


@pytest.mark.parametrize("wanted", [(0,), (2,), (1, 2)])
def test_slices_are_those_of_the_whole_batches(mixed, wanted):
    """Each process reads its own rows of the same batches, also when it begins in the middle."""
    settings = {**SETTINGS, "batch_size": 6}
    whole = take(training_batches(mixed, **settings, start_step=1), 3)
    expected = [{k: v[2 * i : 2 * i + 2] for k, v in batch.items()} for batch in whole for i in wanted]
    sliced = training_batches(mixed, **settings, start_step=1, slices=3, wanted=wanted)
    assert_same(take(sliced, len(expected)), expected)


@pytest.mark.parametrize("slices, wanted", [(4, (0,)), (3, (3,)), (3, (-1,)), (3, ())])
def test_slices_that_there_are_not(mixed, slices, wanted):
    with pytest.raises(ValueError, match=f"a batch of 3 has no {slices} equal slices, or none numbered"):
        training_batches(mixed, **SETTINGS, slices=slices, wanted=wanted)


def test_augmentation_changes_from_epoch_to_epoch(shapes):
    settings = {**PLAIN, "batch_size": 6, "canvas": (128, 128), "colour_jitter": (0.3, 0, 0, 0)}
    first, second = take(training_batches(shapes, **settings), 2)
    assert sorted(first["image_ids"]) == sorted(second["image_ids"]) == sorted(shapes.image_ids)
    order = np.argsort(first["image_ids"]), np.argsort(second["image_ids"])
    assert (first["images"][order[0]] != second["images"][order[1]]).any(axis=(1, 2, 3)).all()


def test_step_image_ids(mixed):
    given = {k: SETTINGS[k] for k in ("batch_size", "canvas", "seed")}
    for step, batch in enumerate(take(training_batches(mixed, **SETTINGS), 9)):
        assert step_image_ids(mixed, step, **given) == batch["image_ids"].tolist()


def test_tall_and_wide_images_are_not_mixed(mixed):
    tall = {image_id for image_id, (h, w) in zip(mixed.image_ids, mixed.sizes, strict=True) if h > w}
    shapes_seen = set()
    for batch in take(training_batches(mixed, **SETTINGS), 12):
        is_tall = {int(image_id) in tall for image_id in batch["image_ids"]}
        assert len(is_tall) == 1
        assert batch["images"].shape[1:3] == ((128, 96) if is_tall == {True} else (96, 128))
        shapes_seen.add(batch["images"].shape)
        # Nothing was made smaller to fit: the shorter side has one of the two lengths.
        assert set(batch["image_sizes"].min(axis=1)) <= {60.0, 80.0}
    assert len(shapes_seen) == 2
    mixed_up = take(training_batches(mixed, **{**SETTINGS, "aspect_grouping": False}), 12)
    assert {batch["images"].shape for batch in mixed_up} == {(3, 96, 128, 3)}
    assert any(len({int(i) in tall for i in batch["image_ids"]}) == 2 for batch in mixed_up)


def test_both_min_sizes_occur(mixed):
    sizes = [s for batch in take(training_batches(mixed, **SETTINGS), 12) for s in batch["image_sizes"]]
    assert {float(min(size)) for size in sizes} == {60.0, 80.0}


def test_pixels_without_augmentation(mixed):
    """The model's own resize, then zeros below and on the right."""
    batches = training_batches(mixed, **PLAIN, canvas=(96, 128), min_sizes=(80,), max_size=120)
    for batch in take(batches, 6):
        i = mixed.image_ids.index(batch["image_ids"][0])
        height, width = (int(v) for v in batch["image_sizes"][0])
        image = batch["images"][0]
        np.testing.assert_array_equal(image[:height, :width], resize(mixed.image(i), [height, width]).numpy())
        assert not image[height:].any()
        assert not image[:, width:].any()
        truth = mixed.instances(i)
        scale = height / mixed.size(i)[0]
        np.testing.assert_allclose(batch["gt_boxes"][0][: len(truth)], truth.boxes * scale, rtol=1e-6)
        np.testing.assert_array_equal(batch["gt_crowd"][0][: len(truth)], truth.crowd)
        np.testing.assert_array_equal(batch["gt_has_mask"][0][: len(truth)], truth.has_mask)


def test_masks_lie_on_their_objects_in_flipped_and_resized_images(shapes):
    """Pasted back, each mask covers what the image shows: a picture of the labels goes through with it."""
    settings = {
        **PLAIN,
        "flip": True,
        "mask_size": 56,
        "canvas": (256, 256),
        "min_sizes": (256,),
        "max_size": 256,
    }
    flipped = set()
    for batch in take(training_batches(shapes, **settings, vertical_flip=True, seed=2), 12):
        i = shapes.image_ids.index(batch["image_ids"][0])
        image = resize(shapes.image(i), [256, 256]).numpy()
        shown = batch["images"][0]
        turns = [(y, x) for y in (1, -1) for x in (1, -1) if np.allclose(image[::y, ::x], shown, atol=1e-3)]
        assert len(turns) == 1
        flipped.add(turns[0])
        y, x = turns[0]
        truth = shapes.instances(i)
        for j, segmentation in enumerate(truth.segmentations):
            whole = np.kron(dense(segmentation, 128, 128), np.ones((2, 2), bool))[::y, ::x]
            crop, y0, x0 = paste(batch["gt_masks"][0, j], batch["gt_boxes"][0, j], 256, 256)
            pasted = np.zeros((256, 256), bool)
            pasted[y0 : y0 + crop.shape[0], x0 : x0 + crop.shape[1]] = crop >= 0.5
            assert (whole & pasted).sum() / (whole | pasted).sum() > 0.85
    assert len(flipped) == 4


def test_too_many_instances_are_counted(mixed):
    assert left_out(mixed, 6) == (1, 6)
    assert left_out(mixed, 12) == (0, 0)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_evaluation_batches_on_tight_canvases(mixed, batch_size):
    batches = take(evaluation_batches(mixed, batch_size=batch_size, min_size=80, max_size=120), -1)
    assert np.concatenate([b["image_ids"] for b in batches]).tolist() == mixed.image_ids
    assert len(batches[-1]["image_ids"]) == (11 % batch_size or batch_size)
    np.testing.assert_array_equal(np.concatenate([b["original_sizes"] for b in batches]), mixed.sizes)
    for batch in batches:
        height, width = batch["images"].shape[1:3]
        assert height % 32 == width % 32 == 0
        assert (batch["image_sizes"] <= (height, width)).all()
        assert (batch["image_sizes"].max(axis=0) > (height - 32, width - 32)).all()
        assert (batch["image_sizes"].min(axis=1) == 80).all()
        i = mixed.image_ids.index(batch["image_ids"][-1])
        h, w = (int(v) for v in batch["image_sizes"][-1])
        np.testing.assert_array_equal(batch["images"][-1, :h, :w], resize(mixed.image(i), [h, w]).numpy())
        assert not batch["images"][-1, h:].any()


@pytest.mark.parametrize("canvas", [None, (96, 128)])
def test_evaluation_batches_of_a_part(mixed, canvas):
    settings = {"batch_size": 3, "canvas": canvas, "min_size": 60, "max_size": 90, "turn": False}
    whole = take(evaluation_batches(mixed, **settings), -1)
    parts = [range(0, 3), range(3, 9), range(9, 11), range(11, 11)]
    assert_same(
        [b for part in parts for b in take(evaluation_batches(mixed, **settings, only=part), -1)], whole
    )


def test_evaluation_batches_on_one_canvas(mixed):
    batches = take(evaluation_batches(mixed, batch_size=4, canvas=(96, 128), min_size=80, max_size=120), -1)
    assert sorted(np.concatenate([b["image_ids"] for b in batches])) == mixed.image_ids
    assert [b["images"].shape for b in batches] == [(4, 96, 128, 3)] * 2 + [(3, 128, 96, 3)]
    assert all((b["image_sizes"].min(axis=1) == 80).all() for b in batches)


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda path: path.write_bytes(path.read_bytes()[:100]), "not a whole, readable image"),
        (lambda path: path.unlink(), "no such image file"),
    ],
)
def test_a_bad_image_is_named_in_one_line(tmp_path, spoil, message):
    dataset = CocoDataset(*write(tmp_path, coco([(1, 20, 20)], [])))
    spoil(dataset.path(0))
    settings = {**PLAIN, "canvas": (32, 32), "min_sizes": (32,), "max_size": 32}
    for batches in (training_batches(dataset, **settings), evaluation_batches(dataset, min_size=32)):
        with pytest.raises(tf.errors.InvalidArgumentError) as error:
            take(batches, 1)
        line = explain(error.value)
        assert line.startswith(str(dataset.path(0)))
        assert message in line
        assert "\n" not in line


def test_explain_gives_one_line_of_any_error():
    assert explain(tf.errors.AbortedError(None, None, "first\nsecond")) == "first"


@pytest.mark.parametrize(
    "bad",
    [
        {"batch_size": 0},
        {"canvas": (0, 10)},
        {"min_sizes": ()},
        {"max_instances": 0},
        {"scale_jitter": (2.0, 0.5)},
        {"colour_jitter": (0.1, 0.1)},
    ],
)
def test_arguments_out_of_range(mixed, bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        training_batches(mixed, **{**SETTINGS, **bad})


def test_a_data_set_without_images_cannot_be_read():
    with pytest.raises(ValueError, match="no image folder was given"):
        training_batches(CocoDataset(coco([(1, 5, 5)], []), None), **SETTINGS)


ENDLESS = """
import sys
from mrcnn_tf.data.coco import CocoDataset
from mrcnn_tf.data.pipeline import training_batches
dataset = CocoDataset(sys.argv[1], sys.argv[2])
live = [
    iter(training_batches(dataset, batch_size=2, canvas=(512, 512), min_sizes=(512,), prefetch=8, seed=i))
    for i in range(4)
]
for batches in live:
    next(batches)
print("the end")
"""


def test_a_program_ends_while_batches_are_being_prepared(shapes):
    """Threads that enter Python while the interpreter is taken down abort it, or keep it for ever."""
    done = subprocess.run(
        [sys.executable, "-c", ENDLESS, shapes.annotations, str(shapes.folder)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "the end\n"
