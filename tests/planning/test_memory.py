"""Memory against the variables, a checkpoint's file, and what changes with settings."""

from __future__ import annotations

import math

import pytest

from mrcnn_tf.planning import work
from mrcnn_tf.planning.memory import count, held, in_flight, training_memory
from mrcnn_tf.training.checkpoints import save_aside
from mrcnn_tf.training.optimizers import build_optimizer
from tests.planning.test_work import R50, tiny_model


def test_weights_optimizer_and_checkpoint_are_those_that_are_made(tmp_path):
    config, model = tiny_model(backbone=R50, box_head={"units": 512})
    trained = sum(math.prod(w.shape) for w in model.trainable_weights)
    for optimizer, ema, slots in (("sgd", None, 1), ("adamw", None, 2), ("sgd", 0.99, 2)):
        config.train.optimizer, config.train.ema = optimizer, ema
        made = build_optimizer(config, model)
        found = training_memory(config, model, made, 2)
        assert found["optimizer"] == pytest.approx(4 * trained * slots, abs=16)
        assert found["weights"] == 4 * model.count_params()
        assert found["gradients"] == 4 * trained
    model.compile(optimizer=made, jit_compile=False)
    size = save_aside(model, tmp_path / "model.keras").stat().st_size
    # The file has names and padding beside the numbers.
    assert held(model.variables) + held(made.variables) == pytest.approx(size, rel=0.2)
    assert held(model.variables) + held(made.variables) < size


def test_what_a_step_keeps_follows_images_precision_and_checkpointing():
    config, model = tiny_model(backbone=R50 | {"freeze_at": 0}, rpn={"depth": 2})
    optimizer = build_optimizer(config, model)
    one, three = (training_memory(config, model, optimizer, images) for images in (1, 3))
    for key in one:
        scale = 3 if key in ("batch", "activations", "in flight") else 1
        assert three[key] == scale * one[key], key
    again = training_memory(config, model, optimizer, 1, checkpointing=True)
    assert again["activations"] < 0.9 * one["activations"]
    assert again["working copies"] < one["working copies"]
    assert training_memory(config, model, optimizer, 1, devices=2)["gradients"] == 2 * one["gradients"]
    config.precision = "mixed_bfloat16"
    half = training_memory(config, model, optimizer, 1)
    assert one["activations"] / 2 <= half["activations"] < 0.6 * one["activations"]
    assert half["weights"] == one["weights"]
    assert half["working copies"] == 2 * count(model.trainable_weights)


def test_gradients_on_their_way_cover_the_pyramid_and_the_largest_layer():
    _, model = tiny_model(backbone=R50)
    operations = work.training(model, (64, 64))
    cells = sum((64 // s) ** 2 for s in (4, 8, 16, 32, 64))
    samples = 16 * (2 * 7) ** 2 * 16  # RoIs, samples and channels of the box head
    largest = max(o.kept for o in operations)
    assert in_flight(model, (64, 64), operations, 4) == 4 * max(3 * cells * 16 + samples, 2 * largest)
