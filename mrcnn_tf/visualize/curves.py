"""Curves of a training run, as PNG: losses, learning rate and COCO metrics over the steps."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

__all__ = ["plot_history", "plot_losses", "plot_metrics", "read_history"]

History = str | Path | Mapping[str, Sequence[float]] | Sequence[Mapping[str, Any]]


def read_history(history: History) -> dict[str, NDArray[np.float64]]:
    """Bring a history into columns.

    Args:
        history: the path of a CSV file with a header, a dict of equally long lists (Keras'
            `History.history`), or a list of dicts. Values that are missing, or are not numbers, become NaN.

    Returns:
        `{name: float64 [rows]}`, always with `"step"`: its own, `"epoch"`, or 0, 1, 2, ...

    Raises:
        FileNotFoundError: if the CSV does not exist.
    """
    if isinstance(history, (str, Path)):
        try:
            with open(history, encoding="utf-8", newline="") as file:
                history = list(csv.DictReader(file))
        except FileNotFoundError:
            raise FileNotFoundError(
                f"{history}: no such file; give the history.csv of a run folder"
            ) from None
    if isinstance(history, Mapping):
        columns = {name: np.array([_float(v) for v in values]) for name, values in history.items()}
    else:
        names = dict.fromkeys(name for row in history for name in row)
        columns = {name: np.array([_float(row.get(name)) for row in history]) for name in names}
    count = max((len(values) for values in columns.values()), default=0)
    columns.setdefault("step", columns.get("epoch", np.arange(count, dtype=np.float64)))
    return columns


def plot_losses(path: str | Path, history: History) -> None:
    """Plot every column with "loss" in its name over the steps, and the learning rate below.

    The thin line is what was logged, the thick one its running mean over a fiftieth of the run. The scale is
    logarithmic.

    Args:
        path: PNG to write; folders are made.
        history: see `read_history`. Without a loss in it, no file is written.
    """
    columns = read_history(history)
    losses = {name: values for name, values in columns.items() if "loss" in name.lower() and _any(values)}
    if not losses:
        return
    rate = next((columns[k] for k in ("learning_rate", "lr") if k in columns and _any(columns[k])), None)
    figure = Figure(figsize=(9, 6.5 if rate is not None else 5), dpi=120, layout="constrained")
    axes = figure.subplots(
        2 if rate is not None else 1,
        1,
        sharex=True,
        squeeze=False,
        height_ratios=[4, 1][: 1 + (rate is not None)],
    )
    main = axes[0, 0]
    for i, (name, values) in enumerate(losses.items()):
        known = np.isfinite(values)
        steps, values = columns["step"][known], values[known]
        shade = "black" if name == "loss" else f"C{i}"
        main.plot(steps, values, color=shade, linewidth=0.6, alpha=0.25)
        main.plot(steps, _smooth(values), color=shade, linewidth=1.8, label=name)
    if all((values[np.isfinite(values)] > 0).all() for values in losses.values()):
        main.set_yscale("log")
    main.set_ylabel("loss")
    main.grid(alpha=0.3, which="both", linewidth=0.5)
    main.legend(fontsize=8, ncols=2, loc="upper right")
    if rate is not None:
        known = np.isfinite(rate)
        axes[1, 0].plot(columns["step"][known], rate[known], color="C0", linewidth=1.5)
        axes[1, 0].set_ylabel("learning rate")
        axes[1, 0].set_ylim(bottom=0)
        axes[1, 0].grid(alpha=0.3, linewidth=0.5)
    axes[-1, 0].set_xlabel("step")
    _write(figure, path)


def plot_metrics(path: str | Path, history: History) -> None:
    """Plot COCO's AP of boxes and of masks over the steps, and the proposals' recall where it was logged.

    Args:
        path: PNG to write; folders are made.
        history: see `read_history`; columns `bbox/AP`, `segm/AP50`, ..., `proposals/recall@100`, .... Values
            below 0 mean that there was nothing to find and are left out. Without any such column, no file is
            written.
    """
    columns = {name: np.where(values < 0, np.nan, values) for name, values in read_history(history).items()}
    titles = {"bbox": "box AP", "segm": "mask AP", "proposals": "proposal recall"}
    panels: dict[str, dict[str, NDArray[np.float64]]] = {}
    for name, values in columns.items():
        prefix, _, key = name.partition("/")
        # AR follows AP so closely that twelve lines would say no more than six.
        if prefix in titles and not key.startswith("AR") and _any(values):
            panels.setdefault(titles[prefix], {})[key] = values
    if not panels:
        return
    figure = Figure(figsize=(4.6 * len(panels) + 0.4, 4.2), dpi=120, layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axis, (title, lines) in zip(axes, panels.items(), strict=True):
        for i, (name, values) in enumerate(lines.items()):
            known = np.isfinite(values)
            strong = name == "AP"
            axis.plot(
                columns["step"][known],
                values[known],
                color="black" if strong else f"C{i}",
                linewidth=2.2 if strong else 1.3,
                marker="o",
                markersize=3.5,
                label=f"{name} {values[known][-1]:.3f}",
            )
        axis.set_title(title, fontsize=11)
        axis.set_xlabel("step")
        axis.set_ylim(0, 1)
        axis.grid(alpha=0.3, linewidth=0.5)
        axis.legend(fontsize=8, title="last value", title_fontsize=8, loc="best")
    _write(figure, path)


def plot_history(folder: str | Path, metrics: History) -> None:
    """Write a run folder's `losses.png`, from its `history.csv`, and `ap.png`, from its validations.

    Args:
        folder: the run folder.
        metrics: see `plot_metrics`.
    """
    folder = Path(folder)
    if (folder / "history.csv").exists():
        plot_losses(folder / "losses.png", folder / "history.csv")
    plot_metrics(folder / "ap.png", metrics)


def _float(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return float("nan")


def _any(values: NDArray[np.float64]) -> bool:
    return bool(np.isfinite(values).any())


def _smooth(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Running mean over a fiftieth of the values before and as many after; fewer at the ends."""
    reach = len(values) // 100
    total = np.append(0.0, np.cumsum(values))
    first = np.maximum(np.arange(len(values)) - reach, 0)
    stop = np.minimum(np.arange(len(values)) + reach + 1, len(values))
    return (total[stop] - total[first]) / (stop - first)


def _write(figure: Figure, path: str | Path) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png")
