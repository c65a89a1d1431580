"""Lets the process keep the memory that it frees."""

from __future__ import annotations

import ctypes
import os

# From glibc's malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4


def keep_memory() -> bool:
    """Asks glibc to keep freed memory for the next tensor instead of giving it back to the kernel.

    By default every large tensor goes back when it is freed, and the next one pays for its pages again: a few
    percent of the time on a CPU. In exchange the process stays as large as it once was. Call it before the first
    tensor. A user's own setting in `MALLOC_MMAP_MAX_`, `MALLOC_TRIM_THRESHOLD_`, `GLIBC_TUNABLES` or `LD_PRELOAD`
    has precedence.

    Returns:
        Whether it was set; false without glibc, and where the user has chosen.
    """
    chosen = ("MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES", "LD_PRELOAD")
    if any(os.environ.get(name) for name in chosen):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # macOS, Windows, musl
        return False
    settings = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1), (_TOP_PAD, 256 << 20))
    return all(mallopt(name, value) == 1 for name, value in settings)
