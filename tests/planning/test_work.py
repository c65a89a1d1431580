"""The work and the kept numbers of a plan against TensorFlow's graphs and its profiler."""

from __future__ import annotations

import pytest
import tensorflow as tf

from mrcnn_tf.build import build_model
from mrcnn_tf.config import load_config, make_config
from mrcnn_tf.planning import work
from mrcnn_tf.planning.measure import made_up_batch
from mrcnn_tf.planning.memory import working_copies
from tests.planning import literal
from tests.tiny import CONFIG

R50 = {"depth": 50, "norm": "frozen_batch", "freeze_at": 2, "width": 8}
CASES = {
    "plain": {"backbone": {"depth": 18, "norm": "batch", "freeze_at": 0, "width": 8}},
    "refining": {
        "backbone": R50,
        "refining": {"refining_samples": 12},
        "fpn": {"coarsest": "conv"},
        "box_head": {"conv_depth": 1},
    },
    "again": {"backbone": R50 | {"freeze_at": 3, "checkpointing": True}, "mask_head": {"norm": "batch"}},
}


def tiny_model(**sections):
    values = {**CONFIG, "model": {**CONFIG["model"]}}
    for key, section in sections.items():
        values["model"][key] = {**(CONFIG["model"].get(key) or {}), **section}
    config = make_config(values)
    return config, build_model(config, ["a", "b", "c"], [1, 2, 3])


@pytest.mark.parametrize("case", CASES)
def test_training_work_and_kept_numbers_are_those_of_the_graph(case):
    config, model = tiny_model(**CASES[case])
    batch = {key: tf.constant(value) for key, value in made_up_batch(config).items()}
    graph, operations = literal.training_graph(model, batch), work.training(model, config.data.canvas)
    images = config.train.batch_size
    assert images * sum(o.training_products for o in operations) == literal.products(graph)
    # What a block that is computed again keeps meanwhile is gone by the end of it.
    own = [o for o in operations if o.name != "again"]
    kept = images * 4 * sum(o.kept + o.kept32 for o in own) + working_copies(
        model, 4, model.backbone.checkpointing
    )
    assert kept == pytest.approx(literal.kept_bytes(graph), rel=0.04)


def test_a_deformable_convolution_is_a_convolution_and_one_for_its_offsets():
    plain, moved = (
        work.detecting(tiny_model(backbone=R50 | extra)[1], (64, 64)) for extra in ({}, {"deformable": [5]})
    )
    added = [o for o in moved if o.name.endswith("/offset")]
    # Two numbers for each of nine taps, from 64 channels; the first of three blocks starts with stride 2.
    assert [o.products for o in added] == [2 * 2 * 9 * 64 * 18] * 3
    assert sum(o.products for o in moved) - sum(o.products for o in plain) == sum(o.products for o in added)


def test_resnet_50_has_what_tensorflows_profiler_counts():
    config = load_config("configs/mask_rcnn_r50_fpn_coco_1x.yaml")
    model = build_model(config, [str(i) for i in range(80)], list(range(1, 81)))
    inputs = {"images": tf.TensorSpec([1, 256, 320, 3]), "image_sizes": tf.TensorSpec([1, 2])}
    graph = literal.graph_of(lambda inputs: model(inputs), inputs)
    builder = tf.compat.v1.profiler.ProfileOptionBuilder
    options = builder(builder.float_operation()).with_empty_output().build()
    node, counted = tf.compat.v1.profiler.profile(graph, cmd="op", options=options), {}
    while node.children:
        node = node.children[0]
        counted[node.name] = node.float_ops
    products = sum(counted.get(name, 0) for name in ("Conv2D", "MatMul", "BatchMatMulV2"))
    assert 2 * sum(o.products for o in work.detecting(model, (256, 320))) == products
    assert products > 0.999 * sum(counted.values())  # all that the profiler knows of


def test_work_by_part_adds_up_and_training_has_the_gradients():
    _, model = tiny_model(**CASES["refining"])
    operations = work.training(model, (64, 96))
    parts = work.by_part(operations, training=True)
    assert set(parts) == set(work.PARTS)
    assert sum(parts.values()) == pytest.approx(2e-9 * sum(o.training_products for o in operations))
    assert parts["box_head"] == pytest.approx(3 * work.by_part(operations)["box_head"])
    # A frozen stage has no gradients.
    assert all(o.gradients == 0 for o in operations if o.name.startswith(("stem", "stage2")))
