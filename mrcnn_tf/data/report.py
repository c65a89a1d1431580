"""What `check_data` found: for people, as JSON and as a picture."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mrcnn_tf.data.structure import Problem
from mrcnn_tf.files import save_json
from mrcnn_tf.visualize.sheet import save


@dataclass
class Report:
    """The state of a data set.

    Attributes:
        annotations, images: what was checked.
        problems: everything found.
        counts: of images, annotations and so on.
        per_class: number of instances by class name.
        histograms: by title, ranges and how many values are in each.
        picture: samples with masks drawn, uint8 RGB, if asked for.
    """

    annotations: str
    images: str
    problems: list[Problem]
    counts: dict[str, int]
    per_class: dict[str, int]
    histograms: dict[str, dict[str, int]]
    picture: NDArray[np.uint8] | None = field(default=None, repr=False)

    @property
    def errors(self) -> list[Problem]:
        """The problems that are errors."""
        return [problem for problem in self.problems if problem.level == "error"]

    @property
    def ok(self) -> bool:
        """Whether there are no errors; warnings are allowed."""
        return not self.errors

    def by_kind(self) -> dict[tuple[str, str], list[Problem]]:
        """Problems by level and kind, errors first."""
        kinds: dict[tuple[str, str], list[Problem]] = defaultdict(list)
        for problem in self.problems:
            kinds[problem.level, problem.kind].append(problem)
        return dict(sorted(kinds.items()))

    def to_dict(self) -> dict[str, Any]:
        """Everything but the picture, ready for `json.dump`."""
        return {
            "annotations": self.annotations,
            "images": self.images,
            "ok": self.ok,
            "counts": self.counts,
            "per_class": self.per_class,
            "histograms": self.histograms,
            "problem_counts": {kind: len(those) for (_, kind), those in self.by_kind().items()},
            "problems": [vars(problem) for problem in self.problems],
        }

    def text(self, limit: int = 20) -> str:
        """The report for people, with at most `limit` lines for each kind of problem."""
        lines = [f"{self.annotations}, images in {self.images}"]
        lines += [f"  {count:>8}  {name}" for name, count in self.counts.items()]
        common = sorted(self.per_class.items(), key=lambda item: -item[1])
        unused = sum(count == 0 for count in self.per_class.values())
        classes = ", ".join(f"{name} {count}" for name, count in common[:limit] if count)
        rest = f", and {len(common) - limit} more" if len(common) > limit else ""
        lines += ["instances per class", f"  {classes}{rest}; {unused} classes without instances"]
        for title, bars in self.histograms.items():
            lines.append(title)
            most = max(bars.values(), default=1)
            lines += [
                f"  {name:>12} {count:>8} {'#' * round(40 * count / most)}" for name, count in bars.items()
            ]
        for (level, kind), those in self.by_kind().items():
            lines.append(f"{level}: {kind} ({len(those)})")
            lines += [f"  {problem}" for problem in those[:limit]]
            if len(those) > limit:
                lines.append(f"  ... and {len(those) - limit} more, all of them in report.json with --out")
        warnings = len(self.problems) - len(self.errors)
        lines.append(f"{len(self.errors)} errors, {warnings} warnings")
        return "\n".join(lines)

    def __str__(self) -> str:
        """`text()`."""
        return self.text()

    def save(self, folder: str | Path) -> None:
        """Write `report.json`, and `samples.png` if samples were drawn, into a folder, which is made."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        save_json(folder / "report.json", self.to_dict(), indent=1, default=str)
        if self.picture is not None:
            save(folder / "samples.png", self.picture)
