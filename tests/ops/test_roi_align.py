"""RoIAlign against a literal float64 reference and hand-written values, all backends alike."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from mrcnn_tf.ops.roi_align import assign_levels, roi_align

from . import reference

STRIDES = (4, 8, 16, 32)
BACKENDS = ("custom", "sparse", "crop", "gather")
# Images of 96 x 128 pixels.
SHAPES = [(2, 96 // s, 128 // s, 3) for s in STRIDES]

BOXES = np.array(
    [
        [
            [10.3, 20.7, 40.1, 75.2],  # inside
            [-7.6, -9.1, 33.3, 28.4],  # across the top left corner
            [70.2, 101.9, 104.7, 139.6],  # across the bottom right corner
            [-50.5, 30.2, 20.1, 50.9],  # far above
            [-300.0, -300.0, -200.0, -210.0],  # wholly outside
            [94.9, 126.3, 99.0, 131.7],  # about the last cell
            [0.0, 0.0, 96.0, 128.0],  # the image, on a higher level
            [-260.0, -140.0, 330.0, 290.0],  # much larger than the image, on the highest level
            [33.3, 44.4, 33.9, 44.6],  # less than a pixel
            [50.2, 60.1, 50.2, 60.1],  # no area
        ],
        [
            [60.7, 3.3, 95.9, 21.0],  # at the lower border
            [12.5, 7.7, 12.5, 80.3],  # no height
            [90.9, -3.1, 97.2, 2.2],  # across the bottom left corner
            [1.1, 120.3, 6.6, 132.9],  # across the top right corner
            [-3.9, -2.3, 1.3, 0.4],  # one cell, mostly outside
            [5.3, 6.1, 90.2, 119.7],  # a large box inside
            [200.0, 20.0, 230.0, 50.0],  # wholly below
            [0.0, 0.0, 0.0, 0.0],  # padding
            [20.6, 10.1, 80.3, 12.2],  # tall
            [-100.3, 50.2, 200.4, 55.8],  # across two borders
        ],
    ],
    np.float32,
)


# Where a sample is exactly one cell outside, rounding decides whether it counts; no box above has one there.


def maps(shapes=SHAPES, seed=0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.uniform(-1, 1, shape).astype(np.float32) for shape in shapes]


def gradients(feature_maps, boxes, upstream, **options) -> list[np.ndarray]:
    feature_maps = [tf.constant(f) for f in feature_maps]
    with tf.GradientTape() as tape:
        tape.watch(feature_maps)
        loss = tf.reduce_sum(roi_align(feature_maps, boxes, **options) * upstream)
    return [g.numpy() for g in tape.gradient(loss, feature_maps)]


# A linear map has the value 5 y + x at any place, so these are the bins' centres. Without `aligned` every
# place is half a cell too far down and right.
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("aligned", "first"), [(True, 4.5), (False, 7.5)])
def test_linear_map_by_hand(backend, aligned, first):
    feature_map = np.arange(25, dtype=np.float32).reshape(1, 5, 5, 1)
    boxes = np.array([[[1, 1, 3, 3]]], np.float32)
    out = roi_align([feature_map], boxes, strides=(1,), output_size=4, aligned=aligned, backend=backend)
    expected = first + 2.5 * np.arange(4)[:, None] + 0.5 * np.arange(4)
    np.testing.assert_allclose(out[0, 0, ..., 0], expected, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_border_by_hand(backend):
    # Samples of the one bin lie at -0.75 and 0.25 on both axes; the former count as 0, on the border's cells.
    feature_map = np.array([[1, 2], [3, 4]], np.float32).reshape(1, 2, 2, 1)
    boxes = np.array([[[-0.75, -0.75, 1.25, 1.25]]], np.float32)
    out = roi_align([feature_map], boxes, strides=(1,), output_size=1, backend=backend)
    np.testing.assert_allclose(out.numpy().ravel(), [(1.0 + 1.25 + 1.5 + 1.75) / 4], atol=1e-6)
    # Half of the samples on each axis lie beyond one cell outside and count as zeros.
    boxes = np.array([[[-3.0, -3.0, 1.0, 1.0]]], np.float32)
    out = roi_align([feature_map], boxes, strides=(1,), output_size=1, backend=backend)
    np.testing.assert_allclose(out.numpy().ravel(), [1.0 / 4], atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("place", "expected"),
    [(-1.001, 0), (-1.0, 1), (-0.5, 1), (0.5, 1.5), (2.0, 3), (2.5, 3), (3.0, 3), (3.001, 0)],
)
def test_reach_of_the_border_by_hand(backend, place, expected):
    # One sample on a map of three cells a side: along one axis at `place`, along the other on the middle cell.
    for axis in (0, 1):
        values = np.broadcast_to(np.array([1, 2, 3], np.float32), (3, 3))
        values = values.T if axis == 0 else values
        centre = np.full(2, 1.5)
        centre[axis] = place + 0.5
        box = np.concatenate([centre - 0.5, centre + 0.5]).astype(np.float32)
        out = roi_align(
            [values[None, :, :, None]],
            box[None, None],
            strides=(1,),
            output_size=1,
            sampling_ratio=1,
            backend=backend,
        )
        np.testing.assert_allclose(out.numpy().ravel(), [expected], atol=1e-6)


@pytest.mark.parametrize("output_size", [7, 14])
@pytest.mark.parametrize("sampling_ratio", [1, 2, 3, 4])
@pytest.mark.parametrize("aligned", [True, False])
def test_equals_reference(aligned, sampling_ratio, output_size):
    options = dict(strides=STRIDES, output_size=output_size, sampling_ratio=sampling_ratio, aligned=aligned)
    expected = reference.roi_align(maps(), BOXES, **options)
    for backend in BACKENDS:
        # Both ways: the graph optimiser rewrites divisions.
        for run in (roi_align, tf.function(roi_align)):
            out = run(maps(), BOXES, backend=backend, **options)
            np.testing.assert_allclose(out, expected, atol=1e-5, rtol=0, err_msg=backend)


@pytest.mark.parametrize("aligned", [True, False])
def test_gradient_equals_reference(aligned):
    options = dict(strides=STRIDES, output_size=7, sampling_ratio=2, aligned=aligned)
    upstream = np.random.default_rng(1).uniform(-1, 1, (2, 10, 7, 7, 3)).astype(np.float32)
    expected = reference.roi_align_gradient(SHAPES, BOXES, upstream, **options)
    for backend in BACKENDS:
        out = gradients(maps(), BOXES, upstream, backend=backend, **options)
        for level in range(4):
            np.testing.assert_allclose(out[level], expected[level], atol=3e-5, rtol=0, err_msg=backend)


@pytest.mark.parametrize("output_size", [3, 7])
@pytest.mark.parametrize("aligned", [True, False])
def test_adaptive_sampling_equals_reference(aligned, output_size):
    # 1 to 40 samples a bin, as many as it is cells long: what detectron2's models were trained with.
    options = dict(strides=STRIDES, output_size=output_size, sampling_ratio=0, aligned=aligned)
    expected = reference.roi_align(maps(), BOXES, **options)
    for run in (roi_align, tf.function(roi_align)):
        np.testing.assert_allclose(run(maps(), BOXES, **options), expected, atol=1e-5, rtol=0)
    upstream = np.random.default_rng(1).uniform(-1, 1, expected.shape).astype(np.float32)
    expected = reference.roi_align_gradient(SHAPES, BOXES, upstream, **options)
    for out, level in zip(gradients(maps(), BOXES, upstream, **options), expected, strict=True):
        np.testing.assert_allclose(out, level, atol=3e-5, rtol=0)
    empty = np.zeros((2, 0, 4), np.float32)
    assert roi_align(maps(), empty, **options).shape == (2, 0, output_size, output_size, 3)


# At the far end of a large map float32 has few digits for a place. Only "crop" has to live with that.
@pytest.mark.parametrize(
    ("backend", "error"), [("custom", 1e-5), ("sparse", 1e-5), ("gather", 1e-5), ("crop", 3e-4)]
)
def test_far_end_of_a_large_map(backend, error):
    feature_map = maps([(1, 200, 336, 2)])
    boxes = np.array([[[731.3, 1290.7, 760.9, 1336.2], [780.6, 1301.3, 803.1, 1347.7]]], np.float32)
    options = dict(strides=(4,), output_size=7, sampling_ratio=2, aligned=True)
    expected = reference.roi_align(feature_map, boxes, **options)
    out = roi_align(feature_map, boxes, backend=backend, **options)
    np.testing.assert_allclose(out, expected, atol=error, rtol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradient_has_the_same_bits_every_time(backend):
    # 600 boxes on the same few cells: threads that add to a cell without order, or lose an addition, show
    # here.
    rng = np.random.default_rng(2)
    corner = rng.uniform(0, 40, (1, 600, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(30, 60, (1, 600, 2))], -1).astype(np.float32)
    feature_map = maps([(1, 24, 24, 64)])
    upstream = rng.normal(size=(1, 600, 7, 7, 64)).astype(np.float32)
    options = dict(strides=(4,), output_size=7, backend=backend)
    first, *others = (gradients(feature_map, boxes, upstream, **options)[0] for _ in range(4))
    for other in others:
        np.testing.assert_array_equal(first, other)


@pytest.mark.parametrize("backend", BACKENDS)
def test_boxes_get_no_gradient(backend):
    boxes = tf.constant(BOXES)
    with tf.GradientTape() as tape:
        tape.watch(boxes)
        out = tf.reduce_sum(roi_align(maps(), boxes, strides=STRIDES, output_size=7, backend=backend) ** 2)
    assert tape.gradient(out, boxes) is None


@pytest.mark.parametrize("backend", BACKENDS)
def test_dynamic_and_empty_shapes(backend):
    signature = [[tf.TensorSpec([None, None, None, 3])] * 4, tf.TensorSpec([None, None, 4])]

    @tf.function(input_signature=signature)
    def pool(feature_maps, boxes):
        with tf.GradientTape() as tape:
            tape.watch(feature_maps)
            out = roi_align(feature_maps, boxes, strides=STRIDES, output_size=7, backend=backend)
            loss = tf.reduce_sum(out)
        return out, tape.gradient(loss, feature_maps)

    def tensors(images: int):
        return [tf.constant(f[:images]) for f in maps()]

    expected = roi_align(maps(), BOXES, strides=STRIDES, output_size=7, backend=backend)
    out, _ = pool(tensors(2), BOXES)
    np.testing.assert_allclose(out, expected, atol=1e-5)
    # One image with one box, so that three levels are empty.
    out, grads = pool(tensors(1), BOXES[:1, :1])
    np.testing.assert_allclose(out, expected[:1, :1], atol=1e-5)
    assert [bool(tf.reduce_any(g != 0)) for g in grads] == [True, False, False, False]
    for images, boxes in ((2, BOXES[:, :0]), (0, BOXES[:0])):
        out, grads = pool(tensors(images), boxes)
        assert out.shape == (images, boxes.shape[1], 7, 7, 3)
        assert not any(tf.reduce_any(g != 0) for g in grads)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [tf.float16, tf.bfloat16])
def test_half_precision_maps(backend, dtype):
    low = [tf.cast(f, dtype) for f in maps()]
    with tf.GradientTape() as tape:
        tape.watch(low)
        out = roi_align(low, BOXES, strides=STRIDES, output_size=7, backend=backend)
        loss = tf.reduce_sum(tf.cast(out, tf.float32))
    # The arithmetic is float32, so the only loss is the last rounding.
    full = roi_align(
        [tf.cast(f, tf.float32) for f in low], BOXES, strides=STRIDES, output_size=7, backend=backend
    )
    assert out.dtype == dtype
    np.testing.assert_array_equal(tf.cast(out, tf.float32), tf.cast(tf.cast(full, dtype), tf.float32))
    assert {g.dtype for g in tape.gradient(loss, low)} == {dtype}


@pytest.mark.parametrize("backend", BACKENDS)
def test_boxes_of_a_diverged_model(backend):
    bad = np.array([[[np.nan, 0, 10, 10], [0, 0, np.inf, np.inf], [-3e38, -3e38, 3e38, 3e38]]], np.float32)
    boxes = np.concatenate([bad, BOXES[:1]], 1)
    first = [f[:1] for f in maps()]
    out = roi_align(first, boxes, strides=STRIDES, output_size=7, backend=backend)
    assert np.isfinite(out).all()
    alone = roi_align(first, BOXES[:1], strides=STRIDES, output_size=7, backend=backend)
    np.testing.assert_allclose(out[:, 3:], alone, atol=1e-6)


def test_gather_compiles_with_xla():
    def pool(feature_maps, boxes):
        with tf.GradientTape() as tape:
            tape.watch(feature_maps)
            out = roi_align(feature_maps, boxes, strides=STRIDES, output_size=7, backend="gather")
            loss = tf.reduce_sum(out**2)
        return out, tape.gradient(loss, feature_maps)

    feature_maps = [tf.constant(f) for f in maps()]
    compiled, grads = tf.function(pool, jit_compile=True)(feature_maps, tf.constant(BOXES))
    expected, expected_grads = pool(feature_maps, tf.constant(BOXES))
    np.testing.assert_allclose(compiled, expected, atol=1e-5)
    for a, b in zip(grads, expected_grads, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


@pytest.mark.filterwarnings("ignore:.*tf.lite.Interpreter is deprecated")
def test_gather_converts_to_litert():
    class Pool(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([1, 24, 32, 3]), tf.TensorSpec([1, 10, 4])])
        def __call__(self, feature_map, boxes):
            return roi_align([feature_map], boxes, strides=(4,), output_size=7, backend="gather")

    pool = Pool()
    function = pool.__call__.get_concrete_function()
    model = tf.lite.TFLiteConverter.from_concrete_functions([function], pool).convert()
    run = tf.lite.Interpreter(model_content=model).get_signature_runner()
    (out,) = run(feature_map=maps()[0][:1], boxes=BOXES[:1]).values()
    np.testing.assert_allclose(out, pool(maps()[0][:1], BOXES[:1]), atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_saved_model_keeps_values_and_gradient(backend, tmp_path):
    class Pool(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None, None, None, 3]), tf.TensorSpec([None, None, 4])])
        def __call__(self, feature_map, boxes):
            return roi_align([feature_map], boxes, strides=(4,), output_size=7, backend=backend)

    tf.saved_model.save(Pool(), str(tmp_path / "pool"))
    loaded, feature_map = tf.saved_model.load(str(tmp_path / "pool")), tf.constant(maps()[0])
    with tf.GradientTape() as tape:
        tape.watch(feature_map)
        out = loaded(feature_map, BOXES)
    expected = roi_align([feature_map], BOXES, strides=(4,), output_size=7, backend=backend)
    np.testing.assert_allclose(out, expected, atol=1e-5)
    grads = gradients([feature_map], BOXES, 1.0, strides=(4,), output_size=7, backend=backend)
    np.testing.assert_allclose(tape.gradient(out, feature_map), grads[0], atol=1e-5)


def test_levels_by_hand():
    sides = [1, 55.9, 56, 111.9, 112, 223.9, 224, 447.9, 448, 900, 5000]
    boxes = np.array([[0, 0, side, side] for side in sides], np.float32)
    # Counted from P2: 112 pixels begin P3, 224 P4, 448 P5.
    np.testing.assert_array_equal(assign_levels(boxes, STRIDES), [0, 0, 0, 0, 1, 1, 2, 2, 3, 3, 3])
    np.testing.assert_array_equal(assign_levels(boxes, (8, 16)), [0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1])
    wide = np.array([[0, 0, 56, 224], [10, 10, 5, 400]], np.float32)
    np.testing.assert_array_equal(assign_levels(wide, STRIDES), [1, 0])


def test_bad_arguments():
    with pytest.raises(ValueError, match="unknown RoIAlign backend 'fast': choose one of auto, custom"):
        roi_align(maps(), BOXES, strides=STRIDES, output_size=7, backend="fast")
    with pytest.raises(ValueError, match=r"'crop' has no adaptive sampling \(sampling_ratio 0\)"):
        roi_align(maps(), BOXES, strides=STRIDES, output_size=7, sampling_ratio=0, backend="crop")
    with pytest.raises(ValueError, match="one stride for each map, not 3 for 4"):
        roi_align(maps(), BOXES, strides=STRIDES[:3], output_size=7)
