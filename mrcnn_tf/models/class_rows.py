"""A trained model for another list of classes: what it knows of a class goes with the class's name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import keras
import numpy as np

from mrcnn_tf.layers.heads import BoxHead, MaskHead
from mrcnn_tf.models.mask_rcnn import MaskRCNN


class Reclassed(NamedTuple):
    """A model, and the names of the classes that it took over, that are new to it and that it lost."""

    model: MaskRCNN
    kept: list[str]
    new: list[str]
    dropped: list[str]


def reclassed(trained: MaskRCNN, class_names: Sequence[str], category_ids: Sequence[int]) -> Reclassed:
    """The same model for other classes.

    Rows of the class scores, boxes and masks are matched by the classes' names; those of new classes have their
    initial values. A class that is kept has the same logits, boxes and masks as before. Where the losses make classes
    compete (cross-entropy), probabilities change with the classes beside it.

    Args:
        trained: is not changed.
        class_names, category_ids: of the foreground classes 1..K.
    """
    before = {name: row for row, name in enumerate(trained.class_names)}
    kept = [name for name in class_names if name in before]
    there = [before[name] for name in kept]
    here = [row for row, name in enumerate(class_names) if name in before]

    config = trained.get_config()
    config |= {"class_names": list(class_names), "category_ids": list(category_ids)}
    floors, groups = config["class_score_thresholds"], config["nms_groups"]
    if floors:
        config["class_score_thresholds"] = {name: floors[name] for name in floors if name in class_names}
    if not isinstance(groups, str):
        config["nms_groups"] = [[name for name in group if name in class_names] for group in groups]
    heads = [part for part in trained.PARTS if part.endswith("head")]
    for part in heads:
        config[part]["config"]["num_classes"] = len(class_names)
    model = type(trained).from_config(config)

    values: dict[int, np.ndarray] = {}
    for part in heads:
        old_head, new_head = getattr(trained, part), getattr(model, part)
        pairs = zip(class_weights(old_head), class_weights(new_head), strict=True)
        for (old, axis, first, size), (new, *_) in pairs:
            source, target = (np.moveaxis(np.array(w), axis, 0) for w in (old, new))
            target[:first] = source[:first]
            for i, j in zip(here, there, strict=True):
                target[first + i * size :][:size] = source[first + j * size :][:size]
            values[id(new)] = np.moveaxis(target, 0, axis)
    for source, target in zip(trained.weights, model.weights, strict=True):
        target.assign(values.get(id(target), source))
    new_names = [name for name in class_names if name not in before]
    return Reclassed(model, kept, new_names, [name for name in before if name not in kept])


def class_weights(head: BoxHead | MaskHead) -> list[tuple[keras.Variable, int, int, int]]:
    """A head's weights with entries for classes: along which axis, how many before the first class, how many each."""
    if isinstance(head, MaskHead):
        return [] if head.class_agnostic else [(head.kernel, 0, 0, 1), (head.bias, 0, 0, 1)]
    out = [(w, -1, 1, 1) for w in head.classes.weights]
    return out if head.class_agnostic else [*out, *((w, -1, 0, 4) for w in head.deltas.weights)]
