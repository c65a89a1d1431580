"""Python functions that `tf.data` calls from its own threads, made safe for the end of the program."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable
from threading import Lock
from typing import Any

_QUIET = 0.05  # seconds without a call after which no thread is taken to be on its way into Python


def until_exit(function: Callable[..., Any], instead: Callable[..., Any]) -> Callable[..., Any]:
    """Call `function` while the program runs and `instead` once it has begun to end.

    An iterator that is alive at the end (a global, or held by a traceback after Ctrl-C) has threads that go
    on filling its buffers. If one of them enters Python while the interpreter is being taken down, the process
    aborts or never ends. So the exit waits for running calls and lets later ones return at once.

    Args:
        function: what to call.
        instead: gets the same arguments, returns something of the same form, quickly.
    """
    gate = _Gate()

    def call(*args: Any) -> Any:
        if gate.enter():
            try:
                return function(*args)
            finally:
                gate.leave()
        return instead(*args)

    # Runs when `call` is gone, at the latest before the interpreter ends.
    weakref.finalize(call, gate.close)
    return call


class _Gate:
    """Counts the calls inside, and can be closed for good."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._inside, self._open, self._last = 0, True, -1.0

    def enter(self) -> bool:
        with self._lock:
            self._last = time.monotonic()
            self._inside += self._open
            return self._open

    def leave(self) -> None:
        with self._lock:
            self._inside -= 1
            self._last = time.monotonic()

    def close(self, patience: float = 10.0) -> None:
        self._open = False
        give_up = time.monotonic() + patience
        while (self._inside or time.monotonic() - self._last < _QUIET) and time.monotonic() < give_up:
            time.sleep(0.005)
