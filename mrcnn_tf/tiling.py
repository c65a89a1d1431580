"""Detection on images too large for the model: tile by tile, with instances stitched across the tiles' borders.

At no time is there more in memory than the image, one tile with what the model needs for it, and run-length codes.
Boxes are `[y1, x1, y2, x2]` in pixels; the tiles' own are such boxes, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from tqdm import tqdm

from mrcnn_tf.geometry.masks import crop_of_rle, to_rle
from mrcnn_tf.models.detections import Detections

__all__ = ["Part", "detect_tiled", "stitch", "tiles_of"]

IntBox = tuple[int, int, int, int]
Box = tuple[float, float, float, float]

SMALLEST_TILE = 32
# A box that ends so many pixels from a border that the image goes on behind may have been cut there.
NEAR = 2


@dataclass(frozen=True)
class Part:
    """What the model found of one instance in one tile.

    Attributes:
        tile: `(y1, x1, y2, x2)`, the tile on the image.
        box: `(y1, x1, y2, x2)` on the image, within the tile.
        score: in [0, 1].
        label: class id, category id and class name.
        rle: compressed COCO RLE of the whole image.
    """

    tile: IntBox
    box: Box
    score: float
    label: tuple[int, int, str]
    rle: dict[str, Any]


def detect_tiled(
    model: Any,
    image: Any,
    *,
    tile: int,
    overlap: int | None = None,
    score_threshold: float = 0.0,
    iou_threshold: float = 0.5,
    bar: str | None = None,
) -> Detections:
    """Detects on overlapping tiles of an image; each instance comes out once, whole.

    The model sees each tile as an image of its own, and resizes it as it does images: choose tiles of about the size
    of the images that it was trained on, and an overlap that most instances fit into. See `stitch` for how an
    instance's parts are found and joined.

    Args:
        model: a `MaskRCNN`, or anything with its `detect(image, score_threshold)`.
        image: uint8 `[H, W, 3]` RGB: an array, or what is sliced like one (`np.memmap`, HDF5, Zarr), of which only one
            tile at a time is read.
        tile: side of the tiles in pixels. Smaller images are one tile.
        overlap: pixels that neighbouring tiles share at least; default: a quarter of the tile. The last tile of a row
            or column is moved inwards, to end with the image.
        score_threshold: leaves out what a tile shows with a score up to this, before anything is joined.
        iou_threshold: for `stitch`.
        bar: text of a progress bar over the tiles, if there is to be one.

    Returns:
        Highest score first, with exact masks (`segmentations`).

    Raises:
        ValueError: for an array that is not such an image, a tile under 32 pixels, an overlap that is not in [1, tile),
            or a model without masks.
    """
    shape, dtype = tuple(getattr(image, "shape", ())), getattr(image, "dtype", type(image).__name__)
    if len(shape) != 3 or shape[2] != 3 or dtype != np.uint8:
        raise ValueError(f"an image must be uint8 [height, width, 3] in RGB order, not {dtype} {list(shape)}")
    height, width = int(shape[0]), int(shape[1])
    parts: list[Part] = []
    places = tiles_of(height, width, tile, overlap)
    for y1, x1, y2, x2 in tqdm(places, desc=bar, disable=bar is None, unit="tile", leave=False):
        found = model.detect(np.ascontiguousarray(image[y1:y2, x1:x2]), score_threshold=score_threshold)
        labels = zip(found.class_ids.tolist(), found.category_ids.tolist(), found.class_names, strict=True)
        for box, score, label, (crop, top, left) in zip(
            (found.boxes + np.array([y1, x1, y1, x1])).tolist(),
            found.scores.tolist(),
            labels,
            found.crops(),
            strict=True,
        ):
            rle = to_rle(crop, top + y1, left + x1, height, width)
            parts.append(Part((y1, x1, y2, x2), tuple(box), score, label, rle))
    whole = stitch(parts, (height, width), iou_threshold=iou_threshold)
    return Detections(
        image_size=(height, width),
        boxes=np.array([part.box for part in whole], np.float32),
        scores=np.array([part.score for part in whole], np.float32),
        class_ids=np.array([part.label[0] for part in whole], np.int32),
        category_ids=np.array([part.label[1] for part in whole], np.int64),
        class_names=[part.label[2] for part in whole],
        segmentations=[part.rle for part in whole],
    )


def tiles_of(height: int, width: int, tile: int, overlap: int | None = None) -> list[IntBox]:
    """Tiles `(y1, x1, y2, x2)` that cover an image, row by row; the arguments are those of `detect_tiled`."""
    overlap = tile // 4 if overlap is None else overlap
    if tile < SMALLEST_TILE:
        raise ValueError(f"a tile must have a side of {SMALLEST_TILE} pixels or more, not {tile}")
    if not 1 <= overlap < tile:
        raise ValueError(
            f"the overlap must be from 1 to {tile - 1}, less than the tile, not {overlap}: instances are recognised by "
            "the pixels that tiles share"
        )

    def starts(size: int) -> list[int]:
        last = max(size - tile, 0)
        return [*range(0, last, tile - overlap), last]

    return [
        (y, x, min(y + tile, height), min(x + tile, width)) for y in starts(height) for x in starts(width)
    ]


def stitch(parts: Iterable[Part], image_size: tuple[int, int], *, iou_threshold: float = 0.5) -> list[Part]:
    """Joins the parts of instances that several tiles found; in no order of the parts does it come out otherwise.

    1. Two parts are of one instance if they have the same class and the IoU of their masks, within the pixels that
       both tiles see, is at least `iou_threshold`. Pairs that share the most pixels are joined first; an instance has
       at most one part of each tile, so that what a tile tells apart stays apart.
    2. If a tile with a part of it sees an instance whole (its box keeps clear of the borders behind which the image
       goes on), that part is the instance; of several such tiles, the one with the highest score. Otherwise it is the
       union of its parts, and its box the least around theirs.
    3. Its score is the highest of its parts.
    4. What was cut by a border and not recognised by any tile that sees it whole is left out if such a tile takes half
       of its pixels or more for something else, of whatever class.

    Args:
        parts: of all tiles.
        image_size: height and width of the image.
        iou_threshold: see above, in (0, 1].

    Returns:
        Instances, highest score first, as parts of a tile that is the whole image.

    Raises:
        ValueError: if the threshold is outside (0, 1].
    """
    if not 0 < iou_threshold <= 1:
        raise ValueError(f"iou_threshold must be in (0, 1], not {iou_threshold}")
    parts = sorted(parts, key=lambda p: (-p.score, p.label, p.box, p.tile, p.rle["counts"]))
    by_tile: dict[IntBox, list[int]] = {}
    for i, part in enumerate(parts):
        by_tile.setdefault(part.tile, []).append(i)

    group_of = [{i} for i in range(len(parts))]
    for _, i, j in sorted(_pairs(parts, by_tile, iou_threshold)):
        one, other = group_of[i], group_of[j]
        if {parts[k].tile for k in one}.isdisjoint({parts[k].tile for k in other}):
            one |= other
            for k in other:
                group_of[k] = one

    whole = []
    for i in range(len(parts)):
        if i == min(group_of[i]):
            members = [parts[k] for k in sorted(group_of[i])]
            instance = _joined(members, image_size)
            if not _seen_as_something_else(instance, members, parts, by_tile, image_size):
                whole.append(instance)
    return whole


def _pairs(
    parts: Sequence[Part], by_tile: dict[IntBox, list[int]], iou_threshold: float
) -> list[tuple[int, int, int]]:
    """Pairs of parts that agree where both tiles see, as `(minus the pixels they share, part, part)`."""
    pairs = []
    boxes = np.array([part.box for part in parts]).reshape(-1, 4)
    tiles = list(by_tile)
    corners = np.array(tiles).reshape(-1, 4)
    members = [np.array(indices) for indices in by_tile.values()]
    for n in range(len(tiles)):
        for m in np.flatnonzero(_overlapping(corners[n : n + 1], corners[n + 1 :])) + n + 1:
            window = _intersection(tiles[n], tiles[m])
            for a, b in np.argwhere(_overlapping(boxes[members[n]], boxes[members[m]])):
                i, j = int(members[n][a]), int(members[m][b])
                if parts[i].label == parts[j].label:
                    shared, covered = _shared(parts[i], parts[j], window)
                    if shared and shared >= iou_threshold * covered:
                        pairs.append((-shared, min(i, j), max(i, j)))
    return pairs


def _overlapping(ones: NDArray[Any], others: NDArray[Any]) -> NDArray[np.bool_]:
    """Which boxes `[N, 4]` and `[M, 4]` share some area, `[N, M]`."""
    low = np.maximum(ones[:, None, :2], others[:, :2])
    high = np.minimum(ones[:, None, 2:], others[:, 2:])
    return (high > low).all(axis=-1)


def _shared(one: Part, other: Part, window: Box) -> tuple[int, int]:
    """Pixels of the window that both masks have, and that either has."""
    y1, x1, y2, x2 = _intersection(window, _hull([one.box, other.box]))
    y1, x1, y2, x2 = int(np.floor(y1)), int(np.floor(x1)), int(np.ceil(y2)), int(np.ceil(x2))
    first, second = (crop_of_rle(part.rle, y1, x1, y2, x2) for part in (one, other))
    return int(np.count_nonzero(first & second)), int(np.count_nonzero(first | second))


def _joined(members: Sequence[Part], image_size: tuple[int, int]) -> Part:
    """One instance of its parts, highest score first."""
    box = _hull([part.box for part in members])
    image = (0, 0, *image_size)
    for part in members:
        if _sees_whole(part.tile, box, image_size):
            return Part(image, part.box, members[0].score, part.label, part.rle)
    rle = members[0].rle if len(members) == 1 else coco_mask.merge([part.rle for part in members])
    return Part(image, box, members[0].score, members[0].label, rle)


def _seen_as_something_else(
    instance: Part,
    members: Sequence[Part],
    parts: Sequence[Part],
    by_tile: dict[IntBox, list[int]],
    image_size: tuple[int, int],
) -> bool:
    """Whether it was cut in its own tiles, and another that sees it whole has other things at half its pixels."""
    own = {part.tile for part in members}
    if any(_sees_whole(tile, instance.box, image_size) for tile in own):
        return False
    for tile in by_tile.keys() - own:
        if _sees_whole(tile, instance.box, image_size):
            here = np.array([parts[k].box for k in by_tile[tile]])
            near = np.flatnonzero(_overlapping(np.array([instance.box]), here))
            if near.size:
                other = coco_mask.merge([parts[by_tile[tile][k]].rle for k in near])
                taken = coco_mask.area(coco_mask.merge([instance.rle, other], intersect=True))
                if 2 * taken >= max(coco_mask.area(instance.rle), 1):
                    return True
    return False


def _sees_whole(tile: Sequence[float], box: Sequence[float], image_size: tuple[int, int]) -> bool:
    """Whether the box keeps clear of those of the tile's borders behind which the image goes on."""
    return all(
        (tile[axis] == 0 or box[axis] >= tile[axis] + NEAR)
        and (tile[axis + 2] == image_size[axis] or box[axis + 2] <= tile[axis + 2] - NEAR)
        for axis in (0, 1)
    )


def _hull(boxes: Sequence[Box]) -> Box:
    """The least box around them all."""
    y1, x1, y2, x2 = zip(*boxes, strict=True)
    return min(y1), min(x1), max(y2), max(x2)


def _intersection(one: Box, other: Box) -> Box:
    """Where two boxes that overlap do so."""
    return max(one[0], other[0]), max(one[1], other[1]), min(one[2], other[2]), min(one[3], other[3])
