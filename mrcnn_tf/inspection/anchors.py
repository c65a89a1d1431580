"""The recall that anchors allow before any training, and anchors from the data that would allow more.

The RPN learns from anchors that overlap an instance by 0.7, or from its best ones where none does; what no anchor is
near to is learnt from few and poor examples.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mrcnn_tf.data.augment import whole_view
from mrcnn_tf.geometry.overlap import yxyx
from mrcnn_tf.inspection.anchor_fit import Anchors, Truths, best_overlaps, suggest_anchors
from mrcnn_tf.inspection.proposals import SIZES, size_of

if TYPE_CHECKING:
    from mrcnn_tf.models.mask_rcnn import MaskRCNN

__all__ = ["anchor_report", "anchors_of", "truths_of"]

# Suggested anchors must raise the recall of images that they were not fitted to by this much, the mean of that at IoU
# 0.5 and at 0.7: less is within what another choice of images would change.
MARGIN = 0.01
SAMPLE = 5_000  # instances that are fitted to


def anchor_report(
    truth: dict[str, Any],
    *,
    model: MaskRCNN | None = None,
    anchors: Anchors | None = None,
    min_size: int | None = None,
    max_size: int | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """The recall that anchors allow before any training, and anchors that would allow more.

    An instance is found at an IoU if one anchor overlaps its box that much; several instances may share an anchor, and
    anchors across the image's border count, as in training. Images are resized as for detection. Anchors are fitted to
    one half of the images and compared on the other.

    Args:
        truth: annotations in COCO's format, as a dict. Crowd regions are left out.
        model: whose anchors and image sizes to take; by default those of Lin et al. (2017): one size a level, 32 to
            512 pixels, three ratios, shorter side 800 pixels, longer at most 1333.
        anchors, min_size, max_size: in place of the model's.
        seed: of the halves.

    Returns:
        `current` and `suggested`, each with `sizes`, `aspect_ratios`, `per_place` (anchors at a place of a level),
        `overrides` (settings for the command line), `recall50`, `recall70`, `mean_best_iou` over all instances, and
        `by_size`, the last three and `instances` for small, medium and large ones (COCO's sizes, of the original
        image); -1 where there is no instance. `held_out`: `images`, `instances`, and `current` and `suggested` with
        `recall50`, `recall70` and `mean_best_iou` on the half that was not fitted to. `better`: whether the suggested
        ones raise the mean of the two recalls there by 0.01 or more, and by two standard errors or more; if not,
        `suggested` is `current`. `min_size` and `max_size` of the images. `text`: the finding.

    Raises:
        ValueError: an image of the truth has no height and width.
    """
    current = anchors or (anchors_of(model) if model is not None else Anchors())
    shorter = min_size or (model.min_size if model is not None else 800)
    longer = max(max_size or (model.max_size if model is not None else 1333), shorter)
    rule, canvas = ("round", None) if model is None else (model.size_rule, model.canvas)
    truths = truths_of(truth, min_size=shorter, max_size=longer, size_rule=rule, canvas=canvas)

    fitted, held_out = _halves(truths, seed)
    enough = bool(fitted.any() and held_out.any())
    suggested = suggest_anchors(truths.select(_sample(fitted, seed)), current) if enough else current
    before, after = (best_overlaps(truths.select(held_out), anchors) for anchors in (current, suggested))
    better = enough and _better(_hits(after) - _hits(before))
    kept = suggested if better else current
    return {
        "current": _described(truths, current),
        "suggested": _described(truths, kept),
        "held_out": {
            "images": len(np.unique(truths.images[held_out])),
            "instances": int(held_out.sum()),
            "current": _figures(before),
            "suggested": _figures(after),
        },
        "better": better,
        "min_size": shorter,
        "max_size": longer,
        "text": _text(len(truths), enough, _figures(before), _figures(after), kept, better),
    }


def anchors_of(model: MaskRCNN) -> Anchors:
    """The anchors of a model."""
    rpn = model.rpn
    return Anchors(rpn.anchor_sizes, rpn.aspect_ratios, rpn.anchor_offset, rpn.anchor_rounding)


def truths_of(
    truth: dict[str, Any],
    *,
    min_size: int,
    max_size: int,
    size_rule: str = "round",
    canvas: tuple[int, int] | None = None,
) -> Truths:
    """The instances as the network sees them: boxes clipped to their image and resized with it.

    Args:
        truth: annotations in COCO's format.
        min_size, max_size, size_rule, canvas: those of `MaskRCNN`.

    Raises:
        ValueError: an image has no height and width.
    """
    shapes, numbers = {}, {}
    for number, image in enumerate(truth["images"]):
        height, width = image.get("height"), image.get("width")
        if not height or not width:
            raise ValueError(
                f"image {image['id']} has no height and width in the annotations; anchors need them"
            )
        room = canvas or (2**30, 2**30)
        view = whole_view(
            height, width, min_size=min_size, max_size=max_size, canvas=room, size_rule=size_rule
        )
        padded = canvas or tuple(-(-side // 32) * 32 for side in view.size)
        shapes[image["id"]] = (height, width, *view.size, *padded)
        numbers[image["id"]] = number
    kept = [a for a in truth["annotations"] if not a.get("iscrowd")]
    shape = np.array([shapes[a["image_id"]] for a in kept], np.int64).reshape(-1, 6)
    images = np.array([numbers[a["image_id"]] for a in kept], np.int64)
    boxes = np.clip(yxyx([a["bbox"] for a in kept]), 0, np.tile(shape[:, :2], 2))
    real = np.all(boxes[:, 2:] > boxes[:, :2], axis=1)
    scale = np.tile(shape[:, 2:4] / shape[:, :2], 2)
    return Truths(boxes * scale, shape[:, 4:], size_of(boxes), images).select(real)


def _halves(truths: Truths, seed: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """The instances of one half of the images, and those of the other."""
    images = np.unique(truths.images)
    order = np.random.default_rng(seed).permutation(images)
    first = np.isin(truths.images, order[: len(images) // 2])
    return first, ~first


def _sample(fitted: NDArray[np.bool_], seed: int) -> NDArray[np.int64]:
    rows = np.flatnonzero(fitted)
    return rows if len(rows) <= SAMPLE else np.random.default_rng(seed).choice(rows, SAMPLE, replace=False)


def _hits(best: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of each instance: 1 if found at IoU 0.5 and at 0.7, 0.5 if at one of them, 0 if at none."""
    return (best[:, None] >= np.array([0.5, 0.7]) - 1e-9).mean(axis=1)


def _better(gain: NDArray[np.float64]) -> bool:
    """Whether the mean gain is above the margin, and two standard errors: few instances prove little."""
    return bool(gain.mean() >= max(MARGIN, 2 * gain.std() / np.sqrt(len(gain))))


def _figures(best: NDArray[np.float64]) -> dict[str, float]:
    if not len(best):
        return {"recall50": -1.0, "recall70": -1.0, "mean_best_iou": -1.0}
    recalls = {f"recall{p}": float((best >= p / 100 - 1e-9).mean()) for p in (50, 70)}
    return {**recalls, "mean_best_iou": float(best.mean())}


def _described(truths: Truths, anchors: Anchors) -> dict[str, Any]:
    best = best_overlaps(truths, anchors)
    return {
        "sizes": [list(level) for level in anchors.sizes],
        "aspect_ratios": list(anchors.aspect_ratios),
        "per_place": len(anchors.sizes[0]) * len(anchors.aspect_ratios),
        "overrides": anchors.overrides(),
        **_figures(best),
        "by_size": {
            name: {"instances": int((truths.sizes == i).sum()), **_figures(best[truths.sizes == i])}
            for i, name in enumerate(SIZES)
        },
    }


def _text(
    count: int,
    enough: bool,
    before: dict[str, float],
    after: dict[str, float],
    kept: Anchors,
    better: bool,
) -> str:
    if not count:
        return "There are no instances, so nothing can be said about anchors."
    if not enough:
        return "Instances lie in one image only: too few to fit anchors to some and compare on others."
    now = f"{before['recall50']:.3f} at IoU 0.5 and {before['recall70']:.3f} at 0.7"
    then = f"{after['recall50']:.3f} and {after['recall70']:.3f}"
    if not better:
        return (
            f"The present anchors are the better choice: they reach a recall of {now}; anchors fitted to one half of "
            f"the images reach {then} on the other, which is not clearly more."
        )
    return (
        f"Other anchors fit better: fitted to one half of the images, they reach a recall of {then} on the other, the "
        f"present ones {now}. Train anew with {kept.overrides()}."
    )
