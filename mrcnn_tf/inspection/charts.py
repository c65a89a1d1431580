"""Charts and tables as text: inline SVG that follows the page's colours, and the same numbers beneath.

Every chart is one width of `_WIDTH` units, so that its letters stay readable on a phone, and takes its colours from
classes of the page's style sheet. All text is escaped here, whatever it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

__all__ = ["bars", "columns", "figure", "lines", "number", "table"]

_WIDTH = 380
_LINE = 26  # height of a bar with its label
_LEAST = 0.04  # that the vertical axis of a line spans
_PLOT = (46, 10, 324, 170)  # left, top, width and height of a chart with two axes

Cell = str | int | float | None


def number(value: Cell) -> str:
    """A cell's text: three digits for a share, a dash for None and for COCO's -1, words escaped."""
    if value is None or (isinstance(value, float) and not value > -1):
        return "–"
    return f"{value:.3f}" if isinstance(value, float) else escape(str(value))


def table(caption: str, head: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    """A table that scrolls inside its own box; the first cell of a row is its heading.

    Args:
        caption: said above it.
        head: the columns' headings.
        rows: a cell for each column; see `number`.
    """
    heads = "".join(f'<th scope="col">{escape(h)}</th>' for h in head)
    body = "".join(
        f'<tr><th scope="row">{number(row[0])}</th>{"".join(f"<td>{number(c)}</td>" for c in row[1:])}</tr>\n'
        for row in rows
    )
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(caption)}">'
        f"<table><caption><span>{escape(caption)}</span></caption><thead><tr>{heads}</tr></thead>\n"
        f"<tbody>{body}</tbody></table></div>"
    )


def figure(chart: str, numbers: str, *, note: str = "") -> str:
    """A chart, what to know about it, and its numbers as a table to unfold."""
    caption = f"<figcaption>{escape(note)}</figcaption>" if note else ""
    return f'<figure class="chart">{chart}{caption}<details><summary>Numbers</summary>{numbers}</details></figure>'


def bars(key: str, title: str, description: str, rows: Sequence[tuple[str, float]], *, mark: str = "") -> str:
    """Horizontal bars from zero on, their values beside them.

    Args:
        key: what the SVG's ids begin with; no other chart of the page may have it.
        title, description: what a screen reader says.
        rows: label and value, -1 for nothing to measure.
        mark: label of the bar that is to stand out.
    """
    highest = max([value for _, value in rows if value > 0], default=1.0)
    parts = []
    for i, (label, value) in enumerate(rows):
        y = i * _LINE
        length = max(value, 0) / highest * (_WIDTH - 190)
        kind = "bar strong" if label == mark else "bar"
        parts.append(
            f'<text x="128" y="{y + 17}" class="label end">{escape(label)}</text>'
            f'<rect x="134" y="{y + 5}" width="{length:.1f}" height="17" class="{kind}"/>'
            f'<text x="{140 + length:.1f}" y="{y + 18}" class="value">{number(float(value))}</text>'
        )
    axis = f'<line x1="134" x2="134" y1="0" y2="{_LINE * len(rows)}" class="axis"/>'
    return _svg(key, title, description, _LINE * len(rows) + 2, "".join(parts) + axis)


def columns(
    key: str, title: str, description: str, edges: Sequence[float], counts: Sequence[float], *, axis: str
) -> str:
    """A histogram: a column between each two edges, the horizontal axis named `axis`."""
    left, top, width, height = _PLOT
    highest = max([*counts, 1])
    low, high = edges[0], edges[-1]
    parts = []
    for start, end, count in zip(edges[:-1], edges[1:], counts, strict=True):
        x1, x2 = (left + (e - low) / (high - low) * width for e in (start, end))
        tall = count / highest * height
        parts.append(
            f'<rect x="{x1 + 0.5:.1f}" y="{top + height - tall:.1f}" width="{x2 - x1 - 1:.1f}" '
            f'height="{tall:.1f}" class="bar"><title>{start:g} to {end:g}: {count:g}</title></rect>'
        )
    return _svg(key, title, description, 220, _axes((low, high), (0, highest), axis) + "".join(parts))


def lines(
    key: str,
    title: str,
    description: str,
    points: Sequence[tuple[float, float]],
    *,
    axis: str,
    y_range: tuple[float, float] | None = None,
    marks: Sequence[tuple[float, str]] = (),
    diagonal: bool = False,
) -> str:
    """A line through points, with named vertical marks.

    Args:
        key, title, description: see `bars`.
        points: `(x, y)`, by x.
        axis: name of the horizontal axis.
        y_range: of the vertical axis; default: from a little below the lowest point to a little above the highest.
        marks: places on the horizontal axis and what they are; at most two, so that their words have room.
        diagonal: draw y = x, where the line should be.
    """
    left, top, width, height = _PLOT
    xs, ys = [x for x, _ in points], [y for _, y in points]
    low, high = (0.0, 1.0) if diagonal else (min(xs), max(xs))
    bottom, ceiling = y_range or _room(ys)

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - low) / ((high - low) or 1)
        up = (y - bottom) / ((ceiling - bottom) or 1)
        return left + across * width, top + (1 - up) * height

    parts = [_axes((low, high), (bottom, ceiling), axis)]
    if diagonal:
        (x1, y1), (x2, y2) = place(0, 0), place(1, 1)
        parts.append(f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" class="guide"/>')
    for i, (x, text) in enumerate(marks):
        at, _ = place(x, bottom)
        side, step = ("end", -5) if at > left + width / 2 else ("start", 5)
        parts.append(
            f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{top}" y2="{top + height}" class="mark"/>'
            f'<text x="{at + step:.1f}" y="{top + 12 + 15 * i}" class="value {side}">{escape(text)}</text>'
        )
    placed = [place(x, y) for x, y in points]
    parts.append(
        f'<polyline points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in placed)}" class="line"/>'
        + "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" class="dot"/>' for x, y in placed)
    )
    return _svg(key, title, description, 220, "".join(parts))


def _room(values: Sequence[float]) -> tuple[float, float]:
    """A range with some air around the values, never so narrow that noise looks like a cliff."""
    low, high = min(values), max(values)
    margin = max(0.1 * (high - low), 0.5 * (_LEAST - (high - low)))
    return max(low - margin, 0.0), high + 2 * margin  # the marks' words stand at the top


def _axes(across: tuple[float, float], up: tuple[float, float], name: str) -> str:
    left, top, width, height = _PLOT
    bottom = top + height
    parts = [f'<line x1="{left}" x2="{left + width}" y1="{bottom}" y2="{bottom}" class="axis"/>']
    for i in range(3):
        value, y = up[0] + (up[1] - up[0]) * i / 2, bottom - height * i / 2
        parts.append(
            f'<line x1="{left}" x2="{left + width}" y1="{y}" y2="{y}" class="grid"/>'
            f'<text x="{left - 4}" y="{y + 4}" class="label end">{value:.3g}</text>'
        )
    for i, side in enumerate(("start", "middle", "end")):
        value, x = across[0] + (across[1] - across[0]) * i / 2, left + width * i / 2
        parts.append(f'<text x="{x}" y="{bottom + 16}" class="label {side}">{value:.3g}</text>')
    parts.append(f'<text x="{left + width / 2}" y="{bottom + 34}" class="label middle">{escape(name)}</text>')
    return "".join(parts)


def _svg(key: str, title: str, description: str, height: float, content: str) -> str:
    return (
        f'<svg role="img" viewBox="0 0 {_WIDTH} {height}" aria-labelledby="{key}-title {key}-desc">'
        f'<title id="{key}-title">{escape(title)}</title><desc id="{key}-desc">{escape(description)}</desc>'
        f"{content}</svg>"
    )
