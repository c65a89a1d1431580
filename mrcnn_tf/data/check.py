"""Looking through a data set before training on it: `mrcnn check-data`."""

from __future__ import annotations

from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from mrcnn_tf.data.coco import CocoDataset
from mrcnn_tf.data.images import read_image
from mrcnn_tf.data.report import Report
from mrcnn_tf.data.structure import (
    Parsed,
    Problem,
    mask_area,
    mask_box,
    read_json,
    structure_problems,
)
from mrcnn_tf.visualize.draw import draw
from mrcnn_tf.visualize.sheet import sheet as lay_out

TINY = 10  # masks of fewer pixels than this are reported
OUTSIDE = 2.0  # so are boxes and polygons that reach this many pixels beyond the image
UNLIKE = 0.5  # and boxes whose IoU with the tight box of their mask is below this
ALIKE = 0.5  # IoU from which a neighbour of the same class counts as one that NMS may suppress
_CELL = 520  # pixels of a picture on the sheet


def check_data(
    annotations: str | Path, images: str | Path, *, sheet: bool = False, samples: int = 12
) -> Report:
    """Read a whole data set, every image included, and report everything that would hurt a training.

    Args:
        annotations: COCO JSON file.
        images: folder that its file names are relative to.
        sheet: also draw samples with their masks (`Report.picture`).
        samples: how many, spread evenly over the readable images.

    Returns:
        All problems by file and id, counts, and size histograms.

    Raises:
        FileNotFoundError: if the file or the folder is missing.
        ValueError: if the file is not JSON, or not COCO annotations at all.
    """
    coco, folder = read_json(annotations), Path(images)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such image folder")
    parsed: dict[int, Parsed] = {}
    problems = list(structure_problems(coco, parsed))
    if any(problem.kind == "not COCO" for problem in problems):
        raise ValueError(f"{annotations}: {problems[0]}")

    records = _sound_images(coco)
    readable = []
    with ThreadPoolExecutor() as pool:
        found = pool.map(lambda record: _image_problem(folder, record), records.values())
        for record, problem in tqdm(
            zip(records.values(), found, strict=True), "images", len(records), disable=None, leave=False
        ):
            if problem:
                problems.append(problem)
            if not problem or problem.level == "warning":
                readable.append(record["id"])
    problems += _repeated_files(coco)

    rows = [row for row in coco.get("annotations", []) if row.get("image_id") in records]
    rows, sides = _first_of_each_id(rows, parsed), []
    for row in tqdm(rows, "annotations", disable=None, leave=False):
        mine, side = _annotation_problems(row, parsed[row["id"]], records[row["image_id"]])
        problems += mine
        sides.append(side)
    clean = {**coco, "images": list(records.values()), "annotations": rows}
    report = Report(
        annotations=str(annotations),
        images=str(images),
        problems=problems,
        counts=_counts(coco, clean),
        per_class=_per_class(coco, rows),
        histograms=_histograms(clean, sides),
    )
    if records and coco["categories"] and not any(p.kind.endswith("category id") for p in problems):
        dataset = CocoDataset(clean, None)
        problems += _repeated_annotations(dataset)
        report.counts["instances beside one of their class at IoU 0.5 or more"] = _huddled(dataset)
        if sheet and readable:
            report.picture = _samples(dataset, folder, set(readable), samples)
    return report


def _sound_images(coco: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """The image records that can be used, by id; the first of each id."""
    bad = {
        id(record)
        for record in coco["images"]
        if not isinstance(record.get("id"), int)
        or not record.get("file_name")
        or not all(isinstance(record.get(side), int) and record[side] > 0 for side in ("height", "width"))
    }
    records: dict[int, dict[str, Any]] = {}
    for record in coco["images"]:
        if id(record) not in bad:
            records.setdefault(record["id"], record)
    return records


def _first_of_each_id(rows: list[dict[str, Any]], parsed: dict[int, Parsed]) -> list[dict[str, Any]]:
    """The sound annotations."""
    by_id: dict[int, dict[str, Any]] = {}
    for row in rows:
        if row.get("id") in parsed:
            by_id.setdefault(row["id"], row)
    return list(by_id.values())


def _image_problem(folder: Path, record: dict[str, Any]) -> Problem | None:
    """Open an image; what is wrong with it, if anything."""
    path, size = folder / record["file_name"], (record["height"], record["width"])
    where = {"file": record["file_name"], "image_id": record["id"]}
    try:
        found = read_image(path).shape[:2]
    except FileNotFoundError:
        return Problem("error", "missing image", f"not in {folder}", **where)
    except ValueError as error:
        return Problem("error", "corrupt image", str(error).removeprefix(f"{path}: "), **where)
    if found == size:
        return None
    try:
        read_image(path, size)
    except ValueError:
        message = (
            f"the file is {found[1]} x {found[0]}, its record says {size[1]} x {size[0]} (width x height)"
        )
        return Problem("error", "size mismatch", message, **where)
    message = "annotated without its EXIF rotation, so it is read without; viewers show it turned"
    return Problem("warning", "EXIF rotation", message, **where)


def _repeated_files(coco: dict[str, Any]) -> list[Problem]:
    ids = defaultdict(list)
    for record in coco["images"]:
        ids[record.get("file_name")].append(record.get("id"))
    return [
        Problem(
            "warning", "repeated file", f"stands for the images {', '.join(map(str, those))}", file=str(name)
        )
        for name, those in ids.items()
        if len(set(those)) > 1
    ]


def _annotation_problems(
    row: dict[str, Any], parsed: Parsed, image: dict[str, Any]
) -> tuple[list[Problem], float]:
    """What is wrong with a readable annotation, and the side in pixels of a square of its area."""
    height, width = image["height"], image["width"]
    where = {"file": image["file_name"], "image_id": image["id"], "annotation_id": row["id"]}
    problems = []

    def add(level: str, kind: str, message: str) -> None:
        problems.append(Problem(level, kind, message, **where))

    (y1, x1, y2, x2), segmentation = parsed.box, parsed.segmentation
    box = np.array(parsed.box)
    clipped = np.clip(box, 0, [height, width, height, width])
    box_is_sound = clipped[2] > clipped[0] and clipped[3] > clipped[1]
    if y2 <= y1 or x2 <= x1:
        add("error", "box without area", f"bbox is {row.get('bbox')}; it will be left out")
    elif not box_is_sound:
        add("error", "box outside the image", f"bbox is {row.get('bbox')} on {width} x {height}")
    elif _beyond(box, height, width) > OUTSIDE:
        message = f"reaches {_beyond(box, height, width):.0f} pixels beyond the image"
        add("warning", "box partly outside the image", message)
    if isinstance(row.get("segmentation"), list):
        short = sum(len(polygon) < 6 for polygon in row["segmentation"])
        if short:
            add("warning", "polygon of fewer than three points", f"{short} of them; they are ignored")
        if not segmentation:
            add("warning", "no mask", "the segmentation is empty; it trains the box only")
    if segmentation is None:
        side = np.sqrt(max((y2 - y1) * (x2 - x1), 0.0))
        return problems, float(side)

    area, tight = mask_area(segmentation, height, width), mask_box(segmentation)
    inside = np.clip(tight, 0, [height, width, height, width])
    if isinstance(segmentation, list) and (inside[2] <= inside[0] or inside[3] <= inside[1]) and not area:
        add("error", "polygon outside the image", "the whole mask is outside or has no area")
    elif not area:
        add("error", "empty mask", "the mask has no pixel")
    else:
        if _beyond(tight, height, width) > OUTSIDE:
            message = f"reaches {_beyond(tight, height, width):.0f} pixels beyond the image"
            add("warning", "polygon partly outside the image", message)
        if area < TINY:
            add("warning", "tiny mask", f"{area:.0f} pixels")
        overlap = _iou(clipped, inside)
        if overlap < UNLIKE and box_is_sound:
            tight_box = [round(v, 1) for v in (tight[1], tight[0], tight[3] - tight[1], tight[2] - tight[0])]
            message = f"bbox {row.get('bbox')} and the mask's box {tight_box} have IoU {overlap:.2f}"
            add("warning" if overlap > 0 else "error", "box unlike mask", message)
    return problems, float(np.sqrt(area))


def _beyond(box: Any, height: int, width: int) -> float:
    """How many pixels a box reaches beyond the image."""
    y1, x1, y2, x2 = box
    return max(-y1, -x1, y2 - height, x2 - width, 0.0)


def _iou(a: NDArray, b: NDArray) -> float:
    sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    common = np.prod(np.maximum(sides, 0))
    both = np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - common
    return float(common / both) if both > 0 else 0.0


def _pairs(boxes: NDArray) -> NDArray:
    """IoU `[N, N]` with zeros from the diagonal on."""
    low = np.maximum(boxes[:, None, :2], boxes[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    common = np.prod(np.maximum(high - low, 0), axis=2)
    area = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    return np.tril(common / (area[:, None] + area[None, :] - common), -1)


def _repeated_annotations(dataset: CocoDataset) -> list[Problem]:
    """Instances annotated twice: the same class and box to the hundredth of a pixel."""
    problems = []
    for i, image_id in enumerate(dataset.image_ids):
        these = dataset.instances(i)
        first: dict[tuple, int] = {}
        for key, box, kind in zip(these.annotation_ids, these.boxes.round(2), these.classes, strict=True):
            same = first.setdefault((int(kind), *box.tolist()), int(key))
            if same != key:
                message = f"same class and box as annotation {same}"
                file = dataset.file_name(i)
                problems.append(Problem("warning", "repeated annotation", message, file, image_id, int(key)))
    return problems


def _huddled(dataset: CocoDataset) -> int:
    """Instances that NMS at IoU 0.5 would take from a detector that finds every one exactly."""
    count = 0
    for i in range(len(dataset)):
        these = dataset.instances(i)
        for kind in np.unique(these.classes):
            mine = (these.classes == kind) & ~these.crowd
            near = _pairs(these.boxes[mine].astype(np.float64)) >= ALIKE
            count += int((near | near.T).any(axis=1).sum())
    return count


def _counts(coco: dict[str, Any], clean: dict[str, Any]) -> dict[str, int]:
    rows = clean["annotations"]
    used = {row["image_id"] for row in rows}
    return {
        "images": len(coco["images"]),
        "images without objects": sum(record["id"] not in used for record in clean["images"]),
        "annotations": len(coco.get("annotations", [])),
        "crowd regions": sum(bool(row.get("iscrowd")) for row in rows),
        "with polygons": sum(
            isinstance(row.get("segmentation"), list) and bool(row["segmentation"]) for row in rows
        ),
        "with RLE": sum(isinstance(row.get("segmentation"), dict) for row in rows),
        "without a mask": sum(not row.get("segmentation") for row in rows),
        "categories": len(coco["categories"]),
    }


def _per_class(coco: dict[str, Any], rows: list[dict[str, Any]]) -> dict[str, int]:
    counts = Counter(row["category_id"] for row in rows)
    named = [category for category in coco["categories"] if isinstance(category.get("name"), str)]
    return {category["name"]: counts[category.get("id")] for category in named}


def _histograms(clean: dict[str, Any], sides: list[float]) -> dict[str, dict[str, int]]:
    per_image = Counter(row["image_id"] for row in clean["annotations"])
    lengths = [min(record["height"], record["width"]) for record in clean["images"]]
    return {
        "instance size (side of a square of the mask's area, pixels)": _histogram(
            sides, [0, 8, 16, 32, 64, 96, 128, 256, 512]
        ),
        "instances per image": _histogram(
            [per_image[record["id"]] for record in clean["images"]], [0, 1, 2, 5, 10, 20, 50, 100, 200]
        ),
        "shorter side of the images, pixels": _histogram(
            lengths, [0, 128, 256, 384, 512, 640, 800, 1024, 2048]
        ),
    }


def _histogram(values: list[float] | list[int], edges: list[int]) -> dict[str, int]:
    """Counts by range of whole numbers (rounded down), from the first range with values to the last."""
    counts, _ = np.histogram(values, [*edges, np.inf])
    labels = [f"{a}-{b - 1}" if b > a + 1 else f"{a}" for a, b in zip(edges, edges[1:], strict=False)]
    labels.append(f"{edges[-1]} or more")
    used = np.flatnonzero(counts)
    if not len(used):
        return {}
    return {labels[i]: int(counts[i]) for i in range(used[0], used[-1] + 1)}


def _samples(dataset: CocoDataset, folder: Path, readable: set[int], count: int) -> NDArray[np.uint8]:
    """A sheet of images with their instances drawn."""
    usable = [i for i, image_id in enumerate(dataset.image_ids) if image_id in readable]
    chosen = [usable[j] for j in np.unique(np.linspace(0, len(usable) - 1, count).round().astype(int))]
    rows, captions = [], []
    for i in chosen:
        these = dataset.instances(i)
        names = [dataset.class_names[c - 1] for c in these.classes]
        image = read_image(folder / dataset.file_name(i), dataset.size(i))
        rows.append((draw(image, these, names, size=_CELL),))
        captions.append(f"{dataset.file_name(i)} (id {dataset.image_ids[i]}): {len(these)} instances")
    return lay_out(rows, headers=("annotated",), captions=captions, cell=_CELL, rows_per_line=3)
