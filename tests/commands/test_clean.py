"""`mrcnn clean`: what its options mean and what it prints."""

import argparse
import json
import subprocess
import sys

import pytest

from mrcnn_tf.commands import clean
from tests.postprocess.test_clean import bar


def options(*texts):
    parser = argparse.ArgumentParser()
    clean.arguments(parser)
    return parser.parse_args([str(text) for text in texts])


@pytest.fixture
def files(tmp_path):
    results, annotations = tmp_path / "r.json", tmp_path / "a.json"
    entries = [
        bar(0, 6, 0.5),
        bar(0, 7, 0.9, category=2),
        bar(7, 12, 0.6, category=3),
        bar(8, 12, 0.2) | {"bbox": [8, 0, 9, 1]},
    ]
    results.write_text(json.dumps(entries))
    truth = {
        "images": [{"id": 3, "height": 1, "width": 12}],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "a=b"}, {"id": 3, "name": "dog"}],
        "annotations": [],
    }
    annotations.write_text(json.dumps(truth))
    return results, annotations, tmp_path / "out.json"


def scores(path):
    return [entry["score"] for entry in json.loads(path.read_text())]


def test_without_settings(files, capsys):
    results, _, out = files
    assert clean.run(options(results, "--out", out)) == 0
    assert scores(out) == [0.9, 0.6]
    assert capsys.readouterr().out.splitlines() == [
        f"{results}: 4 entries of 1 images",
        "         -2  overlapping a better one",
        f"{out}: 2 entries",
        "1 boxes reached outside their image and were clipped to it",
    ]


@pytest.mark.parametrize(
    ("texts", "left"),
    [
        (["--groups", "class"], [0.9, 0.6, 0.5, 0.2]),
        (["--groups", "cat,a=b"], [0.9, 0.6, 0.2]),
        (["--groups", "cat, dog", "2"], [0.9, 0.6, 0.5]),
        (["--nms", "none", "--score-threshold", "0.55", "cat=0.1", "a=b=0.95"], [0.6, 0.5, 0.2]),
        (["--nms", "none", "--min-size", "2.2", "--max-size", "2.5"], [0.6, 0.5]),
        (["--nms", "none", "--min-size", "60%"], [0.9, 0.6, 0.5]),
        (["--iou", "0.9", "--max-detections", "3"], [0.9, 0.6, 0.5]),
        (["--nms", "linear"], [0.9, 0.6, 0.071429, 0.04]),
        (["--merge", "best", "--rule", "greedy", "--nms", "none"], [0.9, 0.6]),
        (["--no-overlap", "--nms", "none"], [0.9, 0.6]),
    ],
)
def test_what_options_mean(files, texts, left):
    results, annotations, out = files
    assert clean.run(options(results, "--out", out, "--annotations", annotations, *texts)) == 0
    assert scores(out) == left


def test_ids_name_classes_without_annotations(files):
    results, _, out = files
    clean.run(options(results, "--out", out, "--groups", "1,3", "--score-threshold", "0", "2=0.95"))
    assert scores(out) == [0.6, 0.5]


def test_label_maps_are_written(files):
    results, _, out = files
    clean.run(options(results, "--out", out, "--label-maps", out.parent / "maps"))
    assert [p.name for p in (out.parent / "maps").iterdir()] == ["3.png"]


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["--groups", "cat"], "--groups: 'cat' is no class id; for names give --annotations"),
        (["--groups", "1,2", "2"], "class 2 is named twice"),
        (["--score-threshold", "high"], "'high' is neither a number nor CLASS=NUMBER"),
        (["--min-size", "5%", "--max-size", "9"], "both in pixels or both as a share"),
        (["--min-size", "big"], "take pixels or N%, not big"),
        (["--iou", "2"], r"iou_threshold must be in \[0, 1\]"),
        (["--max-detections", "0", "--nms", "none"], "max_detections must be at least 1, not 0"),
        (["--annotations", "none.json"], r"none\.json: no such file"),
    ],
)
def test_wrong_options_are_told(files, texts, message):
    results, _, out = files
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        clean.run(options(results, "--out", out, *texts))
    assert not out.exists()


def test_unknown_class_names_are_told(files):
    results, annotations, out = files
    with pytest.raises(ValueError, match=r"a\.json has no classes 'cow'; it has cat, a=b, dog"):
        clean.run(options(results, "--out", out, "--annotations", annotations, "--groups", "cow,cat"))


def test_neither_tensorflow_nor_keras_is_imported(files):
    results, _, out = files
    program = (
        "import sys, argparse; from mrcnn_tf.commands import clean; p = argparse.ArgumentParser(); clean.arguments(p);"
        f"clean.run(p.parse_args([{str(results)!r}, '--out', {str(out)!r}]));"
        "sys.exit(sum(name in sys.modules for name in ('tensorflow', 'keras')))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False, capture_output=True).returncode == 0
