"""Writing files so that a failure leaves what was there before."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


@contextmanager
def written_aside(path: str | Path) -> Iterator[Path]:
    """A path in the same folder, which is made, to write to; it takes the place of `path`, or vanishes after an error.

    The name keeps its suffix, which tells some writers the format. What is written is on the disk, and not only in the
    system's memory, before it takes the place: a machine that goes down leaves one or the other. A process that is
    killed leaves the file beside, for `remove_partial`.

    Raises:
        OSError: it cannot be written; names the file.
    """
    path = Path(path)
    aside = path.with_name(f".{os.getpid()}.partial.{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield aside
        _flush(aside)
        os.replace(aside, path)
        with suppress(OSError):  # not every file system can do that for a folder
            _flush(path.parent)
    except OSError as error:
        # What is read meanwhile may fail as well, and says so itself.
        if error.errno is None or error.filename not in (None, str(aside), str(path), str(path.parent)):
            raise
        raise OSError(
            f"{path}: could not be written ({error}); what was there before is untouched"
        ) from error
    finally:
        aside.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_partial(folder: str | Path) -> None:
    """Removes what killed processes left of `written_aside` in a folder that no other process writes to now."""
    for path in Path(folder).glob(".*.partial.*"):
        path.unlink()


def save_text(path: str | Path, text: str) -> None:
    """Writes a text file, see `written_aside`."""
    with written_aside(path) as aside:
        aside.write_text(text, encoding="utf-8")


def save_json(path: str | Path, value: Any, **options: Any) -> None:
    """Writes a JSON file, see `written_aside`; `options` are those of `json.dumps`."""
    save_text(path, json.dumps(value, **options))
