"""`train(config)`: everything that `train.py` does, from data to exported model."""

from __future__ import annotations

import importlib.util
import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from mrcnn_tf import visualize
from mrcnn_tf.build import build_batches, build_datasets, build_model
from mrcnn_tf.config import CONFIG_ENDINGS, Config, ConfigError, differences, dump_config, load_config
from mrcnn_tf.data.coco import CocoDataset
from mrcnn_tf.data.pipeline import step_image_ids
from mrcnn_tf.evaluation.coco import format_table
from mrcnn_tf.evaluation.huddled import format_huddled
from mrcnn_tf.evaluation.run import EvaluationResult, evaluate_model
from mrcnn_tf.export.card import training_of
from mrcnn_tf.export.saved_model import export_saved_model
from mrcnn_tf.files import save_json, save_text
from mrcnn_tf.models.class_rows import reclassed
from mrcnn_tf.models.mask_rcnn import MaskRCNN
from mrcnn_tf.models.mask_refining_rcnn import MaskRefiningRCNN
from mrcnn_tf.tables import some
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
from mrcnn_tf.training.pictures import draw_comparison, draw_sheet
from mrcnn_tf.training.repeatable import sums_in_order
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
    checkpoints = Checkpoints(folder / "checkpoints", settings.keep_checkpoints)
    source = None if config.init_from is None else Path(config.init_from)
    if source is not None and source.suffix in CONFIG_ENDINGS:
        phase = phase_config(config)
        source = phase.run_folder / "model.keras"
        if not (resume and checkpoints.steps()):
            stopped = run_phase(phase, str(config.init_from))
            if stopped is not None:
                return stopped
            resume = False  # broken off before this phase, there is nothing of it to go on from
    keras.utils.set_random_seed(config.seed)
    keras.config.set_dtype_policy(config.precision)
    if settings.deterministic:
        tf.config.experimental.enable_op_determinism()
    strategy = make_strategy(settings.devices, settings.batch_size)
    train_set, val_set = build_datasets(config)
    if source is not None and not resume and not source.exists():
        raise FileNotFoundError(f"init_from: {source}: no such model file")
    if not resume:
        move_aside(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_text(folder / "config.yaml", dump_config(config))

    with strategy.scope():
        model = build_model(config, train_set.class_names, train_set.category_ids)
        if not resume:
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
        with sums_in_order():
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
    if isinstance(model, MaskRefiningRCNN) and source is not None and source.exists() and val_set is not None:
        before = load_model(source)
        if set(val_set.class_names) <= set(before.class_names):
            draw_comparison(config, before, model, val_set)
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
        save_json(folder / "metrics.json", metrics, indent=1)
        save_json(folder / "predictions.json", evaluation.results)
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
        exported = export_saved_model(
            model, Path(config.export.folder) / config.name, card=training_of(folder)
        )
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


def phase_config(config: Config) -> Config:
    """The config that `init_from` names, with what it must share with the later run: model, data, seed, precision.

    It is trained on the same devices and beside the later run, and not exported.

    Raises:
        ConfigError: the config cannot be used, or both would write to one folder.
    """
    path = str(config.init_from)
    settings = load_config(path)
    shared = {key: getattr(config, key) for key in ("data", "seed", "precision", "output")}
    shared["model"] = config.model.model_copy(update={"refining": settings.model.refining})
    shared["train"] = settings.train.model_copy(update={"devices": config.train.devices})
    shared["export"] = settings.export.model_copy(update={"saved_model": False})
    settings = settings.model_copy(update=shared)
    if settings.run_folder == config.run_folder:
        raise ConfigError(
            f"init_from: {path} would write to {config.run_folder} like this config; give each a name, with {{name}} "
            "in output"
        )
    return settings


def run_phase(config: Config, path: str) -> Run | None:
    """Trains an earlier phase, unless its finished run is there already; the run if it was stopped, else nothing.

    A run that would have given other weights is moved aside, and it is said why.
    """
    folder = config.run_folder
    unlike = ["there is none yet"]
    if (folder / "config.yaml").exists():
        unlike = [d for d in differences(load_config(folder / "config.yaml"), config) if decides_weights(d)]
    if not unlike and (folder / "model.keras").exists():
        print(f"starting from {folder / 'model.keras'}, trained before with {path}")
        return None
    print(f"first {path}, to start from" + (f" ({'; '.join(unlike[:3])})" if unlike else ""), flush=True)
    run = train(config, resume=not unlike and bool(Checkpoints(folder / "checkpoints").steps()))
    return None if run.finished else run


def decides_weights(difference: str) -> bool:
    """Whether a line of `config.differences` is about a key that a trained model's weights depend on."""
    key = difference.partition(":")[0]
    section, _, name = key.partition(".")
    bookkeeping = ("devices", "log_every", "checkpoint_every", "keep_checkpoints", "tensorboard")
    return section in ("model", "data", "seed", "precision", "init_from") or (
        section == "train" and name not in bookkeeping
    )


def initialise(model: MaskRCNN, source: Path | None, config: Config, dataset: CocoDataset) -> None:
    """Weights to start from: those in `source`, a Mask R-CNN's for an MR R-CNN too; else the backbone's, if any."""
    if source is not None:
        trained = load_model(source)
        if trained.class_names != list(dataset.class_names):
            trained, *names = reclassed(trained, dataset.class_names, dataset.category_ids)
            for what, which in zip(("kept", "new", "left out"), names, strict=True):
                print(f"classes    {len(which)} {what}" + (f": {some(which)}" if which else ""))
        unlike = unlike_settings(trained, model)
        spoilt = [key for key in unlike if key.startswith(("normalize.", "backbone.dialect"))]
        if spoilt:
            raise ConfigError(
                f"init_from: {source} was trained on pixels that look otherwise: "
                + ", ".join(f"model.{key} {unlike[key][0]}, here {unlike[key][1]}" for key in spoilt)
                + "; take the model section of the config it was trained or imported with (docs/weights.md)"
            )
        for key, (theirs, ours) in unlike.items():
            print(f"note       {source} was trained with {key} {theirs}, this model has {ours}")
        try:
            if isinstance(model, MaskRefiningRCNN) and not isinstance(trained, MaskRefiningRCNN):
                model.start_from(trained)
            else:
                model.set_weights(trained.get_weights())
        except ValueError as error:
            raise ConfigError(
                f"init_from: {source} has another architecture than the config's model: "
                + (", ".join(unlike_parts(trained, model)) or str(error).splitlines()[0])
            ) from None
    elif config.model.backbone.weights == "imagenet":
        from mrcnn_tf.weights.imagenet import load_imagenet

        load_imagenet(model.backbone)


def unlike_parts(trained: MaskRCNN, model: MaskRCNN) -> list[str]:
    """In what the parts of two models differ, as `model.fpn.channels 256, here 24`."""
    out = []
    for part in MaskRCNN.PARTS:
        theirs, ours = (json.loads(json.dumps(getattr(m, part).get_config())) for m in (trained, model))
        keys = [
            key
            for key in theirs
            if key not in ("name", "dtype", "trainable") and theirs[key] != ours.get(key)
        ]
        out += [f"model.{part}.{key} {theirs[key]}, here {ours.get(key)}" for key in keys]
    return out


# Settings that decide what the numbers of a model mean; others are the training's own business.
CONVENTIONS = (
    "aligned",
    "sampling_ratio",
    "roi_end",
    "roi_shift",
    "roi_levels",
    "box_weights",
    "size_rule",
    "interpolation",
    "canvas",
    "norm_padding",
    "class_loss",
)


def unlike_settings(trained: MaskRCNN, model: MaskRCNN) -> dict[str, tuple[Any, Any]]:
    """Settings that the weights of one model may not suit in the other, though their shapes do."""
    values = [
        {
            **{key: m.settings[key] for key in CONVENTIONS},
            **{f"backbone.{key}": m.backbone.get_config()[key] for key in ("dialect", "epsilon")},
            **{f"normalize.{key}": m.normalize.get_config()[key] for key in ("mean", "std", "bgr")},
            **{
                f"rpn.{key}": m.rpn.get_config()[key]
                for key in ("anchor_sizes", "aspect_ratios", "anchor_offset", "anchor_rounding")
            },
        }
        for m in (trained, model)
    ]
    a, b = json.loads(json.dumps(values))  # lists and tuples are the same
    return {key: (a[key], b[key]) for key in a if a[key] != b[key]}


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
