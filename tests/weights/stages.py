"""Every stage of a model's detection for one image, to be compared with what another project recorded of its own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from mrcnn_tf.models.mask_rcnn import MaskRCNN
from tests.golden.drawn import draw, picture, sample


def stages(model: MaskRCNN, image: np.ndarray, proposals: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """The stages under one set of names, in this project's layouts.

    Args:
        model: the model.
        image: uint8 `[h, w, 3]`.
        proposals: `[N, 4]` in pixels of the resized image, to give the heads the other project's.

    Returns:
        `c2`..`c5`, `p2`..`p6` `[1, H, W, C]`; `objectness2`.. `[A_l]`, `deltas2`.. `[A_l, 4]`; `proposals [N, 4]`;
        `class_logits [N, K + 1]`, `box_deltas [N, K, 4]`; `boxes [D, 4]` in pixels of the given image, `scores`,
        `classes`, `mask_probabilities [D, m, m]`.
    """
    images, sizes = model.preprocess(tf.constant(image))
    out: dict[str, Any] = {}
    normalized = model.normalize(images, sizes)
    bottom_up = model.backbone(normalized)
    features = model.fpn(bottom_up)
    out |= {f"c{level}": x for level, x in enumerate(bottom_up, 2)}
    out |= {f"p{level}": x for level, x in enumerate(features, 2)}
    logits, deltas = model.rpn(features)
    out |= {f"objectness{level}": x[0] for level, x in enumerate(logits, 2)}
    out |= {f"deltas{level}": x[0] for level, x in enumerate(deltas, 2)}
    own, _, valid = model.rpn.propose(logits, deltas, model.rpn.anchors(features), sizes)
    out["proposals"] = own[0][valid[0]]
    given = out["proposals"] if proposals is None else tf.constant(proposals, tf.float32)
    class_logits, box_deltas = model.box_head(model.align(features, given[None], model.box_head.roi_size))
    out |= {"class_logits": class_logits[0], "box_deltas": box_deltas[0]}
    found = model.detect(image)
    out |= {"boxes": found.boxes, "scores": found.scores, "classes": found.class_ids}
    out["mask_probabilities"] = found.masks
    return {name: np.asarray(value) for name, value in out.items()}


# A stage's name here -> in the file that a project's script in tests/golden/ wrote.
NAMES = {
    "torchvision": {"classes": "labels"},
    "detectron2": {
        **{f"c{level}": f"res{level}" for level in range(2, 6)},
        **{f"{kind}{level}": f"{kind}_{level}" for kind in ("objectness", "deltas") for level in range(2, 7)},
        **{"boxes": "det_boxes", "scores": "det_scores", "classes": "det_classes"},
        "mask_probabilities": "mask_probs",
    },
}


def to_torch(project: str, name: str, value: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """A stage of `stages` as a PyTorch project has it, in this shape; NaN where that has what is of no use here."""
    if name[0] in "cp" and name[1:].isdigit():
        return value.transpose(0, 3, 1, 2)
    if name.startswith("objectness"):
        _, anchors, height, width = shape
        return value.reshape(height, width, anchors).transpose(2, 0, 1)[None]
    if name.startswith("deltas"):
        _, channels, height, width = shape
        value = value.reshape(height, width, channels // 4, 4)[..., [1, 0, 3, 2]]
        return value.reshape(height, width, channels).transpose(2, 0, 1)[None]
    if name in ("proposals", "boxes"):
        return value[:, [1, 0, 3, 2]]
    if name == "box_deltas":
        value = value[..., [1, 0, 3, 2]].reshape(len(value), -1)
        background = np.full((len(value), shape[1] - value.shape[1]), np.nan)
        return np.concatenate([background, value], 1)
    if project == "detectron2" and name == "class_logits":
        return np.roll(value, -1, axis=1)
    if project == "detectron2" and name == "classes":
        return value - 1
    return value


def about(file: Any) -> dict[str, Any]:
    """Settings of a recorded run: `seed`, `size` of the image, `min_size`, `max_size`, `proposals`, shapes, weights."""
    if "info" in file:
        info = json.loads(str(file["info"]))
        adjust, weights = info["adjust"], info["weights"]
        sizes = {"min_size": min(info["size"]), "max_size": max(info["size"])}
        found = {key: info[key] for key in ("seed", "size", "proposals", "shapes")} | sizes
    else:
        adjust = dict(zip(file["adjusted"].tolist(), file["adjustments"].tolist(), strict=True))
        weights = json.loads(str(file["state"]))
        found = {key: int(file[key]) for key in ("seed", "min_size", "max_size")}
        found |= {"size": file["size"].tolist(), "proposals": int(file["proposals_kept"])}
        found["shapes"] = json.loads(str(file["shapes"]))
    return {**found, "adjust": adjust, "weights": weights}


def weights_of(file: Any) -> dict[str, np.ndarray]:
    """The weights of a recorded run, by the other project's names."""
    settings = about(file)
    whole = {name.removeprefix("value/"): file[name] for name in file if name.startswith("value/")}
    drawn = {
        name: draw(name, tuple(shape), settings["seed"], settings["adjust"])
        for name, shape in settings["weights"].items()
        if name not in whole
    }
    return {**drawn, **whole}


def compared(project: str, model: MaskRCNN, file: Any) -> dict[str, tuple[float, float]]:
    """The largest difference of every stage and its largest value. The box head gets the recorded proposals.

    `file`: what a script in tests/golden/ wrote, whole stages or samples of them.
    """
    settings = about(file)
    ours = stages(model, picture(*settings["size"], settings["seed"]), file["proposals"][:, [1, 0, 3, 2]])
    out = {}
    for name, value in ours.items():
        theirs = NAMES[project].get(name, name)
        shape = settings["shapes"][theirs]
        expected = np.asarray(file[theirs if theirs in file else f"sample/{theirs}"], np.float64)
        mine = to_torch(project, name, value, shape)
        if list(mine.shape) != list(shape):
            out[name] = float("inf"), float(np.abs(expected).max())
            continue
        mine = mine if list(expected.shape) == list(shape) else sample(mine)
        known = ~np.isnan(mine)
        out[name] = float(np.abs(mine - expected)[known].max()), float(np.abs(expected).max())
    return out
