"""Work on many shards in processes of their own, with a progress bar."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from threading import Thread
from typing import Any

from tqdm import tqdm


def in_processes(
    function: Callable[[Any], Any], tasks: Sequence[Any], workers: int | None
) -> Iterator[tuple[int, Any]]:
    """Numbers and results of `function(task)`, as they come, from as many processes; in this one with `workers=1`.

    Args:
        function: defined at the top of a module that does not import TensorFlow.
        tasks: its arguments.
        workers: processes, as many as there are cores by default.

    Raises:
        RuntimeError: if a process was killed. What `function` raises is raised here.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = min(workers or cores, len(tasks))
    if workers == 1:
        yield from enumerate(map(function, tasks))
        return
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_end_with_parent)
    try:
        number = {pool.submit(function, task): i for i, task in enumerate(tasks)}
        for future in as_completed(number):
            yield number[future], future.result()
    except BrokenProcessPool:
        raise RuntimeError(
            "a process ended before its work was done, perhaps for lack of memory; "
            "the same command goes on from here, --workers sets fewer processes"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    """A process whose parent was killed would wait for work for ever; Ctrl-C is the parent's to handle."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    Thread(target=wait, daemon=True).start()


@contextmanager
def progress(total: int | None, unit: str) -> Iterator[Callable[[int], Any]]:
    """A progress bar; yields what moves it on."""
    with tqdm(desc=unit, total=total, disable=None, leave=False) as bar:
        yield bar.update
