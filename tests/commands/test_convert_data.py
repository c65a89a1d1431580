"""`mrcnn convert-data` at the command line."""

import pytest

from mrcnn_tf import cli
from mrcnn_tf.commands import convert_data
from tests.data.helpers import write
from tests.data.test_coco import content


@pytest.fixture(autouse=True)
def command(monkeypatch):
    monkeypatch.setattr(cli, "COMMANDS", {"convert-data": convert_data})


def test_convert_verify_and_adopt(tmp_path, capsys):
    annotations, images = map(str, write(tmp_path, content()))
    out = tmp_path / "val"
    call = [
        "convert-data",
        "--annotations",
        annotations,
        "--images",
        images,
        "--out",
        str(out),
        "--workers",
        "1",
    ]
    assert cli.main([*call, "--shards", "2", "--masks", "png"]) == 0
    assert "manifest.json: 3 images, 7 annotations in 2 shards" in capsys.readouterr().out
    assert cli.main(["convert-data", "--verify", str(out / "manifest.json")]) == 0
    assert "2 shards, 3 images, all checksums right" in capsys.readouterr().out
    adopted = ["--records", f"{out}/*.tfrecord", "--labels", annotations, "--out", str(tmp_path / "index")]
    assert cli.main(["convert-data", *adopted, "--workers", "1"]) == 0
    assert f"{tmp_path / 'index' / 'manifest.json'}: 3 images" in capsys.readouterr().out
    assert cli.main(call) == 1
    assert "error: " in (err := capsys.readouterr().err) and "holds another conversion" in err


def test_images_left_out_are_counted(tmp_path, capsys):
    annotations, images = write(tmp_path, content())
    (images / "3.png").write_bytes(b"")
    call = ["convert-data", "--annotations", str(annotations), "--images", str(images), "--workers", "1"]
    assert cli.main([*call, "--out", str(tmp_path / "strict")]) == 1
    assert "3.png: not a whole, readable image (0 bytes)" in capsys.readouterr().err
    assert cli.main([*call, "--out", str(tmp_path / "rest"), "--skip-damaged"]) == 0
    out = capsys.readouterr().out
    assert "2 images, 7 annotations" in out
    assert "1 images left out, see 'skipped' in the manifest; the first is" in out


def test_what_must_be_given(capsys):
    assert cli.main(["convert-data", "--annotations", "a.json", "--images", "i"]) == 1
    assert "give --out, and --images with --annotations" in capsys.readouterr().err
    assert cli.main(["convert-data", "--annotations", "a.json", "--out", "o"]) == 1
    with pytest.raises(SystemExit):
        cli.main(["convert-data", "--out", "o"])
    assert "one of the arguments --annotations --records --verify is required" in capsys.readouterr().err
