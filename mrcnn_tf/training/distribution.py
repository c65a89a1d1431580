"""One process or many: which devices a training runs on, and how batches and steps are spread over them.

Several workers run the same command and the same steps, each on its part of every batch
(`tf.distribute.MultiWorkerMirroredStrategy`).
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

from mrcnn_tf.config import ConfigError
from mrcnn_tf.schema import Config
from mrcnn_tf.training.cluster import Cluster, cluster_from, port_is_free
from mrcnn_tf.training.workers import GONE, worker, worker_lost, workers


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
