"""The workers of a training among themselves: who they are, what they must agree on, what they hand to each other.

All of them run the same command and make the same exchanges in the same order. Worker 0 is the chief: it alone writes,
except for what it is handed.
"""

from __future__ import annotations

import contextlib
import functools
import os
import pickle
import re
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import tensorflow as tf

from mrcnn_tf.config import ConfigError
from mrcnn_tf.files import written_aside

# What TensorFlow raises when a worker is no more, or is another one than before.
GONE = (
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.FailedPreconditionError,
    tf.errors.InternalError,
    tf.errors.DeadlineExceededError,
)
PATIENCE = (
    30.0  # seconds until a file that another worker has written must be seen; network file systems cache
)


def workers(strategy: tf.distribute.Strategy) -> int:
    """How many processes train together."""
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return 1
    return strategy.num_replicas_in_sync // len(strategy.extended.worker_devices)


def worker(strategy: tf.distribute.Strategy) -> int:
    """The number of this process, from 0."""
    resolver = strategy.cluster_resolver
    if workers(strategy) == 1:
        return 0
    before = resolver.cluster_spec().as_dict().get("chief", []) if resolver.task_type == "worker" else []
    return len(before) + resolver.task_id


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Whether this process writes the run's files."""
    return worker(strategy) == 0


def gathered(strategy: tf.distribute.Strategy, value: float) -> list[float]:
    """The `value` of every worker, exact up to 2^53; all must call it, and none goes on before the last has."""
    if workers(strategy) == 1:
        return [float(value)]
    values = _gather(strategy)(tf.constant(value, tf.float64)).numpy()
    return values[:: len(strategy.extended.worker_devices)].tolist()


@functools.cache
def _gather(strategy: tf.distribute.Strategy) -> Callable[[tf.Tensor], tf.Tensor]:
    """From a number to those of all replicas."""

    def share(value: tf.Tensor) -> tf.Tensor:
        context = tf.distribute.get_replica_context()
        number, count = context.replica_id_in_sync_group, context.num_replicas_in_sync
        return context.all_reduce("SUM", tf.one_hot(number, count, value, dtype=tf.float64))

    @tf.function(autograph=False)
    def gather(value: tf.Tensor) -> tf.Tensor:
        return strategy.experimental_local_results(strategy.run(share, (value,)))[0]

    return gather


def anywhere(strategy: tf.distribute.Strategy, flag: bool) -> bool:
    """Whether the flag is set on any worker."""
    return any(gathered(strategy, flag))


def from_chief(strategy: tf.distribute.Strategy, value: Callable[[], int]) -> int:
    """What `value` gives on the chief; it is called there alone, so that what it looks at may change afterwards."""
    return int(gathered(strategy, value() if is_chief(strategy) else 0)[0])


def must_agree(strategy: tf.distribute.Strategy, value: int, problem: str) -> None:
    """Raises ConfigError on all workers, `problem` and those that differ, unless all have the chief's value."""
    values = gathered(strategy, value)
    unlike = [str(number) for number, other in enumerate(values) if other != values[0]]
    if unlike:
        raise ConfigError(f"{problem}: worker 0 and worker {', '.join(unlike)} differ")


@contextlib.contextmanager
def chief_first(strategy: tf.distribute.Strategy) -> Iterator[None]:
    """The chief runs the block before the others do: what it makes they find."""
    if not is_chief(strategy):
        gathered(strategy, 0)
    yield
    if is_chief(strategy):
        gathered(strategy, 0)


def leave_together(strategy: tf.distribute.Strategy) -> None:
    """Waits until all workers are done, the chief's last file included: before that, one that has gone is lost.

    A worker that has ended well is not started again, and the others could not go on without it. The second exchange is
    for those who are still in the first when others leave; by then nothing can be lost any more.
    """
    gathered(strategy, 0)
    with contextlib.suppress(tf.errors.OpError):
        gathered(strategy, 0)


@contextlib.contextmanager
def only_chief_prints(strategy: tf.distribute.Strategy) -> Iterator[None]:
    """Standard output of the other workers, who would say the same again, goes nowhere; errors go where they went."""
    if is_chief(strategy):
        yield
        return
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield


class WorkerLost(RuntimeError):
    """Another worker has gone: nothing is wrong with this one, and all are to be started again."""


@contextlib.contextmanager
def lost_workers_explained(strategy: tf.distribute.Strategy) -> Iterator[None]:
    """One line instead of TensorFlow's several when another worker has gone.

    Raises:
        WorkerLost: in place of TensorFlow's errors about an aborted exchange.
    """
    try:
        yield
    except GONE as error:
        if workers(strategy) == 1:
            raise
        raise worker_lost(error, worker(strategy), workers(strategy)) from error


def worker_lost(error: tf.errors.OpError, number: int, count: int) -> WorkerLost:
    """What worker `number` of `count` says of an error that another one has caused."""
    named = sorted(set(re.findall(r"/replica:\d+/task:(\d+)", str(error.message))))
    gone = f"task {', '.join(named)} has" if named else "another one has"
    return WorkerLost(
        f"worker {number} of {count}: {gone} gone; see what it said, then start all of them again with --resume"
    )


def check_shared(strategy: tf.distribute.Strategy, folder: Path) -> None:
    """Makes sure that all workers see the chief's folder.

    Raises:
        ConfigError: on every worker, with the numbers of those that do not.
    """
    if workers(strategy) == 1:
        return
    mark = folder / f".{from_chief(strategy, lambda: secrets.randbits(40)):010x}.partial.seen"
    if is_chief(strategy):
        mark.touch()
    gathered(strategy, 0)
    seen = gathered(strategy, appears(mark))
    if is_chief(strategy):
        mark.unlink()
    blind = [str(number) for number, sees in enumerate(seen) if not sees]
    if blind:
        raise ConfigError(
            f"output: {folder.absolute()} as worker 0 sees it is not what worker {', '.join(blind)} sees; all workers "
            "need one run folder, on a file system that all of them mount, and the same current folder"
        )


def handed_to_chief(strategy: tf.distribute.Strategy, folder: Path, value: Any) -> list[Any] | None:
    """The `value` of every worker, by its number, for the chief; None for the others.

    They go through files in the run's own folder, which are gone afterwards: what an evaluation finds may be
    hundreds of megabytes, which no exchange between devices is made for.
    """
    if workers(strategy) == 1:
        return [value]
    paths = [folder / f".from_worker_{number}.pickle" for number in range(workers(strategy))]
    if not is_chief(strategy):
        with written_aside(paths[worker(strategy)]) as aside, aside.open("wb") as file:
            pickle.dump(value, file)
    gathered(strategy, 0)
    if not is_chief(strategy):
        return None
    values = [value]
    for path in paths[1:]:
        if not appears(path):
            raise OSError(f"{path}: was written by a worker, but cannot be seen here")
        with path.open("rb") as file:
            values.append(pickle.load(file))
        path.unlink()
    return values


def appears(path: Path) -> bool:
    """Whether a file is there within `PATIENCE`."""
    end = time.monotonic() + PATIENCE
    while not path.exists():
        if time.monotonic() > end:
            return False
        os.scandir(path.parent).close() if path.parent.exists() else None  # makes NFS look again
        time.sleep(0.1)
    return True
