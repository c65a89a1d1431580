"""Pictures that a training leaves: predictions beside the truth, and MR R-CNN below what it started from."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np

from mrcnn_tf import visualize
from mrcnn_tf.data.coco import CocoDataset
from mrcnn_tf.evaluation.huddled import neighbour_overlaps
from mrcnn_tf.evaluation.run import EvaluationResult
from mrcnn_tf.models.mask_rcnn import MaskRCNN
from mrcnn_tf.models.mask_refining_rcnn import MaskRefiningRCNN
from mrcnn_tf.schema import Config


def draw_comparison(config: Config, before: MaskRCNN, after: MaskRCNN, dataset: CocoDataset) -> None:
    """Writes `comparison.png`: what the model found that training started from, what this one finds, and the truth.

    The pictures are those with the most instances whose box overlaps that of another of their class by IoU above 0.1;
    of equals the first.
    """
    if isinstance(before, MaskRefiningRCNN) or not config.evaluation.pictures:
        return
    truth = dataset.ground_truth()
    near = neighbour_overlaps(truth)["same"] > 0.1
    count = Counter(a["image_id"] for a, huddled in zip(truth["annotations"], near, strict=True) if huddled)
    images = sorted(range(len(dataset)), key=lambda i: -count[dataset.image_ids[i]])
    images = images[: config.evaluation.pictures]
    score, rows = config.evaluation.picture_score, []
    for model in (before, after):
        found = [model.detect(dataset.image(i)).filter(score) for i in images]
        rows.append(
            [visualize.draw(dataset.image(i), f, size=480) for i, f in zip(images, found, strict=True)]
        )
    rows.append([])
    for i in images:
        names = [dataset.class_names[c - 1] for c in dataset.instances(i).classes]
        rows[-1].append(visualize.draw(dataset.image(i), dataset.instances(i), names, size=480))
    sheet = visualize.sheet(
        rows,
        headers=[Path(dataset.file_name(i)).name for i in images],
        captions=[f"Mask R-CNN, {Path(str(config.init_from)).stem}", f"MR R-CNN, {config.name}", "truth"],
        cell=480,
        rows_per_line=1,
    )
    visualize.save(config.run_folder / "comparison.png", sheet)


def draw_sheet(dataset: CocoDataset, evaluation: EvaluationResult, score: float) -> np.ndarray:
    """Prediction beside truth for the kept pictures."""
    rows = []
    for index, found in evaluation.pictures:
        image, truth = dataset.image(index), dataset.instances(index)
        names = [dataset.class_names[c - 1] for c in truth.classes]
        rows.append((image, found.filter(score), truth, names, Path(dataset.file_name(index)).name))
    return visualize.validation_sheet(rows)
