"""`mrcnn inspect` as a user types it."""

from __future__ import annotations

import argparse
import json

import pytest

from mrcnn_tf.commands import inspect
from tests.inspection.planted import planted, write


def run(*arguments):
    parser = argparse.ArgumentParser()
    inspect.arguments(parser)
    return inspect.run(parser.parse_args([str(a) for a in arguments]))


def test_results_file(tmp_path, capsys):
    files = write(tmp_path, *planted())
    named = [part for key, path in files.items() for part in (f"--{key}", path)]
    run(*named, "--out", tmp_path / "page.html", "--report", tmp_path / "report.json", "--pictures", 1)
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    report = json.loads((tmp_path / "report.json").read_text())
    assert page.startswith("<!DOCTYPE html>")
    assert [len(group["items"]) for group in report["pictures"]["groups"]] == [1, 1, 1]
    out = capsys.readouterr().out
    assert out.endswith(f"page: {tmp_path / 'page.html'}\n")
    assert report["findings"] and all(finding["title"] in out for finding in report["findings"])


def test_score_and_first(tmp_path):
    files = write(tmp_path, *planted())
    named = [part for key, path in files.items() for part in (f"--{key}", path)]
    report = tmp_path / "report.json"
    run(*named, "--out", tmp_path / "page.html", "--report", report, "--score", 0.7, "--first", 2)
    read = json.loads(report.read_text())
    assert read["source"]["images"] == 2 and read["overlaps"]["score_threshold"] == 0.7
    assert read["overlaps"]["pairs"][0]["same_class"] == 0  # the duplicate has 0.6


def test_what_is_missing_is_asked_for(tmp_path, capsys):
    with pytest.raises(ValueError, match="--model needs --images"):
        run("--annotations", "a.json", "--model", "m.keras", "--out", "p.html")
    for arguments in (["--annotations", "a"], ["--annotations", "a", "--model", "m", "--results", "r"], []):
        with pytest.raises(SystemExit):
            run(*arguments, "--out", "p.html")
    with pytest.raises(FileNotFoundError, match="a.json"):
        run("--annotations", "a.json", "--results", "r.json", "--out", tmp_path / "p.html")
    assert not (tmp_path / "p.html").exists()
    with pytest.raises(ValueError, match="KEY=VALUE sets what a model gives"):
        run("--annotations", "a.json", "--results", "r.json", "--out", "p.html", "model.nms_groups=all")
