"""Keras callbacks of a training run. They count steps, not epochs: a run is one long Keras epoch."""

from __future__ import annotations

import csv
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tqdm import tqdm

from mrcnn_tf.files import written_aside
from mrcnn_tf.training.checkpoints import Checkpoints, save_aside
from mrcnn_tf.training.state import TrainingState


def is_loss(name: str) -> bool:
    """Whether an entry of a step's logs is a loss and not a figure about the sampling."""
    return name == "loss" or name.endswith("_loss")


class StepCallback(keras.callbacks.Callback):
    """Counts the steps done since the start of the run, over resumptions."""

    def __init__(self, start: int = 0):
        super().__init__()
        self.step = start

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        """Hands on to `after`."""
        self.step += 1
        self.after(self.step, {k: float(v) for k, v in (logs or {}).items()})

    def after(self, step: int, logs: dict[str, float]) -> None:
        """Called with the number of steps done and the losses and figures of the last."""


class NotFinite(RuntimeError):
    """A loss became NaN or infinite."""


class StopIfNotFinite(StepCallback):
    """Ends training when a loss is not finite, before anything is saved of it.

    Args:
        start: steps done before.
        image_ids: gives the ids of the images of a step (counted from 0).
        advice: what the message ends on.
    """

    def __init__(self, start: int, image_ids: Callable[[int], list[int]], advice: str):
        super().__init__(start)
        self.image_ids, self.advice = image_ids, advice

    def after(self, step: int, logs: dict[str, float]) -> None:
        """Raises NotFinite."""
        bad = [name for name, value in logs.items() if is_loss(name) and not np.isfinite(value)]
        if bad:
            # The sum is not finite whenever a part is not: name the parts.
            parts = [name for name in bad if name != "loss"] or bad
            ids = ", ".join(map(str, self.image_ids(step - 1)))
            raise NotFinite(f"step {step}: {' and '.join(parts)} not finite, on images {ids}. {self.advice}")


class Progress(StepCallback):
    """A progress bar, `history.csv`, and warnings about steps that loss scaling skipped.

    Args:
        path: of the CSV file; rows beyond `start` are cut off. None: nothing is written or drawn, because another
            process does.
        start, total: steps done and steps in all.
        batch_size: images a step.
        every: steps per row; its figures are means over them.
        bar: whether to draw the bar.
    """

    def __init__(self, path: Path | None, start: int, total: int, batch_size: int, every: int):
        super().__init__(start)
        self.path, self.total, self.batch_size, self.every = path, total, batch_size, every
        self.rows = [r for r in read_rows(path) if r["step"] <= start] if path else []
        self.columns: list[str] = list(self.rows[0]) if self.rows else []
        self.pending: list[dict[str, float]] = []
        self.bar = tqdm(
            total=total, initial=start, unit="step", disable=not path, dynamic_ncols=True, mininterval=0.5
        )
        self.since = time.perf_counter()
        self.skipped = 0

    def on_train_begin(self, logs: dict | None = None) -> None:
        """Starts the file anew with the rows that still hold."""
        if not self.path:
            return
        with written_aside(self.path) as aside, aside.open("w", newline="") as file:
            if self.rows:
                writer = csv.DictWriter(file, self.columns)
                writer.writeheader()
                writer.writerows(self.rows)
        self.since = time.perf_counter()

    def after(self, step: int, logs: dict[str, float]) -> None:
        """Updates the bar; writes a row when it is time."""
        if not self.path:
            return
        self.pending.append(logs)
        if not np.isfinite(logs.get("gradient_norm", 0.0)):
            self.skipped += 1
        rate = float(self.model.optimizer.learning_rate)
        means = {k: float(np.mean([p[k] for p in self.pending])) for k in logs}
        seconds = time.perf_counter() - self.since
        speed = len(self.pending) * self.batch_size / max(seconds, 1e-9)
        losses = ["loss", *(f"{name}_loss" for name in self.model.LOSSES)]
        shown = {k.removesuffix("_loss"): f"{means[k]:.3f}" for k in losses}
        extra = {"lr": f"{rate:.2g}", "img/s": f"{speed:.1f}"}
        self.bar.set_postfix({**shown, **extra}, refresh=False)
        self.bar.update(1)
        if step % self.every and step != self.total:
            return
        row = {"step": step, "learning_rate": rate, "images_per_second": speed, **means}
        if self.skipped:
            self.note(
                f"step {step}: {self.skipped} of the last {len(self.pending)} steps were skipped while the loss scale "
                "settled"
            )
        self.write(self.path, row)
        self.pending, self.since, self.skipped = [], time.perf_counter(), 0

    def write(self, path: Path, row: dict[str, float]) -> None:
        """Appends a row to the file."""
        first = not self.rows
        self.rows.append(row)
        self.columns = self.columns or list(row)
        try:
            with path.open("a", newline="") as file:
                writer = csv.DictWriter(file, self.columns, extrasaction="ignore")
                if first:
                    writer.writeheader()
                writer.writerow(row)
        except OSError as error:
            raise OSError(
                f"{path}: could not be written ({error}); free some disk space and go on with --resume"
            ) from error

    def note(self, text: str) -> None:
        """Prints a line above the bar."""
        self.bar.write(text)

    def pause(self) -> None:
        """The clock stops: what follows is not training."""
        self.paused = time.perf_counter()

    def resume(self) -> None:
        """The clock goes on."""
        self.since += time.perf_counter() - self.paused


class TensorBoard(StepCallback):
    """Losses, learning rate, proposal recall and positives per image for TensorBoard.

    Args:
        folder: of the event files.
        start: steps done before.
        every: steps between points.
    """

    def __init__(self, folder: Path, start: int, every: int):
        super().__init__(start)
        self.writer, self.every = tf.summary.create_file_writer(str(folder)), every

    def after(self, step: int, logs: dict[str, float]) -> None:
        """Writes a point."""
        if step % self.every:
            return
        with self.writer.as_default(step):
            tf.summary.scalar("learning_rate", float(self.model.optimizer.learning_rate))
            for name, value in logs.items():
                tf.summary.scalar(("losses/" if is_loss(name) else "sampling/") + name, value)

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """Writes validation figures."""
        with self.writer.as_default(step):
            for name, value in values.items():
                tf.summary.scalar(f"validation/{name}", value)

    def picture(self, step: int, image: np.ndarray) -> None:
        """Writes a picture, uint8 `[H, W, 3]`."""
        with self.writer.as_default(step):
            tf.summary.image("validation", image[None])


class Validate(StepCallback):
    """AP on a validation subset during training, and `best.keras` by it.

    Args:
        start: steps done before.
        every: steps between evaluations; none at the last step, which training's own end evaluates.
        total: steps in all.
        evaluate: gives the metrics of the model as it is; None if another process computes them and acts on them, or if
            training is to stop and not to wait for them.
        best: the best mask AP so far.
        history: what was measured so far.
        checkpoints: where `best.keras` goes.
        progress, board: told of the figures.
    """

    def __init__(
        self,
        start: int,
        every: int,
        total: int,
        evaluate: Callable[[], dict[str, float] | None],
        best: float | None,
        history: Sequence[dict[str, float]],
        checkpoints: Checkpoints,
        progress: Progress,
        board: TensorBoard | None,
    ):
        super().__init__(start)
        self.every, self.total, self.evaluate, self.best = every, total, evaluate, best
        self.checkpoints, self.progress, self.board = checkpoints, progress, board
        self.history = list(history)

    def is_due(self, step: int) -> bool:
        """Whether an evaluation belongs after this step and has not been made: training was stopped in it."""
        made = [entry["step"] for entry in self.history]
        return step > 0 and step % self.every == 0 and step != self.total and step not in made

    def after(self, step: int, logs: dict[str, float]) -> None:
        """Evaluates when it is time."""
        if not self.is_due(step):
            return
        self.progress.pause()
        with averaged(self.model):
            metrics = self.evaluate()
            if metrics is None:
                return
            # A data set without masks has no mask AP.
            key = "segm/AP" if "segm/AP" in metrics else "bbox/AP"
            value = metrics[key]
            self.history.append({"step": step, **metrics})
            better = self.best is None or value > self.best
            if better:
                self.best = value
                save_aside(self.model, self.checkpoints.folder / "best.keras")
        shown = {"box AP": "bbox/AP", "mask AP": "segm/AP", "mask AP50": "segm/AP50"}
        text = ", ".join(f"{name} {metrics[k]:.3f}" for name, k in shown.items() if k in metrics)
        self.progress.note(f"step {step}: {text}{' (best so far)' if better else ''}")
        if self.board:
            self.board.metrics(step, metrics)
        self.progress.resume()


class StopRequest:
    """Within it, Ctrl-C and SIGTERM only ask training to stop. A second Ctrl-C ends it at once.

    Args:
        agreed: from whether this process was told to stop to whether all are to: they must stop after the same step.
    """

    def __init__(self, agreed: Callable[[bool], bool] = bool):
        self.agreed, self.told = agreed, False

    def asked(self) -> bool:
        """Whether all are to stop; all must call it."""
        return self.agreed(self.told)

    def __enter__(self) -> StopRequest:
        """Takes over the signals. Only the main thread may; elsewhere they stay as they are."""
        self.previous: dict[int, Any] = {}

        def handle(number, frame):
            self.told = True
            signal.signal(signal.SIGINT, self.previous.get(signal.SIGINT, signal.SIG_DFL))

        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self.previous[number] = signal.signal(number, handle)
            except ValueError:
                break
        return self

    def __exit__(self, *error: object) -> None:
        """Gives the signals back."""
        for number, handler in self.previous.items():
            signal.signal(number, handler)


class SaveAndStop(StepCallback):
    """Regular checkpoints; when asked to stop one more, and then the end.

    Args:
        start: steps done before.
        every: steps between checkpoints.
        total: steps in all.
        checkpoints: the folder; None: another process writes them.
        state: that of a number of steps.
        stop: asked after every step.
    """

    def __init__(
        self,
        start: int,
        every: int,
        total: int,
        checkpoints: Checkpoints | None,
        state: Callable[[int], TrainingState],
        stop: StopRequest,
    ):
        super().__init__(start)
        self.every, self.total, self.checkpoints, self.state = every, total, checkpoints, state
        self.stop, self.interrupted = stop, False

    def after(self, step: int, logs: dict[str, float]) -> None:
        """Saves when it is time or when told to stop."""
        self.interrupted = self.stop.asked()
        if self.checkpoints and (self.interrupted or step % self.every == 0 or step == self.total):
            self.checkpoints.save(self.model, self.state(step))
        if self.interrupted:
            self.model.stop_training = True


def innermost(optimizer: Any) -> Any:
    """The optimiser itself, without the wrapper that scales the loss."""
    return getattr(optimizer, "inner_optimizer", optimizer)


@contextmanager
def averaged(model: keras.Model) -> Iterator[None]:
    """Within it the model has the moving average of its weights, if its optimiser keeps one."""
    optimizer = innermost(model.optimizer)
    if not optimizer.use_ema:
        yield
        return
    weights = model.trainable_weights
    now = [w.numpy() for w in weights]
    optimizer.finalize_variable_values(weights)
    try:
        yield
    finally:
        for weight, value in zip(weights, now, strict=True):
            weight.assign(value)


def read_rows(path: Path) -> list[dict[str, float]]:
    """The whole rows of a `history.csv`; none if there is no file.

    A kill, a full disk or a machine that went down may have cut a row, or left zeros in its place.
    """
    if not path.exists():
        return []
    lines = path.read_text(errors="replace").splitlines(keepends=True)
    rows = []
    for row in csv.DictReader(line for line in lines if line.endswith("\n") and "\0" not in line):
        if None not in row and None not in row.values():
            with suppress(ValueError):
                rows.append({k: float(v) if k != "step" else int(v) for k, v in row.items()})
    return rows
