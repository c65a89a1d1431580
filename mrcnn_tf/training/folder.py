"""The folder of a run: one training at a time writes to it, and nothing of an earlier one is overwritten."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from mrcnn_tf.config import ConfigError


@contextlib.contextmanager
def nobody_else(folder: Path) -> Iterator[None]:
    """Within it no other process of this machine, and of others where the file system can, trains in the folder.

    The lock goes with the process, however that ends.

    Raises:
        ConfigError: another one does already.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise ConfigError(
            f"output: another training writes to {folder} now; wait for it, end it, or take another name"
        ) from None
    except OSError:
        pass  # some network file systems lock no folders
    try:
        yield
    finally:
        os.close(descriptor)


def unrelated(folder: Path) -> bool:
    """Whether a folder holds a finished run without checkpoints, which no training can go on from."""
    return (folder / "model.keras").exists() and not any((folder / "checkpoints").glob("step_*"))


def move_aside(folder: Path) -> None:
    """Renames the folder of an earlier run, so that nothing of it is overwritten."""
    if not folder.exists() or not any(folder.iterdir()):
        return
    number = 1
    while (aside := folder.with_name(f"{folder.name}.{number}")).exists():
        number += 1
    os.rename(folder, aside)
    print(f"the earlier run in {folder} is now in {aside}")
