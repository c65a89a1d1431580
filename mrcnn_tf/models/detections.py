"""The result of a model on one image."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mrcnn_tf.geometry import masks as mask_geometry
from mrcnn_tf.geometry.crops import resize_crop
from mrcnn_tf.geometry.polygons import to_polygons

__all__ = ["Detections"]


@dataclass(frozen=True, eq=False)
class Detections:
    """What a model found on one image, in the original image's pixels.

    Masks stay small: one probability map per box, or, where they were made from several pictures of an instance
    (see `mrcnn_tf.tiling`), one run-length code each. `rles`, `polygons`, `dense_masks` and `label_map` make the other
    forms on demand.

    Attributes:
        image_size: `(height, width)` of the original image.
        boxes: float32 `[N, 4]`, `[y1, x1, y2, x2]` in pixels of the original image.
        scores: float32 `[N]`, in [0, 1]. Models return them highest first; nothing here relies on it.
        class_ids: int32 `[N]`, 1..K.
        category_ids: int64 `[N]`, the data set's own ids.
        class_names: N names.
        masks: float32 `[N, m, m]`, probabilities on a grid over the box; None of a model without mask head.
        segmentations: N compressed COCO RLEs of the image's size, `{"size": [H, W], "counts": str}` (bytes become
            str), the exact masks; instead of `masks`, never beside them.

    Raises:
        ValueError: if the arrays' lengths or shapes do not fit together, or there are both kinds of masks.
    """

    image_size: tuple[int, int]
    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    class_ids: NDArray[np.int32]
    category_ids: NDArray[np.int64]
    class_names: list[str]
    masks: NDArray[np.float32] | None = None
    segmentations: list[dict[str, Any]] | None = None

    def __post_init__(self) -> None:
        """Bring every field to its type and see that they fit together."""
        height, width = self.image_size
        boxes = np.asarray(self.boxes, np.float32).reshape(-1, 4)
        arrays: dict[str, Any] = {
            "image_size": (int(height), int(width)),
            "boxes": boxes,
            "scores": np.asarray(self.scores, np.float32).reshape(-1),
            "class_ids": np.asarray(self.class_ids, np.int32).reshape(-1),
            "category_ids": np.asarray(self.category_ids, np.int64).reshape(-1),
            "class_names": [str(name) for name in self.class_names],
        }
        if self.masks is not None:
            arrays["masks"] = np.asarray(self.masks, np.float32)
            if arrays["masks"].ndim != 3:
                raise ValueError(f"Detections: masks must be [N, m, m], not of shape {arrays['masks'].shape}")
        if self.segmentations is not None:
            if self.masks is not None:
                raise ValueError("Detections: give masks or segmentations, not both")
            arrays["segmentations"] = [
                _checked(rle, i, arrays["image_size"]) for i, rle in enumerate(self.segmentations)
            ]
        for name, value in arrays.items():
            if name != "image_size" and len(value) != len(boxes):
                raise ValueError(f"Detections: {len(value)} {name} for {len(boxes)} boxes; give one per box")
            object.__setattr__(self, name, value)  # the class is frozen; this is its constructor

    def __len__(self) -> int:
        """Number of detections."""
        return len(self.boxes)

    def select(self, indices: ArrayLike) -> Detections:
        """The detections of these indices (or of a bool mask `[N]`), in this order."""
        indices = np.asarray(indices)
        keep = np.arange(len(self))[indices if indices.size else indices.astype(int)].reshape(-1)
        return replace(
            self,
            boxes=self.boxes[keep],
            scores=self.scores[keep],
            class_ids=self.class_ids[keep],
            category_ids=self.category_ids[keep],
            class_names=[self.class_names[i] for i in keep],
            masks=None if self.masks is None else self.masks[keep],
            segmentations=None if self.segmentations is None else [self.segmentations[i] for i in keep],
        )

    def filter(self, score: float) -> Detections:
        """The detections whose score is at least `score`."""
        return self.select(self.scores >= score)

    def crops(
        self, threshold: float = 0.5, size: tuple[int, int] | None = None, order: str = "F"
    ) -> list[tuple[NDArray[np.bool_], int, int]]:
        """Each mask's pixels on the image, as `(crop, y0, x0)`: bool `[h, w]` and its first row and column.

        Args:
            threshold: a pixel belongs to the mask where the interpolated probability is at least this, in (0,
                1]. `segmentations` are exact, whatever it is.
            size: `(height, width)` to give the masks for instead of the original image's, e.g. of an enlarged
                picture. The pixels of `segmentations` are repeated or left out.
            order: how the crops lie in memory: `"F"`, column by column, or `"C"`, row by row.

        Raises:
            ValueError: without masks, or with a threshold outside (0, 1].
        """
        if not 0 < threshold <= 1:
            raise ValueError(f"a mask threshold must be in (0, 1], not {threshold}")
        height, width = size or self.image_size
        scale = np.array([height, width, height, width]) / np.array(self.image_size * 2)
        if self.segmentations is not None:
            layout = np.asfortranarray if order == "F" else np.ascontiguousarray
            resized = [resize_crop(*mask_geometry.rle_to_crop(rle), scale[:2]) for rle in self.segmentations]
            return [(layout(crop), y0, x0) for crop, y0, x0 in resized]
        if self.masks is None:
            raise ValueError("these detections have no masks; they come from a model without a mask head")
        crops = []
        for mask, box in zip(self.masks, self.boxes * scale, strict=True):
            crop, y0, x0 = mask_geometry.paste(mask, box, height, width, order)
            crops.append((crop >= threshold, y0, x0))
        return crops

    def rles(self, threshold: float = 0.5) -> list[dict[str, Any]]:
        """Each mask as a COCO run-length code, `{"size": [H, W], "counts": str}`, which JSON takes."""
        if self.segmentations is not None:
            return [{"size": list(rle["size"]), "counts": rle["counts"]} for rle in self.segmentations]
        rles = [mask_geometry.to_rle(*crop, *self.image_size) for crop in self.crops(threshold)]
        return [{"size": rle["size"], "counts": rle["counts"].decode("ascii")} for rle in rles]

    def polygons(self, threshold: float = 0.5) -> list[list[list[float]]]:
        """Each mask as COCO polygons `[x, y, ...]` along the pixels' edges; `[]` for an empty mask."""
        return [to_polygons(*crop) for crop in self.crops(threshold)]

    def dense_masks(self, threshold: float = 0.5) -> NDArray[np.bool_]:
        """All masks at the image's size, bool `[N, H, W]`. N times the image's pixels of memory."""
        dense = np.zeros((len(self), *self.image_size), bool)
        for canvas, (crop, y0, x0) in zip(dense, self.crops(threshold, order="C"), strict=True):
            canvas[y0 : y0 + crop.shape[0], x0 : x0 + crop.shape[1]] = crop
        return dense

    def label_map(self, threshold: float = 0.5) -> NDArray[np.int32]:
        """One map of all instances, int32 `[H, W]`: 0 for background, i + 1 where detection i is.

        Where masks overlap, the detection of the higher score has the pixel.
        """
        labels = np.zeros(self.image_size, np.int32)
        crops = self.crops(threshold, order="C")
        for i in np.argsort(self.scores, kind="stable"):
            crop, y0, x0 = crops[i]
            labels[y0 : y0 + crop.shape[0], x0 : x0 + crop.shape[1]][crop] = i + 1
        return labels

    def to_coco(self, image_id: int | str) -> list[dict[str, Any]]:
        """Entries of COCO's results format, with the data set's own category ids and `[x, y, w, h]` boxes.

        Args:
            image_id: the image's id in the annotation file, or what names it where there is none.

        Returns:
            One dict per detection with `image_id, category_id, bbox, score` and, if there are masks,
            `segmentation` (see `rles`). `json.dump` takes them as they are.
        """
        entries: list[dict[str, Any]] = []
        without = self.masks is None and self.segmentations is None
        segmentations = [None] * len(self) if without else self.rles()
        for box, score, category, segmentation in zip(
            self.boxes.tolist(), self.scores.tolist(), self.category_ids.tolist(), segmentations, strict=True
        ):
            y1, x1, y2, x2 = box
            # Written as doubles, float32 numbers have 17 digits, most of them noise that swells the file.
            bbox = [round(v, 3) for v in (x1, y1, x2 - x1, y2 - y1)]
            entry = {"image_id": image_id, "category_id": category, "bbox": bbox, "score": round(score, 6)}
            if segmentation is not None:
                entry["segmentation"] = segmentation
            entries.append(entry)
        return entries

    def plot(
        self, image: NDArray[np.uint8], path: str | Path | None = None, **kwargs: Any
    ) -> NDArray[np.uint8]:
        """Draw the detections on their image (see `mrcnn_tf.visualize.draw`), and save it if there is a path.

        Args:
            image: uint8 `[H, W, 3]` RGB, the original image.
            path: file to write, PNG or JPEG by its name.
            **kwargs: settings of `draw`.

        Returns:
            The drawn picture, uint8 RGB; larger than the image where the image is small.
        """
        from mrcnn_tf import visualize  # most results are never drawn: fonts and matplotlib can wait

        picture = visualize.draw(image, self, **kwargs)
        if path is not None:
            visualize.save(path, picture)
        return picture


def _checked(rle: Any, index: int, image_size: tuple[int, int]) -> dict[str, Any]:
    """The RLE as JSON takes it; ValueError if it is not a compressed one of this size."""
    counts = rle.get("counts") if isinstance(rle, dict) else None
    if not isinstance(counts, (str, bytes)):
        raise ValueError(
            f"Detections: segmentations[{index}] is no compressed COCO RLE, {{'size': [H, W], 'counts': str}}; encode "
            "it with pycocotools or mrcnn_tf.geometry.masks.to_rle"
        )
    size = [int(side) for side in rle.get("size", [])]
    if size != list(image_size):
        raise ValueError(
            f"Detections: segmentations[{index}] has size {size}, the image {list(image_size)}; they belong to "
            "different images"
        )
    return {"size": size, "counts": counts if isinstance(counts, str) else counts.decode("ascii")}
