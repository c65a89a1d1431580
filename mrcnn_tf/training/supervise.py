"""Training that is started again when it dies: `mrcnn train --max-restarts`."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

# Exit status of a worker that lost another one (EX_TEMPFAIL of sysexits.h): it may be started again.
LOST = 75
# Seconds before a restart: the other workers, too, must notice, end and be started again.
PAUSE = 5.0
HANDED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PR_SET_PDEATHSIG = 1  # of <sys/prctl.h>


def supervised(arguments: Sequence[str], folder: Path, restarts: int) -> int:
    """Runs `mrcnn train` in a process of its own, and again from its newest checkpoint when it dies.

    A signal that killed it (no memory, kill -9, a crash) or a lost worker is a reason; an error that it explained is
    none, as it would come again. SIGTERM, Ctrl-C and a closed terminal are handed on, and end both.

    Args:
        arguments: of `mrcnn train`.
        folder: the run's.
        restarts: how many at most.

    Returns:
        The last process' exit status, 128 and the signal's number if that killed it.
    """
    # Where this package is not installed, but beside the script that was started.
    places = [str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, places))}
    command = [sys.executable, "-m", "mrcnn_tf.cli", "train", *arguments]
    told: list[int] = []
    child: subprocess.Popen | None = None

    def hand_on(number: int, frame: object) -> None:
        told.append(signal.SIGINT if number == signal.SIGINT else signal.SIGTERM)
        if child is not None:
            child.send_signal(told[-1])

    before = _made(folder)
    handlers = {number: signal.signal(number, hand_on) for number in HANDED_ON}
    try:
        for restart in range(restarts + 1):
            # An earlier run in the folder, which the first start was to move aside, is none to go on from.
            begun = restart > 0 and _made(folder) != before
            # A group of its own: Ctrl-C would reach it from the terminal, and once more from here.
            child = subprocess.Popen(
                [*command, *["--resume"] * begun],
                env=environment,
                start_new_session=True,
                preexec_fn=_end_with_parent,
            )
            if told:  # while it was being started
                child.send_signal(told[-1])
            status = child.wait()
            if told or (status >= 0 and status != LOST) or restart == restarts:
                break
            why = "lost a worker" if status == LOST else f"was killed by {signal.Signals(-status).name}"
            print(f"training {why}; restart {restart + 1} of {restarts}", file=sys.stderr, flush=True)
            _wait(PAUSE, told)
            if told:
                break
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return status if status >= 0 else 128 - status


def _end_with_parent() -> None:
    """Of a process that is about to start: when this one is killed, it gets SIGTERM, where the system is Linux."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _made(folder: Path) -> tuple[int, int] | None:
    """Tells one writing of the run's config from another."""
    try:
        found = (folder / "config.yaml").stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def _wait(seconds: float, told: list[int]) -> None:
    end = time.monotonic() + seconds
    while not told and time.monotonic() < end:
        time.sleep(0.1)
