"""Intersection over union of boxes and of run-length coded masks, in NumPy.

Masks are compared run by run: nothing of the size of an image is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pycocotools import mask as coco_mask

__all__ = ["box_iou", "compressed", "iou_with", "mask_boxes", "mask_iou", "yxyx"]


def yxyx(xywh: ArrayLike) -> NDArray[np.float64]:
    """COCO's boxes `[N, 4]`, `[x, y, w, h]`, as `[y1, x1, y2, x2]`, float64."""
    boxes = np.asarray(xywh, np.float64).reshape(-1, 4)
    return np.concatenate([boxes[:, 1::-1], boxes[:, 1::-1] + boxes[:, :1:-1]], axis=1)


def box_iou(a: ArrayLike, b: ArrayLike) -> NDArray[np.float64]:
    """IoU of each pair of boxes, float64 `[N, M]`, in [0, 1].

    Args:
        a: `[N, 4]`, `[y1, x1, y2, x2]` in continuous pixels.
        b: `[M, 4]`, in the same pixels.

    Boxes without area have IoU 0 with everything.
    """
    a, b = (np.asarray(boxes, np.float64).reshape(-1, 4) for boxes in (a, b))
    low, high = np.maximum(a[:, None, :2], b[:, :2]), np.minimum(a[:, None, 2:], b[:, 2:])
    shared = np.clip(high - low, 0, None).prod(axis=2)
    areas_a, areas_b = ((boxes[:, 2:] - boxes[:, :2]).clip(0).prod(axis=1) for boxes in (a, b))
    union = areas_a[:, None] + areas_b - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=shared > 0)


def mask_iou(a: Sequence[dict[str, Any]], b: Sequence[dict[str, Any]]) -> NDArray[np.float64]:
    """IoU of each pair of masks, float64 `[N, M]`, in [0, 1], as pycocotools has it.

    Args:
        a: N run-length codes of one image, compressed or not. Their code is believed; `geometry.masks.rle_counts`
            refuses a damaged one.
        b: M codes of the same image.

    Empty masks have IoU 0 with everything.

    Raises:
        ValueError: if the masks are not all of one size.
    """
    a, b = [compressed(rle) for rle in a], [compressed(rle) for rle in b]
    sizes = {tuple(rle["size"]) for rle in (*a, *b)}
    if len(sizes) > 1:
        raise ValueError(f"masks of one image must have one size, not {sorted(sizes)}")
    if not a or not b:
        return np.zeros((len(a), len(b)))
    return np.asarray(coco_mask.iou(a, b, [0] * len(b)), np.float64)


def iou_with(
    index: int, others: NDArray[np.int64], boxes: NDArray[np.float64], masks: Sequence[dict[str, Any]] | None
) -> NDArray[np.float64]:
    """IoU of one instance with others of its image, float64 `[len(others)]`.

    Args:
        index: which one.
        others: indices of the others.
        boxes: `[N, 4]` of all, `[y1, x1, y2, x2]`; with masks, those of `mask_boxes`.
        masks: N run-length codes, whose IoU is taken; None for that of the boxes.
    """
    iou = box_iou(boxes[index], boxes[others])[0]
    if masks is not None:
        near = np.flatnonzero(iou)  # masks whose boxes are apart need no decoding
        iou[near] = mask_iou([masks[index]], [masks[i] for i in others[near]])[0]
    return iou


def mask_boxes(masks: Sequence[dict[str, Any]]) -> NDArray[np.float64]:
    """The tight boxes of run-length codes, float64 `[N, 4]`, `[y1, x1, y2, x2]`; zeros for empty masks."""
    if not masks:
        return np.zeros((0, 4))
    x, y, w, h = coco_mask.toBbox([compressed(rle) for rle in masks]).T
    return np.stack([y, x, y + h, x + w], axis=1)


def compressed(rle: dict[str, Any]) -> dict[str, Any]:
    """A run-length code in pycocotools' compressed form: what it was if it was compressed."""
    return coco_mask.frPyObjects(rle, *rle["size"]) if isinstance(rle["counts"], list) else rle
