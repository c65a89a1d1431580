"""What the environment says about who trains together, and what a larger batch changes; no worker is started."""

from __future__ import annotations

import json
import socket

import pytest

from mrcnn_tf.config import ConfigError
from mrcnn_tf.training.cluster import Cluster, cluster_from, port_is_free
from mrcnn_tf.training.distribution import scaled
from tests.training.test_train import tiny

TWO = ["a:1", "b:2"]


def tf_config(cluster, kind="worker", index=0):
    return {"TF_CONFIG": json.dumps({"cluster": cluster, "task": {"type": kind, "index": index}})}


def test_tf_config():
    found = cluster_from(tf_config({"worker": TWO}, index=1))
    assert (found.addresses, found.number, found.spec()) == (TWO, 1, {"worker": TWO})
    # As Kubeflow writes it: the chief is a job of its own, and comes first whatever the order.
    for kind, index, number in (("chief", 0, 0), ("worker", 0, 1), ("worker", 1, 2)):
        found = cluster_from(tf_config({"worker": TWO, "chief": ["c:3"]}, kind, index))
        assert (found.addresses, found.number) == (["c:3", *TWO], number)


@pytest.mark.parametrize(
    "environment", [{}, {"TF_CONFIG": " "}, {"TF_CONFIG": "{}"}, tf_config({"worker": ["a:1"]})]
)
def test_one_process_alone(environment):
    assert cluster_from(environment) is None


@pytest.mark.parametrize(
    "text,problem",
    [
        ("{", "is not JSON"),
        ("[1]", "is not an object"),
        ('{"cluster": 3}', "cluster is not an object"),
        (
            '{"cluster": {"worker": ["a:1", "b"]}}',
            r"cluster.worker is not a list of host:port, but \['a:1', 'b'\]",
        ),
        ('{"cluster": {"worker": ["a:1", "b:70000"]}}', "cluster.worker is not a list of host:port"),
        ('{"cluster": {"worker": "a:1"}}', "cluster.worker is not a list"),
        ('{"cluster": {"worker": []}}', "cluster.worker is not a list"),
        ('{"cluster": {"worker": ["a:1"], "ps": ["b:1"]}}', "cluster has ps, but only chief and worker"),
        ('{"cluster": {"worker": ["a:1"], "chief": ["b:1", "c:1"]}}', "cluster.chief has several"),
        ('{"cluster": {"worker": ["a:1", "a:1"]}}', "cluster has an address twice: a:1, a:1"),
        ('{"cluster": {"worker": ["a:1", "b:1"]}}', "task has no type and index"),
        (tf_config({"worker": TWO}, "chief")["TF_CONFIG"], "task.type is 'chief', which is not in cluster"),
        (
            tf_config({"worker": TWO}, index=2)["TF_CONFIG"],
            "task.index is 2, but cluster.worker has 2, from 0 on",
        ),
        (tf_config({"worker": TWO}, index="1")["TF_CONFIG"], "task.index is '1'"),
    ],
)
def test_tf_config_that_makes_no_sense(text, problem):
    with pytest.raises(ConfigError, match=f"^TF_CONFIG: {problem}.*it must look like "):
        cluster_from({"TF_CONFIG": text})


SLURM = {
    "SLURM_STEP_NUM_TASKS": "5",
    "SLURM_PROCID": "3",
    "SLURM_STEP_NODELIST": "gpu[9-10],big",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2),1",
    "SLURM_JOB_ID": "1234567",
}


def test_slurm():
    """Node by node, in SLURM's order, which is not that of the alphabet; tasks on one node have ports of their own."""
    found = cluster_from(SLURM)
    hosts = [address.partition(":")[0] for address in found.addresses]
    ports = [int(address.partition(":")[2]) for address in found.addresses]
    assert hosts == ["gpu9", "gpu9", "gpu10", "gpu10", "big"] and found.number == 3
    assert [port - ports[0] for port in ports] == [0, 1, 0, 1, 0] and 20000 <= min(ports) <= max(
        ports
    ) < 32768
    other = cluster_from({**SLURM, "SLURM_JOB_ID": "1234568"})
    assert not set(other.addresses) & set(found.addresses)
    # TF_CONFIG goes first; outside of a step of several tasks, such as in the batch script itself, nothing is meant.
    assert cluster_from({**SLURM, **tf_config({"worker": TWO})}).addresses == TWO
    assert cluster_from({**SLURM, "SLURM_STEP_NUM_TASKS": "1"}) is None
    assert cluster_from({"SLURM_JOB_ID": "1", "SLURM_NTASKS": "2"}) is None


@pytest.mark.parametrize(
    "change,problem",
    [
        ({"SLURM_STEP_NODELIST": None}, "SLURM_STEP_NODELIST: not set, though SLURM_STEP_NUM_TASKS is"),
        ({"SLURM_STEP_NODELIST": "gpu[1"}, "SLURM_STEP_NODELIST, SLURM_STEP_TASKS_PER_NODE: "),
        ({"SLURM_STEP_TASKS_PER_NODE": "2"}, "SLURM_STEP_NODELIST, SLURM_STEP_TASKS_PER_NODE: "),
        ({"SLURM_PROCID": "5"}, "SLURM_PROCID: is 5, but the step has 5 tasks"),
    ],
)
def test_slurm_that_makes_no_sense(change, problem):
    environment = {k: v for k, v in {**SLURM, **change}.items() if v is not None}
    with pytest.raises(ConfigError, match=f"^{problem}"):
        cluster_from(environment)


def test_a_port_in_use():
    with socket.socket() as server:
        server.bind(("", 0))
        server.listen()
        port = server.getsockname()[1]
        cluster = Cluster((("worker", ("a:1", f"localhost:{port}")),), "worker", 1)
        with pytest.raises(
            ConfigError, match=f"worker 1: the port of localhost:{port} cannot be used .*in use"
        ):
            port_is_free(cluster)
    port_is_free(cluster)


RECIPE = {
    "train__batch_per_device": 4,
    "train__batch_size": 16,
    "train__steps": 900,
    "train__warmup_steps": 100,
    "train__milestones": [600, 800],
    "train__learning_rate": 0.02,
    "train__checkpoint_every": 300,
    "evaluation__every": 500,
}


@pytest.mark.parametrize("devices,k", [(1, 0.25), (4, 1), (8, 2), (16, 4)])
def test_a_larger_batch_scales_the_recipe(devices, k):
    config = scaled(tiny(**RECIPE), devices)
    train = config.train
    assert (train.batch_size, train.learning_rate) == (16 * k, pytest.approx(0.02 * k))
    assert [train.steps, train.warmup_steps, *train.milestones] == [
        round(n / k) for n in (900, 100, 600, 800)
    ]
    assert (train.checkpoint_every, config.evaluation.every) == (300 / k, 500 / k)
    # What is written to the run folder repeats the run, on whatever devices.
    assert train.batch_per_device is None and scaled(config, 3) is config
    adam = scaled(tiny(**RECIPE, train__optimizer="adamw"), devices)
    assert adam.train.learning_rate == pytest.approx(0.02 * k**0.5)


def test_a_batch_that_is_kept():
    config = tiny()
    assert scaled(config, 8) is config
    tight = scaled(
        tiny(train__batch_per_device=64, train__steps=4, train__warmup_steps=3, train__batch_size=1), 2
    )
    assert (tight.train.steps, tight.train.warmup_steps) == (1, 0)
