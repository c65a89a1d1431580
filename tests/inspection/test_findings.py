"""Findings on planted reports: each kind of trouble is told with its number and its setting, and nothing else is."""

import argparse
import copy
import shlex

import pytest

from mrcnn_tf.commands.clean import arguments
from mrcnn_tf.config import make_config, override
from mrcnn_tf.inspection.findings import findings

KINDS = ("classification", "localisation", "both", "duplicate", "background", "missed")


def _pairs(same=0, other=0):
    return [{"iou": iou, "same_class": same, "other_class": other} for iou in (0.3, 0.5, 0.7)]


def _figures(value):
    return {"recall50": value, "recall70": value, "mean_best_iou": value}


def _clean_report():
    """A report of a model in which nothing is wrong."""
    anchors = {**_figures(0.99), "overrides": "'model.rpn.anchor_sizes=[[32], [64], [128], [256], [512]]'"}
    anchors["by_size"] = {s: {"instances": 10, **_figures(0.99)} for s in ("small", "medium", "large")}
    row = {"AP": 0.6, "AP50": 0.8, "mask_AP": 0.55, "duplicates_per_image": 0.05}
    return {
        "source": {"model": "model.keras", "images": 100, "instances": 1000, "detections": 1200},
        "metrics": {"bbox/AP": 0.6, "bbox/AP50": 0.8, "segm/AP": 0.55, "segm/AP50": 0.78, "segm/APs": 0.5},
        "proposals": {
            "instances": {"all": 1000, "small": 300, "medium": 300, "large": 400},
            "recall": [{"at": 1000, "all": 0.8, "all50": 0.97, "small": 0.7, "medium": 0.8, "large": 0.9}],
        },
        "anchors": {
            "current": anchors,
            "suggested": {**anchors, "overrides": "'model.rpn.anchor_sizes=[[8], [16], [32], [64], [128]]'"},
            "held_out": {"current": _figures(0.6), "suggested": _figures(0.7)},
            "better": False,
            "min_size": 800,
            "max_size": 1333,
        },
        "overlaps": {"measure": "mask", "pairs": _pairs(), "boxes": _pairs(), "detections": 1000},
        "sweep": {
            "rows": [{"threshold": t, **row} for t in (0.3, 0.5, 0.7)],
            "current": 0.5,
            "suggested": 0.5,
        },
        "errors": {
            "segm": {"AP50": 0.78, "main": dict.fromkeys(KINDS, 0.01), "counts": dict.fromkeys(KINDS, 12)}
        },
        "boundary": {"AP": 0.4},
        "calibration": {
            "counts": [50, 0, 50],
            "mean_score": [0.2, None, 0.9],
            "precision": [0.25, None, 0.85],
            "expected_error": 0.05,
        },
        "by_crowding": [
            {"label": "1 in the image", "instances": 10, "segm/AP": 0.9},
            {"label": "overlaps no neighbour", "instances": 800, "segm/AP": 0.6},
            {"label": "neighbour's IoU 0.1 to 0.3", "instances": 200, "segm/AP": 0.5},
            {"label": "neighbour's IoU above 0.5", "instances": 5, "segm/AP": 0.0},
        ],
    }


def _only(report):
    (finding,) = findings(report)
    assert set(finding) == {"severity", "title", "text", "setting", "how"}
    return finding


def test_a_clean_report_is_good():
    finding = _only(_clean_report())
    assert finding["severity"] == "good" and "0.780" in finding["text"]


def _nms(report, ap=0.6, duplicates=0.9):
    report["overlaps"].update(pairs=_pairs(same=300), boxes=_pairs(same=300))
    report["sweep"]["rows"][1].update(mask_AP=0.5, duplicates_per_image=duplicates)
    report["sweep"]["rows"][0].update(mask_AP=ap, duplicates_per_image=0.1)
    report["sweep"]["suggested"] = 0.3


def _classes(report):
    report["overlaps"]["pairs"] = _pairs(other=150)


def _masks(report):
    report["overlaps"].update(pairs=_pairs(same=130), boxes=_pairs(same=10))


def _natural(report):
    report["overlaps"].update(pairs=_pairs(same=130), boxes=_pairs(same=120))


def _rpn(report):
    report["proposals"]["recall"][0]["all50"] = 0.8


def _calibration(report):
    report["calibration"].update(
        expected_error=0.3, mean_score=[0.5, None, 0.95], precision=[0.1, None, 0.75]
    )


def _crowding(report):
    report["by_crowding"][2]["segm/AP"] = 0.3


CASES = {
    "nms": (
        _nms,
        "high",
        "NMS threshold is too high",
        ["300 pairs", "0.500 to 0.600", "0.90 to 0.10"],
        "model.nms_threshold=0.3",
    ),
    "classes": (_classes, "high", "two classes", ["150 pairs", "0.15 for each"], "model.nms_groups=all"),
    "masks": (_masks, "high", "boxes do not", ["130 pairs", "only 10"], "model.mask_nms_threshold=0.5"),
    "natural": (_natural, "low", "as instances do", ["120 pairs", "0.550"], "model.nms_method=linear"),
    "rpn": (
        _rpn,
        "high",
        "Proposals miss",
        ["0.800", "1000", "small", "0.990"],
        "'model.rpn.post_nms=[2000, 2000]'",
    ),
    "small": (
        lambda r: r["metrics"].update({"segm/APs": 0.1}),
        "low",
        "Small instances",
        ["0.100", "0.550"],
        "model.min_size=1200 model.max_size=2000 'data.canvas=[1216, 2016]'",
    ),
    "boundary": (
        lambda r: r["boundary"].update(AP=0.2),
        "low",
        "Outlines",
        ["0.200", "0.550"],
        "model.mask_head.mask_size=56",
    ),
    "calibration": (_calibration, "low", "no probabilities", ["0.300", "too high"], None),
    "crowding": (_crowding, "low", "Crowded", ["0.300", "0.600", "200 of 1005"], "model.nms_method=linear"),
}


@pytest.mark.parametrize("case", CASES)
def test_one_planted_trouble_is_the_only_finding(case):
    plant, severity, title, numbers, setting = CASES[case]
    report = _clean_report()
    plant(report)
    finding = _only(report)
    assert finding["severity"] == severity
    assert title in finding["title"]
    assert finding["setting"] == setting
    assert finding["how"] == (
        setting and ("set" if case in ("nms", "classes", "masks", "natural", "crowding") else "train")
    )
    for number in numbers:
        assert number in finding["text"]
    if setting is not None:
        make_config(override({}, shlex.split(setting)))  # a user can paste it


@pytest.mark.parametrize("kind", KINDS)
def test_errors_that_cost_much_are_told(kind):
    report = _clean_report()
    report["errors"]["segm"]["main"][kind] = 0.05
    finding = _only(report)
    assert finding["severity"] == "low"
    assert "(12) cost 0.050 of AP50, which is 0.780" in finding["text"]
    report["errors"]["segm"]["main"][kind] = 0.2
    assert _only(report)["severity"] == "high"


def test_missed_instances_that_are_small_want_larger_input():
    report = _clean_report()
    report["errors"]["segm"]["main"]["missed"] = 0.2
    assert _only(report)["setting"] == "model.score_threshold=0.01"
    report["anchors"]["current"]["by_size"]["small"]["instances"] = 400
    finding = _only(report)
    assert "40% of the instances" in finding["text"] and "model.min_size" in finding["setting"]


def test_anchors_go_with_proposals_that_miss():
    report = _clean_report()
    report["anchors"]["better"] = True
    finding = _only(report)
    assert finding["severity"] == "low" and finding["setting"] == report["anchors"]["suggested"]["overrides"]
    assert "0.600" in finding["text"] and "0.700" in finding["text"]
    _rpn(report)
    first, second = findings(report)
    assert "Proposals miss" in first["title"] and first["setting"] == second["setting"] == finding["setting"]


def test_results_files_are_cleaned_and_not_trained():
    report = _clean_report()
    _nms(report)
    _classes(report)
    report["anchors"]["better"] = True
    report["errors"]["segm"]["main"].update(background=0.2, localisation=0.2)
    report["source"] = {"results": "my results.json", "images": 100, "instances": 1000, "detections": 1200}
    report["sweep"].update(current=None, as_is=report["sweep"]["rows"][2] | {"duplicates_per_image": 3.0})
    report["proposals"] = None
    settings = [finding["setting"] for finding in findings(report)]
    clean = "mrcnn clean 'my results.json' --out clean.json"
    assert sorted(s for s in settings if s) == [
        f"{clean} --groups all --measure mask --iou 0.5",
        f"{clean} --groups class --measure box --iou 0.3",
        f"{clean} --nms none --score-threshold 0.3",
    ]
    assert settings.count(None) == 1


def test_the_commands_are_those_of_mrcnn_clean():
    report = _clean_report()
    _nms(report)
    _classes(report)
    report["source"]["results"] = "results.json"
    parser = argparse.ArgumentParser()
    arguments(parser)
    for finding in findings(report):
        words = finding["setting"].split()
        assert words[:2] == ["mrcnn", "clean"]
        parser.parse_args(words[2:])


def test_what_weighs_most_comes_first():
    report = _clean_report()
    for plant in (_calibration, _classes, _rpn):
        plant(report)
    report["errors"]["segm"]["main"].update(missed=0.3, background=0.05)
    found = findings(report)
    assert [f["severity"] for f in found] == ["high"] * 3 + ["low"] * 2
    assert (
        "missed" in found[0]["title"]
        and "Proposals" in found[1]["title"]
        and "two classes" in found[2]["title"]
    )


def test_parts_that_are_missing_say_nothing():
    report = _clean_report()
    before = copy.deepcopy(report)
    for part in report:
        if part != "metrics":
            assert _only({**report, part: None})["severity"] == "good"
    assert report == before
    assert _only({})["title"] == "Nothing to judge"
    low = _only({"metrics": {"bbox/AP": 0.1, "bbox/AP50": 0.2}})
    assert low["severity"] == "low" and "0.200" in low["text"]


def test_no_detections():
    report = {
        "source": {"model": "m", "instances": 7, "detections": 0},
        "metrics": {"bbox/AP": 0.0, "bbox/AP50": 0.0},
    }
    finding = _only(report)
    assert finding["severity"] == "high" and "7 instances" in finding["text"]


def test_what_a_model_has_already_is_not_suggested():
    report = _clean_report()
    _classes(report)
    _crowding(report)
    report["source"] = {"model": "m", "selection": {"nms_groups": "all", "nms_method": "linear"}}
    assert _only(report)["setting"] is None
    report = _clean_report()
    _nms(report)
    report["source"] = {"model": "m", "selection": {"nms_groups": "all", "nms_method": "hard"}}
    assert "Suppression at 0.3" in _only(report)["text"]
    report["source"]["selection"]["nms_method"] = "gaussian"
    assert _only(report)["severity"] == "good"
