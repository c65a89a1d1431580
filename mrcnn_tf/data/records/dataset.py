"""A data set in TFRecord shards, read image by image."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mrcnn_tf.data.coco import CocoDataset, Instances, check_names, subset
from mrcnn_tf.data.images import to_rgb
from mrcnn_tf.data.records.examples import fate_of, read_example
from mrcnn_tf.data.records.files import Features, read_record
from mrcnn_tf.data.records.index import join, names_of, scan_all
from mrcnn_tf.data.records.manifest import MANIFEST, load_set, read_labels, shard_paths
from mrcnn_tf.data.structure import parse_box, parse_segmentation


class RecordDataset(CocoDataset):
    """Images and instances of TFRecord shards, or of a subset of them.

    The same data set, image by image and bit by bit, as `CocoDataset` makes of the files that the shards were
    converted from. In memory are some 100 bytes for each image, however many instances it has; a record is found by its
    place in the file, verified, and parsed when its turn comes.

    Args:
        source: a manifest that `mrcnn convert-data` wrote; or a shard or a pattern of shards (`train-*.tfrecord`) in
            the names of the TensorFlow Object Detection API, all of which are then read once now.
        labels: label map or COCO annotation file with the names of the classes, for shards without a manifest that
            do not tell them.
        classes, keep_empty, fraction, first, seed: as of `CocoDataset`.

    Attributes:
        class_names, category_ids, image_ids, dropped: as of `CocoDataset`.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if a file is damaged, of another version or not the one in the manifest, or the subset is empty.
    """

    def __init__(
        self,
        source: str | Path,
        *,
        labels: str | Path | None = None,
        classes: Sequence[str] | None = None,
        keep_empty: bool = True,
        fraction: float | None = None,
        first: int | None = None,
        seed: int = 0,
    ):
        self.name, self.folder = str(source), Path(source).parent
        if Path(source).name == MANIFEST:
            manifest, index, self._shards = load_set(source)
            categories = manifest["categories"]
        else:
            self._shards = shard_paths(source)
            scans = scan_all(self._shards)
            index = join(scans)
            try:
                categories = names_of(scans) if labels is None else read_labels(labels)
            except ValueError as error:
                raise ValueError(f"{source}: {error}") from None
        known = [category["id"] for category in categories]
        if unknown := set(np.unique(index["category"]).tolist()) - set(known):
            raise ValueError(f"{labels}: does not name class {min(unknown)}, which {source} has")

        categories = sorted(categories, key=lambda category: category["id"])
        if classes is not None:
            check_names(classes, [category["name"] for category in categories], self.name)
            categories = [category for category in categories if category["name"] in set(classes)]
        if not categories:
            raise ValueError(f"{self.name}: has no categories, so there is nothing to detect")
        self._categories = categories
        self.class_names = tuple(category["name"] for category in categories)
        self.category_ids = tuple(category["id"] for category in categories)

        ends = np.cumsum(index["rows"])
        chosen = np.isin(index["category"], self.category_ids)
        images = list(range(len(index["id"])))
        if not keep_empty:
            rows = _sums(chosen, ends)
            images = [i for i in images if rows[i]]
        images = subset(images, fraction, first, seed)
        if not images:
            raise ValueError(f"{self.name}: no image left of {len(index['id'])}; choose a larger subset")
        self._index = {key: index[key][images] for key in ("shard", "offset", "length")}
        self._first_row = (ends - index["rows"])[images]
        self._sizes = index["sizes"][images]
        self.image_ids: list[int] = index["id"][images].tolist()
        self._starts = np.append(0, np.cumsum(_sums(chosen & (index["fate"] == 0), ends)[images]))
        lost = ((1, "box without area"), (2, "box outside the image"))
        counts = {why: int(_sums(chosen & (index["fate"] == fate), ends)[images].sum()) for fate, why in lost}
        self.dropped: Counter[str] = Counter({why: count for why, count in counts.items() if count})
        self._last = threading.local()

    def path(self, index: int) -> Path:
        """Name of an image's file in the folder of the shards, where no such file need be."""
        return Path(self.file_name(index))

    def file_name(self, index: int) -> str:
        """File name of an image as in the annotations."""
        return self._coco(index)[1]["file_name"]

    def image(self, index: int) -> NDArray[np.uint8]:
        """Read an image: uint8 `[H, W, 3]`, RGB, of the size that the annotations say; see `read_image`."""
        features, record, _ = self._coco(index)
        data = np.frombuffer(features["image/encoded"][0], np.uint8)
        return to_rgb(data, f"{self._where(index)} ({record['file_name']})", self.size(index))

    def instances(self, index: int) -> Instances:
        """The instances of an image, `index` in [0, len)."""
        height, width = self.size(index)
        kept = [(row, *_parsed(row, height, width)) for row in self._coco(index)[2]]
        kept = [
            (row, box, segmentation) for row, box, segmentation in kept if not fate_of(box, height, width)
        ]
        rows, segmentations = [row for row, _, _ in kept], [segmentation for _, _, segmentation in kept]
        boxes = np.array([box for _, box, _ in kept], np.float64).reshape(-1, 4)
        return Instances(
            boxes=np.clip(boxes, 0, [height, width, height, width]).astype(np.float32),
            classes=np.array([self.category_ids.index(row["category_id"]) + 1 for row in rows], np.int32),
            crowd=np.array([bool(row.get("iscrowd", 0)) for row in rows], bool),
            has_mask=np.array([segmentation is not None for segmentation in segmentations], bool),
            segmentations=segmentations,
            annotation_ids=np.array([row["id"] for row in rows], np.int64),
        )

    def _load(self) -> dict[str, Any]:
        """The subset as the content of a COCO file, all of it in memory, for `ground_truth`."""
        images, annotations = [], []
        for index in range(len(self)):
            _, record, rows = self._coco(index)
            images.append(record)
            annotations += rows
        return {"images": images, "annotations": annotations, "categories": self._categories}

    def _where(self, index: int) -> str:
        return f"{self._shards[self._index['shard'][index]]}, record at byte {self._index['offset'][index]}"

    def _coco(self, index: int) -> tuple[Features, dict[str, Any], list[dict[str, Any]]]:
        """Features, image record and annotations of the chosen classes."""
        # An image and its instances are wanted one after the other, by the same thread.
        if getattr(self._last, "index", None) != index:
            place = {key: int(values[index]) for key, values in self._index.items()}
            data = read_record(self._shards[place["shard"]], place["offset"], place["length"])
            features, record, rows = read_example(data, self._where(index))
            record = {**record, "id": self.image_ids[index]}
            first = int(self._first_row[index]) + 1
            rows = [{"id": first + k, **row, "image_id": record["id"]} for k, row in enumerate(rows)]
            rows = [row for row in rows if row["category_id"] in self.category_ids]
            self._last.index, self._last.found = index, (features, record, rows)
        return self._last.found


def _parsed(row: dict[str, Any], height: int, width: int) -> tuple[tuple[float, ...], Any]:
    """Box and segmentation of an annotation that was found sound when its shard was written."""
    segmentation = row.get("segmentation")
    # Verifying a compressed code means to unpack it, which is most of the work.
    if not (isinstance(segmentation, dict) and isinstance(segmentation.get("counts"), str)):
        segmentation = parse_segmentation(segmentation, height, width)
    return parse_box(row, segmentation), segmentation


def _sums(values: NDArray[np.bool_], ends: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many are true of each image, whose annotations end at `ends`."""
    return np.diff(np.append(0, np.cumsum(values))[ends], prepend=0)
