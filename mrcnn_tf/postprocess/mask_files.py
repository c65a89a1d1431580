"""The masks of a whole COCO file, results or annotations: how large and how exact each form is, and converting them."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mrcnn_tf.data.structure import read_json
from mrcnn_tf.geometry.forms import compare, decode, encode, form_of, measure
from mrcnn_tf.postprocess.json_list import list_items
from mrcnn_tf.postprocess.results_file import read_known, write_entries
from mrcnn_tf.tables import save_text

__all__ = ["convert_masks", "format_masks", "measure_masks"]


class _Mask(NamedTuple):
    where: str
    entry: dict[str, Any]
    segmentation: Any  # None if the entry has no mask
    image_size: tuple[int, int] | None


def measure_masks(
    path: str | Path,
    *,
    annotations: str | Path | None = None,
    first: int = 1000,
    tolerances: Sequence[float] = (0.0, 0.5, 1.0, 2.0),
    mask_sizes: Sequence[int] = (28, 112),
) -> dict[str, Any]:
    """Puts the first masks of a file into every form and measures what they need and what comes back.

    Args:
        path: a COCO results file (a list) or annotation file (an object).
        annotations: annotation file with the images' sizes, for results that are polygons.
        first: number of masks.
        tolerances: of polygons, in pixels.
        mask_sizes: cells along each side of small masks.

    Returns:
        `"masks"` measured, `"empty"` ones among them, `"source"` (number of masks by form), `"source_bytes"` (mean,
        in JSON), and `"rows"`: for each form a dict with `form`, `setting` ("0.5 px", "28 x 28" or ""), the means
        `json_bytes`, `raw_bytes`, `iou`, `deviation`, `encode_seconds`, `decode_seconds` (see
        `mrcnn_tf.geometry.forms.measure`), the worst values `worst_iou`, `worst_deviation`, and `lost`: masks of
        which nothing comes back. These count in `iou`, not in the deviations.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for damaged files and masks, with the entry's place; if there is no mask.
    """
    if first < 1:
        raise ValueError(f"the number of masks to measure must be at least 1, not {first}")
    variants: list[tuple[str, str, dict[str, Any]]] = [("rle", "", {}), ("rle-uncompressed", "", {})]
    variants += [("polygons", f"{t:g} px" if t else "exact", {"tolerance": t}) for t in tolerances]
    variants += [("box-mask", f"{m} x {m}", {"mask_size": m}) for m in mask_sizes]
    variants += [("packed-bits", "", {})]
    measured: list[list[dict[str, float]]] = [[] for _ in variants]
    source: Counter[str] = Counter()
    source_bytes, empty = 0, 0
    for mask in _masks(path, annotations):
        segmentation = mask.segmentation
        if segmentation is None:
            continue
        try:
            crop = decode(segmentation, image_size=mask.image_size)
            size = mask.image_size or tuple(segmentation["size"])
            for values, (form, _, setting) in zip(measured, variants, strict=True):
                values.append(measure(crop, form, size, **setting))
        except ValueError as error:
            raise ValueError(f"{mask.where}: {error}") from None
        source[form_of(segmentation)] += 1
        source_bytes += len(json.dumps(segmentation))
        empty += not crop[0].size
        if source.total() == first:
            break
    if not source:
        raise ValueError(f"{path}: holds no masks; give results or annotations with a 'segmentation'")
    rows = [
        {"form": form, "setting": setting, **_summary(values)}
        for (form, setting, _), values in zip(variants, measured, strict=True)
    ]
    count = source.total()
    return {
        "masks": count,
        "empty": empty,
        "source": dict(source),
        "source_bytes": source_bytes / count,
        "rows": rows,
    }


def format_masks(report: dict[str, Any]) -> str:
    """What `measure_masks` returned as text of up to 110 columns."""
    source = ", ".join(f"{n} {form}" for form, n in report["source"].items())
    lines = [
        f"{report['masks']} masks ({source}; {report['empty']} empty), "
        f"{report['source_bytes']:.0f} bytes each as they are",
        "",
        f"{'':<26}{'bytes, mean':>16}{'IoU':>17}{'boundary, px':>16}{'':>6}{'µs, mean':>18}",
        f"{'form':<26}{'JSON':>8}{'raw':>8}{'mean':>9}{'worst':>8}{'mean':>8}{'worst':>8}{'lost':>6}"
        f"{'encode':>9}{'decode':>9}",
    ]
    for row in report["rows"]:
        lines.append(
            f"{row['form'] + ' ' + row['setting']:<26}{row['json_bytes']:>8.0f}{row['raw_bytes']:>8.0f}"
            f"{row['iou']:>9.4f}{row['worst_iou']:>8.3f}{row['deviation']:>8.2f}{row['worst_deviation']:>8.1f}"
            f"{row['lost']:>6}{1e6 * row['encode_seconds']:>9.0f}{1e6 * row['decode_seconds']:>9.0f}"
        )
    return "\n".join(lines)


def convert_masks(
    path: str | Path,
    form: str,
    out: str | Path,
    *,
    annotations: str | Path | None = None,
    tolerance: float = 0.0,
    mask_size: int = 28,
) -> dict[str, Any]:
    """Writes a file again with its masks in another form; everything else stays.

    A results file passes through entry by entry, an annotation file is read whole. `out` is there, whole, at the
    end or not at all; it may be the same file.

    Args:
        path: a COCO results file (a list) or annotation file (an object).
        form: one of `mrcnn_tf.geometry.forms.FORMS`.
        out: the file to write.
        annotations: annotation file with the images' sizes, for results that are polygons.
        tolerance, mask_size: see `mrcnn_tf.geometry.forms.encode`.

    Returns:
        `"masks"` converted, `"without"` (entries that have none), `"empty"` masks, `"lost"` ones of which nothing
        comes back, and `"iou"`, `"worst_iou"`, `"worst_deviation"` of what comes back, 1, 1 and 0 for a form that
        loses nothing.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for another form or setting, and for damaged files and masks, with the entry's place.
    """
    encode((np.zeros((0, 0), bool), 0, 0), form, (1, 1), tolerance=tolerance, mask_size=mask_size)
    lossy = form == "box-mask" or (form == "polygons" and tolerance > 0)
    counts: Counter[str] = Counter()
    total, worst, farthest = 0.0, 1.0, 0.0

    def converted(mask: _Mask) -> dict[str, Any]:
        nonlocal total, worst, farthest
        segmentation = mask.segmentation
        if segmentation is None:
            counts["without"] += 1
            return mask.entry
        try:
            crop = decode(segmentation, image_size=mask.image_size)
            size = mask.image_size or tuple(segmentation["size"])
            segmentation = encode(crop, form, size, tolerance=tolerance, mask_size=mask_size)
        except ValueError as error:
            raise ValueError(f"{mask.where}: {error}") from None
        iou, deviation = compare(crop, decode(segmentation, image_size=size)) if lossy else (1.0, 0.0)
        counts["masks"] += 1
        counts["empty"] += not crop[0].size
        counts["lost"] += math.isinf(deviation)
        total, worst = total + iou, min(worst, iou)
        farthest = max(farthest, 0.0 if math.isinf(deviation) else deviation)
        return {**mask.entry, "segmentation": segmentation}

    if _is_results(path):
        with write_entries(out) as write:
            for mask in _masks(path, annotations):
                write(converted(mask))
    else:
        coco = read_json(path)
        coco["annotations"] = [converted(mask) for mask in _annotations(path, coco)]
        save_text(Path(out), json.dumps(coco))
    masks = counts["masks"]
    return {
        "masks": masks,
        "without": counts["without"],
        "empty": counts["empty"],
        "lost": counts["lost"],
        "iou": total / masks if masks else 1.0,
        "worst_iou": worst,
        "worst_deviation": farthest,
    }


def _masks(path: str | Path, annotations: str | Path | None) -> Iterator[_Mask]:
    """Every entry of a file with the size of its image, if that is known."""
    if not _is_results(path):
        yield from _annotations(path, read_json(path))
        return
    known = None if annotations is None else read_known(annotations)
    for index, (_, _, entry) in enumerate(list_items(path)):
        where = f"{path}: entry {index}"
        if not isinstance(entry, dict) or not isinstance(entry.get("image_id"), (int, str)):
            raise ValueError(
                f"{where} is not an object with an 'image_id', a number or a text; see COCO's results format"
            )
        size = None
        if known is not None:
            height, width = known.sizes.get(entry["image_id"], (None, None))
            if height is None or width is None:
                raise ValueError(
                    f"{where} has image_id {entry['image_id']}, of which {known.path} tells no height and width"
                )
            size = (height, width)
        elif isinstance(entry.get("segmentation"), list):
            raise ValueError(
                f"{where} has polygons, which do not tell the image's size; give --annotations (annotations=...)"
            )
        yield _Mask(where, entry, entry.get("segmentation"), size)


def _annotations(path: str | Path, coco: dict[str, Any]) -> Iterator[_Mask]:
    for key, name in (("images", "id"), ("annotations", "image_id")):
        rows = coco.get(key)
        if not isinstance(rows, list) or not all(
            isinstance(row, dict) and isinstance(row.get(name), (int, str)) for row in rows
        ):
            raise ValueError(f"{path}: '{key}' must be a list of objects with '{name}', a number or a text")
    images = {image["id"]: image for image in coco["images"]}
    for row in coco["annotations"]:
        where = f"{path}: annotation {row.get('id')}"
        image = images.get(row["image_id"], {})
        height, width = image.get("height"), image.get("width")
        if type(height) is not int or type(width) is not int or min(height, width) < 1:
            raise ValueError(
                f"{where} has image_id {row['image_id']}, of which the file tells no height and width"
            )
        # An empty list is COCO's way to say that there is a box but no mask.
        yield _Mask(where, row, row.get("segmentation") or None, (height, width))


def _is_results(path: str | Path) -> bool:
    try:
        with open(path, "rb") as file:
            start = file.read(64)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file; give COCO results or annotations") from None
    return start.lstrip().startswith(b"[")


def _summary(values: list[dict[str, float]]) -> dict[str, Any]:
    kept = [v["deviation"] for v in values if math.isfinite(v["deviation"])]
    means = {key: float(np.mean([v[key] for v in values])) for key in values[0] if key != "deviation"}
    return {
        **means,
        "worst_iou": min(v["iou"] for v in values),
        "deviation": float(np.mean(kept)) if kept else 0.0,
        "worst_deviation": max(kept, default=0.0),
        "lost": len(values) - len(kept),
    }
