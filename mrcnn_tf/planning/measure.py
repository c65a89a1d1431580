"""A few training steps of a config on this machine, on made-up images: how long they take, and in how much memory."""

from __future__ import annotations

import ctypes
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tensorflow as tf

from mrcnn_tf.models.mask_rcnn import MaskRCNN
from mrcnn_tf.schema import Config
from mrcnn_tf.training.distribution import check_split, scaled, train_function
from mrcnn_tf.training.repeatable import sums_in_order

INSTANCES = 8  # of a made-up image; the work of a step does not depend on it


@dataclass(frozen=True)
class Measured:
    """What some training steps took.

    Attributes:
        seconds: of each step, in order.
        step_seconds: their median.
        images: of a step.
        devices: how many, and `kind`, `"CPU"` or `"GPU"`.
        peak: bytes of a device at most, since `memory` was started; of the process on a CPU; None where the system
            does not tell.
    """

    seconds: list[float]
    step_seconds: float
    images: int
    devices: int
    kind: str
    peak: float | None


def measure(
    config: Config, model: MaskRCNN, strategy: tf.distribute.Strategy, memory: Memory, steps: int = 5
) -> Measured:
    """Times training steps after two for warming up; no data are read.

    Args:
        config: whose batch, canvas and ground truth the made-up images have.
        model: compiled, made within the scope of `strategy`.
        strategy: of one process.
        memory: made before the model.
        steps: how many, 1 or more.

    Raises:
        ConfigError: the batch cannot be split over the devices.
    """
    devices = strategy.num_replicas_in_sync
    batch = made_up_batch(scaled(config, devices))
    images = int(batch["images"].shape[0])
    check_split(strategy, images)
    batches = iter(
        strategy.experimental_distribute_dataset(
            tf.data.Dataset.from_tensor_slices(batch).batch(images).repeat()
        )
    )
    step, seconds = train_function(strategy, model), []
    with sums_in_order():  # as training does
        for number in range(-2, steps):
            start = time.perf_counter()
            float(step(batches)["loss"])
            if number >= 0:
                seconds.append(time.perf_counter() - start)
    return Measured(seconds, statistics.median(seconds), images, devices, memory.kind, memory.peak())


def made_up_batch(config: Config) -> dict[str, np.ndarray]:
    """Noise with boxes, as `mrcnn_tf.data.pipeline.training_batches` would shape it."""
    rng = np.random.default_rng(0)
    size, (height, width) = config.train.batch_size, config.data.canvas
    slots, side = config.data.max_instances, config.data.mask_size
    corner = rng.uniform(0, 0.5, (size, slots, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(0.1, 0.5, (size, slots, 2))], -1)
    there = np.broadcast_to(np.arange(slots) < INSTANCES, (size, slots))
    return {
        "images": rng.uniform(0, 255, (size, height, width, 3)).astype(np.float32),
        "image_sizes": np.full((size, 2), (height, width), np.float32),
        "image_ids": np.arange(1, size + 1),
        "gt_boxes": np.where(there[..., None], boxes * [height, width, height, width], 0).astype(np.float32),
        "gt_classes": np.where(there, 1, -1).astype(np.int32),
        "gt_crowd": np.zeros((size, slots), bool),
        "gt_has_mask": there.copy(),
        "gt_masks": np.ones((size, slots, side, side), np.uint8),
    }


class Memory:
    """The most memory since this was made: a GPU's as TensorFlow counts it, or this process's (Linux).

    Attributes:
        kind: `"CPU"` or `"GPU"`.
    """

    def __init__(self) -> None:
        gpus = tf.config.list_logical_devices("GPU")
        self.gpu = gpus[0].name.split("device:")[-1] if gpus else None
        self.kind = "GPU" if gpus else "CPU"
        if self.gpu is not None:
            tf.config.experimental.reset_memory_stats(self.gpu)
        try:
            ctypes.CDLL("libc.so.6").malloc_trim(0)  # what is free now must not count as used
            Path("/proc/self/clear_refs").write_text("5")  # the most so far is forgotten
        except (OSError, AttributeError):
            self.known = False
        else:
            self.known = True
        self.before = self._most() or 0.0

    def _most(self) -> float | None:
        if self.gpu is not None:
            return tf.config.experimental.get_memory_info(self.gpu)["peak"]
        return status("VmHWM") if self.known else None

    def peak(self) -> float | None:
        """Bytes above what there was at the start; None where the system does not tell."""
        most = self._most()
        return None if most is None else most - self.before


def status(key: str) -> float:
    """Bytes that Linux tells of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024.0 * next(float(line.split()[1]) for line in lines if line.startswith(f"{key}:"))
