"""An inspection's report as one self-contained HTML page."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from mrcnn_tf.files import save_text
from mrcnn_tf.inspection import sections

__all__ = ["page", "write_page"]

_FOLDER = Path(__file__).parent
_SECTIONS = (
    ("findings", "Findings", sections.findings),
    ("proposals", "Proposals and anchors", sections.proposals),
    ("overlaps", "Overlapping detections", sections.overlaps),
    ("errors", "Errors", sections.errors),
    ("pictures", "Pictures", sections.pictures),
)


def write_page(report: Mapping[str, Any], path: str | Path) -> None:
    """Write `page(report)` to a file, which is whole or not there.

    Raises:
        OSError: it cannot be written; names the file.
    """
    save_text(path, page(report))


def page(report: Mapping[str, Any]) -> str:
    """The page: no other file, no network, all numbers and pictures without JavaScript too.

    The security policy in it lets the browser fetch nothing, and run and apply only the page's own script and style,
    which it names by their hashes; everything from the data is escaped as well.

    Args:
        report: of `inspect`.

    Returns:
        HTML, UTF-8 when written.
    """
    source = report["source"]
    name, data = _short(source.get("model") or source["results"]), _short(source["annotations"])
    style, script = ((_FOLDER / f"page.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    parts = [
        f'<section aria-labelledby="{key}"><h2 id="{key}">{title}</h2>\n{write(report)}</section>\n'
        for key, title, write in _SECTIONS
    ]
    counts = [f"{source[key]:,} {key}" for key in ("images", "instances", "detections")]
    return Template((_FOLDER / "page.html").read_text(encoding="utf-8")).substitute(
        title=escape(f"{name} on {data}: inspection"),
        heading=f"What is wrong with {escape(name)} on {escape(data)}",
        source=escape(", ".join(counts)),
        links="".join(f'<li><a href="#{key}">{title}</a></li>' for key, title, _ in _SECTIONS),
        main="".join(parts),
        style=style,
        style_hash=_hash(style),
        script=script,
        script_hash=_hash(script),
    )


def _short(path: str) -> str:
    """A file and its folder: many are called model.keras."""
    return "/".join(Path(path).parts[-2:])


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")
