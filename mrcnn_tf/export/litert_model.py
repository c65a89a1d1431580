"""A LiteRT file in Python: detecting, evaluating, comparing with the Keras model."""

from __future__ import annotations

import json
import os
import time
import warnings
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from tqdm import tqdm

from mrcnn_tf.data.coco import CocoDataset
from mrcnn_tf.evaluation.huddled import evaluate_all
from mrcnn_tf.evaluation.run import category_ids, evaluate_model
from mrcnn_tf.export.static import letterbox
from mrcnn_tf.geometry.boxes import pairwise_iou
from mrcnn_tf.models.detections import Detections
from mrcnn_tf.models.mask_rcnn import MaskRCNN
from mrcnn_tf.tables import markdown

CLASSES = "classes.json"


class LiteRTModel:
    """A file of `export_litert`, run with TensorFlow's own interpreter.

    Args:
        file: the file.
        threads: how many to use; None: one for each core.

    Attributes:
        size: height and width of the input.
        class_names, category_ids: of the classes 1..K.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not a file of `export_litert`.
    """

    def __init__(self, file: str | Path, threads: int | None = None):
        data = Path(file).read_bytes()
        try:
            with zipfile.ZipFile(file) as archive:
                known = json.loads(archive.read(CLASSES))
        except (zipfile.BadZipFile, KeyError) as error:
            raise ValueError(f"{file}: not a LiteRT file that `mrcnn export` wrote ({error})") from None
        self.class_names: list[str] = known["class_names"]
        self.category_ids: list[int] = known["category_ids"]
        self.interpolation: str = known["interpolation"]
        with warnings.catch_warnings():
            # TensorFlow announces that its interpreter will move to a package of its own.
            warnings.simplefilter("ignore", UserWarning)
            interpreter = tf.lite.Interpreter(model_content=data, num_threads=threads or os.cpu_count())
        self.run = interpreter.get_signature_runner()
        height, width = self.run.get_input_details()["image"]["shape"][1:3]
        self.size = int(height), int(width)

    def detect(self, image: NDArray[np.uint8], score_threshold: float = 0.0) -> Detections:
        """Instances of an image, uint8 `[h, w, 3]` RGB, in its own coordinates, from above this score."""
        canvas, used = letterbox(image, self.size, self.interpolation)
        outputs = self.run(image=canvas, image_size=used)
        found = detections_of(outputs, image.shape[:2], used, self.class_names, self.category_ids)
        return found.select(found.scores > score_threshold)


def detections_of(
    outputs: dict[str, Any],
    image_size: Sequence[int],
    used: NDArray[np.int32],
    class_names: Sequence[str],
    ids: Sequence[int],
) -> Detections:
    """Outputs of `static_function`, arrays, as a result in coordinates of an image of this size."""
    count = int(outputs["num_detections"][0])
    boxes, scores, classes, masks = (
        np.asarray(outputs[f"detection_{name}"])[0, :count]
        for name in ("boxes", "scores", "classes", "masks")
    )
    height, width = image_size
    return Detections(
        image_size=(height, width),
        boxes=boxes * np.tile(np.array([height, width]) / used, 2).astype(np.float32),
        scores=scores,
        class_ids=classes,
        category_ids=np.array([ids[c - 1] for c in classes], np.int64),
        class_names=[class_names[c - 1] for c in classes],
        masks=masks,
    )


# ---------------------------------------------------------------- like the Keras model?


@dataclass(frozen=True)
class Agreement:
    """How a file's detections differ from its Keras model's, on the same pixels.

    A detection is found again if the file has one of its class whose box overlaps it by an IoU of at least one half.

    Attributes:
        images: how many were compared.
        detections: the Keras model's.
        again: how many of these the file found again.
        boxes, scores, masks: of those, mean and largest difference: of coordinates in pixels of the input, of scores,
            of mask probabilities.
    """

    images: int
    detections: int
    again: int
    boxes: tuple[float, float]
    scores: tuple[float, float]
    masks: tuple[float, float]

    def __str__(self) -> str:
        """A line for people."""
        parts = ", ".join(
            f"{name} {getattr(self, key)[0]:.2g} (at most {getattr(self, key)[1]:.2g})"
            for name, key in (("boxes, pixels:", "boxes"), ("scores:", "scores"), ("masks:", "masks"))
        )
        return (
            f"{self.again} of the Keras model's {self.detections} detections in {self.images} images found again; "
            f"mean differences: {parts}"
        )


def agreement(
    model: MaskRCNN, lite: LiteRTModel, inputs: Sequence[tuple[NDArray[np.uint8], NDArray[np.int32]]]
) -> Agreement:
    """Runs both on these inputs, see `letterbox`."""
    total, differences = 0, []
    for canvas, used in inputs:
        wanted = model.detect_batch(
            tf.constant(canvas, tf.float32), *[tf.constant(used[None], tf.float32)] * 2
        )
        kept = wanted["classes"][0].numpy() > 0
        boxes, scores, classes, masks = (
            wanted[name][0].numpy()[kept] for name in ("boxes", "scores", "classes", "masks")
        )
        outputs = lite.run(image=canvas, image_size=used)
        got = detections_of(outputs, used.tolist(), used, lite.class_names, lite.category_ids)
        total += len(boxes)
        if not len(boxes) or not len(got):
            continue
        iou = pairwise_iou(boxes, got.boxes).numpy() * (classes[:, None] == got.class_ids)
        for row in range(len(boxes)):
            column = iou[row].argmax()
            if iou[row, column] >= 0.5:
                iou[:, column] = 0.0  # each stands for one only
                pairs = (
                    (boxes[row], got.boxes[column]),
                    (scores[row], got.scores[column]),
                    (masks[row], np.asarray(got.masks)[column]),
                )
                differences.append([(np.abs(a - b).mean(), np.abs(a - b).max()) for a, b in pairs])
    spread = np.array(differences).reshape(-1, 3, 2)
    means = spread[:, :, 0].sum(0) / max(len(spread), 1)
    largest = spread[:, :, 1].max(0, initial=0.0)
    values = [(float(mean), float(most)) for mean, most in zip(means, largest, strict=True)]
    return Agreement(len(inputs), total, len(spread), *values)


# ---------------------------------------------------------------- as good as the Keras model?


def evaluate_litert(lite: LiteRTModel, dataset: CocoDataset, *, first: int | None = None) -> dict[str, Any]:
    """COCO and huddled metrics of a file, as `mrcnn_tf.evaluation.run.evaluate_model` gives them.

    Args:
        lite: the file.
        dataset: whose classes it knows; detections of its other classes are left out.
        first: evaluate on this many of the first images only.

    Returns:
        The metrics, with `images` and `images_per_second` (the interpreter alone, after the first image).

    Raises:
        ValueError: it does not know all classes of the data set.
    """
    ids = category_ids(lite.class_names, dataset)
    wanted = np.array([False, *(number is not None for number in ids)])
    count = min(len(dataset), first or len(dataset))
    results, times = [], []
    for index in tqdm(range(count), desc="evaluating", unit="image", dynamic_ncols=True, leave=False):
        image = dataset.image(index)
        canvas, used = letterbox(image, lite.size, lite.interpolation)
        start = time.perf_counter()
        outputs = lite.run(image=canvas, image_size=used)
        times.append(time.perf_counter() - start)
        found = detections_of(outputs, image.shape[:2], used, lite.class_names, [n or 0 for n in ids])
        results += found.select(wanted[found.class_ids]).to_coco(dataset.image_ids[index])
    truth, seen = dataset.ground_truth(), set(dataset.image_ids[:count])
    truth["images"] = [image for image in truth["images"] if image["id"] in seen]
    truth["annotations"] = [row for row in truth["annotations"] if row["image_id"] in seen]
    metrics = evaluate_all(truth, results)
    return {**metrics, "images": count, "images_per_second": 1 / float(np.mean(times[1:] or times))}


def compare_litert(
    model: MaskRCNN, files: Sequence[str | Path], dataset: CocoDataset, *, first: int | None = None
) -> str:
    """A Markdown table: AP, size and time of the Keras model and of files made of it.

    Args:
        model: the model.
        files: of `export_litert`.
        dataset, first: those of `evaluate_litert`.
    """
    keras = evaluate_model(model, dataset, first=first).metrics
    weights = sum(int(np.prod(w.shape)) for w in model.weights) * 4
    rows = [("Keras", weights, keras)]
    for file in map(Path, files):
        rows.append(
            (file.name, file.stat().st_size, evaluate_litert(LiteRTModel(file), dataset, first=first))
        )
    cells = []
    for name, size, metrics in rows:
        ap = [100 * metrics[f"{kind}/AP"] for kind in ("bbox", "segm")]
        base = [100 * keras[f"{kind}/AP"] for kind in ("bbox", "segm")]
        cells.append(
            [
                name,
                f"{size / 1e6:.1f}",
                *(f"{value:.1f}" for value in ap),
                *(f"{round(a - b, 1) + 0.0:+.1f}" for a, b in zip(ap, base, strict=True)),
                f"{1000 / metrics['images_per_second']:.0f}",
            ]
        )
    header = ["", "MB", "box AP", "mask AP", "box difference", "mask difference", "ms an image"]
    return markdown(header, cells)
