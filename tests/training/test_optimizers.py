import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from mrcnn_tf.training.optimizers import SGD, Schedule, make_optimizer


def test_weight_decay_goes_through_the_momentum():
    """Three steps written out as Detectron and PyTorch do them: v = 0.9 v + (g + wd w); w -= lr v."""
    w = keras.Variable(np.array([1.0, -2.0], np.float32))
    optimizer = SGD(0.1, momentum=0.9, coupled_decay=0.01)
    expected, velocity = np.array([1.0, -2.0]), np.zeros(2)
    for gradient in ([0.5, 1.0], [-1.0, 0.0], [0.25, 0.25]):
        optimizer.apply_gradients([(tf.constant(gradient), w)])
        velocity = 0.9 * velocity + np.array(gradient) + 0.01 * expected
        expected = expected - 0.1 * velocity
    np.testing.assert_allclose(w, expected, rtol=1e-6)
    # Keras' own decoupled decay gives something else: the two must not be mistaken for each other.
    other = keras.Variable(np.array([1.0, -2.0], np.float32))
    decoupled = keras.optimizers.SGD(0.1, momentum=0.9, weight_decay=0.01)
    for gradient in ([0.5, 1.0], [-1.0, 0.0], [0.25, 0.25]):
        decoupled.apply_gradients([(tf.constant(gradient), other)])
    assert np.abs(other.numpy() - expected).max() > 1e-4


def test_schedules():
    def at(schedule, *steps):
        return [float(schedule(s)) for s in steps]

    warm = Schedule(0.02, "constant", warmup_steps=10, warmup_factor=0.1)
    np.testing.assert_allclose(at(warm, 0, 5, 10, 500), [0.002, 0.011, 0.02, 0.02], rtol=1e-6)
    step = Schedule(0.02, "step", milestones=(60, 80))
    np.testing.assert_allclose(at(step, 0, 59, 60, 79, 80), [0.02, 0.02, 0.002, 0.002, 0.0002], rtol=1e-5)
    cosine = Schedule(0.4, "cosine", total_steps=100, final=0.1)
    half = 0.4 * (0.1 + 0.9 * 0.5)
    np.testing.assert_allclose(at(cosine, 0, 50, 100, 200), [0.4, half, 0.04, 0.04], rtol=1e-5)
    quarter = 0.4 * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi / 4)))
    np.testing.assert_allclose(at(cosine, 25), [quarter], rtol=1e-5)
    assert Schedule.from_config(step.get_config()).get_config() == step.get_config()
    with pytest.raises(ValueError, match="schedule is 'linear'"):
        Schedule(0.1, "linear")


def layers():
    model = keras.Sequential(
        [
            keras.layers.Input((3,)),
            keras.layers.Dense(2),
            keras.layers.BatchNormalization(),
            keras.layers.Dense(1),
        ]
    )
    for w in model.trainable_weights:
        w.assign(np.ones(w.shape))
    return model


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_norms_and_biases_are_spared(name):
    model = layers()
    optimizer = make_optimizer(
        model, name=name, schedule=Schedule(0.1), weight_decay=0.5, momentum=0.0, decay_biases=False
    )
    optimizer.apply_gradients([(tf.zeros(w.shape), w) for w in model.trainable_weights])
    for w in model.trainable_weights:
        changed = w.path.endswith("kernel")
        np.testing.assert_allclose(w, 1 - 0.1 * 0.5 * changed, rtol=1e-6, err_msg=w.path)


def test_what_is_asked_for():
    model = layers()
    with pytest.raises(ValueError, match="optimizer is 'lion'"):
        make_optimizer(model, name="lion", schedule=Schedule(0.1))
    assert make_optimizer(model, name="sgd", schedule=Schedule(0.1), ema=0.5).use_ema
