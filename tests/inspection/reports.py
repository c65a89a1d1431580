"""Reports as `inspect` returns them, made by hand: for pages without an inspection."""

from __future__ import annotations

import base64
from typing import Any

import cv2
import numpy as np

SIZES = ("small", "medium", "large")


def hand_made(**changes: Any) -> dict[str, Any]:
    """A whole report of a model that leaves duplicates; `changes` take the place of its parts."""
    budget = {
        "AP50": 0.61,
        "main": {
            **{"classification": 0.02, "localisation": 0.05, "both": 0.004},
            **{"duplicate": 0.142, "background": 0.03, "missed": 0.08},
        },
        "special": {"false_positive": 0.2, "false_negative": 0.11},
        "counts": {
            "classification": 4,
            "localisation": 9,
            "both": 1,
            "duplicate": 40,
            "background": 7,
            "missed": 21,
        },
    }
    report: dict[str, Any] = {
        "source": {
            **{"annotations": "set/val.json", "model": "runs/mine/model.keras"},
            **{"images": 100, "instances": 1234, "detections": 2345},
        },
        "notes": ["3 images have no annotated instance."],
        "findings": [
            {
                "severity": "high",
                "title": "Instances are found several times",
                "text": "0.40 duplicates an image; NMS lets boxes through that overlap by up to 0.7.",
                "setting": "model.nms_threshold=0.5",
                "how": "set",
            },
            {
                "severity": "low",
                "title": "Large instances are rare",
                "text": "5 of 1234.",
                "setting": None,
                "how": None,
            },
            {
                "severity": "good",
                "title": "Proposals cover",
                "text": "98 % at IoU 0.5.",
                "setting": None,
                "how": None,
            },
        ],
        "metrics": {
            "bbox/AP": 0.412,
            "bbox/AP50": 0.61,
            "segm/AP": 0.377,
            "segm/AP50": 0.59,
            "segm/AP75": 0.4,
        },
        "proposals": {
            "instances": {"all": 1234, "small": 800, "medium": 434, "large": 0},
            "recall": [
                {"at": n, "all": r, "all50": r + 0.1, "small": r - 0.1, "medium": r, "large": -1.0}
                for n, r in ((10, 0.31), (100, 0.62), (300, 0.7), (1000, 0.72))
            ],
            "best_iou": {
                "edges": [i / 20 for i in range(21)],
                "counts": [9, 1, 2, 3, 5, 8, 9, 12, 14, 20, 31, 47, 80, 120, 170, 250, 260, 150, 40, 3],
            },
        },
        "anchors": {
            key: {
                **{
                    "sizes": [[12], [20], [32], [48], [64]],
                    "aspect_ratios": [0.5, 1.0, 2.0],
                    "overrides": "'a=1'",
                },
                **{"recall50": 0.98, "recall70": value, "mean_best_iou": 0.77},
                "by_size": {
                    s: {"instances": 1, "recall50": 0.9, "recall70": -1.0, "mean_best_iou": 0.7}
                    for s in SIZES
                },
            }
            for key, value in (("current", 0.7), ("suggested", 0.8))
        }
        | {"better": True, "text": "The suggested anchors reach a recall of 0.80 at IoU 0.7."},
        "overlaps": {
            "measure": "mask",
            "pairs": [
                {"iou": t, "same_class": n, "other_class": n // 3}
                for t, n in ((0.3, 90), (0.5, 40), (0.7, 4))
            ],
            "boxes": [
                {"iou": t, "same_class": n, "other_class": n // 2}
                for t, n in ((0.3, 99), (0.5, 55), (0.7, 9))
            ],
            **{"images": 100, "detections": 1500, "score_threshold": 0.3, "per_image": {1: 4}},
        },
        "sweep": {
            "rows": [
                {"threshold": t, "AP": a, "AP50": a + 0.2, "duplicates_per_image": d}
                for t, a, d in (
                    (0.3, 0.40, 0.01),
                    (0.4, 0.41, 0.05),
                    (0.5, 0.415, 0.1),
                    (0.7, 0.38, 0.4),
                    (0.9, 0.2, 7.0),
                )
            ],
            **{"current": 0.7, "suggested": 0.5, "measure": "box"},
        },
        "errors": {"bbox": budget, "segm": budget},
        "confusion": {
            "score_threshold": 0.3,
            "classes": ["cat", "dog", "owl"],
            "matrix": [[50, 4, 0, 6], [9, 40, 0, 2], [0, 0, 30, 3], [5, 1, 2, 0]],
        },
        "boundary": {"AP": 0.21, "AP50": 0.5, "AP75": 0.1},
        "calibration": {
            "edges": [i / 10 for i in range(11)],
            "counts": [0, 0, 0, 50, 40, 30, 30, 40, 60, 300],
            "mean_score": [None, None, None, 0.35, 0.45, 0.55, 0.65, 0.75, 0.86, 0.97],
            "precision": [None, None, None, 0.1, 0.2, 0.3, 0.45, 0.6, 0.7, 0.93],
            "expected_error": 0.08,
        },
        "by_size": [{"label": s, "instances": 400, "bbox/AP": 0.4, "segm/AP": 0.3} for s in SIZES],
        "by_crowding": [
            {"label": "IoU with a neighbour 0 to 0.1", "instances": 9, "bbox/AP": 0.4, "segm/AP": -1.0}
        ],
        "pictures": {
            **{"images": 100, "score_threshold": 0.3, "iou_type": "segm"},
            "groups": [
                {
                    "title": title,
                    "text": "Why.",
                    "of": 7,
                    "items": [item(f"{title} {i}.png") for i in range(2)],
                }
                for title in ("Worst images", "Most confident mistakes")
            ],
        },
    }
    return report | changes


def item(name: str, reason: str = "1 of 2 found, 1 duplicate", side: int = 64) -> dict[str, Any]:
    """A picture of noise with one right and one wrong detection."""
    pixels = np.random.default_rng(0).integers(0, 255, (side, side, 3), np.uint8)
    jpeg = base64.b64encode(cv2.imencode(".jpg", pixels)[1].tobytes()).decode()
    return {
        **{
            "image_id": 1,
            "reason": reason,
            "file_name": name,
            "width": 640,
            "height": 640,
            "jpeg": jpeg,
            "hidden": 0,
        },
        "truth": '<path class="missed" d="M100 100h200v200h-200z"/>',
        "prediction": '<path class="right" d="M300 300h200v200h-200z"/>'
        '<path class="wrong" d="M320 320h200v200h-200z"/>',
    }
