"""Python functions inside `tf.data`: errors in one line, and a safe end of the program."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable
from threading import Lock
from typing import Any

import numpy as np
import tensorflow as tf

_QUIET = 0.05  # seconds without a call after which no thread is taken to be on its way into Python
_MARK = "assertion failed: ["  # how TensorFlow begins the message of a failed assertion


def python_call(
    function: Callable[[int], dict[str, Any]], specs: dict[str, tf.TensorSpec]
) -> Callable[[tf.Tensor], dict[str, tf.Tensor]]:
    """Make a Python function usable in `Dataset.map`.

    Args:
        function: from an integer to a dict of arrays with the keys of `specs`.
        specs: dtype and shape of each array; None for dimensions that vary.

    Returns:
        A function from an integer tensor to a dict of tensors. Where `function` raises OSError or ValueError,
        `tf.errors.InvalidArgumentError` has its message, without a traceback; see `explained`.
    """

    def call(position: np.int64) -> list[Any]:
        try:
            values = function(int(position))
        except (OSError, ValueError) as error:
            return filler(position, " ".join(str(error).split()))
        return [b"", *(np.asarray(values[key], spec.dtype.as_numpy_dtype) for key, spec in specs.items())]

    def filler(_: np.int64, error: str = "") -> list[Any]:
        values = [np.ones([d or 1 for d in spec.shape], spec.dtype.as_numpy_dtype) for spec in specs.values()]
        return [error.encode(), *values]

    guarded = _until_exit(call, filler)

    def in_graph(position: tf.Tensor) -> dict[str, tf.Tensor]:
        types = [tf.string, *(spec.dtype for spec in specs.values())]
        error, *values = tf.numpy_function(guarded, [position], types)
        with tf.control_dependencies([tf.debugging.Assert(tf.equal(error, ""), [error])]):
            values = [tf.ensure_shape(v, s.shape) for v, s in zip(values, specs.values(), strict=True)]
        return dict(zip(specs, values, strict=True))

    return in_graph


def explained(message: str) -> str | None:
    """The message of the error that a function of `python_call` raised, or None if it is something else's."""
    for line in message.splitlines():
        start, end = line.find(_MARK), line.rfind("]")
        if 0 <= start < end:
            return line[start + len(_MARK) : end]
    return None


def _until_exit(function: Callable[..., Any], instead: Callable[..., Any]) -> Callable[..., Any]:
    """Call `function` while the program runs and `instead` once it has begun to end.

    An iterator that is alive at the end (a global, or held by a traceback after Ctrl-C) has threads that go
    on filling its buffers. If one of them enters Python while the interpreter is being taken down, the
    process aborts or never ends. So the exit waits for running calls and lets later ones return at once.
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
