"""A model over a whole data set: COCO results, metrics, proposal recall, speed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from mrcnn_tf.data.coco import CocoDataset
from mrcnn_tf.data.pipeline import evaluation_batches
from mrcnn_tf.evaluation.huddled import evaluate_all
from mrcnn_tf.evaluation.recall import ProposalRecall
from mrcnn_tf.models.detections import Detections
from mrcnn_tf.models.mask_rcnn import MaskRCNN
from mrcnn_tf.tables import some

RECALL_AT = (100, 300, 1000)


@dataclass
class EvaluationResult:
    """What `evaluate_model` returns.

    Attributes:
        metrics: COCO's (`bbox/AP`, ..., `segm/AP`, ..., `per_class`), those of huddled instances (`huddled/...`),
            `proposals/recall@100`, ..., and `images`, `images_per_second`.
        results: entries in COCO's results format.
        pictures: indices into the data set and detections of its first images, as many as were asked for.
    """

    metrics: dict[str, Any]
    results: list[dict[str, Any]]
    pictures: list[tuple[int, Detections]] = field(default_factory=list)

    def speed_line(self) -> str:
        """A line for people."""
        m = self.metrics
        return f"{m['images']} images at {m['images_per_second']:.2f} images/s (network alone, after the first batch)"


class Stopped(Exception):
    """An evaluation was told to stop."""


@dataclass
class Part:
    """What a model found in some of a data set's images, in the data set's order: see `run_part`.

    Attributes:
        image_ids: of the images.
        results: entries in COCO's results format.
        recall: of the proposals.
        seconds: that the network took for each image.
        pictures: as in `EvaluationResult`, of these images.
    """

    image_ids: list[int] = field(default_factory=list)
    results: list[dict[str, Any]] = field(default_factory=list)
    recall: ProposalRecall = field(default_factory=lambda: ProposalRecall(RECALL_AT))
    seconds: list[float] = field(default_factory=list)
    pictures: list[tuple[int, Detections]] = field(default_factory=list)


def category_ids(class_names: Sequence[str], dataset: CocoDataset) -> list[int | None]:
    """The data set's id of each of a model's classes, by name; None for a class that the data set does not have.

    Raises:
        ValueError: the data set has classes that the model does not know.
    """
    ids = dict(zip(dataset.class_names, dataset.category_ids, strict=True))
    unknown = [name for name in ids if name not in class_names]
    if unknown:
        raise ValueError(
            f"{dataset.name}: has classes that the model does not know ({some(unknown)}); it knows "
            f"{some(class_names)}. Fine-tune it on them (init_from), or leave them out of the data set"
        )
    return [ids.get(name) for name in class_names]


def detections_of(
    model: MaskRCNN,
    dataset: CocoDataset,
    *,
    batch_size: int = 1,
    first: int | None = None,
    part: tuple[int, int] = (0, 1),
    bar: str | None = None,
) -> Iterator[tuple[int, Detections, np.ndarray, float]]:
    """Runs the model over a data set in its order.

    Args:
        model: the model.
        dataset: images of any sizes.
        batch_size: images at a time.
        first: stop after this many images.
        part: number i of n: of the n parts that these images fall into, batch by batch, only the i-th, from 0.
        bar: text of a progress bar, if there is to be one.

    Yields:
        For each image its index, what was found, the proposals `[N, 4]` in its pixels, and the seconds that
        the network took for it.
    """
    ids = category_ids(model.class_names, dataset)
    mine = images_of(len(dataset), first, batch_size, part)
    # By class: 0 is background, -1, the last, padding.
    wanted = np.array([False, *(number is not None for number in ids), False])
    batches = evaluation_batches(
        dataset,
        batch_size=batch_size,
        min_size=model.min_size,
        max_size=model.max_size,
        size_rule=model.size_rule,
        interpolation=model.interpolation,
        canvas=model.canvas,
        turn=False,
        only=mine,
    )
    index = {image_id: i for i, image_id in enumerate(dataset.image_ids)}
    with tqdm(
        total=len(mine), desc=bar, disable=bar is None, unit="image", dynamic_ncols=True, leave=False
    ) as progress:
        for batch in batches:
            start = time.perf_counter()
            inputs = (batch["images"], batch["image_sizes"], tf.cast(batch["original_sizes"], tf.float32))
            found = {k: v.numpy() for k, v in model.detect_batch(*inputs).items()}
            seconds = (time.perf_counter() - start) / len(batch["image_ids"])
            sizes, originals = batch["image_sizes"].numpy(), batch["original_sizes"].numpy()
            for row, image_id in enumerate(batch["image_ids"].numpy()):
                scale = np.tile(originals[row] / sizes[row], 2).astype(np.float32)
                kept = wanted[found["classes"][row]]
                own = {k: found[k][row][kept] for k in ("boxes", "scores", "classes", "masks")}
                own["boxes"] = own["boxes"] * scale
                height, width = (int(v) for v in originals[row])
                yield (
                    index[int(image_id)],
                    model.results(own, (height, width), ids),
                    found["proposals"][row] * scale,
                    seconds,
                )
            progress.update(len(batch["image_ids"]))


def images_of(count: int, first: int | None, batch_size: int, part: tuple[int, int]) -> range:
    """Which of `count` images a part has: see `detections_of`."""
    count = min(count, first or count)
    # Whole batches: what an image shares its canvas with must not depend on the parts.
    batches = -(-count // batch_size)
    return range(*(min(batches * (part[0] + i) // part[1] * batch_size, count) for i in (0, 1)))


def evaluate_model(
    model: MaskRCNN,
    dataset: CocoDataset,
    *,
    batch_size: int = 1,
    first: int | None = None,
    max_detections: tuple[int, int, int] = (1, 10, 100),
    pictures: int = 0,
    bar: str | None = "evaluating",
) -> EvaluationResult:
    """COCO and huddled metrics of a model, with masks in compact form throughout.

    Args:
        model: the model.
        dataset: whose classes the model knows; detections of its other classes are left out.
        batch_size: images at a time.
        first: evaluate on this many of the first images only.
        max_detections: see `evaluate_coco`.
        pictures: keep the detections of this many images.
        bar: text of the progress bar; None for no bar.

    Raises:
        ValueError: the model does not know all classes of the data set.
    """
    found = run_part(model, dataset, batch_size=batch_size, first=first, pictures=pictures, bar=bar)
    return score_parts(dataset, [found], batch_size=batch_size, max_detections=max_detections)


def run_part(
    model: MaskRCNN,
    dataset: CocoDataset,
    *,
    batch_size: int = 1,
    first: int | None = None,
    part: tuple[int, int] = (0, 1),
    pictures: int = 0,
    bar: str | None = None,
    stop: Callable[[], bool] | None = None,
) -> Part:
    """The model's share of `evaluate_model`, for one of several processes; `score_parts` is the rest.

    Args:
        model, dataset, batch_size, first, bar: see `evaluate_model`.
        part: see `detections_of`.
        pictures: keep the detections of this many of the first images, as far as this part has them.
        stop: asked after every batch whether to go no further; equally often in every part, so that workers may agree.

    Raises:
        ValueError: see `category_ids`.
        Stopped: `stop` said so.
    """
    out, asked = Part(), 0
    sizes = [len(images_of(len(dataset), first, batch_size, (i, part[1]))) for i in range(part[1])]
    mine, most = sizes[part[0]], -(-max(sizes) // batch_size)
    for i, found, proposals, seconds in detections_of(
        model, dataset, batch_size=batch_size, first=first, part=part, bar=bar
    ):
        instances = dataset.instances(i)
        out.recall.update(proposals, instances.boxes, crowd=instances.crowd)
        out.results += found.to_coco(dataset.image_ids[i])
        out.image_ids.append(dataset.image_ids[i])
        if i < pictures:
            out.pictures.append((i, found))
        out.seconds.append(seconds)
        if stop is not None and (len(out.image_ids) % batch_size == 0 or len(out.image_ids) == mine):
            asked += 1
            if stop():
                raise Stopped
    while stop is not None and asked < most:
        asked += 1
        if stop():
            raise Stopped
    return out


def score_parts(
    dataset: CocoDataset,
    parts: Sequence[Part],
    *,
    batch_size: int = 1,
    max_detections: tuple[int, int, int] = (1, 10, 100),
) -> EvaluationResult:
    """The metrics of `evaluate_model` from all parts, in their order: the same figures, however many there are."""
    recall = ProposalRecall(RECALL_AT)
    for part in parts:
        recall.extend(part.recall)
    results = [entry for part in parts for entry in part.results]
    seen = {image_id for part in parts for image_id in part.image_ids}
    truth = dataset.ground_truth()
    if len(seen) < len(dataset):
        truth["images"] = [image for image in truth["images"] if image["id"] in seen]
        truth["annotations"] = [a for a in truth["annotations"] if a["image_id"] in seen]
    metrics = evaluate_all(truth, results, max_detections=max_detections)
    metrics.update({f"proposals/{k}": v for k, v in recall.result().items()})
    # A part's first batch pays for tracing. The parts ran at the same time.
    timed = [part.seconds[batch_size:] or part.seconds for part in parts if part.seconds]
    speed = sum(1 / float(np.mean(seconds)) for seconds in timed)
    metrics.update(images=len(seen), images_per_second=speed)
    return EvaluationResult(metrics, results, [picture for part in parts for picture in part.pictures])


def sweep_alpha(
    model: MaskRCNN, dataset: CocoDataset, alphas: Sequence[float], **settings: Any
) -> list[dict[str, Any]]:
    """Metrics of an MR R-CNN at several weights of its refined scores (the paper's alpha), without training.

    Args:
        model: the model; it keeps the last alpha.
        dataset: with the model's classes.
        alphas: not negative; 0 takes the scores of the first stage alone.
        **settings: of `evaluate_model`.

    Returns:
        For each alpha the metrics of `evaluate_model`.

    Raises:
        ValueError: the model has no refined scores to weigh, or an alpha is negative or not finite.
    """
    if not getattr(model, "refine_classes", False):
        raise ValueError(
            f"{type(model).__name__} has no alpha: it scores only once; give a model that was trained with "
            "model.refining and its refine_classes"
        )
    for alpha in alphas:
        if not 0 <= alpha < float("inf"):
            raise ValueError(f"alpha must be a number from 0 on, not {alpha}")
    rows = []
    for alpha in alphas:
        model.set_alpha(alpha)
        rows.append(evaluate_model(model, dataset, bar=f"alpha {alpha:g}", **settings).metrics)
    return rows
