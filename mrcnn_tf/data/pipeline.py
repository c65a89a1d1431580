"""From a data set to `tf.data` batches of fixed shape."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from mrcnn_tf.data import augment
from mrcnn_tf.data.coco import CocoDataset
from mrcnn_tf.data.python_calls import explained, python_call
from mrcnn_tf.data.sampling import BatchOrder
from mrcnn_tf.layers.preprocess import resize


def training_batches(
    dataset: CocoDataset,
    *,
    batch_size: int,
    canvas: tuple[int, int],
    min_sizes: Sequence[int] = (800,),
    max_size: int = 1333,
    size_rule: str = "round",
    interpolation: str = "bilinear",
    aspect_grouping: bool = True,
    flip: bool = True,
    vertical_flip: bool = False,
    scale_jitter: tuple[float, float] | None = None,
    colour_jitter: Sequence[float] | None = None,
    max_instances: int = 100,
    mask_size: int = 112,
    seed: int = 0,
    start_step: int = 0,
    slices: int = 1,
    wanted: Sequence[int] = (0,),
    num_parallel_calls: int | None = None,
    prefetch: int = 2,
) -> tf.data.Dataset:
    """Endless training batches.

    Order and augmentation follow from `seed`, the epoch and the image alone: with `start_step=n` the first
    batch is the one that a run from 0 has after n batches, bit for bit.

    Args:
        dataset: what to read.
        batch_size: images a batch.
        canvas: height and width that images are padded to, at the bottom and on the right.
        min_sizes: wanted lengths of the shorter side, one is chosen at random for every image.
        max_size: bound on the longer side. An image that would not fit the canvas is made smaller.
        size_rule, interpolation: see `mrcnn_tf.layers.preprocess`.
        aspect_grouping: put tall and wide images into batches of their own, and turn the canvas for those
            that it does not suit. Without effect if the canvas is square.
        flip, vertical_flip: mirror half of the images left-right, top-bottom.
        scale_jitter: range of large-scale jitter in place of `min_sizes` and `max_size`, e.g. (0.1, 2.0); see
            `augment.jittered_view`.
        colour_jitter: strengths of brightness, contrast, saturation and hue; see `augment.colour_jitter`.
        max_instances: M; a random choice where an image has more (`left_out` counts them).
        mask_size: side of the ground-truth masks, m.
        seed: of everything random.
        start_step: batches to skip.
        slices: into how many equal parts every batch is cut, as several devices share it.
        wanted: numbers of those that are read, of each batch one after another; each is an element of its own.
        num_parallel_calls: images prepared at a time, the number of CPU cores (at most 16) by default.
        prefetch: batches prepared ahead.

    Returns:
        A dataset of dicts: `images` float32 `[B, H, W, 3]` RGB in [0, 255]; `image_sizes` float32 `[B, 2]`,
        the valid height and width; `image_ids` int64 `[B]`; `gt_boxes` float32 `[B, M, 4]` in pixels of the
        canvas; `gt_classes` int32 `[B, M]`, -1 for padding; `gt_crowd`, `gt_has_mask` bool `[B, M]`;
        `gt_masks` uint8 `[B, M, m, m]`, 0 or 1 over each box. `[H, W]` is the canvas, or the canvas turned.

    Raises:
        ValueError: if an argument is out of its range. An image that cannot be read raises when its batch is
            due; `explain` makes one line of that.
    """
    _check(dataset, batch_size, canvas, min_sizes, max_size, scale_jitter, colour_jitter, max_instances)
    if batch_size % slices or not wanted or not all(0 <= part < slices for part in wanted):
        raise ValueError(
            f"a batch of {batch_size} has no {slices} equal slices, or none numbered {list(wanted)}"
        )
    turned = _turned(dataset, canvas) if aspect_grouping else np.zeros(len(dataset), bool)
    canvases = (canvas[0], canvas[1]), (canvas[1], canvas[0])

    order = BatchOrder(turned, batch_size, seed)
    size = batch_size // slices

    def load(position: int) -> dict[str, Any]:
        element, row = divmod(position, size)
        step, part = divmod(element, len(wanted))
        index, epoch = order.batch(step)[wanted[part] * size + row]
        rng = np.random.default_rng([seed, epoch, index])
        height, width = dataset.size(index)
        room = canvases[int(turned[index])]
        flip_x, flip_y = flip and rng.random() < 0.5, vertical_flip and rng.random() < 0.5
        if scale_jitter is not None:
            view = augment.jittered_view(
                rng, height, width, canvas=room, scale=scale_jitter, flip_x=flip_x, flip_y=flip_y
            )
        else:
            view = augment.whole_view(
                height,
                width,
                min_size=min_sizes[int(rng.integers(len(min_sizes)))],
                max_size=max_size,
                size_rule=size_rule,
                canvas=room,
                flip_x=flip_x,
                flip_y=flip_y,
            )
        image = augment.view_image(view, dataset.image(index))
        if colour_jitter is not None:
            image = augment.colour_jitter(rng, image, colour_jitter)
        targets = augment.view_instances(
            view,
            dataset.instances(index),
            height,
            width,
            mask_size=mask_size,
            max_instances=max_instances,
            rng=rng,
        )
        found = {"image": image, "size": view.size, "canvas": room, "image_ids": dataset.image_ids[index]}
        return {**found, **targets}

    targets = augment.no_instances(max_instances, mask_size)
    specs = {name: tf.TensorSpec(value.shape, value.dtype) for name, value in targets.items()}
    loaded = python_call(load, {**_IMAGE_SPECS, **specs})
    shape = [*canvases[int(turned[0])], 3] if turned.all() or not turned.any() else [None, None, 3]

    def sample(position: tf.Tensor) -> dict[str, tf.Tensor]:
        out = _on_canvas(loaded(position), interpolation)
        return {**out, "images": tf.ensure_shape(out["images"], shape)}

    # Positions in the endless sequence of images, not of batches, so that images are prepared in parallel.
    positions = tf.data.Dataset.counter(start_step * len(wanted) * size)
    batches = positions.map(sample, num_parallel_calls=num_parallel_calls or _cores(), deterministic=True)
    return batches.batch(size, drop_remainder=True).prefetch(prefetch * len(wanted))


def evaluation_batches(
    dataset: CocoDataset,
    *,
    batch_size: int = 1,
    canvas: tuple[int, int] | None = None,
    min_size: int = 800,
    max_size: int = 1333,
    size_rule: str = "round",
    interpolation: str = "bilinear",
    multiple: int = 32,
    turn: bool = True,
    only: range | None = None,
    num_parallel_calls: int | None = None,
    prefetch: int = 2,
) -> tf.data.Dataset:
    """Every image once, resized as at inference.

    Args:
        dataset: what to read.
        batch_size: images a batch; the last one may be smaller.
        canvas: height and width to pad to, turned for images that it does not suit, which come after the
            others. None: each batch is padded to a multiple of `multiple` that holds its largest image.
        min_size, max_size: lengths of the shorter and at most of the longer side.
        size_rule, interpolation: see `mrcnn_tf.layers.preprocess`.
        multiple, turn: see `canvas`; without `turn` images that it does not suit are made smaller instead.
        only: which of the images, by their place in the order; all if not given.
        num_parallel_calls, prefetch: as in `training_batches`.

    Returns:
        A dataset of dicts: `images`, `image_sizes`, `image_ids` as in `training_batches`, `original_sizes`
        int32 `[B, 2]`. The order is that of the data set, except as said above.
    """
    _check(dataset, batch_size, canvas or (multiple, multiple), (min_size,), max_size, None, None, 1)
    turned = _turned(dataset, canvas) if canvas and turn else np.zeros(len(dataset), bool)
    order = np.argsort(turned, kind="stable")
    order = order if only is None else order[only.start : only.stop]
    room = canvas or (2**30, 2**30)

    def load(index: int) -> dict[str, Any]:
        image = dataset.image(index)
        space = room[::-1] if turned[index] else room
        view = augment.whole_view(
            *image.shape[:2], min_size=min_size, max_size=max_size, size_rule=size_rule, canvas=space
        )
        if not canvas:
            height, width = view.size
            space = -(-height // multiple) * multiple, -(-width // multiple) * multiple
        found = {"image": image, "size": view.size, "canvas": space, "image_ids": dataset.image_ids[index]}
        return {**found, "original_sizes": dataset.size(index)}

    loaded = python_call(load, {**_IMAGE_SPECS, "original_sizes": tf.TensorSpec([2], tf.int32)})

    def sample(index: tf.Tensor) -> dict[str, tf.Tensor]:
        return _on_canvas(loaded(index), interpolation)

    batches = tf.data.Dataset.from_tensor_slices(order)
    batches = batches.map(sample, num_parallel_calls=num_parallel_calls or _cores(), deterministic=True)
    first, second = int((~turned[order]).sum()), int(turned[order].sum())
    if canvas and first and second:
        batches = batches.take(first).batch(batch_size).concatenate(batches.skip(first).batch(batch_size))
    elif canvas:
        batches = batches.batch(batch_size)
    else:
        batches = batches.padded_batch(batch_size)
    return batches.prefetch(prefetch)


def step_image_ids(
    dataset: CocoDataset,
    step: int,
    *,
    batch_size: int,
    canvas: tuple[int, int],
    aspect_grouping: bool = True,
    seed: int = 0,
) -> list[int]:
    """Ids of the images that `training_batches` with these arguments has in a step, counted from 0."""
    turned = _turned(dataset, canvas) if aspect_grouping else np.zeros(len(dataset), bool)
    return [int(dataset.image_ids[index]) for index, _ in BatchOrder(turned, batch_size, seed).batch(step)]


def left_out(dataset: CocoDataset, max_instances: int) -> tuple[int, int]:
    """How many images have more than `max_instances` instances, and how many instances that leaves out."""
    over = dataset.instance_counts - max_instances
    return int((over > 0).sum()), int(over[over > 0].sum())


def explain(error: tf.errors.OpError) -> str:
    """One line for an error out of TensorFlow, such as one that an image raised when its batch was due."""
    message = str(error.message)
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return explained(message) or (lines[0] if lines else str(error))


_IMAGE_SPECS = {
    "image": tf.TensorSpec([None, None, 3], tf.uint8),
    "size": tf.TensorSpec([2], tf.int32),
    "canvas": tf.TensorSpec([2], tf.int32),
    "image_ids": tf.TensorSpec([], tf.int64),
}


def _on_canvas(loaded: dict[str, tf.Tensor], interpolation: str) -> dict[str, tf.Tensor]:
    """Resize `image` to `size` and pad it with zeros to `canvas`; everything else is handed on."""
    image, size, canvas = (loaded.pop(key) for key in ("image", "size", "canvas"))
    rest = canvas - size
    image = tf.pad(resize(image, size, interpolation), [[0, rest[0]], [0, rest[1]], [0, 0]])
    return {"images": image, "image_sizes": tf.cast(size, tf.float32), **loaded}


def _turned(dataset: CocoDataset, canvas: tuple[int, int]) -> np.ndarray:
    """Bool `[len]`: images that lie across the canvas, so that it is turned for them."""
    height, width = dataset.sizes[:, 0], dataset.sizes[:, 1]
    if canvas[0] == canvas[1]:
        return np.zeros(len(dataset), bool)
    return height > width if canvas[0] < canvas[1] else width > height


def _cores() -> int:
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(available, 16)


def _check(
    dataset: CocoDataset,
    batch_size: int,
    canvas: Sequence[int],
    min_sizes: Sequence[int],
    max_size: int,
    scale_jitter: Any,
    colour_jitter: Any,
    max_instances: int,
) -> None:
    if dataset.folder is None:
        raise ValueError(f"{dataset.name}: images cannot be read, because no image folder was given")
    if batch_size < 1 or max_instances < 1 or max_size < 1:
        raise ValueError(
            f"batch_size, max_instances and max_size must be at least 1, not {batch_size}, {max_instances} "
            f"and {max_size}"
        )
    if len(canvas) != 2 or min(canvas) < 1:
        raise ValueError(f"canvas must be a height and a width in pixels, not {canvas!r}")
    if not min_sizes or min(min_sizes) < 1:
        raise ValueError(f"min_sizes must hold at least one length in pixels, not {min_sizes!r}")
    if scale_jitter is not None and not (len(scale_jitter) == 2 and 0 < scale_jitter[0] <= scale_jitter[1]):
        raise ValueError(f"scale_jitter must be two factors, 0 < low <= high, not {scale_jitter!r}")
    if colour_jitter is not None and (len(colour_jitter) != 4 or not all(0 <= s <= 1 for s in colour_jitter)):
        raise ValueError(
            "colour_jitter must be four strengths in [0, 1] (brightness, contrast, saturation, hue), "
            f"not {colour_jitter!r}"
        )
