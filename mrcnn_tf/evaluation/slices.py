"""AP by the size of instances and by how crowded they are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from mrcnn_tf.evaluation.coco import average_precisions
from mrcnn_tf.evaluation.huddled import neighbour_overlaps, restrict
from mrcnn_tf.evaluation.matching import Matching, rematch

__all__ = ["ap_by_crowding", "ap_by_size"]

_SIDES = {  # from, and below
    "under 16 px": (0, 16),
    "16 to 32 px": (16, 32),
    "32 to 64 px": (32, 64),
    "64 to 96 px": (64, 96),
    "96 px and more": (96, np.inf),
}
_PER_IMAGE = {  # from, and up to
    "1 in the image": (1, 1),
    "2 to 4 in the image": (2, 4),
    "5 to 9 in the image": (5, 9),
    "10 to 19 in the image": (10, 19),
    "20 and more in the image": (20, np.inf),
}
_NEAREST = {  # above, and up to
    "overlaps no neighbour": (-np.inf, 0),
    "neighbour's IoU up to 0.1": (0, 0.1),
    "neighbour's IoU 0.1 to 0.3": (0.1, 0.3),
    "neighbour's IoU 0.3 to 0.5": (0.3, 0.5),
    "neighbour's IoU above 0.5": (0.5, np.inf),
}


def ap_by_size(truth: dict[str, Any], matchings: Mapping[str, Matching]) -> list[dict[str, Any]]:
    """AP in finer ranges than small, medium and large.

    As COCO does it, instances out of a range are ignored, and so are detections out of it that match nothing.

    Args:
        truth, matchings: as `match_coco` returned them.

    Returns:
        For each range of the square root of the annotated area, 0 to 16, 32, 64, 96 pixels and above (the lower end
        belongs to it): `"label"`, `"instances"`, and `"bbox/AP"`, `"bbox/AP50"`, `"bbox/AP75"` and the same under
        `segm` for those that were matched; in [0, 1], or -1 without instances.
    """
    areas = np.array([a.get("area", a["bbox"][2] * a["bbox"][3]) for a in _instances(truth)], np.float64)
    ranges = [(low**2, np.nextafter(high**2, 0)) for low, high in _SIDES.values()]
    slices: list[dict[str, Any]] = [
        {"label": label, "instances": int(((areas >= low) & (areas <= high)).sum())}
        for label, (low, high) in zip(_SIDES, ranges, strict=True)
    ]
    for iou_type, matching in matchings.items():
        for index, row in enumerate(slices):
            row |= _scores(iou_type, rematch(matching, area_ranges=[ranges[index]]))
    return slices


def ap_by_crowding(truth: dict[str, Any], matchings: Mapping[str, Matching]) -> list[dict[str, Any]]:
    """AP by the number of instances in the image, and by the overlap with the nearest neighbour.

    The first is AP over the images with so many instances. The second is over all images: the other instances are
    ignored, as `huddled_metrics` does it. Crowd regions do not count as instances or as neighbours.

    Args:
        truth, matchings: as `match_coco` returned them.

    Returns:
        Rows as those of `ap_by_size`: for 1, 2 to 4, 5 to 9, 10 to 19, 20 and more instances in the image; then for
        the largest IoU of an instance's box with the box of another, of any class: 0, up to 0.1, 0.3, 0.5 (the upper
        end belongs to it) and above.
    """
    slices = []
    counts = Counter(a["image_id"] for a in _instances(truth))
    for label, (least, most) in _PER_IMAGE.items():
        images = sorted(image for image, count in counts.items() if least <= count <= most)
        row: dict[str, Any] = {"label": label, "instances": sum(counts[image] for image in images)}
        for iou_type, matching in matchings.items():
            row |= _scores(iou_type, rematch(matching, images=images))
        slices.append(row)

    nearest = neighbour_overlaps(truth)["any"]
    real = np.array([not a.get("iscrowd") for a in truth["annotations"]], bool)
    for label, (above, up_to) in _NEAREST.items():
        counted = real & (nearest > above) & (nearest <= up_to)
        row = {"label": label, "instances": int(counted.sum())}
        for iou_type, matching in matchings.items():
            row |= _scores(iou_type, restrict(matching, counted))
        slices.append(row)
    return slices


def _instances(truth: dict[str, Any]) -> list[dict[str, Any]]:
    return [a for a in truth["annotations"] if not a.get("iscrowd")]


def _scores(iou_type: str, matching: Matching) -> dict[str, float]:
    return {f"{iou_type}/{key}": value for key, value in average_precisions(matching).items()}
