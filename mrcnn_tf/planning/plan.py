"""`plan(config)`: everything that `mrcnn plan` tells, as one dictionary."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from mrcnn_tf.build import build_model, open_dataset
from mrcnn_tf.data.scene import SHAPE_CLASSES
from mrcnn_tf.models.mask_rcnn import MaskRCNN
from mrcnn_tf.planning import work
from mrcnn_tf.planning.measure import Memory, measure
from mrcnn_tf.planning.memory import count, held, training_memory
from mrcnn_tf.planning.scaling import Link, expected, fitted_link, per_device, sent, traffic_of
from mrcnn_tf.schema import Config
from mrcnn_tf.training.cluster import cluster_from
from mrcnn_tf.training.distribution import make_strategy
from mrcnn_tf.training.optimizers import build_optimizer


def plan(
    config: Config,
    *,
    classes: int | None = None,
    workers: Sequence[int] = (1,),
    devices_per_worker: int | None = None,
    step_seconds: float | None = None,
    tflops: float | None = None,
    measure_steps: int | None = None,
    bandwidth: float | None = None,
    latency: float | None = None,
    all_reduce: dict[int, float] | None = None,
    overlap: float = 0.0,
) -> dict[str, Any]:
    """What a training with this config takes, as far as what is given tells; `docs/plan.md` explains the model.

    Args:
        config: see `mrcnn_tf.load_config`.
        classes: how many; None: as many as the config's training set has.
        workers: numbers of them to tell of.
        devices_per_worker: of each; None: 1, or as many as were measured on.
        step_seconds: of a training step on one worker. At most one of this and the two below:
        tflops: what one device does in a second, as reached in training, not as advertised.
        measure_steps: measure the step time on this machine, with so many steps.
        bandwidth: between workers, each way, in bytes a second.
        latency: between workers, in seconds.
        all_reduce: seconds that one all-reduce of the gradients took, by number of workers; instead of a bandwidth.
        overlap: share of a step's own time behind which an all-reduce hides, in [0, 1].

    Returns:
        JSON's types; bytes, seconds and GFLOP. With a step time also `step_seconds`, `reached_tflops`, `link` and
        `scaling`, a row for each number of workers; and `measured`.

    Raises:
        ValueError: arguments that are out of range or do not fit together; ConfigError for the config's.
        OSError: the training set, if its classes are needed, cannot be read.
    """
    workers = sorted(set(workers))
    times = all_reduce or {}
    refuse_counts(classes, workers, devices_per_worker, measure_steps, list(times))
    refuse_numbers(step_seconds, tflops, bandwidth, list(times.values()), latency, overlap)
    sources = [x for x in (step_seconds, tflops, measure_steps) if x is not None]
    if len(sources) > 1:
        raise ValueError(
            "--step-seconds, --tflops and --measure each tell how long a step takes; give one of them"
        )
    if bandwidth is not None and times:
        raise ValueError("--bandwidth and --allreduce both tell how fast the network is; give one of them")
    if sources and workers[-1] > 1 and bandwidth is None and not times:
        raise ValueError("--workers above 1 needs the network's speed: give --bandwidth or --allreduce")

    kinds = classes or number_of_classes(config)
    keras.config.set_dtype_policy(config.precision)
    strategy = local_strategy(config) if measure_steps else tf.distribute.get_strategy()
    group = devices_per_worker or strategy.num_replicas_in_sync
    if measure_steps and group != strategy.num_replicas_in_sync:
        raise ValueError(
            f"--devices-per-worker: is {group}, but --measure runs on {strategy.num_replicas_in_sync}; leave one of "
            "them out, or set train.devices"
        )
    images = per_device(config, group)
    memory = Memory() if measure_steps else None
    with strategy.scope():
        model = build_model(config, [f"class {i}" for i in range(kinds)], list(range(1, kinds + 1)))
        optimizer = build_optimizer(config, model)
        model.compile(optimizer=optimizer, jit_compile=False)
    model.clip_norm = config.train.clip_norm

    canvas, most = config.data.canvas, workers[-1] * group
    steps = work.training(model, canvas)
    flops = 1e9 * sum(work.by_part(steps, training=True).values())
    traffic = traffic_of(model)
    out: dict[str, Any] = {
        "config": config.name,
        "classes": kinds,
        "canvas": list(canvas),
        "precision": config.precision,
        "devices_per_worker": group,
        "images_per_device": images,
        "checkpointing": model.backbone.checkpointing,
        "parameters": parameters(model),
        "gflop_per_image": {
            "detecting": work.by_part(work.detecting(model, canvas)),
            "training_forward": work.by_part(steps),
            "training": work.by_part(steps, training=True),
        },
        "memory": {
            name: training_memory(config, model, optimizer, images, devices=most, checkpointing=again)
            for name, again in (("kept", False), ("checkpointing", True))
        },
        "checkpoint_bytes": held(model.variables) + held(optimizer.variables),
        "checkpoint_files": config.train.keep_checkpoints + 3,
        "traffic": traffic._asdict(),
        "sent_per_step": {n: sent(traffic.total, n * group) for n in workers if n > 1},
        "tflops": tflops,
        "overlap": overlap,
    }
    if measure_steps and memory is not None:
        measured = measure(config, model, strategy, memory, measure_steps)
        out["measured"], step_seconds = asdict(measured), measured.step_seconds
    elif tflops is not None:
        step_seconds = flops * images / (tflops * 1e12)
    if step_seconds is None:
        return out
    link = Link(bandwidth, latency or 0.0) if bandwidth is not None else None
    if times:
        link = fitted_link(times, traffic.gradients, group, latency)
    rows = expected(
        config, traffic, step_seconds, workers=workers, devices_per_worker=group, link=link, overlap=overlap
    )
    return out | {
        "step_seconds": step_seconds,
        "reached_tflops": flops * images / step_seconds / 1e12,
        "link": None if link is None else asdict(link) | {"fitted": bool(times)},
        "scaling": [asdict(row) for row in rows],
    }


def refuse_counts(
    classes: int | None,
    workers: list[int],
    devices_per_worker: int | None,
    measure_steps: int | None,
    measured_workers: list[int],
) -> None:
    """Raises ValueError for numbers of things that cannot be; None is not given. See `plan`."""
    for option, least, values in (
        ("--classes", 1, [classes]),
        ("--workers", 1, workers or [0]),
        ("--devices-per-worker", 1, [devices_per_worker]),
        ("--measure", 1, [measure_steps]),
        ("--allreduce", 2, measured_workers),
    ):
        for value in values:
            if value is not None and value < least:
                raise ValueError(f"{option}: is {value}; it must be {least} or more")


def refuse_numbers(
    step_seconds: float | None,
    tflops: float | None,
    bandwidth: float | None,
    measured_seconds: list[float],
    latency: float | None,
    overlap: float,
) -> None:
    """The same for times, speeds and shares."""
    for option, values in (
        ("--step-seconds", [step_seconds]),
        ("--tflops", [tflops]),
        ("--bandwidth", [bandwidth]),
        ("--allreduce", measured_seconds),
    ):
        for value in values:
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{option}: is {value:g}; it must be above 0")
    if latency is not None and not 0 <= latency < math.inf:
        raise ValueError(f"--latency: is {latency:g} s; it must not be negative")
    if not 0 <= overlap <= 1:
        raise ValueError(f"--overlap: is {overlap:g}; it must be in [0, 1]")


def number_of_classes(config: Config) -> int:
    """How many classes the config's training set has.

    Raises:
        ValueError, OSError: it cannot be told; with what to do.
    """
    source = config.data.train
    if source.classes is not None:
        return len(source.classes)
    if config.data.generated is not None:
        return len(SHAPE_CLASSES)
    if source.annotations is None or not Path(source.annotations).exists():
        missing = "is not set" if source.annotations is None else f"{source.annotations}: no such file"
        raise ValueError(f"data.train.annotations: {missing}; give --classes N, the number of classes")
    return open_dataset(source, config.seed).num_classes


def local_strategy(config: Config) -> tf.distribute.Strategy:
    """The devices of this machine; errors as in `make_strategy`, and a ValueError for a worker of several."""
    if cluster_from(os.environ) is not None:
        raise ValueError(
            "--measure: times one worker alone; run it without TF_CONFIG and outside of a job's steps"
        )
    return make_strategy(config.train.devices)


def parameters(model: MaskRCNN) -> dict[str, dict[str, int]]:
    """Of each part all parameters, those that learn, and those that do not."""
    out = {}
    for part in (p for p in model.PARTS if p != "normalize"):
        layer = getattr(model, part)
        total, trained = count(layer.variables), count(layer.trainable_variables)
        out[part] = {"all": total, "trained": trained, "frozen": total - trained}
    return out
