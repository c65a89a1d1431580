"""Runs a pipeline with a progress bar, and ends it when one of its local processes is killed."""

from __future__ import annotations

import os
import re
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import apache_beam as beam
import grpc
from apache_beam.runners.runner import PipelineState
from tqdm import tqdm

PAUSE = 2.0  # seconds between two looks


def run_watched(pipeline: beam.Pipeline, *, done: Callable[[], int], total: int) -> None:
    """Runs a pipeline to its end.

    Args:
        pipeline: what to run.
        done: counts what is finished; called every few seconds.
        total: how much there is.

    Raises:
        RuntimeError: it failed, with the worker's own message; or one of its processes on this machine was killed.
    """
    outcome: list[Any] = []
    lost: list[BaseException | None] = []
    ended = threading.Event()  # an interrupted `join` would take the thread for ended

    def work() -> None:
        try:
            outcome.append(pipeline.run().wait_until_finish())
        except BaseException as error:
            outcome.append(error)
        ended.set()

    def note(args: Any) -> None:
        # Beam's thread for a worker process raises when that process ends badly. Nobody else hears of it: the runner
        # would wait for the worker for ever.
        if args.thread is not None and args.thread.name == "run_worker":
            lost.append(args.exc_value)
        elif not issubclass(args.exc_type, grpc.RpcError):  # of the connections that end with the process
            before(args)

    before, threading.excepthook = threading.excepthook, note
    try:
        threading.Thread(target=work, name="pipeline", daemon=True).start()
        with tqdm(total=total, unit="shard", dynamic_ncols=True) as bar:
            while not ended.wait(PAUSE) and not lost:
                bar.update(done() - bar.n)
            bar.update(done() - bar.n)
        if not outcome:
            raise RuntimeError(
                f"a worker process was killed ({lost[0]}); was there enough memory for all of them? Finished shards "
                "stay: run the same command again, with fewer --direct_num_workers if need be"
            )
    finally:
        if outcome:
            threading.excepthook = before
        else:
            stop_children(os.getpid())
    (result,) = outcome
    if isinstance(result, BaseException):
        raise RuntimeError(f"the pipeline failed: {reason_of(result)}") from result
    if result != PipelineState.DONE:
        raise RuntimeError(f"the pipeline ended in the state {result}; see the runner's own log")


def reason_of(error: BaseException) -> str:
    """What a worker raised, out of the report that Beam makes of it."""
    lines = re.findall(r"^[\w.]*(?:Error|Exception|Interrupt): (.*)", str(error), re.MULTILINE)
    reason = lines[-1] if lines else str(error) or type(error).__name__
    return reason.split(" [while running ")[0]


def stop_children(parent: int) -> None:
    """Ends the processes that a process has started, and theirs: left alone they would work on for a while."""
    for status in Path("/proc").glob("[0-9]*/status"):
        # Not all kernels list a process's children.
        with suppress(OSError):  # it has ended meanwhile
            if f"\nPPid:\t{parent}\n" in status.read_text():
                number = int(status.parent.name)
                stop_children(number)
                os.kill(number, signal.SIGKILL)
