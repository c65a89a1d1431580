"""`train(config)`: everything that `train.py` does, from data to exported model."""

from __future__ import annotations

import contextlib
import importlib.util
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from mrcnn_tf import visualize
from mrcnn_tf.build import build_batches, build_datasets, build_model
from mrcnn_tf.config import CONFIG_ENDINGS, ConfigError, dump_config
from mrcnn_tf.data.coco import CocoDataset
from mrcnn_tf.data.pipeline import step_image_ids
from mrcnn_tf.evaluation.coco import format_table
from mrcnn_tf.evaluation.huddled import format_huddled
from mrcnn_tf.evaluation.run import EvaluationResult, Stopped, run_part, score_parts
from mrcnn_tf.export.card import training_of
from mrcnn_tf.export.saved_model import export_saved_model
from mrcnn_tf.files import remove_partial, save_json, save_text
from mrcnn_tf.models.mask_rcnn import MaskRCNN
from mrcnn_tf.models.mask_refining_rcnn import MaskRefiningRCNN
from mrcnn_tf.schema import Config
from mrcnn_tf.training.callbacks import (
    Progress,
    SaveAndStop,
    StopIfNotFinite,
    StopRequest,
    TensorBoard,
    Validate,
    innermost,
)
from mrcnn_tf.training.checkpoints import Checkpoints, load_model, save_aside
from mrcnn_tf.training.distribution import check_split, make_strategy, scaled, split_batches, train_function
from mrcnn_tf.training.folder import move_aside, nobody_else, unrelated
from mrcnn_tf.training.initialise import initialise
from mrcnn_tf.training.optimizers import build_optimizer
from mrcnn_tf.training.phases import FINISHED, NOT_BEGUN, phase_config, phase_state
from mrcnn_tf.training.pictures import draw_comparison, draw_sheet
from mrcnn_tf.training.repeatable import sums_in_order
from mrcnn_tf.training.state import TrainingState, checksum, state_at_start
from mrcnn_tf.training.summary import summary
from mrcnn_tf.training.workers import (
    anywhere,
    appears,
    check_shared,
    chief_first,
    from_chief,
    handed_to_chief,
    is_chief,
    leave_together,
    lost_workers_explained,
    must_agree,
    only_chief_prints,
    worker,
    workers,
)


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
    the same folder is moved aside, unless it is resumed. Of several workers, which all call this, the first writes.

    Args:
        config: see `mrcnn_tf.load_config`.
        resume: go on from the newest good checkpoint of the run folder, if there is one; the result is that of an
            undisturbed run.
        callbacks: more Keras callbacks.

    Raises:
        ConfigError: the config does not fit the data or the machine.
        OSError, ValueError: data or model files that cannot be read or written; a checkpoint of another model.
        NotFinite: a loss became NaN or infinite; the newest checkpoint is good.
        WorkerLost: another worker has gone.
    """
    strategy = make_strategy(config.train.devices)  # before anything else can wake TensorFlow
    with only_chief_prints(strategy), lost_workers_explained(strategy):
        run = _train(scaled(config, strategy.num_replicas_in_sync), strategy, resume, callbacks or [])
        leave_together(strategy)
    return run


def _train(
    config: Config, strategy: tf.distribute.Strategy, resume: bool, callbacks: list[keras.callbacks.Callback]
) -> Run:
    check_split(strategy, config.train.batch_size)
    source = None if config.init_from is None else Path(config.init_from)
    resume = bool(from_chief(strategy, lambda: resume))
    if source is not None and source.suffix in CONFIG_ENDINGS:
        phase = scaled(phase_config(config), strategy.num_replicas_in_sync)
        source = phase.run_folder / "model.keras"
        steps = Checkpoints(config.run_folder / "checkpoints").steps
        if not from_chief(strategy, lambda: resume and bool(steps())):
            stopped = run_phase(phase, str(config.init_from), strategy)
            if stopped is not None:
                return stopped
    keras.utils.set_random_seed(config.seed)
    keras.config.set_dtype_policy(config.precision)
    if config.train.deterministic:
        tf.config.experimental.enable_op_determinism()
    with chief_first(strategy):
        sets = build_datasets(config)
    must_agree(
        strategy, fingerprint(config, sets[0]), "the workers' configs or training sets are not the same"
    )
    if source is not None and not resume and not source.exists():
        raise FileNotFoundError(f"init_from: {source}: no such model file")
    if not is_chief(strategy):
        return _train_in(config, strategy, resume, source, *sets, callbacks)
    with nobody_else(config.run_folder):
        if not resume or unrelated(config.run_folder):
            move_aside(config.run_folder)
    with nobody_else(config.run_folder):  # a new one, if the old one was moved
        return _train_in(config, strategy, resume, source, *sets, callbacks)


def _train_in(
    config: Config,
    strategy: tf.distribute.Strategy,
    resume: bool,
    source: Path | None,
    train_set: CocoDataset,
    val_set: CocoDataset | None,
    callbacks: list[keras.callbacks.Callback],
) -> Run:
    settings, folder, chief = config.train, config.run_folder, is_chief(strategy)
    checkpoints = Checkpoints(folder / "checkpoints", settings.keep_checkpoints)
    if chief:
        for place in (folder, checkpoints.folder):
            remove_partial(place)
    check_shared(strategy, folder)

    with strategy.scope():
        model = build_model(config, train_set.class_names, train_set.category_ids)
        optimizer = build_optimizer(config, model)
        # XLA would compile every image size anew, and has no kernel for NMS.
        model.compile(optimizer=optimizer, jit_compile=False)
        model.clip_norm = settings.clip_norm
        state = state_at_start(config, model, train_set.image_ids)
        start = newest_step(strategy, checkpoints) if resume else 0
        if start:
            # All workers at once: what a variable gets, TensorFlow takes from the chief.
            before = checkpoints.restore(model, start, state)
            state = replace(state, step=start, best=before.best, validations=before.validations)
        else:
            initialise(model, source, config, train_set)
    if chief:
        save_text(folder / "config.yaml", dump_config(config))
    print(summary(config, model, train_set, val_set, strategy.num_replicas_in_sync, start), flush=True)

    if settings.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise ConfigError("train.tensorboard: needs a package; pip install tensorboard, or set it to false")
    board = None
    if settings.tensorboard and chief:
        board = TensorBoard(folder / "tensorboard", start, settings.log_every)
    progress = Progress(
        folder / "history.csv" if chief else None,
        start,
        settings.steps,
        settings.batch_size,
        settings.log_every,
    )
    stop = StopRequest(lambda told: anywhere(strategy, told))
    validate = None
    if val_set is not None and config.evaluation.every:
        validate = Validate(
            start,
            config.evaluation.every,
            settings.steps,
            lambda: metrics_of(evaluate(config, model, val_set, strategy, subset=True, stop=stop)),
            state.best,
            state.validations,
            checkpoints,
            progress,
            board,
        )

    def state_now(step: int) -> TrainingState:
        if validate is None:
            return replace(state, step=step)
        return replace(state, step=step, best=validate.best, validations=validate.history)

    save = SaveAndStop(
        start, settings.checkpoint_every, settings.steps, checkpoints if chief else None, state_now, stop
    )
    guard = StopIfNotFinite(
        start,
        lambda step: step_image_ids(train_set, step, **order_of(config)),
        f"Lower train.learning_rate or set train.clip_norm; --resume goes on from {checkpoints.folder}",
    )
    mine = [guard, progress, board, validate, save]
    if start < settings.steps:
        model.train_function = train_function(strategy, model)
        with stop, sums_in_order(), contextlib.closing(progress.bar):
            if validate is not None:
                validate.set_model(model)
                validate.after(start, {})  # if training was stopped in it
            save.interrupted = stop.asked()
            if not save.interrupted:
                model.fit(
                    split_batches(
                        strategy,
                        lambda slices, wanted: build_batches(config, train_set, start, slices, wanted),
                    ),
                    # One Keras epoch: a step count survives a resumption in the middle, an epoch count does not.
                    steps_per_epoch=settings.steps - start,
                    verbose=0,
                    shuffle=False,  # the data set has its own order
                    callbacks=[c for c in mine if c is not None] + callbacks,
                )
    if save.interrupted:
        print(f"stopped after step {save.step}; go on with --resume")
        return Run(folder, model, {}, None, finished=False)
    evaluation = conclude(config, model, val_set, strategy)
    if not chief:
        return Run(folder, model, {}, None, finished=True)
    run = finish(config, model, val_set, evaluation, validate.history if validate else [], board)
    if isinstance(model, MaskRefiningRCNN) and source is not None and source.exists() and val_set is not None:
        before = load_model(source)
        if set(val_set.class_names) <= set(before.class_names):
            draw_comparison(config, before, model, val_set)
    return run


def conclude(
    config: Config, model: MaskRCNN, val_set: CocoDataset | None, strategy: tf.distribute.Strategy
) -> EvaluationResult | None:
    """What all workers do after the last step: averaged weights, saved by the chief, which gets the evaluation."""
    optimizer = innermost(model.optimizer)
    if optimizer.use_ema:
        optimizer.finalize_variable_values(model.trainable_weights)
    if is_chief(strategy):
        save_aside(model, config.run_folder / "model.keras")
    if val_set is None:
        return None
    return evaluate(config, model, val_set, strategy, pictures=config.evaluation.pictures)


def finish(
    config: Config,
    model: MaskRCNN,
    val_set: CocoDataset | None,
    evaluation: EvaluationResult | None,
    history: list[dict[str, float]],
    board: TensorBoard | None,
) -> Run:
    """The metrics, pictures and files of a trained model."""
    folder = config.run_folder
    metrics: dict[str, Any] = {}
    if val_set is not None and evaluation is not None:
        metrics = evaluation.metrics
        history = [*history, {"step": config.train.steps, **metrics}]
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
    if metrics:
        # The last of the run's files: one that has it is finished. A model card tells of it.
        save_json(folder / "metrics.json", metrics, indent=1)
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
    config: Config,
    model: MaskRCNN,
    dataset: CocoDataset,
    strategy: tf.distribute.Strategy,
    *,
    subset: bool = False,
    pictures: int = 0,
    stop: StopRequest | None = None,
) -> EvaluationResult | None:
    """`evaluate_model` with a config's settings, each worker on its part; None but for the chief, or if stopped."""
    settings = config.evaluation
    try:
        part = run_part(
            model,
            dataset,
            batch_size=settings.batch_size,
            first=settings.subset if subset else None,
            part=(worker(strategy), workers(strategy)),
            pictures=pictures,
            bar="evaluating" if is_chief(strategy) else None,
            stop=stop.asked if stop else None,
        )
    except Stopped:
        return None
    parts = handed_to_chief(strategy, config.run_folder, part)
    if parts is None:
        return None
    return score_parts(dataset, parts, batch_size=settings.batch_size, max_detections=settings.max_detections)


def metrics_of(evaluation: EvaluationResult | None) -> dict[str, Any] | None:
    """The metrics of an evaluation, if there is one."""
    return evaluation.metrics if evaluation else None


def fingerprint(config: Config, dataset: CocoDataset) -> int:
    """A number that differs where a training would: of the config and the order of the images."""
    return zlib.crc32(dump_config(config).encode(), checksum(dataset.image_ids))


def run_phase(config: Config, path: str, strategy: tf.distribute.Strategy) -> Run | None:
    """Trains an earlier phase, unless its finished run is there already; the run if it was stopped, else nothing.

    A run that would have given other weights is moved aside, and it is said why.
    """
    state = from_chief(strategy, lambda: phase_state(config, path))
    if state == FINISHED:
        return None
    run = train(config, resume=state != NOT_BEGUN)
    return None if run.finished else run


def order_of(config: Config) -> dict[str, Any]:
    """What decides which images a step has."""
    return {
        "batch_size": config.train.batch_size,
        "canvas": config.data.canvas,
        "aspect_grouping": config.data.aspect_grouping,
        "seed": config.seed,
    }


def newest_step(strategy: tf.distribute.Strategy, checkpoints: Checkpoints) -> int:
    """Of the checkpoint that all workers go on from; 0 if there is none, which is said."""
    step = from_chief(strategy, lambda: checkpoints.newest() or 0)
    if not step:
        print(f"{checkpoints.folder}: has no checkpoint to go on from; training begins at step 0", flush=True)
        return 0
    path = checkpoints.path(step)
    must_agree(strategy, int(appears(path)), f"{path}: does not appear on all workers")
    return step
