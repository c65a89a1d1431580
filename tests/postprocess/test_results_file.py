"""Results files: image by image in any order, checked; written whole or not at all."""

import json
import random

import numpy as np
import pytest

from mrcnn_tf.postprocess.results_file import read_entries, read_images, read_known, write_entries
from tests.postprocess.drawn import encode


def code(size=(4, 5)):
    rle = encode(np.ones(size))
    return {"size": list(size), "counts": rle["counts"].decode()}


def entry(**change):
    made = {
        "image_id": 1,
        "category_id": 2,
        "score": 0.5,
        "bbox": [0, 0, 3, 3],
        "segmentation": code(),
    } | change
    return {key: value for key, value in made.items() if value is not None}


def annotations(folder, images=((1, 4, 5), (2, None, None))):
    path = folder / "a.json"
    truth = {
        "images": [{"id": i, "height": h, "width": w} for i, h, w in images],
        "categories": [{"id": 2, "name": "cat"}, {"id": 7}],
        "annotations": [],
    }
    path.write_text(json.dumps(truth))
    return path


def write(folder, entries):
    path = folder / "r.json"
    path.write_text(json.dumps(entries))
    return path


def test_images_come_whole_whatever_the_order(tmp_path):
    entries = [entry(image_id=i % 7, score=i / 40, note="né" * i) for i in range(40)] + [
        entry(image_id="x/ü")
    ]
    random.Random(3).shuffle(entries)
    path = tmp_path / "r.json"
    path.write_text(json.dumps(entries, ensure_ascii=False), encoding="utf-8")
    assert list(read_entries(path)) == entries
    images = list(read_images(path))
    assert [image.image_id for image in images] == list(dict.fromkeys(e["image_id"] for e in entries))
    for image in images:
        assert image.indices == [i for i, e in enumerate(entries) if e["image_id"] == image.image_id]
        assert image.entries == [entries[i] for i in image.indices]


def test_an_empty_list_has_no_images(tmp_path):
    assert list(read_images(write(tmp_path, []))) == []


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ([1], r"is not an object but '\[1\]'"),
        (entry(score=None), "has no 'score'"),
        (entry(image_id=None), "has no 'image_id'"),
        (entry(score=float("nan")), "has score nan; it must be a finite number"),
        (entry(score="high"), "has score high"),
        (entry(image_id=[1]), r"image_id \[1\] and category_id 2"),
        (entry(category_id="cat"), "category_id 'cat'"),
        (entry(bbox=None, segmentation=None), "neither 'bbox' nor 'segmentation'"),
        (entry(bbox=[0, 0, 1]), r"has bbox \[0, 0, 1\]"),
        (entry(bbox=[0, 0, 1, float("inf")]), "finite numbers"),
        (entry(bbox=[0, 0, -1, 1]), "not negative"),
        (entry(segmentation=[[0, 0, 1, 0, 1, 1]]), "not an RLE"),
        (entry(segmentation=code((5, 4))), r"size \[5, 4\], but masks before it of image 1 have \[4, 5\]"),
        (entry(segmentation={"size": [4, 0], "counts": ""}), r"mask of size \[4, 0\]"),
        (entry(segmentation={"size": [4, 5], "counts": "zz"}), "run-length code"),
        (entry(segmentation={"size": [4, 5], "counts": [19]}), "must add up to 20 pixels, but adds up to 19"),
        (entry(segmentation={"size": [4, 5], "counts": {"a": 1}}), "entry 1: "),
    ],
)
def test_a_wrong_entry_is_named_before_any_image_comes(tmp_path, wrong, message):
    path = write(tmp_path, [entry(), wrong])
    with pytest.raises(ValueError, match=message) as caught:
        next(read_images(path))
    assert str(caught.value).startswith(f"{path}: entry 1")
    assert "\n" not in str(caught.value)


def test_annotations_tell_ids_and_sizes(tmp_path):
    known = read_known(annotations(tmp_path))
    assert known.categories == {2: "cat", 7: "7"}
    good = [entry(), entry(image_id=2, category_id=7, segmentation=code((9, 9)))]
    assert len(list(read_entries(write(tmp_path, good), known=known))) == 2
    for wrong, message in [
        (entry(image_id=3), "image_id 3, which is not in .*a.json"),
        (entry(category_id=1), "category_id 1, which is not in .*a.json"),
        (entry(segmentation=code((5, 4))), r"size \[5, 4\], but its image 1 has \[4, 5\] in"),
    ]:
        with pytest.raises(ValueError, match=message):
            list(read_entries(write(tmp_path, [wrong]), known=known))


@pytest.mark.parametrize("text", ["[]", '{"images": [1], "categories": []}', '{"images": []}', "{"])
def test_wrong_annotations_are_told(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match=r"a\.json: (has no lists|not valid JSON)"):
        read_known(tmp_path / "a.json")
    with pytest.raises(FileNotFoundError, match=r"b\.json: no such file"):
        read_known(tmp_path / "b.json")


def test_what_is_written_is_read_again(tmp_path):
    for entries in ([], [entry()], [entry(score=i / 10) for i in range(5)]):
        with write_entries(tmp_path / "w.json") as put:
            for made in entries:
                put(made)
        assert json.loads((tmp_path / "w.json").read_text()) == entries
        assert list(read_entries(tmp_path / "w.json")) == entries
    assert [p.name for p in tmp_path.iterdir()] == ["w.json"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failed_run_leaves_what_was_there(tmp_path, error):
    path = tmp_path / "w.json"
    path.write_text("before")
    with pytest.raises(error), write_entries(path) as put:
        put(entry())
        raise error
    assert path.read_text() == "before"
    assert [p.name for p in tmp_path.iterdir()] == ["w.json"]
