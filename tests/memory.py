"""Giving memory back between tests, hundreds of which make models in one process."""

from __future__ import annotations

import ctypes
import gc


def release() -> None:
    """Frees what no test needs any more, and gives it back to the system."""
    gc.collect()  # models are full of cycles
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc
    if trim is not None:
        trim(0)
