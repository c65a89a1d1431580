"""From the step of one worker to the steps of N: how long the sum of the gradients takes, and what it leaves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from mrcnn_tf.config import ConfigError
from mrcnn_tf.layers.conv import BatchNorm
from mrcnn_tf.models.mask_rcnn import MaskRCNN
from mrcnn_tf.planning.memory import count
from mrcnn_tf.schema import Config
from mrcnn_tf.training.distribution import scaled


class Traffic(NamedTuple):
    """What the devices sum in a training step: bytes each of them puts in, and in how many all-reduces."""

    gradients: int
    others: int
    messages: int

    @property
    def total(self) -> int:
        """Bytes."""
        return self.gradients + self.others


@dataclass(frozen=True)
class Link:
    """The network between two workers, each way: bytes a second, and seconds until the first of them is there."""

    bandwidth: float
    latency: float


def traffic_of(model: MaskRCNN) -> Traffic:
    """Gradients of trainable weights, float32 under every policy, in one all-reduce; losses, counts and figures, a
    float32 each; and of each batch norm over all devices, mean and mean square of every channel, there and back."""
    norms = [
        layer
        for layer in model._flatten_layers()
        if isinstance(layer, BatchNorm) and layer.mode == "sync_batch" and layer.uses_batch_statistics(True)
    ]
    # Each loss and the weighted sum; images, proposals found, positives of RPN and RoIs, each a sum over the devices;
    # and the counts by which the losses are divided.
    refining = len(model.LOSSES) > len(MaskRCNN.LOSSES)
    scalars = len(model.LOSSES) + 11 + 3 * refining
    statistics = sum(4 * 2 * 2 * layer.gamma.shape[0] for layer in norms)
    return Traffic(4 * count(model.trainable_weights), 4 * scalars + statistics, 1 + scalars + 2 * len(norms))


def sent(total: float, devices: int) -> float:
    """Bytes that a ring all-reduce of `total` bytes sends over each link: `2 (D - 1) / D` of them."""
    return 2 * (devices - 1) / devices * total


def all_reduce_seconds(
    total: float, workers: int, devices_per_worker: int, link: Link, messages: int = 1
) -> float:
    """Of a ring through all devices whose slowest links are those between the workers; 0 with one worker.

    `2 (N - 1)` times the latency for each message, and the bytes of `sent` over the bandwidth.
    """
    if workers == 1:
        return 0.0
    transfer = sent(total, workers * devices_per_worker) / link.bandwidth
    return 2 * (workers - 1) * link.latency * messages + transfer


def fitted_link(
    measured: Mapping[int, float], total: float, devices_per_worker: int, latency: float | None
) -> Link:
    """The link that explains measured times of one all-reduce.

    Args:
        measured: seconds by number of workers, from 2 on.
        total: bytes that were summed.
        devices_per_worker: as then.
        latency: seconds, if known; otherwise fitted with times of several numbers of workers, and 0 with one.

    Raises:
        ValueError: the latency alone would take longer than was measured.
    """
    workers = np.array(sorted(measured))
    seconds = np.array([measured[n] for n in sorted(measured)])
    rounds = 2.0 * (workers - 1)
    data = np.array([sent(total, n * devices_per_worker) for n in workers])
    if latency is None and len(measured) > 1:
        latency = max(0.0, float(np.linalg.lstsq(np.stack([rounds, data], 1), seconds, rcond=None)[0][0]))
    rest = seconds - rounds * (latency or 0.0)
    if (rest <= 0).any():
        raise ValueError(
            f"--allreduce: {int(workers[rest.argmin()])} workers took {seconds[rest.argmin()]:g} s, less than a "
            f"latency of {1e6 * (latency or 0.0):g} us alone would take; give a lower --latency"
        )
    return Link(float((data @ data) / (data @ rest)), latency or 0.0)


@dataclass(frozen=True)
class Row:
    """What N workers are expected to do.

    Attributes:
        workers, devices: how many.
        batch, per_device: images a step.
        learning_rate, steps: of the config, scaled where it asks for that.
        compute, all_reduce, step: seconds; the last is what remains visible of the two.
        images_per_second: of all workers.
        efficiency: that, over N times one worker's; in [0, 1].
        hours: for all steps.
    """

    workers: int
    devices: int
    batch: int
    per_device: int
    learning_rate: float
    steps: int
    compute: float
    all_reduce: float
    step: float
    images_per_second: float
    efficiency: float
    hours: float


def expected(
    config: Config,
    traffic: Traffic,
    step_seconds: float,
    *,
    workers: list[int],
    devices_per_worker: int = 1,
    link: Link | None = None,
    overlap: float = 0.0,
) -> list[Row]:
    """What numbers of workers are expected to do: `step(N) = compute + max(0, all-reduce - overlap * compute)`.

    Args:
        config: with `train.batch_per_device` the batch grows with the workers, otherwise it is split.
        traffic: of `traffic_of`.
        step_seconds: of one worker with all its devices.
        workers: numbers of them.
        devices_per_worker: of each.
        link: between workers; needed for more than one.
        overlap: share of the compute time behind which an all-reduce can hide, in [0, 1].

    Raises:
        ConfigError: a batch cannot be split over that many devices.
    """
    rows: list[Row] = []
    alone = per_device(config, devices_per_worker)
    for n in workers:
        devices = n * devices_per_worker
        own, settings = per_device(config, devices), scaled(config, devices).train
        compute = step_seconds * own / alone
        reduce = 0.0
        if n > 1 and link is not None:
            reduce = all_reduce_seconds(traffic.total, n, devices_per_worker, link, traffic.messages)
        step = compute + max(0.0, reduce - overlap * compute)
        speed = settings.batch_size / step
        rows.append(
            Row(
                workers=n,
                devices=devices,
                batch=settings.batch_size,
                per_device=own,
                learning_rate=settings.learning_rate,
                steps=settings.steps,
                compute=compute,
                all_reduce=reduce,
                step=step,
                images_per_second=speed,
                efficiency=speed / (n * alone * devices_per_worker / step_seconds),
                hours=settings.steps * step / 3600,
            )
        )
    return rows


def per_device(config: Config, devices: int) -> int:
    """Images of a step on each of so many devices.

    Raises:
        ConfigError: the batch cannot be split over them.
    """
    batch = scaled(config, devices).train.batch_size
    if batch % devices:
        raise ConfigError(
            f"train.batch_size: is {batch}, not divisible by {devices} devices; take another, or set "
            "train.batch_per_device, with which the batch grows with the devices"
        )
    return batch // devices
