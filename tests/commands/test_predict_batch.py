"""`mrcnn predict-batch`: what it hands on and prints, and what it says without Beam."""

import argparse
import json
import sys

import pytest

from mrcnn_tf.commands import predict_batch as command


def run(*words):
    parser = argparse.ArgumentParser()
    command.arguments(parser)
    return command.run(parser.parse_args([str(word) for word in words]))


def test_predicts(export_tiny, tmp_path, capsys):
    pytest.importorskip("apache_beam")
    import cv2
    import numpy as np

    from mrcnn_tf.models.mask_rcnn import MaskRCNN

    _, model = export_tiny(MaskRCNN)
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((64, 64, 3), np.uint8))
    (tmp_path / "b.png").write_text("none")
    words = [
        "--input",
        tmp_path / "*.png",
        "--model",
        model,
        "--output",
        tmp_path / "out" / "x",
        "--score",
        0.25,
    ]
    local = ["--", "--direct_running_mode=in_memory", "--direct_num_workers=1"]
    assert run(*words, "--batch-size", 2, *local) == 0
    lines = capsys.readouterr().out.splitlines()
    assert (
        lines[0].startswith("1 images predicted, 1 inputs in the dead letters")
        and "1 shards, 0 of them" in lines[0]
    )
    assert "images/s in this run; a worker's memory was" in lines[1]
    manifest = json.loads((tmp_path / "out" / "x.manifest.json").read_text())
    assert manifest["settings"]["score"] == 0.25 and manifest["settings"]["batch_size"] == 2
    assert len(manifest["classes"]) == 6

    (tmp_path / "a.png").unlink()
    assert run("--input", tmp_path / "*.png", "--model", model, "--output", tmp_path / "none", *local) == 1


def test_without_beam(tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("mrcnn_tf.batch")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    with pytest.raises(RuntimeError, match=r"needs Apache Beam: pip install 'mrcnn_tf\[beam\]'"):
        run("--input", "*.jpg", "--model", "m", "--output", tmp_path / "x")
