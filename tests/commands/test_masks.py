"""`mrcnn masks`: its table, its conversions, and options that do not fit together."""

import argparse
import json

import pytest

from mrcnn_tf.commands import masks

SQUARE = {"size": [6, 6], "counts": [7, 3, 3, 3, 3, 3, 14]}


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "results.json"
    path.write_text(json.dumps([{"image_id": 1, "category_id": 1, "score": 1, "segmentation": SQUARE}]))
    return path


def run(*words):
    parser = argparse.ArgumentParser()
    masks.arguments(parser)
    masks.run(parser.parse_args([str(word) for word in words]))


def test_table(file, capsys):
    run(file, "--tolerance", 1, 3, "--mask-size", 7, "--first", 5)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("1 masks (1 rle-uncompressed; 0 empty)")
    assert [" ".join(line.split()[:3]) for line in lines[6:9]] == [
        "polygons 1 px",
        "polygons 3 px",
        "box-mask 7 x",
    ]


def test_convert(file, tmp_path, capsys):
    out = tmp_path / "out.json"
    run(file, "--to", "polygons", "--out", out)
    [[polygon]] = [entry["segmentation"] for entry in json.loads(out.read_text())]
    assert {*zip(polygon[::2], polygon[1::2], strict=True)} == {(1, 1), (1, 4), (4, 1), (4, 4)}
    assert "1 masks written as polygons" in capsys.readouterr().out
    run(file, "--to", "box-mask", "--out", out, "--mask-size", 5)
    assert json.loads(out.read_text())[0]["segmentation"]["shape"] == [5, 5]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--to", "rle"], "--to and --out belong together"),
        (["--out", "x.json"], "--to and --out belong together"),
        (["--to", "rle", "--out", "x.json", "--first", 3], "--first is for the table"),
        (["--to", "rle", "--out", "x.json", "--tolerance", 1], "--tolerance with --to takes one value"),
        (
            ["--to", "polygons", "--out", "x.json", "--tolerance", 1, 2],
            "--tolerance with --to takes one value",
        ),
        (["--to", "polygons", "--out", "x.json", "--mask-size", 9], "--mask-size with --to .* --to box-mask"),
        (["--to", "png", "--out", "x.json"], "no form 'png'; choose one of rle"),
        (["--tolerance", -1], "tolerance must be"),
    ],
)
def test_options_that_do_not_fit(file, words, message):
    with pytest.raises(ValueError, match=message):
        run(file, *words)
