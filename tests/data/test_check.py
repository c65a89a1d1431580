"""`check_data` finds every kind of damage, says where, and does not stop at the first."""

import json

import numpy as np
import pytest

from mrcnn_tf.data.check import check_data
from mrcnn_tf.data.shapes import generate_shapes
from tests.data.helpers import annotation, coco, rectangle, rle, write
from tests.data.test_images import broken, with_orientation

GOOD = {"segmentation": rectangle(2, 2, 12, 12)}


def damaged(folder):
    """One defect after another; the ids of the annotations tell which."""
    empty = rle(np.zeros((40, 40)))
    cut = rle(np.eye(40))
    cut["counts"] = cut["counts"][:-4]
    rows = [
        annotation(1, 1, (2, 2, 12, 12), **GOOD),
        annotation(1, 1, (3, 3, 12, 12), **GOOD),
        annotation(2, 77, (2, 2, 12, 12), **GOOD),
        annotation(3, 1, (2, 2, 12, 12), 9, **GOOD),
        annotation(4, 1, (2, 2, 2, 12), **GOOD),
        annotation(5, 1, (50, 2, 60, 12), segmentation=rectangle(50, 2, 60, 12)),
        annotation(6, 1, (2, 2, 12, 12), segmentation=rectangle(50, 50, 60, 60)),
        annotation(7, 1, (2, 2, 12, 12), segmentation=empty),
        annotation(8, 1, (2, 2, 4, 4), segmentation=rectangle(2, 2, 4, 4)),
        annotation(9, 1, (2, 2, 12, 12), segmentation=rectangle(2, 2, 5, 12)),
        annotation(10, 1, (2, 2, 12, 12), segmentation=rectangle(20, 20, 32, 32)),
        annotation(11, 1, (30, 30, 50, 50), segmentation=rectangle(30, 30, 50, 50)),
        annotation(12, 1, (2, 2, 12, 12), segmentation=[[1, 1, 5, 5]]),
        annotation(13, 1, (2, 2, 12, 12), segmentation=rle(np.ones((5, 5)))),
        annotation(14, 1, (2, 2, 12, 12), segmentation=cut),
        annotation(15, 1, (2, 2, 12, 12), **GOOD),
        annotation(16, 1, (2, 2, float("nan"), 12), **GOOD),
        annotation(17, 6, (2, 2, 8, 12), segmentation=rectangle(2, 2, 8, 12)),
    ]
    content = coco(
        [(1, 40, 40), (2, 40, 40), (3, 40, 40), (4, 40, 40), (5, 40, 40), (6, 16, 32), (7, 9, 9)], rows
    )
    path, images = write(folder, content)
    (images / "2.png").unlink()
    broken(images / "3.png", 0.5)
    (images / "4.png").write_bytes((images / "6.png").read_bytes())
    with_orientation(images / "6.png", 6)
    content["images"][4]["file_name"] = "1.png"
    content["images"].append({**content["images"][6], "file_name": "1.png"})
    path.write_text(json.dumps(content))
    return path, images


FOUND = {
    ("error", "duplicate annotation id", "1.png", 1, 1),
    ("error", "unknown image", "", 77, 2),
    ("error", "unknown category", "1.png", 1, 3),
    ("error", "box without area", "1.png", 1, 4),
    ("error", "box outside the image", "1.png", 1, 5),
    ("error", "polygon outside the image", "1.png", 1, 5),
    ("error", "polygon outside the image", "1.png", 1, 6),
    ("error", "empty mask", "1.png", 1, 7),
    ("warning", "tiny mask", "1.png", 1, 8),
    ("warning", "box unlike mask", "1.png", 1, 9),
    ("error", "box unlike mask", "1.png", 1, 10),
    ("warning", "box partly outside the image", "1.png", 1, 11),
    ("warning", "polygon partly outside the image", "1.png", 1, 11),
    ("warning", "polygon of fewer than three points", "1.png", 1, 12),
    ("warning", "no mask", "1.png", 1, 12),
    ("error", "annotation record", "1.png", 1, 13),
    ("error", "annotation record", "1.png", 1, 14),
    ("error", "annotation record", "1.png", 1, 16),
    ("error", "missing image", "2.png", 2, None),
    ("error", "corrupt image", "3.png", 3, None),
    ("error", "size mismatch", "4.png", 4, None),
    ("warning", "EXIF rotation", "6.png", 6, None),
    ("error", "duplicate image id", "1.png", 7, None),
    ("warning", "repeated file", "1.png", None, None),
}


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    return check_data(*damaged(tmp_path_factory.mktemp("damaged")), sheet=True)


def test_every_defect_is_found_where_it_is(report):
    found = {
        (p.level, p.kind, p.file, p.image_id, p.annotation_id)
        for p in report.problems
        if p.kind != "repeated annotation"
    }
    assert found == FOUND
    assert not report.ok


def test_instances_annotated_twice_are_found(report):
    twice = [p for p in report.problems if p.kind == "repeated annotation"]
    assert {p.annotation_id for p in twice} >= {15}
    assert "annotation 1" in next(str(p) for p in twice if p.annotation_id == 15)


def test_text_names_file_and_ids_in_one_line_each(report):
    lines = str(report).splitlines()
    assert any("4.png, image 4: the file is 32 x 16, its record says 40 x 40" in line for line in lines)
    assert any("1.png, image 1, annotation 4: bbox is" in line for line in lines)
    errors = len(report.errors)
    assert lines[-1] == f"{errors} errors, {len(report.problems) - errors} warnings"
    assert all("\n" not in str(p) for p in report.problems)
    short = report.text(limit=1)
    assert "more, all of them in report.json" in short
    assert len(short) < len(str(report))


def test_report_and_picture_are_written(report, tmp_path):
    report.save(tmp_path / "out")
    found = json.loads((tmp_path / "out" / "report.json").read_text())
    assert found["ok"] is False
    assert len(found["problems"]) == len(report.problems)
    assert found["problem_counts"]["size mismatch"] == 1
    assert (tmp_path / "out" / "samples.png").stat().st_size > 1000
    assert report.picture.dtype == np.uint8


def test_counts_and_histograms(report):
    assert report.counts["images"] == 8
    assert report.counts["annotations"] == 18
    assert report.counts["images without objects"] == 5
    assert report.histograms["instances per image"]["0"] == 5
    # So many annotations have nothing wrong with their structure.
    assert sum(next(iter(report.histograms.values())).values()) == 12
    assert report.per_class == {"cat": 12}


def test_a_sound_set_has_no_errors(tmp_path):
    report = check_data(*generate_shapes(tmp_path / "s", num_images=8, crowding=1, seed=2))
    assert report.ok
    assert report.picture is None
    assert sum(report.per_class.values()) == report.counts["annotations"]
    assert report.counts["without a mask"] == 0
    assert report.counts["instances beside one of their class at IoU 0.5 or more"] > 0


def test_what_cannot_be_checked_at_all(tmp_path):
    path, _ = write(tmp_path, coco([(1, 8, 8)], []))
    with pytest.raises(FileNotFoundError, match="nowhere: no such image folder"):
        check_data(path, tmp_path / "nowhere")
    path.write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        check_data(path, tmp_path)
    path.write_text('{"images": [], "categories": 3}')
    with pytest.raises(ValueError, match="'categories' must be a list"):
        check_data(path, tmp_path)


@pytest.mark.parametrize(
    "annotations, images",
    [
        ("coco_mini/annotations/instances_train2017.json", "coco_mini/train2017"),
        ("coco_mini/annotations/instances_val2017.json", "coco_mini/val2017"),
        ("dsb2018/annotations/instances_val.json", "dsb2018/val"),
    ],
)
def test_real_sets_are_sound(data_dir, annotations, images):
    report = check_data(data_dir / annotations, data_dir / images)
    assert report.ok, str(report)
