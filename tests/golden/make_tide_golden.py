"""Writes tide.json: the errors that tidecv 1.0.1, of TIDE's authors, finds in generated results.

tidecv takes the mean over all classes that have an instance or a detection. COCO takes it over those that have an
instance; the COCO API's examples lack many classes, so their figures are written with that mean.

tidecv needs opencv-python, which must not be installed beside opencv-python-headless, so it gets its own environment:

    python3.11 -m venv tide && tide/bin/pip install tidecv==1.0.1 pycocotools
    tide/bin/python -m tests.golden.make_tide_golden ../shared/data/cocoapi_fake100
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from pycocotools import mask as coco_mask
from tidecv import TIDE, Data
from tidecv.ap import ClassedAPDataObject

from tests.evaluation.made import messy

NAMES = {
    "Cls": "classification",
    "Loc": "localisation",
    "Both": "both",
    "Dupe": "duplicate",
    "Bkg": "background",
    "Miss": "missed",
    "FalsePos": "false_positive",
    "FalseNeg": "false_negative",
}


def errors_of(truth: dict, results: list[dict], mode: str) -> dict:
    """AP50, gains, counts and the kind of each entry; percent become shares."""
    sizes = {image["id"]: (image["height"], image["width"]) for image in truth["images"]}
    wanted, found = Data("truth"), Data("results")
    for image in truth["images"]:
        wanted.add_image(image["id"], str(image["id"]))
    for a in truth["annotations"]:
        shape = a["segmentation"]
        if mode == TIDE.MASK and isinstance(shape, list):
            shape = coco_mask.merge(coco_mask.frPyObjects(shape, *sizes[a["image_id"]]))
        elif mode == TIDE.MASK and isinstance(shape["counts"], list):
            shape = coco_mask.frPyObjects(shape, *sizes[a["image_id"]])
        add = wanted.add_ignore_region if a["iscrowd"] else wanted.add_ground_truth
        add(a["image_id"], a["category_id"], a["bbox"], shape)
    for r in results:
        found.add_detection(r["image_id"], r["category_id"], r["score"], r.get("bbox"), r.get("segmentation"))
    tide = TIDE()
    run = tide.evaluate(wanted, found, mode=mode, name="run")
    kinds: list[str | None] = [None] * len(results)
    for error in run.errors:
        # tidecv also names errors among the detections that it ignores.
        if hasattr(error, "pred") and error.pred["info"]["used"] is False:
            kinds[error.pred["_id"]] = NAMES[error.short_name]
    gains = {**run.fix_main_errors(), **run.fix_special_errors()}
    counts = {NAMES[kind.short_name]: n for kind, n in run.count_errors().items()}
    return {
        "AP50": run.ap / 100,
        "gains": {NAMES[kind.short_name]: gain / 100 for kind, gain in gains.items()},
        "missed": counts["missed"],
        "kinds": kinds,
    }


def coco_mean(classes: set[int]):
    """A stand-in for tidecv's mean; a class of which nothing is left to find is perfect, or 0 with detections left."""

    def mean(data: ClassedAPDataObject) -> float:
        parts = [data.objs[k] for k in classes]
        return sum(p.get_ap() if p.num_gt_positives else 100 * (not p.data_points) for p in parts) / len(
            parts
        )

    return mean


def main(folder: Path) -> None:
    """Compute and write."""
    modes = {"bbox": TIDE.BOX, "segm": TIDE.MASK}
    golden = {
        f"made {seed}": {t: errors_of(*messy(seed), mode) for t, mode in modes.items()} for seed in range(4)
    }
    truth = json.loads((folder / "instances_val2014_100.json").read_text())
    ClassedAPDataObject.get_mAP = coco_mean(
        {a["category_id"] for a in truth["annotations"] if not a["iscrowd"]}
    )
    golden["COCO API"] = {}
    for iou_type, mode in modes.items():
        results = json.loads((folder / f"instances_val2014_fake{iou_type}100_results.json").read_text())
        golden["COCO API"][iou_type] = errors_of(truth, results, mode)
    Path(__file__).with_name("tide.json").write_text(json.dumps(golden, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
