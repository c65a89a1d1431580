"""Results without overlapping boxes and redundant masks: the steps of `mrcnn clean`, for one image and for a file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from mrcnn_tf.data.results import Known
from mrcnn_tf.geometry.overlap import compressed, mask_boxes, yxyx
from mrcnn_tf.postprocess.label_map import separate, write_label_map
from mrcnn_tf.postprocess.merge import merge_masks
from mrcnn_tf.postprocess.results_file import ImageResults, read_images, write_entries
from mrcnn_tf.postprocess.suppress import Groups, best_first, suppress, wanted

__all__ = ["Cleaned", "clean_file", "clean_image"]

_ROUNDING = 0.01  # pixels: files have boxes to three digits or so


class Cleaned(NamedTuple):
    """What became of an image's results.

    Attributes:
        entries: in COCO's results format, best first, with every key that they came with.
        labels: with `no_overlap`, int32 `[height, width]`: i + 1 where `entries[i]` is, 0 for background.
        counts: `"in"`, `"out"`, and what went on the way: `"no area"`, `"score"`, `"size"`, `"merged"` (into
            others), `"overlap"`, `"limit"`, `"hidden"`; and `"clipped"`, boxes that reached outside the image.
    """

    entries: list[dict[str, Any]]
    labels: NDArray[np.int32] | None
    counts: Counter[str]


def clean_image(
    results: ImageResults,
    *,
    image_size: tuple[int, int] | None = None,
    score_threshold: float | Mapping[int, float] = 0.0,
    min_size: float | None = None,
    max_size: float | None = None,
    size_unit: Literal["pixels", "share"] = "pixels",
    merge: Literal["best", "union", "intersection", "vote"] | None = None,
    merge_iou_threshold: float = 0.5,
    rule: Literal["connected", "greedy"] = "connected",
    nms: Literal["hard", "linear", "gaussian"] | None = "hard",
    iou_threshold: float = 0.5,
    measure: Literal["box", "mask"] | None = None,
    groups: Groups = "all",
    sigma: float = 0.5,
    max_detections: int | None = None,
    no_overlap: bool = False,
) -> Cleaned:
    """Leaves out, merges, suppresses and separates, in this order, what one image's results hold.

    Args:
        results: the image's entries, as `read_images` checked them.
        image_size: `(height, width)`; None: that of the masks, if there are any.
        score_threshold, min_size, max_size, size_unit: what to leave out at first; see `suppress`.
        merge, merge_iou_threshold, rule: `keep`, `iou_threshold` and `rule` of `merge_masks`; `merge=None`: no merging.
            Merged entries tell by `merged_from` which entries of the file they were made of.
        nms, iou_threshold, measure, sigma, max_detections: of `suppress`, `nms` is its `method`; `nms=None`: no
            suppression. `measure=None`: masks where there are any, otherwise boxes.
        groups: whose results are compared, of merging and suppression; see `suppress`.
        no_overlap: give every pixel to one instance; see `separate`.

    Raises:
        ValueError: for settings that are not known or need masks or an image size that are not there.
    """
    entries, masks = results.entries, _masks(results)
    if masks is None and (merge or no_overlap or measure == "mask"):
        raise ValueError(
            f"image {results.image_id}: merging, mask IoU and no overlap need masks; these results have boxes only"
        )
    if max_detections is not None and max_detections < 1:
        raise ValueError(f"max_detections must be at least 1, not {max_detections}")
    if image_size is None and masks:
        image_size = tuple(masks[0]["size"])
    counts = Counter({"in": len(entries)})
    boxes, outlines = _boxes(entries, masks)
    changed = np.array(["bbox" not in entry for entry in entries], bool)
    if image_size is not None:
        inside = np.clip(boxes, 0, np.tile(image_size, 2))
        outside = (np.abs(inside - boxes) > _ROUNDING).any(axis=1)
        counts["clipped"], changed, boxes = int(outside.sum()), changed | outside, inside
    entries = [
        _with_box(entry, box) if new else entry
        for entry, box, new in zip(entries, boxes, changed.tolist(), strict=True)
    ]
    scores = np.array([entry["score"] for entry in entries], np.float64)
    class_ids = np.array([entry["category_id"] for entry in entries], np.int64)

    bounds: dict[str, Any] = {"min_size": min_size, "max_size": max_size, "size_unit": size_unit}
    there = ((boxes[:, 2:] > boxes[:, :2]) & (outlines[:, 2:] > outlines[:, :2])).all(axis=1)
    scored = there & wanted(boxes, scores, class_ids, score_threshold=score_threshold)
    sized = scored & wanted(
        boxes, scores, class_ids, score_threshold=-np.inf, image_size=image_size, **bounds
    )
    counts["no area"] = int((~there).sum())
    counts["score"] = int((there & ~scored).sum())
    counts["size"] = int((scored & ~sized).sum())

    def take(indices: NDArray[np.int64]) -> None:
        nonlocal entries, masks, boxes, scores, class_ids
        entries = [entries[i] for i in indices]
        masks = None if masks is None else [masks[i] for i in indices]
        boxes, scores, class_ids = boxes[indices], scores[indices], class_ids[indices]

    kept = np.flatnonzero(sized)
    take(kept)
    if merge and masks is not None:
        merged = merge_masks(
            masks,
            scores,
            class_ids,
            keep=merge,
            iou_threshold=merge_iou_threshold,
            rule=rule,
            groups=groups,
        )
        counts["merged"] = len(entries) - len(merged.masks)
        take(np.array([sources[0] for sources in merged.sources], np.int64))
        for place, sources in enumerate(merged.sources):
            origin = {"merged_from": [results.indices[kept[i]] for i in sources]}
            entries[place] = entries[place] | origin
            if merge != "best" and len(sources) > 1:
                entries[place] = _with_mask(entries[place], merged.masks[place])
        masks, boxes = merged.masks, _boxes(entries, None)[0]
    order = best_first(boxes, scores, class_ids, masks)
    if nms is not None:
        order, decayed = suppress(
            boxes,
            scores,
            class_ids,
            masks=masks,
            method=nms,
            iou_threshold=iou_threshold,
            measure=measure or ("box" if masks is None else "mask"),
            groups=groups,
            sigma=sigma,
            score_threshold=score_threshold,
        )
        counts["overlap"] = len(entries) - len(order)
        if nms != "hard":
            scores[order] = decayed
            for i in order.tolist():
                entries[i] = entries[i] | {"score": round(float(scores[i]), 6)}
    counts["limit"] = len(order) - len(order[:max_detections])
    take(order[:max_detections])
    labels = None
    if no_overlap and masks is not None and image_size is not None:
        seen, trimmed, labels = separate(masks, scores, class_ids, image_size=image_size)
        counts["hidden"] = len(entries) - len(seen)
        entries = [
            entries[i] if coco_mask.area(rle) == coco_mask.area(masks[i]) else _with_mask(entries[i], rle)
            for i, rle in zip(seen, trimmed, strict=True)
        ]
    counts["out"] = len(entries)
    return Cleaned(entries, labels, counts)


def clean_file(
    results: str | Path,
    out: str | Path,
    *,
    known: Known | None = None,
    label_maps: str | Path | None = None,
    **settings: Any,
) -> Counter[str]:
    """Cleans a results file image by image, in memory that does not grow with the number of images.

    Args:
        results: the file; entries in any order.
        out: the file to write, whole or not at all; may be the same one.
        known: what the annotation file defines (`read_known`): ids are checked, and sizes known without masks.
        label_maps: a folder that gets `IMAGE_ID.png` (see `write_label_map`) of each image that has results, and,
            with `known`, of the others; means `no_overlap`.
        settings: those of `clean_image`.

    Returns:
        The sums of the counts of `Cleaned`, and `"images"`.

    Raises:
        FileNotFoundError, ValueError: as `read_images`, and as `clean_image`, naming the file.
        OSError: if something cannot be written.
    """
    counts: Counter[str] = Counter()
    empty = dict(known.sizes) if known is not None else {}
    if label_maps is not None:
        settings["no_overlap"] = True
        Path(label_maps).mkdir(parents=True, exist_ok=True)
    # Wrong settings are told before a long file is read.
    clean_image(ImageResults("", [], []), image_size=(1, 1), **settings)
    names: dict[str, Any] = {}
    with write_entries(out) as write:
        for image in read_images(results, known=known):
            other = names.setdefault(str(image.image_id), image.image_id)
            if label_maps is not None and other != image.image_id:
                raise ValueError(
                    f"{results}: image ids {image.image_id!r} and {other!r} would have one label map"
                )
            size = empty.pop(image.image_id, [None, None])
            try:
                cleaned = clean_image(image, image_size=None if None in size else tuple(size), **settings)
            except ValueError as error:
                raise ValueError(f"{results}: {error}") from None
            for entry in cleaned.entries:
                write(entry)
            if label_maps is not None and cleaned.labels is not None:
                write_label_map(_stem(label_maps, image.image_id), cleaned.labels)
            counts += cleaned.counts
            counts["images"] += 1
        if label_maps is not None:
            for image_id, size in empty.items():
                if None not in size:
                    write_label_map(_stem(label_maps, image_id), np.zeros(size, np.int32))
    return counts


def _stem(folder: str | Path, image_id: Any) -> Path:
    if Path(str(image_id)).name != str(image_id):
        raise ValueError(f"the image id {image_id!r} cannot be the name of a label map")
    return Path(folder) / str(image_id)


def _masks(results: ImageResults) -> list[dict[str, Any]] | None:
    """All masks, compressed; None if entries have none."""
    having = ["segmentation" in entry for entry in results.entries]
    if any(having) and not all(having):
        index = results.indices[having.index(False)]
        raise ValueError(
            f"entry {index} has no 'segmentation', but others of its image have; give it to all or to none"
        )
    return [compressed(entry["segmentation"]) for entry in results.entries] if all(having) else None


def _boxes(
    entries: list[dict[str, Any]], masks: list[dict[str, Any]] | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Each entry's own box, or that of its mask, and the box of the mask, if there is one; float64 `[N, 4]`."""
    boxes = yxyx([entry.get("bbox", [0.0] * 4) for entry in entries])
    outlines = boxes if masks is None else mask_boxes(masks)
    missing = [i for i, entry in enumerate(entries) if "bbox" not in entry]
    boxes[missing] = outlines[missing]
    return boxes, outlines


def _with_box(entry: dict[str, Any], box: NDArray[np.float64]) -> dict[str, Any]:
    y1, x1, y2, x2 = box.tolist()
    return entry | {"bbox": [round(v, 3) for v in (x1, y1, x2 - x1, y2 - y1)]}


def _with_mask(entry: dict[str, Any], rle: dict[str, Any]) -> dict[str, Any]:
    """The entry with this mask, and with box and area (if it tells of one) to match."""
    code = {"size": [int(n) for n in rle["size"]], "counts": rle["counts"].decode()}
    entry = _with_box(entry, mask_boxes([rle])[0]) | {"segmentation": code}
    return entry | {"area": int(coco_mask.area(rle))} if "area" in entry else entry
