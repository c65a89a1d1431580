"""One process or many: which devices a training runs on, and what its processes, the workers, must agree on.

Several workers run the same command and the same steps, each on its part of every batch
(`tf.distribute.MultiWorkerMirroredStrategy`). Worker 0 is the chief: it alone writes, except for what it is handed.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import math
import os
import pickle
import re
import secrets
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from mrcnn_tf.config import ConfigError
from mrcnn_tf.files import written_aside
from mrcnn_tf.schema import Config
from mrcnn_tf.training.cluster import Cluster, cluster_from, port_is_free

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


def make_strategy(devices: str | int) -> tf.distribute.Strategy:
    """One device, the devices of this machine, or those of all workers that the environment names.

    With several workers it must be called before TensorFlow makes its first tensor, and waits for all of them.

    Args:
        devices: `"auto"`: all GPUs, else the CPU; or a number of GPUs, or of logical CPU devices where there is no GPU;
            of each worker.

    Raises:
        ConfigError: there are not that many devices, or what `cluster_from` and `port_is_free` raise.
        WorkerLost: another worker has gone while all of them were waited for.
    """
    cluster = cluster_from(os.environ)
    if cluster is not None:
        return _connected(cluster, devices)
    found = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    kind = found[0].device_type
    count = (len(found) if kind == "GPU" else 1) if devices == "auto" else int(devices)
    if count > len(found):
        raise ConfigError(f"train.devices: is {count}, but there are {len(found)} {kind} devices")
    if count == 1:
        return tf.distribute.get_strategy()
    return tf.distribute.MirroredStrategy([f"{kind}:{i}" for i in range(count)])


@functools.cache  # TensorFlow joins a cluster once in a process; a run of several phases stays in it
def _connected(cluster: Cluster, devices: str | int) -> tf.distribute.Strategy:
    gpus = tf.config.list_physical_devices("GPU")
    count = len(gpus) if devices == "auto" else int(devices)
    if count > max(len(gpus), 1):
        raise ConfigError(
            f"train.devices: is {count}, but worker {cluster.number} has {len(gpus)} GPUs; a worker without GPUs is "
            "one device"
        )
    if gpus:
        gpus = gpus[:count]
        tf.config.set_visible_devices(gpus, "GPU")
    port_is_free(cluster)
    print(
        f"worker {cluster.number} of {len(cluster.addresses)}, at {cluster.addresses[cluster.number]}: waiting for all "
        "of them",
        flush=True,
    )
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
        tf.train.ClusterSpec(cluster.spec()),
        task_type=cluster.job,
        task_id=cluster.task,
        rpc_layer="grpc",
        num_accelerators={"GPU": len(gpus)},
    )
    try:
        with _ended_by_interrupt():
            return tf.distribute.MultiWorkerMirroredStrategy(cluster_resolver=resolver)
    except GONE as error:
        raise worker_lost(error, cluster.number, len(cluster.addresses)) from error


@contextlib.contextmanager
def _ended_by_interrupt() -> Iterator[None]:
    """Within it Ctrl-C ends the process at once: TensorFlow waits where Python's handlers are not called.

    TensorFlow also takes SIGTERM for itself there; afterwards it is Python's again.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    interrupt, terminate = signal.signal(signal.SIGINT, signal.SIG_DFL), signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, interrupt)
        signal.signal(signal.SIGTERM, terminate)


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


# ------------------------------------------------------------------ agreeing


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


# ---------------------------------------------------------------------- files


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


# ---------------------------------------------------------------------- steps


def replicas_here(strategy: tf.distribute.Strategy) -> Sequence[int]:
    """Numbers of this worker's replicas among all."""
    devices = strategy.num_replicas_in_sync // workers(strategy)
    return range(worker(strategy) * devices, (worker(strategy) + 1) * devices)


def split_batches(
    strategy: tf.distribute.Strategy, make: Callable[[int, Sequence[int]], tf.data.Dataset]
) -> tf.data.Dataset | tf.distribute.DistributedDataset:
    """What `fit` reads: for each replica its own slice of every batch, read by the worker that it belongs to.

    Args:
        strategy: of the training.
        make: from into how many slices a batch is cut, and which of them are wanted, to their data set.
    """
    return strategy.distribute_datasets_from_function(
        lambda _: make(strategy.num_replicas_in_sync, replicas_here(strategy))
    )


def train_function(
    strategy: tf.distribute.Strategy, model: keras.Model
) -> Callable[[Any], dict[str, tf.Tensor]]:
    """What `fit` calls each step, in place of Keras' own, which cannot reduce the logs over several workers.

    `model.train_step` gives figures of the whole batch, so that one replica's tell all.
    """

    @tf.function(autograph=False, reduce_retracing=True)
    def step(batch: Any) -> dict[str, tf.Tensor]:
        logs = strategy.run(model.train_step, args=(batch,))
        return {name: strategy.experimental_local_results(value)[0] for name, value in logs.items()}

    return lambda iterator: step(next(iterator))


def check_split(strategy: tf.distribute.Strategy, batch_size: int) -> None:
    """Raises ConfigError if a batch cannot be split evenly over the devices."""
    count = strategy.num_replicas_in_sync
    if batch_size % count:
        where = f" of {workers(strategy)} workers" if workers(strategy) > 1 else ""
        raise ConfigError(
            f"train.batch_size: is {batch_size}, not divisible by the {count} devices{where}; "
            f"take {math.ceil(batch_size / count) * count}"
        )


def scaled(config: Config, devices: int) -> Config:
    """The config with the global batch that `train.batch_per_device` asks for, if it does.

    With k times `train.batch_size`, SGD's learning rate is multiplied by k (the linear rule: Goyal et al., "Accurate,
    Large Minibatch SGD", 2017), AdamW's by the square root of k (Malladi et al., "On the SDEs and Scaling Rules for
    Adaptive Gradient Algorithms", 2022), and all that counts steps is divided by k: epochs, warm-up included, stay.
    """
    settings = config.train
    if settings.batch_per_device is None:
        return config
    batch = settings.batch_per_device * devices
    k = batch / settings.batch_size

    def fewer(steps: int) -> int:
        return max(round(steps / k), 1)

    train = {
        "batch_size": batch,
        "batch_per_device": None,
        "learning_rate": settings.learning_rate * (k if settings.optimizer == "sgd" else math.sqrt(k)),
        "steps": fewer(settings.steps),
        "warmup_steps": min(fewer(settings.warmup_steps), fewer(settings.steps) - 1)
        if settings.warmup_steps
        else 0,
        "milestones": sorted({fewer(step) for step in settings.milestones}),
        "checkpoint_every": fewer(settings.checkpoint_every),
    }
    evaluation = {"every": fewer(config.evaluation.every) if config.evaluation.every else 0}
    return config.model_copy(
        update={
            "train": settings.model_copy(update=train),
            "evaluation": config.evaluation.model_copy(update=evaluation),
        }
    )
