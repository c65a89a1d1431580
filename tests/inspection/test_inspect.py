"""The report: each part in its place, odd input explained, nothing skipped in silence."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from unittest.mock import create_autospec

import pytest

from mrcnn_tf.evaluation.coco import evaluate_coco
from mrcnn_tf.inspection.inspect import inspect, plain
from mrcnn_tf.inspection.page import page
from mrcnn_tf.inspection.sweep import sweep_model
from tests.inspection.planted import SIDE, entry, planted, rle, write
from tests.inspection.reports import hand_made
from tests.inspection.test_page import problems_of

ROOT = Path(__file__).resolve().parents[2]
PARTS = (
    *("source", "notes", "findings", "metrics", "proposals", "anchors", "overlaps", "sweep", "errors"),
    *("confusion", "boundary", "calibration", "by_size", "by_crowding", "pictures"),
)


def test_planted_mistakes_are_in_every_part(tmp_path):
    truth, results = planted()
    report = inspect(**write(tmp_path, truth, results))
    assert set(report) == set(PARTS)
    assert report["source"] == {
        **{"annotations": str(tmp_path / "truth.json"), "results": str(tmp_path / "results.json")},
        **{"images": 4, "instances": 8, "detections": 8},
    }
    measured = evaluate_coco(truth, results)
    assert report["metrics"] == measured
    for kind in ("bbox", "segm"):
        counts = report["errors"][kind]["counts"]
        assert {k: counts[k] for k in ("duplicate", "classification", "missed", "background")} == {
            **{"duplicate": 1, "classification": 1},
            **{"missed": 1, "background": 0},
        }
    assert report["confusion"]["matrix"] == [[4, 0, 0], [1, 2, 1], [1, 0, 0]]
    pairs = {p["iou"]: (p["same_class"], p["other_class"]) for p in report["overlaps"]["pairs"]}
    assert pairs[0.5] == (1, 0)
    worst, overlapping, mistakes = report["pictures"]["groups"]
    assert worst["of"] == 3 and {i["image_id"] for i in worst["items"]} == {20, 30, 40}
    assert [i["image_id"] for i in overlapping["items"]] == [20]
    assert [(i["image_id"], i["reason"]) for i in mistakes["items"]] == [
        (40, "cat 0.86: of another class"),
        (20, "cat 0.60: found twice"),
    ]
    assert report["proposals"] is None
    assert not problems_of(page(report))


def test_who_has_overlapping_boxes_reads_why_and_what_to_run_first(tmp_path):
    truth, results = planted(images=10)
    copies = [
        {**r, "score": r["score"] / 2, "bbox": [v + 1 for v in r["bbox"]]} for r in without_masks(results)
    ]
    report = inspect(**write(tmp_path, truth, without_masks(results) + copies))
    first = report["findings"][0]
    assert first["severity"] == "high" and "NMS" in first["title"]
    assert first["setting"].startswith("mrcnn clean")
    text = page(report)
    assert text.index(first["title"]) < text.index("Run:") < text.index('<h2 id="proposals">')


def test_report_without_drawings_is_json(tmp_path):
    report = inspect(**write(tmp_path, *planted()))
    kept = json.loads(json.dumps(plain(report), allow_nan=False))
    first = kept["pictures"]["groups"][0]["items"][0]
    assert first["file_name"] and not {"jpeg", "truth", "prediction"} & first.keys()
    assert "jpeg" in report["pictures"]["groups"][0]["items"][0]  # the report itself is as before


def test_first_takes_the_first_images(tmp_path):
    truth, results = planted()
    files = write(tmp_path, truth, results)
    report = inspect(**files, first=1)
    assert report["source"] | {"annotations": "", "results": ""} == {
        **{"annotations": "", "results": "", "images": 1, "instances": 2, "detections": 2}
    }
    assert report["metrics"]["bbox/AP"] == pytest.approx(1.0)


def test_same_input_same_page(tmp_path):
    files = write(tmp_path, *planted())
    assert page(inspect(**files)) == page(inspect(**files))


def without_masks(entries):
    return [{k: v for k, v in e.items() if k != "segmentation"} for e in entries]


@pytest.mark.parametrize(
    "case", ["no results", "no instances", "one class", "80 classes", "no masks", "no sizes", "no boxes"]
)
def test_sparse_input_gives_a_sound_page(tmp_path, case):
    truth, results = planted(
        classes=tuple(f"class {i}" for i in range(80)) if case == "80 classes" else ("cat", "dog")
    )
    if case == "no results":
        results = []
    elif case == "no instances":
        truth["annotations"] = []
    elif case == "one class":
        truth["categories"] = truth["categories"][:1]
        truth["annotations"] = [a for a in truth["annotations"] if a["category_id"] == 3]
        results = [r for r in results if r["category_id"] == 3]
    elif case == "no masks":
        truth["annotations"], results = without_masks(truth["annotations"]), without_masks(results)
    elif case == "no boxes":
        results = [{k: v for k, v in e.items() if k != "bbox"} for e in results]
    files = write(tmp_path, truth, results)
    if case == "no sizes":
        truth["images"] = [
            {k: v for k, v in i.items() if k not in ("height", "width")} for i in truth["images"]
        ]
        files["annotations"].write_text(json.dumps(truth))
        files["results"].write_text(json.dumps(without_masks(results)))
    report = inspect(**files)
    text = page(report)
    assert not problems_of(text)
    assert report["findings"]
    if case == "no results":
        assert report["overlaps"] is report["sweep"] is report["calibration"] is None
        assert (
            "There are no detections to compare." in text
            and "Images without a detection: 4." in report["notes"]
        )
    if case == "no masks":
        assert (
            set(report["errors"]) == {"bbox"}
            and report["boundary"] is None
            and "No masks were measured" in text
        )
    if case == "80 classes":
        assert "the 12 of 80 classes that are confused most" in text
    if case == "no sizes":
        assert report["anchors"] is None and any("height" in note for note in report["notes"])


def test_images_that_are_missing_or_broken_are_told(tmp_path):
    files = write(tmp_path, *planted())
    (files["images"] / "20.png").unlink()
    (files["images"] / "30.png").write_bytes(b"no image")
    report = inspect(**files)
    shown = {i["image_id"] for group in report["pictures"]["groups"] for i in group["items"]}
    assert shown == {40}
    assert any(note.startswith("2 of the chosen images could not be shown") for note in report["notes"])
    assert "2 of the chosen images" in page(report)


def test_without_images_the_page_says_what_to_give(tmp_path):
    files = write(tmp_path, *planted())
    del files["images"]
    report = inspect(**files)
    assert report["pictures"] is None and "give --images DIR" in page(report)


def test_oddities_are_counted(tmp_path):
    truth, results = planted()
    truth["annotations"] = [a for a in truth["annotations"] if a["image_id"] != 10]
    results = [r for r in results if r["image_id"] != 40]
    results += [
        entry(10, 3, (4, 4, 4, 4), 0.4) | {"bbox": [50, 50, 30, 10]},
        entry(10, 3, (4, 4, 4, 4), 0.4) | {"bbox": [5, 5, 0, 10]},
        entry(10, 4, (4, 4, 4, 4), 1.5),
        entry(10, 4, (4, 4, 4, 4), 1.5),
        entry(10, 4, (4, 4, 0, 0), 0.2) | {"bbox": [1, 1, 4, 4]},
    ]
    notes = inspect(**write(tmp_path, truth, results), max_detections=(1, 2, 3))["notes"]
    assert notes == [
        "Detections that reach beyond their image by more than a pixel: 1.",
        "Detections whose box has no area: 1.",
        "Detections with an empty mask: 1.",
        "Detections with a score outside 0 to 1: 2.",
        "Entries that repeat another's image, class, score and box: 1.",
        "Images with more than 3 detections of one class, of which AP takes the best 3: 1.",
        "Images without a detection: 1.",
        "Images without an annotated instance: 1.",
        "Left out, calibration: calibration needs scores from 0 to 1, but the results have 1.5.",
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": 99}, r"results.json: entry 1 has image_id 99"),
        ({"category_id": 99}, r"results.json: entry 1 has category_id 99"),
        ({"score": math.nan}, r"results.json: entry 1 has score nan"),
        ({"score": "high"}, r"results.json: entry 1 has score high"),
        ({"bbox": [1, 2, math.inf, 3]}, r"results.json: entry 1 has bbox"),
        (
            {"segmentation": rle((1, 1, 2, 2)) | {"size": [SIDE, SIDE + 1]}},
            r"results.json: entry 1 has a mask of size",
        ),
        (
            {"segmentation": {"size": [32, 32], "counts": [32 * 32]}},
            r"results.json: entry 1 has a mask of size",
        ),
        (
            {"segmentation": {"size": [SIDE, SIDE], "counts": [5, 9999]}},
            r"results.json: entry 1: a run-length code .* must add up to 4096",
        ),
        (
            {"segmentation": {"size": [SIDE, SIDE], "counts": "oops"}},
            r"results.json: entry 1: a compressed run-length code breaks off",
        ),
        ({"segmentation": {"size": 5, "counts": 7}}, r"results.json: entry 1 has a mask of size 5"),
        ({"image_id": [1]}, r"results.json: entry 1 has image_id \[1\]"),
        ({"score": 10**400}, r"results.json: entry 1 has score 1000"),
    ],
)
def test_bad_entries_are_named(tmp_path, change, message):
    truth, results = planted()
    results[1] |= change
    with pytest.raises(ValueError, match=message):
        inspect(**write(tmp_path, truth, results))


@pytest.mark.parametrize(
    ("text", "message"),
    [("[", "not valid JSON"), ('{"a": 1}', "must be a list"), ("[3]", "entry 0 is not an object")],
)
def test_bad_files_are_named(tmp_path, text, message):
    files = write(tmp_path, *planted())
    files["results"].write_text(text)
    with pytest.raises(ValueError, match=f"results.json: .*{message}"):
        inspect(**files)
    with pytest.raises(ValueError, match=r"results.json"):
        inspect(**files, first=1)


def test_bad_arguments(tmp_path):
    files = write(tmp_path, *planted())
    with pytest.raises(ValueError, match="either a model or results"):
        inspect(files["annotations"])
    with pytest.raises(ValueError, match="first must be"):
        inspect(**files, first=0)
    with pytest.raises(ValueError, match="score_threshold must lie"):
        inspect(**files, score_threshold=2)
    with pytest.raises(FileNotFoundError, match="no such image folder"):
        inspect(**files | {"images": tmp_path / "none"})
    with pytest.raises(FileNotFoundError, match="none.json"):
        inspect(**files | {"results": tmp_path / "none.json"})
    with pytest.raises(FileNotFoundError, match="none.json"):
        inspect(**files | {"annotations": tmp_path / "none.json"})


def test_results_need_no_tensorflow(tmp_path):
    files = write(tmp_path, *planted())
    out = tmp_path / "p.html"
    code = (
        "import sys; sys.modules['tensorflow'] = None; sys.modules['keras'] = None\n"
        "from mrcnn_tf.inspection.inspect import inspect\nfrom mrcnn_tf.inspection.page import write_page\n"
        f"write_page(inspect({str(files['annotations'])!r}, results={str(files['results'])!r}), {str(out)!r})"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
    assert out.stat().st_size > 10_000


def test_model(tmp_path, monkeypatch):
    from mrcnn_tf.data.shapes import generate_shapes
    from tests.tiny import make_model

    annotations, images = generate_shapes(tmp_path / "set", num_images=3, size=64, seed=1)
    model = make_model(score_threshold=0.0)
    truth = json.loads(annotations.read_text())
    for category, own in zip(truth["categories"], model.class_names, strict=True):
        assert category["name"] == own
    # Tracing NMS at many thresholds takes most of a minute, and is tested beside it.
    swept = hand_made()["sweep"]
    sweep = create_autospec(sweep_model, return_value=swept)
    monkeypatch.setattr("mrcnn_tf.inspection.inspect.sweep_model", sweep)
    report = inspect(annotations, images=images, model=model, first=2, score_threshold=0.0, pictures=1)
    assert report["source"]["images"] == 2 and report["source"]["detections"] > 0
    assert [row["at"] for row in report["proposals"]["recall"]] == [10, 100, 300, 1000]
    count = sum(a["image_id"] in (i["id"] for i in truth["images"][:2]) for a in truth["annotations"])
    assert sum(report["proposals"]["best_iou"]["counts"]) == report["source"]["instances"] == count
    assert report["sweep"] is swept and len(sweep.call_args.args[1]) == 2
    assert [len(g["items"]) for g in report["pictures"]["groups"]][0] == 1
    text = page(report)
    assert not problems_of(text) and "Recall of the proposals" in text
