"""The pictures of the page: which images, and what is drawn on them.

A picture is one small JPEG and two layers of outlines in SVG, truth and prediction, so that switching between them
costs no second copy of the image.
"""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from mrcnn_tf.data.images import read_image
from mrcnn_tf.evaluation.matching import Matching
from mrcnn_tf.geometry.masks import crop_of_rle
from mrcnn_tf.geometry.polygons import to_polygons

__all__ = ["Image", "choose", "images_of", "make_pictures"]

_SIDE = 640  # of a picture's longer side, in units of the drawing; a JPEG has no more pixels than that
_QUALITY = 75
_SHAPES = 400  # of a layer, best scores first: a page of thousands helps nobody
_LETTER, _LINE = 9, 17  # room that a label's letter and line need
_MISTAKES = ("wrong", "missed")
_SAID = {
    "classification": "of another class",
    "localisation": "badly placed",
    "both": "badly placed and of another class",
    "duplicate": "found twice",
    "background": "on the background",
}


@dataclass
class Image:
    """One image's part in the matching at IoU 0.5.

    Attributes:
        record: the image's entry in the annotation file.
        detections: indices of results entries, best score first.
        wrong: kind of mistake by index, of those that are one.
        annotations: indices of the image's annotations, crowd regions included.
        missed: those of them that no detection of their class and of a sufficient score found.
        crowd: those that count as neither right nor wrong.
    """

    record: dict[str, Any]
    detections: list[int] = field(default_factory=list)
    wrong: dict[int, str] = field(default_factory=dict)
    annotations: list[int] = field(default_factory=list)
    missed: set[int] = field(default_factory=set)
    crowd: set[int] = field(default_factory=set)

    @property
    def found(self) -> int:
        """Number of annotated instances that were found."""
        return len(self.annotations) - len(self.missed) - len(self.crowd)

    @property
    def mistakes(self) -> int:
        """Number of missed instances and wrong detections."""
        return len(self.missed) + len(self.wrong)

    @property
    def right(self) -> float:
        """F1 of the detections shown: the share of right ones among all that was found or should have been."""
        return 2 * self.found / max(2 * self.found + self.mistakes, 1)


@dataclass(frozen=True)
class Shape:
    """What is drawn: a results entry or an annotation, how it fared (a class of the style sheet), and in words."""

    entry: Mapping[str, Any]
    kind: str
    text: str


def images_of(
    truth: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    matching: Matching,
    kinds: Sequence[str | None],
    *,
    score_threshold: float,
) -> dict[Any, Image]:
    """What each image holds, by image id.

    Args:
        truth, matching: of `match_coco`; the matching that the kinds are of.
        results: the entries that were matched.
        kinds: of `error_budget`, one per entry.
        score_threshold: detections below are left out, and what only they found is missed.
    """
    images = {record["id"]: Image(record) for record in truth["images"]}
    for i, annotation in enumerate(truth["annotations"]):
        image = images[annotation["image_id"]]
        image.annotations.append(i)
        # An annotation without a mask is a crowd region where masks are matched.
        if matching.cocoGt.anns[i + 1]["iscrowd"]:
            image.crowd.add(i)
        else:
            image.missed.add(i)
    for i in sorted(range(len(results)), key=lambda i: -results[i]["score"]):
        if results[i]["score"] >= score_threshold:
            image = images[results[i]["image_id"]]
            image.detections.append(i)
            if (kind := kinds[i]) is not None:
                image.wrong[i] = kind
    # The first area range is that of all sizes: a part of the list for each class.
    count, ranges = len(matching.params.imgIds), len(matching.params.areaRng)
    for number, found in enumerate(matching.evalImgs):
        if found is None or number // count % ranges:
            continue
        for id_, detection in zip(found["gtIds"], found["gtMatches"][0], strict=True):
            if detection and results[int(detection) - 1]["score"] >= score_threshold:
                images[found["image_id"]].missed.discard(id_ - 1)
    return images


def choose(
    images: Mapping[Any, Image],
    results: Sequence[Mapping[str, Any]],
    per_image: Mapping[Any, int],
    names: Mapping[Any, str],
    *,
    count: int,
) -> list[dict[str, Any]]:
    """Which images to show, and why; the same for the same input.

    Args:
        images: of `images_of`.
        results: the entries.
        per_image: pairs of overlapping detections by image id.
        names: of the classes, by category id.
        count: of pictures in a group, at most.

    Returns:
        Groups of `{"title", "text", "items"}`; an item has `image_id` and `reason`.
    """
    ids = list(images)
    worst = [i for i in ids if images[i].mistakes]
    worst.sort(key=lambda i: (images[i].right, -images[i].mistakes))
    crowded = sorted((i for i in ids if per_image.get(i, 0)), key=lambda i: -per_image[i])
    mistakes: dict[Any, str] = {}  # the most confident one of each image
    wrong = [i for image in images.values() for i in image.wrong]
    for i in sorted(wrong, key=lambda i: -results[i]["score"]):
        entry = results[i]
        image_id = entry["image_id"]
        kind = images[image_id].wrong[i]
        mistakes.setdefault(
            image_id,
            f"{names[entry['category_id']]} {entry['score']:.2f}: {_SAID[kind]}",
        )
    groups = [
        (
            "Worst images",
            "Those with the smallest share of right ones among what was found and what should have been (F1).",
            [(i, _reason(images[i])) for i in worst],
        ),
        (
            "Most overlapping detections",
            "Those with the most pairs of detections that overlap by an IoU above 0.5.",
            [(i, f"{per_image[i]} overlapping {'pair' if per_image[i] == 1 else 'pairs'}") for i in crowded],
        ),
        (
            "Most confident mistakes",
            "Those with the wrong detections of the highest scores.",
            list(mistakes.items()),
        ),
    ]
    return [
        {
            "title": title,
            "text": text,
            "of": len(chosen),
            "items": [{"image_id": i, "reason": reason} for i, reason in chosen[:count]],
        }
        for title, text, chosen in groups
    ]


def _reason(image: Image) -> str:
    """Counts of what is right and wrong."""
    parts = [f"{image.found} of {len(image.annotations) - len(image.crowd)} found"]
    parts += [f"{n} {_SAID[kind]}" for kind, n in Counter(image.wrong.values()).most_common()]
    return ", ".join(parts)


def make_pictures(
    groups: list[dict[str, Any]],
    images: Mapping[Any, Image],
    folder: str | Path,
    truth: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    names: Mapping[Any, str],
) -> list[str]:
    """Draws: each item of the groups gets `file_name`, `width`, `height`, `jpeg` (base64), `truth`, `prediction` (SVG).

    Args:
        groups: of `choose`; an item whose image cannot be read is taken out.
        images: of `images_of`.
        folder: that the annotations' file names are relative to.
        truth, results, names: as for `choose`.

    Returns:
        A line for each image that could not be read.
    """
    made: dict[Any, dict[str, Any]] = {}
    problems: dict[Any, str] = {}
    for group in groups:
        for item in group["items"]:
            image = images[item["image_id"]]
            if item["image_id"] not in made and item["image_id"] not in problems:
                try:
                    made[item["image_id"]] = _picture(image, Path(folder), truth, results, names)
                except (OSError, ValueError) as error:
                    problems[item["image_id"]] = str(error)
            item.update(made.get(item["image_id"], {}))
        group["items"] = [item for item in group["items"] if "jpeg" in item]
    return list(problems.values())


def _picture(
    image: Image,
    folder: Path,
    truth: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    names: Mapping[Any, str],
) -> dict[str, Any]:
    record = image.record
    if not isinstance(record.get("file_name"), str):
        raise ValueError(f"image {record['id']} has no file_name in the annotations")
    size = (record["height"], record["width"]) if {"height", "width"} <= record.keys() else None
    pixels = read_image(folder / record["file_name"], size)
    height, width = pixels.shape[:2]
    scale = _SIDE / max(height, width)
    if scale < 1:
        shape = max(1, round(width * scale)), max(1, round(height * scale))
        pixels = np.asarray(cv2.resize(pixels, shape, interpolation=cv2.INTER_AREA), np.uint8)
    _, code = cv2.imencode(
        ".jpg", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, _QUALITY]
    )
    many = len(names) > 1  # the name of the only class would say nothing
    wanted = []
    for i in image.annotations:
        name = names[truth["annotations"][i]["category_id"]] if many else ""
        kind = "crowd" if i in image.crowd else "missed" if i in image.missed else "found"
        text = name if many and kind != "missed" else f"{kind} {name}".strip()
        wanted.append(Shape(truth["annotations"][i], kind, text))
    found = []
    for i in image.detections:
        name = names[results[i]["category_id"]] if many else ""
        text = f"{name} {results[i]['score']:.2f} {image.wrong.get(i, '')}".strip()
        found.append(Shape(results[i], "wrong" if i in image.wrong else "right", text))
    size = round(width * scale), round(height * scale)
    return {
        "file_name": record["file_name"],
        "width": size[0],
        "height": size[1],
        "jpeg": base64.b64encode(code.tobytes()).decode("ascii"),
        "truth": _layer(wanted, scale, size, above=False),
        "prediction": _layer(found, scale, size, above=True),
        "hidden": max(0, len(wanted) - _SHAPES) + max(0, len(found) - _SHAPES),
    }


def _layer(shapes: Sequence[Shape], scale: float, size: tuple[int, int], *, above: bool) -> str:
    """Outlines, and labels of what is wrong, above or below it, where they do not cover one another."""
    # What is right lies beneath what is wrong.
    parts: dict[bool, list[str]] = {False: [], True: []}
    labels: list[str] = []
    taken: list[tuple[float, float, float]] = []
    for shape in shapes[:_SHAPES]:
        path, box = _outline(shape.entry, scale)
        x, y, w, h = (v * scale for v in box)
        text = escape(shape.text)
        frame = f'"{"box " if path else ""}{shape.kind}" d="M{x:.0f} {y:.0f}h{w:.0f}v{h:.0f}h{-w:.0f}z"'
        mask = f'<path class="{shape.kind}" d="{path}"/>' if path else ""
        wrong = shape.kind in _MISTAKES
        parts[wrong].append(f"<g><title>{text}</title><path class={frame}/>{mask}</g>")
        if wrong:
            long = _LETTER * len(shape.text)
            left = float(np.clip(x, 2, max(size[0] - long, 2)))
            base = max(y - 5, _LINE) if above else min(y + h + _LINE, size[1] - 4)
            if not any(
                abs(base - b) < _LINE and left < stop and start < left + long for start, stop, b in taken
            ):
                taken.append((left, left + long, base))
                labels.append(f'<text x="{left:.0f}" y="{base:.0f}">{text}</text>')
    return "".join(parts[False] + parts[True] + labels)


def _outline(entry: Mapping[str, Any], scale: float) -> tuple[str, Sequence[float]]:
    """The SVG path of polygons or of an RLE, empty without a mask, and the box `[x, y, w, h]`."""
    segmentation, box = entry.get("segmentation"), entry.get("bbox", (0, 0, 0, 0))
    if isinstance(segmentation, dict):
        rle = segmentation
        if isinstance(rle["counts"], list):
            rle = coco_mask.frPyObjects(rle, *rle["size"])
        x, y, w, h = (int(v) for v in coco_mask.toBbox(rle))
        box = entry.get("bbox", (x, y, w, h))
        segmentation = to_polygons(crop_of_rle(rle, y, x, y + h, x + w), y, x)
    # Steps of pixels are not what is to be seen: half of one, or half of the drawing's unit, goes.
    tolerance = max(0.6, 0.6 / scale)
    path = []
    for polygon in segmentation or []:
        points: NDArray[Any] = np.asarray(polygon, np.float32).reshape(-1, 1, 2)
        if len(points) < 3:
            continue
        smooth = cv2.approxPolyDP(points, tolerance, True) if len(points) > 8 else points
        path.append("M" + "L".join(f"{px:.0f} {py:.0f}" for px, py in smooth[:, 0] * scale) + "z")
    return "".join(path), box
