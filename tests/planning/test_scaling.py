"""Traffic against a step that is watched, and the ring's arithmetic against a ring."""

from __future__ import annotations

import math

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from mrcnn_tf.config import ConfigError, make_config
from mrcnn_tf.layers.resnet import ResNet
from mrcnn_tf.models.mask_rcnn import MaskRCNN
from mrcnn_tf.models.mask_refining_rcnn import MaskRefiningRCNN
from mrcnn_tf.planning.scaling import (
    Link,
    Traffic,
    all_reduce_seconds,
    expected,
    fitted_link,
    sent,
    traffic_of,
)
from mrcnn_tf.training.optimizers import Schedule, make_optimizer
from tests import tiny


class Watched:
    """A replica of two that sums nothing, and notes what it was given to sum."""

    num_replicas_in_sync = 2

    def __init__(self):
        self.sums: list[int] = []

    def all_reduce(self, how, value, options=None):
        self.note(value)

        @tf.custom_gradient
        def same(x):
            return tf.identity(x), lambda upstream: self.note(upstream) or upstream

        return tf.nest.map_structure(same, value)

    def note(self, value):
        self.sums.append(sum(math.prod(t.shape) * t.dtype.size for t in tf.nest.flatten(value)))


@pytest.mark.parametrize(("kind", "norm"), [(MaskRCNN, "sync_batch"), (MaskRefiningRCNN, "frozen_batch")])
def test_traffic_is_what_a_step_sums(kind, norm, monkeypatch):
    monkeypatch.setattr(tiny, "ResNet", lambda *_, **__: ResNet(18, norm=norm, freeze_at=2, width=8))
    model, watched = tiny.make_model(kind), Watched()
    model.compile(optimizer=make_optimizer(model, name="sgd", schedule=Schedule(0.01)), jit_compile=False)
    monkeypatch.setattr(tf.distribute, "get_replica_context", lambda: watched)
    model.train_step(tiny.make_batch())
    traffic = traffic_of(model)
    assert traffic.gradients == max(watched.sums)
    assert (traffic.total, traffic.messages) == (sum(watched.sums), len(watched.sums))


@settings(max_examples=10, deadline=None)
@given(devices=st.integers(2, 7), chunk=st.integers(1, 5))
def test_a_ring_sends_what_is_said(devices, chunk):
    size = devices * chunk
    start = np.random.default_rng(0).integers(0, 9, (devices, size)).astype(np.float32)
    held = start.reshape(devices, devices, chunk).copy()
    bytes_over_a_link = rounds = 0
    for gathering in (False, True):
        for step in range(devices - 1):
            # All at once: device d hands a chunk to its neighbour, which first adds it, later takes it over.
            out = [held[d, (d + gathering - step) % devices].copy() for d in range(devices)]
            for d in range(devices):
                which, to = (d + gathering - step) % devices, (d + 1) % devices
                held[to, which] = out[d] if gathering else held[to, which] + out[d]
            bytes_over_a_link += out[0].nbytes
            rounds += 1
    assert (held.reshape(devices, size) == start.sum(0)).all()
    assert bytes_over_a_link == pytest.approx(sent(4 * size, devices))
    assert all_reduce_seconds(4 * size, devices, 1, Link(2.0, 3.0)) == pytest.approx(
        3 * rounds + bytes_over_a_link / 2
    )


@settings(max_examples=20, deadline=None)
@given(bandwidth=st.floats(1e8, 1e11), latency=st.floats(1e-6, 1e-3), group=st.integers(1, 8))
def test_measured_times_give_the_link_back(bandwidth, latency, group):
    link = Link(bandwidth, latency)
    times = {n: all_reduce_seconds(1.8e8, n, group, link) for n in (2, 4, 16)}
    found = fitted_link(times, 1.8e8, group, None)
    assert found.bandwidth == pytest.approx(bandwidth, rel=1e-3)
    assert found.latency == pytest.approx(latency, rel=1e-2, abs=1e-9)
    known = fitted_link({2: times[2]}, 1.8e8, group, latency)
    assert known.bandwidth == pytest.approx(bandwidth, rel=1e-6)


def test_a_latency_longer_than_what_was_measured_is_refused():
    with pytest.raises(ValueError, match="2 workers took 0.001 s, less than a latency of 1000 us"):
        fitted_link({2: 1e-3}, 1e6, 1, 1e-3)


def config(**train):
    return make_config(
        {**tiny.CONFIG, "train": {**tiny.CONFIG["train"], "steps": 100, "batch_size": 8, **train}}
    )


TRAFFIC = Traffic(10**9, 0, 1)


def test_a_batch_that_stays_is_split():
    one, two, four = expected(config(), TRAFFIC, 2.0, workers=[1, 2, 4], link=Link(1e9, 0.0))
    assert (one.batch, four.batch, four.per_device, four.steps) == (8, 8, 2, 100)
    assert four.learning_rate == one.learning_rate
    # 2 (N - 1) / N bytes at 1 GB/s.
    assert (one.all_reduce, two.all_reduce, four.all_reduce) == (0.0, 1.0, 1.5)
    assert (one.step, two.step, four.step) == (2.0, 1.0 + 1.0, 0.5 + 1.5)
    assert (two.images_per_second, two.efficiency) == (4.0, 0.5)
    assert one.hours == pytest.approx(100 * 2.0 / 3600)


def test_a_batch_that_grows_takes_fewer_steps_and_a_larger_rate():
    grown = config(batch_per_device=4, learning_rate=0.1)
    one, four = expected(grown, TRAFFIC, 2.0, workers=[1, 4], devices_per_worker=2, link=Link(1e9, 0.0))
    assert (one.batch, one.steps, four.batch, four.steps, four.devices) == (8, 100, 32, 25, 8)
    assert four.learning_rate == pytest.approx(0.4)
    # A ring through eight devices.
    assert (four.compute, four.all_reduce) == (2.0, 2 * 7 / 8)
    assert four.efficiency == pytest.approx(2.0 / (2.0 + 1.75))
    adam = expected(
        config(batch_per_device=8, optimizer="adamw", learning_rate=0.1),
        TRAFFIC,
        1,
        workers=[4],
        link=Link(1e9, 0),
    )
    assert adam[0].learning_rate == pytest.approx(0.2)


@settings(max_examples=20, deadline=None)
@given(overlap=st.floats(0, 1), latency=st.floats(0, 1e-2), bandwidth=st.floats(1e7, 1e12))
def test_more_workers_never_do_more_than_their_number(overlap, latency, bandwidth):
    for row in expected(
        config(), TRAFFIC, 3.0, workers=[1, 2, 4, 8], link=Link(bandwidth, latency), overlap=overlap
    ):
        assert 0 < row.efficiency <= 1 + 1e-9
        assert row.compute <= row.step <= row.compute + row.all_reduce + 1e-12
        assert row.images_per_second * row.step == pytest.approx(row.batch)


def test_a_batch_that_cannot_be_split_is_refused():
    with pytest.raises(
        ConfigError, match="is 8, not divisible by 3 devices; take another, or set train.batch_per_device"
    ):
        expected(config(), TRAFFIC, 1.0, workers=[1, 3], link=Link(1e9, 0.0))
