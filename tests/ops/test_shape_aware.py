"""Shape-aware RoIAlign: against the paper's equations in float64, against RoIAlign, and its gradients."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from mrcnn_tf.ops.roi_align import roi_align
from mrcnn_tf.ops.shape_aware import shape_aware_roi_align

from . import reference
from .test_roi_align import BACKENDS, BOXES, SHAPES, STRIDES, maps


def probability_maps(boxes=BOXES, size=(28, 28), seed=5) -> np.ndarray:
    return np.random.default_rng(seed).uniform(size=(*boxes.shape[:2], *size)).astype(np.float32)


def random_boxes(count: int, seed: int) -> np.ndarray:
    """Sides from a fifth of a pixel to ten images, anywhere in and about an image of 96 x 128 pixels."""
    rng = np.random.default_rng(seed)
    centre = rng.uniform((-30, -30), (126, 158), (2, count, 2))
    side = np.exp(rng.uniform(np.log(0.2), np.log(1000), (2, count, 2)))
    return np.concatenate([centre - side / 2, centre + side / 2], -1).astype(np.float32)


def gradients(feature_maps, boxes, probabilities, upstream, **options) -> list[np.ndarray]:
    """Of the feature maps, then of the probabilities."""
    inputs = [tf.constant(f) for f in feature_maps], tf.constant(probabilities)
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        out = shape_aware_roi_align(inputs[0], boxes, inputs[1], strides=STRIDES, **options)
        loss = tf.reduce_sum(tf.cast(out, tf.float32) * upstream)
    feature_gradients, gradient = tape.gradient(loss, inputs)
    return [g.numpy() for g in (*feature_gradients, gradient)]


# On a linear map, 5 y + x, the samples of a bin are 3.5 +- 0.25 cells and so on; only the left half of the box
# has the object, so that only the samples there count.
@pytest.mark.parametrize("backend", BACKENDS)
def test_half_a_map_by_hand(backend):
    feature_map = np.arange(25, dtype=np.float32).reshape(1, 5, 5, 1)
    boxes = np.array([[[1, 1, 3, 3]]], np.float32)
    mask = np.tile(np.repeat([1.0, 0.0], 4).astype(np.float32), (8, 1))[None, None]
    out = shape_aware_roi_align([feature_map], boxes, mask, strides=(1,), output_size=2, backend=backend)
    # Samples at 0.75, 1.25, 1.75 and 2.25 in cells; x = 1.25 is the last one left of the box's middle.
    expected = [[5 * 1.0 + 1.0, 0.0], [5 * 2.0 + 1.0, 0.0]]
    np.testing.assert_allclose(out[0, 0, ..., 0], expected, atol=1e-5)


@pytest.mark.parametrize("sampling_ratio", [1, 2, 3, 4])
@pytest.mark.parametrize("aligned", [True, False])
def test_equals_the_papers_equations(aligned, sampling_ratio):
    options = dict(strides=STRIDES, output_size=7, sampling_ratio=sampling_ratio, aligned=aligned)
    for boxes, size in ((BOXES, (28, 28)), (random_boxes(12, sampling_ratio), (9, 14))):
        probabilities = probability_maps(boxes, size)
        expected = reference.shape_aware_roi_align(maps(), boxes, probabilities, **options)
        plain = reference.roi_align(maps(), boxes, **options)
        for backend in BACKENDS:
            out = shape_aware_roi_align(maps(), boxes, probabilities, backend=backend, **options)
            np.testing.assert_allclose(out, expected, atol=1e-5, rtol=0, err_msg=backend)
            out = roi_align(maps(), boxes, backend=backend, **options)
            np.testing.assert_allclose(out, plain, atol=1e-5, rtol=0, err_msg=backend)


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (14, 14), (40, 33)])
def test_maps_of_any_size(size):
    options = dict(strides=STRIDES, output_size=7, sampling_ratio=2, aligned=True)
    probabilities = probability_maps(size=size)
    expected = reference.shape_aware_roi_align(maps(), BOXES, probabilities, **options)
    for backend in BACKENDS:
        out = shape_aware_roi_align(maps(), BOXES, probabilities, backend=backend, **options)
        np.testing.assert_allclose(out, expected, atol=1e-5, rtol=0, err_msg=backend)


@pytest.mark.parametrize("sampling_ratio", [1, 2, 3])
def test_ones_give_roi_align_to_the_bit(sampling_ratio):
    options = dict(strides=STRIDES, output_size=7, sampling_ratio=sampling_ratio, backend="custom")
    ones = np.ones((2, 10, 28, 28), np.float32)
    for dtype in (tf.float32, tf.bfloat16, tf.float16):
        feature_maps = [tf.cast(f, dtype) for f in maps()]
        out = shape_aware_roi_align(feature_maps, BOXES, ones, **options)
        assert out.dtype == dtype
        np.testing.assert_array_equal(out, roi_align(feature_maps, BOXES, **options))


@pytest.mark.parametrize("backend", BACKENDS)
def test_ones_and_zeros(backend):
    options = dict(strides=STRIDES, output_size=7, backend=backend)
    ones = np.ones((2, 10, 28, 28), np.float32)
    plain = roi_align(maps(), BOXES, **options)
    np.testing.assert_allclose(shape_aware_roi_align(maps(), BOXES, ones, **options), plain, atol=1e-6)
    np.testing.assert_array_equal(
        shape_aware_roi_align(maps(), BOXES, 0 * ones, **options), tf.zeros_like(plain)
    )


@pytest.mark.parametrize("sampling_ratio", [1, 2, 3])
@pytest.mark.parametrize("aligned", [True, False])
def test_gradients_are_those_of_finite_differences(aligned, sampling_ratio):
    # The op is linear in the features and in the map, so in float64 a difference of any length is exact.
    options = dict(output_size=3, sampling_ratio=sampling_ratio, aligned=aligned)
    rng = np.random.default_rng(6)
    boxes, feature_maps = BOXES[:, :6], maps()
    probabilities = probability_maps(boxes, (5, 4))
    upstream = rng.uniform(-1, 1, (2, 6, 3, 3, 3)).astype(np.float32)

    def loss(feature_maps, probabilities) -> float:
        out = reference.shape_aware_roi_align(feature_maps, boxes, probabilities, strides=STRIDES, **options)
        return float(np.sum(out * upstream))

    directions = [rng.uniform(-1, 1, f.shape) for f in (*feature_maps, probabilities)]
    inputs = [*feature_maps, probabilities]
    for backend in BACKENDS:
        found = gradients(feature_maps, boxes, probabilities, upstream, backend=backend, **options)
        for which in (0, 1, 4):
            ends = []
            for sign in (1, -1):
                moved = list(inputs)
                moved[which] = inputs[which] + sign * directions[which]
                ends.append(loss(moved[:4], moved[4]))
            expected = (ends[0] - ends[1]) / 2
            np.testing.assert_allclose(
                np.sum(found[which] * directions[which]), expected, atol=1e-4, rtol=1e-5, err_msg=backend
            )


@pytest.mark.parametrize("channels", [3, 16, 77, 256, 300])
def test_equals_stock_ops(channels):
    # Channels that fill whole blocks of vectors, and rests of every kind.
    rng = np.random.default_rng(7)
    feature_maps = maps([(*shape[:3], channels) for shape in SHAPES])
    boxes = np.concatenate([BOXES, random_boxes(20, 8)], 1)
    probabilities = probability_maps(boxes)
    upstream = rng.uniform(-1, 1, (2, 30, 7, 7, channels)).astype(np.float32)
    options = dict(output_size=7, sampling_ratio=2)
    custom, sparse = (
        gradients(feature_maps, boxes, probabilities, upstream, backend=backend, **options)
        for backend in ("custom", "sparse")
    )
    for a, b in zip(custom, sparse, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4, rtol=0)
    assert all(np.abs(g).max() > 0.01 for g in custom)
    custom, sparse = (
        shape_aware_roi_align(feature_maps, boxes, probabilities, strides=STRIDES, backend=b, **options)
        for b in ("custom", "sparse")
    )
    np.testing.assert_allclose(custom, sparse, atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", [tf.float16, tf.bfloat16])
def test_half_precision(dtype):
    low = [tf.cast(f, dtype) for f in maps([(*shape[:3], 40) for shape in SHAPES])]
    full = [tf.cast(f, tf.float32) for f in low]
    probabilities = probability_maps()
    options = dict(output_size=7, backend="custom")
    out, exact = (
        shape_aware_roi_align(f, BOXES, probabilities, strides=STRIDES, **options) for f in (low, full)
    )
    # The arithmetic is float32, so the only loss is the last rounding, here and in the gradients.
    assert out.dtype == dtype
    np.testing.assert_array_equal(out, tf.cast(exact, dtype))
    upstream = tf.cast(tf.random.stateless_uniform(out.shape, [1, 2], -1, 1), dtype)
    upstream = tf.cast(upstream, tf.float32)
    found, expected = (gradients(f, BOXES, probabilities, upstream, **options) for f in (low, full))
    for a, b in zip(found[:4], expected[:4], strict=True):
        np.testing.assert_array_equal(a, tf.cast(b, dtype))
    np.testing.assert_array_equal(found[4], expected[4])


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_and_nonsense(backend):
    feature_maps = maps()
    for boxes in (BOXES[:, :0], BOXES[:0]):
        own = [f[: len(boxes)] for f in feature_maps]
        probabilities = probability_maps(boxes)
        upstream = np.ones((*boxes.shape[:2], 7, 7, 3), np.float32)
        out = shape_aware_roi_align(
            own, boxes, probabilities, strides=STRIDES, output_size=7, backend=backend
        )
        assert out.shape == upstream.shape
        found = gradients(own, boxes, probabilities, upstream, output_size=7, backend=backend)
        assert [g.shape for g in found] == [f.shape for f in (*own, probabilities)]
        assert not any(g.any() for g in found)
    bad = np.array([[np.nan, 0, 10, 10], [0, 0, np.inf, np.inf], [-3e38, -3e38, 3e38, 3e38], [9, 9, 2, 3]])
    boxes = np.concatenate([np.stack([bad, bad]).astype(np.float32), BOXES], 1)
    probabilities = probability_maps(boxes)
    found = gradients(feature_maps, boxes, probabilities, np.float32(1), output_size=7, backend=backend)
    assert all(np.isfinite(g).all() for g in found)
    out = shape_aware_roi_align(
        feature_maps, boxes, probabilities, strides=STRIDES, output_size=7, backend=backend
    )
    alone = shape_aware_roi_align(
        feature_maps, BOXES, probabilities[:, 4:], strides=STRIDES, output_size=7, backend=backend
    )
    assert np.isfinite(out).all()
    np.testing.assert_allclose(out[:, 4:], alone, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_graphs_know_their_shapes(backend):
    signature = [
        [tf.TensorSpec([2, None, None, 3])] * 4,
        tf.TensorSpec([None, 10, 4]),
        tf.TensorSpec([None, None, 28, None]),
    ]

    @tf.function(input_signature=signature)
    def pool(feature_maps, boxes, probabilities):
        with tf.GradientTape() as tape:
            tape.watch([*feature_maps, probabilities])
            out = shape_aware_roi_align(
                feature_maps, boxes, probabilities, strides=STRIDES, output_size=7, backend=backend
            )
        assert out.shape.as_list()[1:] == [10, 7, 7, 3]
        return out, tape.gradient(out, [*feature_maps, probabilities])

    out, _ = pool([tf.constant(f) for f in maps()], BOXES, probability_maps())
    expected = shape_aware_roi_align(
        maps(), BOXES, probability_maps(), strides=STRIDES, output_size=7, backend=backend
    )
    np.testing.assert_allclose(out, expected, atol=1e-5)


def test_shape_function_of_the_op():
    @tf.function
    def pool(feature_maps, boxes, probabilities):
        out = shape_aware_roi_align(
            feature_maps, boxes, probabilities, strides=STRIDES, output_size=5, backend="custom"
        )
        return tf.gradients(out, [*feature_maps, probabilities])

    specs = [tf.TensorSpec(shape) for shape in SHAPES]
    graph = pool.get_concrete_function(specs, tf.TensorSpec([2, 9, 4]), tf.TensorSpec([2, 9, 28, 30])).graph
    ops = {op.type: [x.shape.as_list() for x in op.outputs] for op in graph.get_operations()}
    assert ops["MrcnnRoiAlign"] == [[2, 9, 5, 5, 3]]
    assert ops["MrcnnRoiAlignGrad"] == [list(shape) for shape in SHAPES]
    assert ops["MrcnnRoiAlignMapGrad"] == [[2, 9, 28, 30]]


def test_bad_arguments():
    probabilities = probability_maps()
    with pytest.raises(ValueError, match="unknown RoIAlign backend 'fast'"):
        shape_aware_roi_align(maps(), BOXES, probabilities, strides=STRIDES, output_size=7, backend="fast")
    with pytest.raises(ValueError, match="one stride for each map, not 2 for 4"):
        shape_aware_roi_align(maps(), BOXES, probabilities, strides=STRIDES[:2], output_size=7)
    for wrong in (probabilities[:, :3], probabilities[..., :0]):
        with pytest.raises((ValueError, tf.errors.InvalidArgumentError)):
            shape_aware_roi_align(maps(), BOXES, wrong, strides=STRIDES, output_size=7, backend="custom")
