"""Statistics over a few values, and tables as Markdown and CSV."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mrcnn_tf.files import save_text, written_aside

# Quantiles at 0.975 of Student's t with 1, 2, ... 30 degrees of freedom.
_T = (
    *(12.70620, 4.30265, 3.18245, 2.77645, 2.57058, 2.44691, 2.36462, 2.30600, 2.26216, 2.22814),
    *(2.20099, 2.17881, 2.16037, 2.14479, 2.13145, 2.11991, 2.10982, 2.10092, 2.09302, 2.08596),
    *(2.07961, 2.07387, 2.06866, 2.06390, 2.05954, 2.05553, 2.05183, 2.04841, 2.04523, 2.04227),
)


@dataclass(frozen=True)
class Summary:
    """What some seeds say about a number, or about its difference to the baseline.

    Attributes:
        count: of seeds.
        mean: NaN without any.
        spread: standard deviation over the seeds (n - 1 in the denominator); NaN with fewer than two.
        half_width: of the mean's 95 % confidence interval by Student's t; NaN with fewer than two.
    """

    count: int
    mean: float
    spread: float
    half_width: float


def t_quantile(degrees: int) -> float:
    """The 0.975 quantile of Student's t: half a 95 % interval, in standard errors.

    Args:
        degrees: of freedom, 1 or more. Beyond 30 by the expansion around the normal distribution (Abramowitz and
            Stegun 26.7.5), to five digits.
    """
    if degrees <= len(_T):
        return _T[degrees - 1]
    z = 1.959964
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return z + sum(term / degrees**power for power, term in enumerate(terms, start=1))


def summarise(values: Sequence[float]) -> Summary:
    """Mean, spread and confidence interval of independent values."""
    count = len(values)
    mean = sum(values) / count if count else math.nan
    if count < 2:
        return Summary(count, mean, math.nan, math.nan)
    spread = math.sqrt(sum((value - mean) ** 2 for value in values) / (count - 1))
    return Summary(count, mean, spread, t_quantile(count - 1) * spread / math.sqrt(count))


def write_comparison(
    folder: Path, measured: dict[str, dict[int, dict[str, Any]]], baseline: str, metrics: Sequence[str]
) -> None:
    """Writes `table.md`, for people, and `table.csv`, with each seed's value.

    Args:
        folder: exists.
        measured: for each config and seed its metrics, empty if it is not finished; every config has the same seeds.
        baseline: one of the configs.
        metrics: the columns.
    """
    names, seeds = list(measured), list(measured[baseline])
    rows, lines = [], []
    for name in names:
        cells: list[str] = []
        for metric in metrics:
            value = {seed: _number(measured[name][seed].get(metric)) for seed in seeds}
            base = {seed: _number(measured[baseline][seed].get(metric)) for seed in seeds}
            own = summarise([v for v in value.values() if v is not None])
            pairs = [(value[seed], base[seed]) for seed in seeds]
            paired = summarise([a - b for a, b in pairs if a is not None and b is not None])
            cells.append(f"{_show(own.mean)} ± {_show(own.spread)}" if own.count > 1 else _show(own.mean))
            if len(names) > 1:
                cells.append("" if name == baseline else _show_difference(paired))
            rows.append(
                {
                    "config": name,
                    "metric": metric,
                    "seeds": own.count,
                    "mean": own.mean,
                    "spread": own.spread,
                    "baseline": baseline,
                    "pairs": paired.count,
                    "difference": paired.mean,
                    "low": paired.mean - paired.half_width,
                    "high": paired.mean + paired.half_width,
                    **{f"seed {seed}": value[seed] for seed in seeds},
                }
            )
        finished = sum(bool(measured[name][seed]) for seed in seeds)
        lines.append([name, f"{finished} of {len(seeds)}", *cells])
    header = ["config", "seeds"]
    for metric in metrics:
        header += [metric, "difference"] if len(names) > 1 else [metric]
    note = f"Mean ± standard deviation over seeds {', '.join(map(str, seeds))}."
    if len(names) > 1:
        note += (
            f" Difference: to {baseline}, mean over the seeds that both have, with its 95 % confidence interval "
            "(Student's t)."
        )
    save_text(folder / "table.md", f"{markdown(header, lines)}\n\n{note}\n")
    save_csv(folder / "table.csv", rows)


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, all columns but the first aligned to the right, without a newline at the end."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def save_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Writes rows of the same keys; None and NaN are empty."""
    with written_aside(path) as aside, aside.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        for row in rows:
            writer.writerow(
                {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in row.items()}
            )


def some(names: Sequence[str], count: int = 5) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more


def _number(value: Any) -> float | None:
    """A metric's value; None where it is missing or -1, COCO's "nothing to find"."""
    return float(value) if isinstance(value, (int, float)) and value != -1 else None


def _show(value: float) -> str:
    if math.isnan(value):
        return "-"
    return f"{value:.4f}" if abs(value) < 10 else f"{value:.1f}"


def _show_difference(paired: Summary) -> str:
    if not paired.count:
        return "-"
    low, high = paired.mean - paired.half_width, paired.mean + paired.half_width
    interval = "" if math.isnan(low) else f" [{low:+.4f}, {high:+.4f}]"
    return f"{paired.mean:+.4f}{interval}"
