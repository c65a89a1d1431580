"""`train(config)`: everything that `train.py` does, from data to exported model."""

from __future__ import annotations

import importlib.util
import json
import math
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from mrcnn_tf import visualize
from mrcnn_tf.build import build_batches, build_datasets, build_model
from mrcnn_tf.config import CONFIG_ENDINGS, Config, ConfigError, dump_config, load_config
from mrcnn_tf.data.coco import CocoDataset
from mrcnn_tf.data.pipeline import step_image_ids
from mrcnn_tf.evaluation.coco import format_table
from mrcnn_tf.evaluation.huddled import format_huddled, neighbour_overlaps
from mrcnn_tf.evaluation.run import EvaluationResult, check_classes, evaluate_model
from mrcnn_tf.export.saved_model import export_saved_model
from mrcnn_tf.models.mask_rcnn import MaskRCNN
from mrcnn_tf.models.mask_refining_rcnn import MaskRefiningRCNN
from mrcnn_tf.training.callbacks import (
    Progress,
    SaveAndStop,
    StopIfNotFinite,
    TensorBoard,
    Validate,
    innermost,
)
from mrcnn_tf.training.checkpoints import Checkpoints, load_model, save_aside
from mrcnn_tf.training.optimizers import Schedule, make_optimizer
from mrcnn_tf.training.summary import summary


@dataclass
class Run:
    """What a training left behind.

    Attributes:
        folder: the run's folder.
        model: the trained model.
        metrics: those of `metrics.json`; empty if there is no validation set or the run was stopped.
        saved_model: folder of the exported version, if one was written.
        finished: false if the run was stopped before its last step.
    """

    folder: Path
    model: MaskRCNN
    metrics: dict[str, Any]
    saved_model: Path | None
    finished: bool


def train(
    config: Config, *, resume: bool = False, callbacks: list[keras.callbacks.Callback] | None = None
) -> Run:
    """Trains, evaluates, draws and exports.

    Writes to the run folder: `config.yaml` as resolved, `history.csv`, `losses.png`, `ap.png`, `metrics.json`,
    `predictions.json`, `validation.png` (prediction beside truth), `comparison.png` (for MR R-CNN: the model it started
    from above it), `checkpoints/`, `model.keras`; and a SavedModel to `EXPORT_FOLDER/NAME/VERSION/`. An earlier run in
    the same folder is moved aside, unless it is resumed.

    Args:
        config: see `mrcnn_tf.load_config`.
        resume: go on from the newest checkpoint of the run folder; the result is that of an undisturbed run.
        callbacks: more Keras callbacks.

    Raises:
        ConfigError: the config does not fit the data or the machine.
        OSError, ValueError: data or model files that cannot be read or written.
        NotFinite: a loss became NaN or infinite; the newest checkpoint is good.
    """
    settings, folder = config.train, config.run_folder
    source = None if config.init_from is None else Path(config.init_from)
    if source is not None and source.suffix in CONFIG_ENDINGS:
        phase = earlier_phase(config)
        if not phase.finished:
            return phase
        source = phase.folder / "model.keras"
        # Broken off before this phase, it has no checkpoint to go on from.
        resume = resume and (folder / "checkpoints").exists()
    keras.utils.set_random_seed(config.seed)
    keras.config.set_dtype_policy(config.precision)
    if settings.deterministic:
        tf.config.experimental.enable_op_determinism()
    strategy = make_strategy(settings.devices, settings.batch_size)
    train_set, val_set = build_datasets(config)
    if not resume:
        move_aside(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(dump_config(config))

    with strategy.scope():
        model = build_model(config, train_set.class_names, train_set.category_ids)
        initialise(model, source, config, train_set)
        schedule = Schedule(
            settings.learning_rate,
            settings.schedule,
            settings.steps,
            settings.warmup_steps,
            settings.warmup_factor,
            tuple(settings.milestones),
            settings.gamma,
            settings.final,
        )
        optimizer = make_optimizer(
            model,
            name=settings.optimizer,
            schedule=schedule,
            weight_decay=settings.weight_decay,
            momentum=settings.momentum,
            decay_norms=settings.decay_norms,
            decay_biases=settings.decay_biases,
            ema=settings.ema,
        )
        # XLA would compile every image size anew, and has no kernel for NMS.
        model.compile(optimizer=optimizer, jit_compile=False)
        model.clip_norm = settings.clip_norm

    checkpoints = Checkpoints(folder / "checkpoints", settings.keep_checkpoints)
    start, best = checkpoints.restore(model) if resume else (0, None)
    print(summary(config, model, train_set, val_set, strategy.num_replicas_in_sync, start), flush=True)

    if settings.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise ConfigError("train.tensorboard: needs a package; pip install tensorboard, or set it to false")
    board = TensorBoard(folder / "tensorboard", start, settings.log_every) if settings.tensorboard else None
    progress = Progress(
        folder / "history.csv", start, settings.steps, settings.batch_size, settings.log_every, bar=True
    )
    validate = None
    if val_set is not None and config.evaluation.every:
        validate = Validate(
            start,
            config.evaluation.every,
            settings.steps,
            lambda: evaluate(config, model, val_set, subset=True).metrics,
            best,
            checkpoints,
            progress,
            board,
        )
    save = SaveAndStop(
        start,
        settings.checkpoint_every,
        settings.steps,
        checkpoints,
        lambda: validate.best if validate else None,
    )
    guard = StopIfNotFinite(
        start,
        lambda step: step_image_ids(train_set, step, **order_of(config)),
        f"Lower train.learning_rate or set train.clip_norm; --resume goes on from {checkpoints.folder}",
    )
    mine = [guard, progress, board, validate, save]
    if start < settings.steps:
        model.fit(
            build_batches(config, train_set, start),
            # One Keras epoch: a step count survives a resumption in the middle, an epoch count does not.
            steps_per_epoch=settings.steps - start,
            verbose=0,
            shuffle=False,  # the data set has its own order
            callbacks=[c for c in mine if c is not None] + (callbacks or []),
        )
    if save.interrupted:
        print(f"stopped after step {save.step}; go on with --resume")
        return Run(folder, model, {}, None, finished=False)
    run = finish(config, model, val_set, folder, validate.history if validate else [], board)
    if isinstance(model, MaskRefiningRCNN) and source is not None and val_set is not None:
        compare(config, load_model(source), model, val_set)
    return run


def finish(
    config: Config,
    model: MaskRCNN,
    val_set: CocoDataset | None,
    folder: Path,
    history: list[dict[str, float]],
    board: TensorBoard | None,
) -> Run:
    """What comes after the last step: averaged weights, metrics, pictures, files."""
    optimizer = innermost(model.optimizer)
    if optimizer.use_ema:
        optimizer.finalize_variable_values(model.trainable_weights)
    save_aside(model, folder / "model.keras")
    metrics: dict[str, Any] = {}
    if val_set is not None:
        evaluation = evaluate(config, model, val_set, pictures=config.evaluation.pictures)
        metrics = evaluation.metrics
        history = [*history, {"step": config.train.steps, **metrics}]
        write_json(folder / "metrics.json", metrics)
        write_json(folder / "predictions.json", evaluation.results)
        sheet = None
        if evaluation.pictures:
            sheet = draw_sheet(val_set, evaluation, config.evaluation.picture_score)
            visualize.save(folder / "validation.png", sheet)
        if board:
            board.metrics(config.train.steps, {k: v for k, v in metrics.items() if isinstance(v, float)})
            if sheet is not None:
                board.picture(config.train.steps, sheet)
        print(f"{format_table(metrics)}\n\n{format_huddled(metrics)}\n")
        print(evaluation.speed_line())
    visualize.plot_history(folder, history)
    exported = None
    if config.export.saved_model:
        exported = export_saved_model(model, Path(config.export.folder) / config.name)
    print(f"\nrun folder   {folder}\nmodel        {folder / 'model.keras'}")
    if exported:
        print(f"SavedModel   {exported}")
    return Run(folder, model, metrics, exported, finished=True)


def evaluate(
    config: Config, model: MaskRCNN, dataset: CocoDataset, *, subset: bool = False, pictures: int = 0
) -> EvaluationResult:
    """`evaluate_model` with a config's settings."""
    settings = config.evaluation
    return evaluate_model(
        model,
        dataset,
        batch_size=settings.batch_size,
        first=settings.subset if subset else None,
        max_detections=settings.max_detections,
        pictures=pictures,
    )


def compare(config: Config, before: MaskRCNN, after: MaskRCNN, dataset: CocoDataset) -> None:
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
        headers=[Path(dataset.path(i)).name for i in images],
        captions=[f"Mask R-CNN, {config.init_from}", f"MR R-CNN, {config.name}", "truth"],
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
        rows.append((image, found.filter(score), truth, names, Path(dataset.path(index)).name))
    return visualize.validation_sheet(rows)


def earlier_phase(config: Config) -> Run:
    """Trains the config that `init_from` names, unless its finished run is there already.

    It is trained with the data, seed, precision, devices and place of the later run, so that runs which start from
    the same config start from the same model.

    Raises:
        ConfigError: the config cannot be used, or both would write to one folder.
    """
    path = str(config.init_from)
    settings = load_config(path)
    shared = {key: getattr(config, key) for key in ("data", "seed", "precision", "output")}
    shared["train"] = settings.train.model_copy(update={"devices": config.train.devices})
    shared["export"] = settings.export.model_copy(update={"saved_model": False})
    settings = settings.model_copy(update=shared)
    folder = settings.run_folder
    if folder == config.run_folder:
        raise ConfigError(
            f"init_from: {path} would write to {folder} like this config; give each a name, with {{name}} in output"
        )
    same = False
    if (folder / "config.yaml").exists():
        written = load_config(folder / "config.yaml")
        same = written.model_copy(update={"export": settings.export}) == settings
    if same and (folder / "model.keras").exists():
        print(f"starting from {folder / 'model.keras'}, which {path} trained before")
        return Run(folder, load_model(folder / "model.keras"), {}, None, finished=True)
    print(f"first {path}, to start from", flush=True)
    return train(settings, resume=same and (folder / "checkpoints").exists())


def initialise(model: MaskRCNN, source: Path | None, config: Config, dataset: CocoDataset) -> None:
    """Weights to start from: those in `source`, a Mask R-CNN's for an MR R-CNN too; else the backbone's, if any."""
    if source is not None:
        trained = load_model(source)
        check_classes(trained, dataset)
        try:
            if isinstance(model, MaskRefiningRCNN) and not isinstance(trained, MaskRefiningRCNN):
                model.start_from(trained)
            else:
                model.set_weights(trained.get_weights())
        except ValueError as error:
            raise ConfigError(
                f"init_from: {source} has another architecture than the config's model "
                f"({str(error).splitlines()[0]})"
            ) from None
    elif config.model.backbone.weights == "imagenet":
        from mrcnn_tf.weights.imagenet import load_imagenet

        load_imagenet(model.backbone)


def make_strategy(devices: str | int, batch_size: int) -> tf.distribute.Strategy:
    """One device, or several with the batch split over them.

    Args:
        devices: `"auto"`: all GPUs, else the CPU; or a number of GPUs, or of logical CPU devices where there is no GPU.
        batch_size: of all devices together.

    Raises:
        ConfigError: there are not that many devices, or the batch cannot be split evenly.
    """
    found = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    kind = found[0].device_type
    count = (len(found) if kind == "GPU" else 1) if devices == "auto" else int(devices)
    if count > len(found):
        raise ConfigError(f"train.devices: is {count}, but there are {len(found)} {kind} devices")
    if batch_size % count:
        raise ConfigError(
            f"train.batch_size: is {batch_size}, not divisible by the {count} devices; "
            f"take {math.ceil(batch_size / count) * count}"
        )
    if count == 1:
        return tf.distribute.get_strategy()
    return tf.distribute.MirroredStrategy([f"{kind}:{i}" for i in range(count)])


def order_of(config: Config) -> dict[str, Any]:
    """What decides which images a step has."""
    return {
        "batch_size": config.train.batch_size,
        "canvas": config.data.canvas,
        "aspect_grouping": config.data.aspect_grouping,
        "seed": config.seed,
    }


def move_aside(folder: Path) -> None:
    """Renames the folder of an earlier run, so that nothing of it is overwritten."""
    if not folder.exists() or not any(folder.iterdir()):
        return
    number = 1
    while (aside := folder.with_name(f"{folder.name}.{number}")).exists():
        number += 1
    os.rename(folder, aside)
    print(f"the earlier run in {folder} is now in {aside}")


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file under another name first."""
    aside = path.with_suffix(".partial")
    aside.write_text(json.dumps(value, indent=1 if isinstance(value, dict) else None))
    os.replace(aside, path)
