"""RoIAlign (He et al., 2017, section 3) over a feature pyramid, exact.

Four backends give the same values: "custom" is a compiled op (`csrc/`), the others are stock operations. All of
them know that a bin is a weighted sum of cells: "sparse" writes the weights into one sparse matrix a level and
multiplies, "crop" leaves them to `crop_and_resize`, "gather" fetches the cells.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import tensorflow as tf

from mrcnn_tf.ops import compile as compiled
from mrcnn_tf.ops import custom
from mrcnn_tf.ops.sampling import adaptive_cell_weights, assign_levels, cell_weights, grid

__all__ = ["assign_levels", "roi_align"]

BACKENDS = ("auto", "custom", "sparse", "crop", "gather")
# Pixels. Further out no map reaches, and cell numbers would not fit an int32.
FARTHEST = 1e6


def roi_align(
    feature_maps: Sequence[tf.Tensor],
    boxes: tf.Tensor,
    *,
    strides: Sequence[int],
    output_size: int,
    sampling_ratio: int = 2,
    aligned: bool = True,
    backend: str = "auto",
) -> tf.Tensor:
    """Pools every box from its pyramid level into a square grid of bins.

    A bin is the mean of `sampling_ratio x sampling_ratio` bilinear samples. A sample up to one cell outside
    the map takes the border's value; one further out counts as zero. Gradients flow to the feature maps, not
    to the boxes.

    Args:
        feature_maps: a list of `[B, H_l, W_l, C]`, one for each stride.
        boxes: `[B, N, 4]` in image pixels; may reach across the image's border or have no area. A coordinate
            that is not a number counts as zero.
        strides: pixels a cell of each map, powers of two, each twice the one before.
        output_size: bins along a side.
        sampling_ratio: samples along a bin's side; 0: as many as the bin is cells long, rounded up, which detectron2's
            published models were trained with (backend `"sparse"` only, which `"auto"` then is).
        aligned: true for the half-pixel-exact form (detectron2's ROIAlignV2); false for the older one without
            the half-pixel shift and with boxes of at least one cell, with which torchvision's weights were
            trained.
        backend: `"custom"` (the compiled op, for CPUs; the fastest, and its gradient has the same bits in every
            run), `"sparse"` (sparse matrices; the fastest stock one on a CPU, exact on maps of every size, same
            bits), `"crop"` (`tf.image.crop_and_resize`, for GPUs; places samples as exactly as float32 holds a
            share of the map's side), `"gather"` (`tf.gather`; runs under XLA and LiteRT) or `"auto"` (crop
            where there is a GPU, else custom where it can be built, else sparse).

    Returns:
        `[B, N, output_size, output_size, C]` in the dtype of the feature maps.

    Raises:
        ValueError: unknown backend, one that has no sampling ratio 0, or maps and strides that differ in number.
        RuntimeError: backend `"custom"` where it cannot be built.
    """
    backend = choose(backend, sampling_ratio)
    if len(feature_maps) != len(strides):
        raise ValueError(
            f"RoIAlign needs one stride for each map, not {len(strides)} for {len(feature_maps)}"
        )
    boxes = finite(boxes)
    if backend == "custom":
        out = custom.pool(feature_maps, boxes, None, strides, output_size, sampling_ratio, aligned)
    else:
        pool = {"sparse": _sparse, "crop": _crop, "gather": _gather}[backend]
        out = pool(list(feature_maps), boxes, strides, output_size, sampling_ratio, aligned)
    return shaped(out, feature_maps, boxes, output_size)


def choose(backend: str, sampling_ratio: int) -> str:
    """The backend that a name stands for on this machine: `"auto"` becomes another one.

    Raises:
        ValueError: unknown name, or a backend that does not have this sampling ratio.
    """
    if backend not in BACKENDS:
        raise ValueError(f"unknown RoIAlign backend {backend!r}: choose one of {', '.join(BACKENDS)}")
    if sampling_ratio == 0:
        if backend not in ("auto", "sparse"):
            raise ValueError(
                f"RoIAlign backend {backend!r} has no adaptive sampling (sampling_ratio 0); take 'auto' or 'sparse'"
            )
        return "sparse"
    if backend != "auto":
        return backend
    if tf.config.list_logical_devices("GPU"):
        return "crop"
    return "custom" if compiled.available() else "sparse"


def finite(boxes: tf.Tensor) -> tf.Tensor:
    """Boxes as float32 without gradient, NaN as zero, and nothing further out than any map reaches."""
    boxes = tf.stop_gradient(tf.cast(boxes, tf.float32))
    return tf.clip_by_value(tf.where(tf.math.is_nan(boxes), 0.0, boxes), -FARTHEST, FARTHEST)


def shaped(
    pooled: tf.Tensor, feature_maps: Sequence[tf.Tensor], boxes: tf.Tensor, output_size: int
) -> tf.Tensor:
    """What a backend gave, as `[B, N, S, S, C]` with all that is known of the shape, in the maps' dtype."""
    channels = feature_maps[0].shape[-1]
    shape = [tf.shape(boxes)[0], tf.shape(boxes)[1], output_size, output_size, channels]
    pooled = tf.reshape(tf.cast(pooled, feature_maps[0].dtype), shape)
    return tf.ensure_shape(pooled, [*boxes.shape[:2], output_size, output_size, channels])


# --- level by level: sparse and crop ---------------------------------------------------------------------


def _sparse(
    feature_maps: list[tf.Tensor],
    boxes: tf.Tensor,
    strides: Sequence[int],
    output_size: int,
    sampling_ratio: int,
    aligned: bool,
) -> tf.Tensor:
    """One product of a sparse matrix and a map's cells for each level."""
    weights = partial(_weights, output_size=output_size, sampling_ratio=sampling_ratio, aligned=aligned)

    def pool(feature_map: tf.Tensor, stride: int, boxes: tf.Tensor, image: tf.Tensor) -> tf.Tensor:
        cells = tf.reshape(feature_map, [-1, feature_map.shape[-1]])
        pooled = _multiply(weights(feature_map, stride, boxes, image), cells)
        return tf.reshape(pooled, [-1, output_size, output_size, cells.shape[-1]])

    return _by_level(pool, weights, [tf.cast(f, tf.float32) for f in feature_maps], boxes, strides)


def _crop(
    feature_maps: list[tf.Tensor],
    boxes: tf.Tensor,
    strides: Sequence[int],
    output_size: int,
    sampling_ratio: int,
    aligned: bool,
) -> tf.Tensor:
    """One crop of all images' boxes for each level."""
    points = output_size * sampling_ratio

    def pool(feature_map: tf.Tensor, stride: int, boxes: tf.Tensor, image: tf.Tensor) -> tf.Tensor:
        # crop_and_resize is zero outside the centres of the border's cells. With the border doubled, it is
        # zero just where RoIAlign is.
        padded = tf.pad(feature_map, [[0, 0], [1, 1], [1, 1], [0, 0]], "SYMMETRIC")
        ends = []
        for low, high in ((0, 2), (1, 3)):
            cell, start, step = grid(boxes[:, low], boxes[:, high], float(stride), points, aligned)
            first = start + cell + 1.0
            ends.append(tf.stack([first, first + step * (points - 1)], -1))
        last = tf.cast(tf.shape(padded)[1:3] - 1, tf.float32)
        window = tf.reshape(tf.stack(ends, -1) / last, [-1, 4])
        crops = tf.image.crop_and_resize(padded, window, image, [points, points])
        if sampling_ratio == 1:
            return crops
        return tf.nn.avg_pool2d(crops, sampling_ratio, sampling_ratio, "VALID")

    # crop_and_resize takes float16 but not bfloat16.
    maps = [f if f.dtype == tf.float16 else tf.cast(f, tf.float32) for f in feature_maps]
    # On a CPU its gradient loses updates: the threads add to the same cells without a lock.
    weights = None
    if not tf.config.list_logical_devices("GPU"):
        weights = partial(_weights, output_size=output_size, sampling_ratio=sampling_ratio, aligned=aligned)
    return _by_level(pool, weights, maps, boxes, strides)


def _by_level(
    pool: Callable[..., tf.Tensor],
    weights: Callable[..., _Weights] | None,
    feature_maps: list[tf.Tensor],
    boxes: tf.Tensor,
    strides: Sequence[int],
) -> tf.Tensor:
    """Pools every level's boxes from its map and puts them back in order.

    Args:
        pool: `(feature_map, stride, boxes [n, 4], image [n])` -> float32 `[n, S, S, C]`.
        weights: the same arguments -> the matrix that `pool` stands for. Its transpose becomes the gradient:
            every cell's is one row of a product, summed by one thread in a fixed order. None: the gradient is
            left to TensorFlow.
        feature_maps: `[B, H_l, W_l, C]`.
        boxes: `[B, N, 4]`.
        strides: one a level.

    Returns:
        float32 `[B * N, S, S, C]`.
    """
    batch, count = tf.unstack(tf.shape(boxes)[:2])
    all_images = tf.repeat(tf.range(batch), count)
    all_levels = tf.reshape(assign_levels(boxes, strides), [-1])
    boxes = tf.reshape(boxes, [-1, 4])

    def members(boxes: tf.Tensor, images: tf.Tensor, levels: tf.Tensor) -> list[tuple[tf.Tensor, ...]]:
        own = [tf.cast(tf.where(levels == level)[:, 0], tf.int32) for level in range(len(strides))]
        return [(index, tf.gather(boxes, index), tf.gather(images, index)) for index in own]

    def forward(boxes: tf.Tensor, images: tf.Tensor, levels: tf.Tensor, *maps: tf.Tensor) -> tf.Tensor:
        own = members(boxes, images, levels)
        pooled = [pool(f, stride, *place) for f, stride, (_, *place) in zip(maps, strides, own, strict=True)]
        return tf.dynamic_stitch([index for index, *_ in own], pooled)

    if weights is None:
        return forward(boxes, all_images, all_levels, *feature_maps)

    @tf.custom_gradient
    def run(boxes: tf.Tensor, images: tf.Tensor, levels: tf.Tensor, *maps: tf.Tensor):
        def gradient(upstream: tf.Tensor) -> list[tf.Tensor | None]:
            out = []
            # Made anew, because SavedModel keeps gradients, too, and they may use nothing but arguments. In one
            # graph TensorFlow sees that members and weights are those of the forward pass.
            for f, stride, (index, *place) in zip(maps, strides, members(boxes, images, levels), strict=True):
                bins = tf.reshape(tf.gather(upstream, index), [-1, f.shape[-1]])
                product = _multiply(weights(f, stride, *place), bins, transpose=True)
                out.append(tf.cast(tf.reshape(product, tf.shape(f)), f.dtype))
            return [None, None, None, *out]

        return forward(boxes, images, levels, *maps), gradient

    return run(boxes, all_images, all_levels, *feature_maps)


class _Weights(NamedTuple):
    """A sparse matrix: `indices` int64 `[n, 2]` ordered by row, `values` float32 `[n]`, and its shape."""

    indices: tf.Tensor
    values: tf.Tensor
    rows: tf.Tensor
    columns: tf.Tensor


def _weights(
    feature_map: tf.Tensor,
    stride: int,
    boxes: tf.Tensor,
    image: tf.Tensor,
    *,
    output_size: int,
    sampling_ratio: int,
    aligned: bool,
) -> _Weights:
    """RoIAlign of one level as a matrix: a row for each bin of each box, a column for each image's cell.

    Args:
        feature_map: `[B, H, W, C]`; only its shape matters.
        boxes, image: `[n, 4]` in pixels and `[n]`.
        stride, output_size, sampling_ratio, aligned: those of `roi_align`.
    """
    count = tf.shape(boxes)[0]
    batch, height, width = tf.unstack(tf.shape(feature_map)[:3])
    if sampling_ratio == 0:
        return _adaptive_weights(boxes, image, float(stride), (batch, height, width), output_size, aligned)
    points, pairs = output_size * sampling_ratio, 2 * sampling_ratio
    y, wy = cell_weights(boxes[:, 0], boxes[:, 2], float(stride), height, points, aligned)
    x, wx = cell_weights(boxes[:, 1], boxes[:, 3], float(stride), width, points, aligned)
    # Box, bin's row, bin's column, then the cells that the bin takes part of.
    along_y, along_x = [count, output_size, 1, pairs, 1], [count, 1, output_size, 1, pairs]
    y = (y + image[:, None, None] * height) * width
    column = tf.reshape(tf.reshape(y, along_y) + tf.reshape(x, along_x), [-1])
    value = tf.reshape(wy / float(sampling_ratio**2), along_y) * tf.reshape(wx, along_x)
    rows = count * output_size**2
    indices = tf.stack([tf.repeat(tf.range(rows), pairs**2), column], -1)
    return _Weights(tf.cast(indices, tf.int64), tf.reshape(value, [-1]), rows, batch * height * width)


def _adaptive_weights(
    boxes: tf.Tensor,
    image: tf.Tensor,
    stride: float,
    shape: tuple[tf.Tensor, tf.Tensor, tf.Tensor],
    bins: int,
    aligned: bool,
) -> _Weights:
    """`_weights` with a number of samples of its own for each box and axis; `shape`: the map's images, rows, columns.

    A matrix with room for the most samples of any box everywhere would be mostly zeros, and gigabytes with one thin
    box among a thousand: every bin lists just its own.
    """
    batch, height, width = shape
    ny, y, wy = adaptive_cell_weights(boxes[:, 0], boxes[:, 2], stride, height, bins, aligned)
    nx, x, wx = adaptive_cell_weights(boxes[:, 1], boxes[:, 3], stride, width, bins, aligned)
    entries = 4 * ny * nx  # of each bin of a box
    rows = tf.shape(boxes)[0] * bins**2
    row = tf.repeat(tf.range(rows), tf.repeat(entries, bins**2))
    box = row // bins**2
    start = tf.cumsum(entries * bins**2, exclusive=True)
    place = (tf.range(tf.shape(row)[0]) - tf.gather(start, box)) % tf.gather(entries, box)
    across = tf.gather(2 * nx, box)
    along_y = tf.stack([box, row % bins**2 // bins, place // across], -1)
    along_x = tf.stack([box, row % bins, place % across], -1)
    line = tf.gather(image, box) * height + tf.gather_nd(y, along_y)
    column = line * width + tf.gather_nd(x, along_x)
    indices = tf.cast(tf.stack([row, column], -1), tf.int64)
    return _Weights(
        indices, tf.gather_nd(wy, along_y) * tf.gather_nd(wx, along_x), rows, batch * height * width
    )


def _multiply(weights: _Weights, dense: tf.Tensor, transpose: bool = False) -> tf.Tensor:
    """The matrix, or its transpose, times `dense` `[k, C]`."""
    rows, columns = (weights.rows, weights.columns + 1) if transpose else (weights.rows + 1, weights.columns)
    # The product has one row more than it needs: with none, TensorFlow 2.21's kernel divides by zero and the
    # process ends.
    matrix = tf.raw_ops.SparseTensorToCSRSparseMatrix(
        indices=weights.indices,
        values=weights.values,
        dense_shape=tf.cast(tf.stack([rows, columns]), tf.int64),
    )
    if transpose:
        # Not the product's own switch for this, which sums into a copy of the result for every thread.
        matrix = tf.raw_ops.SparseMatrixTranspose(input=matrix, type=tf.float32)
    return tf.raw_ops.SparseMatrixMatMul(a=matrix, b=dense)[:-1]


# --- all levels at once: gather --------------------------------------------------------------------------


def _gather(
    feature_maps: list[tf.Tensor],
    boxes: tf.Tensor,
    strides: Sequence[int],
    output_size: int,
    sampling_ratio: int,
    aligned: bool,
) -> tf.Tensor:
    """All levels' cells in one table, four rows of it for each sample; no shape depends on values."""
    channels = feature_maps[0].shape[-1]
    points = output_size * sampling_ratio
    batch, count = tf.unstack(tf.shape(boxes)[:2])
    shapes = tf.stack([tf.shape(f)[1:3] for f in feature_maps])
    cells = shapes[:, 0] * shapes[:, 1]

    level = assign_levels(boxes, strides)
    first = tf.gather(tf.cumsum(cells, exclusive=True) * batch, level)
    first += tf.expand_dims(tf.range(batch), 1) * tf.gather(cells, level)
    size = tf.gather(shapes, level)
    stride = tf.gather(tf.constant(strides, tf.float32), level)
    y, wy = cell_weights(boxes[..., 0], boxes[..., 2], stride, size[..., 0], points, aligned)
    x, wx = cell_weights(boxes[..., 1], boxes[..., 3], stride, size[..., 1], points, aligned)
    y = y * tf.reshape(size[..., 1], [batch, count, 1, 1]) + tf.reshape(first, [batch, count, 1, 1])
    wy /= float(sampling_ratio**2)
    y, wy = tf.expand_dims(y, -2), tf.expand_dims(wy, -2)
    x, wx = tf.expand_dims(x, -3), tf.expand_dims(wx, -3)
    corners = [(y[..., i] + x[..., j], wy[..., i] * wx[..., j]) for i in (0, 1) for j in (0, 1)]

    # The gradient may use nothing but the arguments: see _by_level.
    @tf.custom_gradient
    def pool(table: tf.Tensor, *corners: tf.Tensor):
        rows, weights = corners[:4], corners[4:]

        def gradient(upstream: tf.Tensor) -> list[tf.Tensor | None]:
            # One corner after the other into one tensor; left to TensorFlow, all four would lie in memory.
            bins = tf.reshape(upstream, [-1, output_size, 1, output_size, 1, channels])
            out = tf.zeros_like(table)
            for row, weight in zip(rows, weights, strict=True):
                weight = tf.reshape(weight, [-1, output_size, sampling_ratio, output_size, sampling_ratio, 1])
                values = tf.reshape(bins * weight, [-1, channels])
                out = tf.tensor_scatter_nd_add(out, tf.reshape(row, [-1, 1]), values)
            return [out] + [None] * len(corners)

        samples = [
            tf.gather(table, row) * tf.expand_dims(weight, -1)
            for row, weight in zip(rows, weights, strict=True)
        ]
        out = tf.reshape(tf.add_n(samples), [-1, points, points, channels])
        if sampling_ratio > 1:
            # The weights hold the division already.
            out = tf.nn.avg_pool2d(out, sampling_ratio, sampling_ratio, "VALID") * float(sampling_ratio**2)
        return out, gradient

    table = tf.concat([tf.reshape(tf.cast(f, tf.float32), [-1, channels]) for f in feature_maps], axis=0)
    return pool(table, *(rows for rows, _ in corners), *(weight for _, weight in corners))
