"""A data set on disk: COCO annotations and a folder of images."""

from __future__ import annotations

import difflib
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mrcnn_tf.data.images import read_image
from mrcnn_tf.data.structure import (
    Parsed,
    mask_area,
    parse_box,
    parse_segmentation,
    read_json,
    structure_problems,
)


@dataclass(frozen=True)
class Instances:
    """The annotated instances of one image.

    Attributes:
        boxes: float32 `[N, 4]`, `[y1, x1, y2, x2]` in pixels of the image, clipped to it.
        classes: int32 `[N]`, 1..K.
        crowd: bool `[N]`, regions of many instances, which count neither as object nor as background.
        has_mask: bool `[N]`.
        segmentations: N times polygons (float64 arrays `[x, y, ...]`), a compressed RLE, or None.
        annotation_ids: int64 `[N]`, as in the file.
    """

    boxes: NDArray[np.float32]
    classes: NDArray[np.int32]
    crowd: NDArray[np.bool_]
    has_mask: NDArray[np.bool_]
    segmentations: list[list[np.ndarray] | dict[str, Any] | None]
    annotation_ids: NDArray[np.int64]

    def __len__(self) -> int:
        """Number of instances."""
        return len(self.boxes)


class CocoDataset:
    """Images and instances of a COCO annotation file, or of a subset of it.

    Classes are numbered 1..K in the order of their category ids, whatever gaps these have. The subset is
    chosen in the order of the arguments below: classes, empty images, fraction, first.

    Args:
        annotations: COCO JSON file (`instances_*.json`), or its content.
        images: folder that the file names are relative to. None if no image will be read.
        classes: names of the classes to keep, all by default. Other classes' instances do not exist then.
        keep_empty: keep images without instances.
        fraction: share of the images to keep, chosen at random from `seed`, in (0, 1]. A smaller fraction is
            a part of a larger one.
        first: number of images to keep, from the start of the file.
        seed: for `fraction`.

    Attributes:
        class_names, category_ids: K of each; class c has `class_names[c - 1]`.
        image_ids: list of the images' ids.
        dropped: a Counter of the instances left out, by reason. They remain in `ground_truth()`.

    Raises:
        FileNotFoundError: if the file, the folder or an image is missing.
        ValueError: if the file is not whole and consistent COCO JSON, or the subset is empty.
    """

    def __init__(
        self,
        annotations: str | Path | dict[str, Any],
        images: str | Path | None,
        *,
        classes: Sequence[str] | None = None,
        keep_empty: bool = True,
        fraction: float | None = None,
        first: int | None = None,
        seed: int = 0,
    ):
        self.annotations = annotations
        self.name = "annotations" if isinstance(annotations, dict) else str(annotations)
        self.folder = None if images is None else Path(images)
        coco = self._load()
        parsed: dict[int, Parsed] = {}
        problem = next(structure_problems(coco, parsed), None)
        if problem:
            raise ValueError(f"{self.name}: {problem} (`mrcnn check-data` lists everything)")

        categories = sorted(coco["categories"], key=lambda category: category["id"])
        if classes is not None:
            check_names(classes, [category["name"] for category in categories], self.name)
            categories = [category for category in categories if category["name"] in set(classes)]
        if not categories:
            raise ValueError(f"{self.name}: has no categories, so there is nothing to detect")
        self.class_names = tuple(category["name"] for category in categories)
        self.category_ids = tuple(category["id"] for category in categories)

        records = coco["images"]
        rows: dict[int, list[dict[str, Any]]] = {record["id"]: [] for record in records}
        chosen = set(self.category_ids)
        for row in coco.get("annotations", []):
            if row["category_id"] in chosen:
                rows[row["image_id"]].append(row)
        if not keep_empty:
            records = [record for record in records if rows[record["id"]]]
        records = subset(records, fraction, first, seed)
        if not records:
            raise ValueError(f"{self.name}: no image left of {len(coco['images'])}; choose a larger subset")

        self.image_ids: list[int] = [record["id"] for record in records]
        self._sizes = np.array([[record["height"], record["width"]] for record in records], np.int32)
        self._files: list[str] = [record["file_name"] for record in records]
        if self.folder is not None:
            _check_files(self.folder, self._files)
        self.dropped: Counter[str] = Counter()
        self._read_instances([rows[i] for i in self.image_ids], parsed)

    def _load(self) -> dict[str, Any]:
        return self.annotations if isinstance(self.annotations, dict) else read_json(self.annotations)

    def _read_instances(self, rows: list[list[dict[str, Any]]], parsed: dict[int, Parsed]) -> None:
        """Put all instances into flat arrays, those of image i at `_starts[i]:_starts[i + 1]`."""
        number = {category: i + 1 for i, category in enumerate(self.category_ids)}
        boxes, classes, crowd, ids = [], [], [], []
        self._segmentations: list[Any] = []
        self._starts = np.zeros(len(rows) + 1, np.int64)
        for i, (rows_of_image, (height, width)) in enumerate(zip(rows, self._sizes.tolist(), strict=True)):
            for row in rows_of_image:
                y1, x1, y2, x2 = parsed[row["id"]].box
                if not (y2 > y1 and x2 > x1):
                    self.dropped["box without area"] += 1
                    continue
                y1, x1, y2, x2 = max(y1, 0.0), max(x1, 0.0), min(y2, height), min(x2, width)
                if not (y2 > y1 and x2 > x1):
                    self.dropped["box outside the image"] += 1
                    continue
                boxes.append((y1, x1, y2, x2))
                classes.append(number[row["category_id"]])
                crowd.append(bool(row.get("iscrowd", 0)))
                ids.append(row["id"])
                self._segmentations.append(parsed[row["id"]].segmentation)
            self._starts[i + 1] = len(boxes)
        self._boxes = np.array(boxes, np.float32).reshape(-1, 4)
        self._classes = np.array(classes, np.int32)
        self._crowd = np.array(crowd, bool)
        self._ids = np.array(ids, np.int64)

    def __len__(self) -> int:
        """Number of images."""
        return len(self.image_ids)

    @property
    def num_classes(self) -> int:
        """Number of foreground classes."""
        return len(self.class_names)

    @property
    def sizes(self) -> NDArray[np.int32]:
        """Heights and widths of all images, `[len, 2]`."""
        return self._sizes

    @property
    def instance_counts(self) -> NDArray[np.int64]:
        """Number of instances of every image, crowd regions included, `[len]`."""
        return np.diff(self._starts)

    def size(self, index: int) -> tuple[int, int]:
        """Height and width of an image."""
        height, width = self._sizes[index]
        return int(height), int(width)

    def path(self, index: int) -> Path:
        """File of an image; ValueError if the data set was made without a folder."""
        if self.folder is None:
            raise ValueError(f"{self.name}: images cannot be read, because no image folder was given")
        return self.folder / self._files[index]

    def file_name(self, index: int) -> str:
        """File name of an image as in the annotations."""
        return self._files[index]

    def image(self, index: int) -> NDArray[np.uint8]:
        """Read an image: uint8 `[H, W, 3]`, RGB, of the size that the annotations say; see `read_image`."""
        return read_image(self.path(index), self.size(index))

    def instances(self, index: int) -> Instances:
        """The instances of an image, `index` in [0, len)."""
        part = slice(int(self._starts[index]), int(self._starts[index + 1]))
        segmentations = self._segmentations[part]
        return Instances(
            boxes=self._boxes[part],
            classes=self._classes[part],
            crowd=self._crowd[part],
            has_mask=np.array([s is not None for s in segmentations], bool),
            segmentations=segmentations,
            annotation_ids=self._ids[part],
        )

    def ground_truth(self) -> dict[str, Any]:
        """The subset's part of the annotation file as an evaluator wants it, read anew.

        Instances that are no use for training (`dropped`) are in it, because the official evaluation counts
        them. Ids start at 1 (pycocotools takes an id of 0 for "not matched"), `area` and `iscrowd` are there
        always, and polygons of fewer than three points are gone (pycocotools takes them for boxes). Instances
        without a mask have no key `segmentation`.
        """
        coco = self._load()
        ids, categories = set(self.image_ids), set(self.category_ids)
        images = [record for record in coco["images"] if record["id"] in ids]
        sizes = {record["id"]: (record["height"], record["width"]) for record in images}
        rows = [
            _evaluation_row(row, *sizes[row["image_id"]])
            for row in coco.get("annotations", [])
            if row["image_id"] in ids and row["category_id"] in categories
        ]
        if any(row["id"] < 1 for row in rows):
            rows = [{**row, "id": i + 1} for i, row in enumerate(rows)]
        kept = [category for category in coco["categories"] if category["id"] in categories]
        return {"info": {}, "images": images, "annotations": rows, "categories": kept}


def _evaluation_row(row: dict[str, Any], height: int, width: int) -> dict[str, Any]:
    """The annotation with all that pycocotools needs and nothing that it misreads."""
    row = {"iscrowd": 0, **row}
    if isinstance(row.get("segmentation"), list):
        row["segmentation"] = [polygon for polygon in row["segmentation"] if len(polygon) >= 6]
    if not row.get("segmentation"):
        row.pop("segmentation", None)
    if "bbox" in row and "area" in row:
        return row
    segmentation = parse_segmentation(row.get("segmentation"), height, width)
    y1, x1, y2, x2 = parse_box(row, segmentation)
    area = (y2 - y1) * (x2 - x1) if segmentation is None else mask_area(segmentation, height, width)
    return {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": float(area), **row}


def check_names(wanted: Iterable[str], known: Sequence[str], file: str) -> None:
    """Sees that a data set, read from `file`, has all wanted classes.

    Raises:
        ValueError: for one that it has not, with those that are spelt like it.
    """
    for name in wanted:
        if name not in known:
            close = difflib.get_close_matches(name, known, 3) or known[:8]
            raise ValueError(f"{file}: has no class {name!r}; did you mean one of {', '.join(close)}?")


def subset(records: list[Any], fraction: float | None, first: int | None, seed: int) -> list[Any]:
    """A random share of the images' records, in their order, and of that the first; None: all.

    Raises:
        ValueError: for a share outside (0, 1], or fewer than one image.
    """
    if fraction is not None:
        if not 0 < fraction <= 1:
            raise ValueError(f"fraction must be in (0, 1], not {fraction}")
        order = np.random.default_rng(seed).permutation(len(records))
        records = [records[i] for i in sorted(order[: max(1, round(fraction * len(records)))])]
    if first is not None:
        if first < 1:
            raise ValueError(f"first must be a number of images, at least 1, not {first}")
        records = records[:first]
    return records


def _check_files(folder: Path, files: list[str]) -> None:
    """Find missing images now and not hours into a training; lists each folder once, opens nothing."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such image folder")
    listed: dict[str, set[str]] = {}
    missing = []
    for file in files:
        parent, name = os.path.split(file)
        if parent not in listed:
            inside = folder / parent
            listed[parent] = set(os.listdir(inside)) if inside.is_dir() else set()
        if name not in listed[parent]:
            missing.append(file)
    if missing:
        raise FileNotFoundError(
            f"{folder}: {len(missing)} of {len(files)} images are missing, the first is {missing[0]}; "
            "is this the folder that belongs to the annotations?"
        )
