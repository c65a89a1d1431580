"""Who trains together: read from `TF_CONFIG`, or from what SLURM's `srun` sets."""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from typing import NamedTuple

from mrcnn_tf.config import ConfigError

JOBS = ("chief", "worker")
EXAMPLE = '{"cluster": {"worker": ["host1:12345", "host2:12345"]}, "task": {"type": "worker", "index": 0}}'


class Cluster(NamedTuple):
    """Workers by job, and which of them this process is.

    `jobs`: of each job, `"chief"` before `"worker"`, the addresses `host:port`; `job` and `task`: this process, and its
    number within its job.
    """

    jobs: tuple[tuple[str, tuple[str, ...]], ...]
    job: str
    task: int

    @property
    def addresses(self) -> list[str]:
        """Of all workers, the chief's first."""
        return [address for _, addresses in self.jobs for address in addresses]

    @property
    def number(self) -> int:
        """Of this process among them."""
        return self.task + (len(self.jobs[0][1]) if self.job != self.jobs[0][0] else 0)

    def spec(self) -> dict[str, list[str]]:
        """As `tf.train.ClusterSpec` wants it."""
        return {job: list(addresses) for job, addresses in self.jobs}


def cluster_from(environment: Mapping[str, str]) -> Cluster | None:
    """The cluster that the variables of a process tell of; None if it works alone.

    Args:
        environment: with `TF_CONFIG`, as TensorFlow documents it: jobs `worker`, and if wanted a `chief`; else, in a
            SLURM step of several tasks, `SLURM_PROCID`, `SLURM_STEP_NODELIST`, `SLURM_STEP_TASKS_PER_NODE` and
            `SLURM_JOB_ID`.

    Raises:
        ConfigError: they do not make sense; names the variable.
    """
    if environment.get("TF_CONFIG", "").strip():
        return _from_tf_config(environment["TF_CONFIG"])
    if int(environment.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        return _from_slurm(environment)
    return None


def _from_tf_config(text: str) -> Cluster | None:
    def need(condition: bool, problem: str) -> None:
        if not condition:
            raise ConfigError(f"TF_CONFIG: {problem}; it must look like {EXAMPLE}")

    try:
        values = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"TF_CONFIG: is not JSON ({error}); it must look like {EXAMPLE}") from None
    need(isinstance(values, dict), "is not an object")
    jobs, task = values.get("cluster"), values.get("task")
    if not jobs:
        return None
    need(isinstance(jobs, dict), "cluster is not an object")
    other = sorted(set(jobs) - set(JOBS))
    need(not other, f"cluster has {', '.join(other)}, but only chief and worker can train here")
    for job, addresses in jobs.items():
        good = isinstance(addresses, list) and all(isinstance(a, str) and _is_address(a) for a in addresses)
        need(bool(good and addresses), f"cluster.{job} is not a list of host:port, but {addresses!r}")
    need(len(jobs.get("chief", [""])) == 1, "cluster.chief has several addresses")
    ordered = tuple((job, tuple(jobs[job])) for job in JOBS if job in jobs)
    every = [address for _, addresses in ordered for address in addresses]
    need(len(set(every)) == len(every), f"cluster has an address twice: {', '.join(sorted(every))}")
    if len(every) == 1:
        return None
    need(isinstance(task, dict) and "type" in task and "index" in task, "task has no type and index")
    need(task["type"] in jobs, f"task.type is {task['type']!r}, which is not in cluster")
    index = task["index"]
    count = len(jobs[task["type"]])
    need(
        isinstance(index, int) and 0 <= index < count,
        f"task.index is {index!r}, but cluster.{task['type']} has {count}, from 0 on",
    )
    return Cluster(ordered, task["type"], index)


def _from_slurm(environment: Mapping[str, str]) -> Cluster:
    # Only its parsers: the resolver around them sorts hosts by name, n10 before n9, which is not the tasks' order.
    from tensorflow.python.distribute.cluster_resolver import slurm_cluster_resolver as slurm

    wanted = ("SLURM_PROCID", "SLURM_STEP_NODELIST", "SLURM_STEP_TASKS_PER_NODE", "SLURM_JOB_ID")
    missing = [name for name in wanted if name not in environment]
    if missing:
        raise ConfigError(
            f"{', '.join(missing)}: not set, though SLURM_STEP_NUM_TASKS is; start with srun, or set TF_CONFIG"
        )
    number, nodes, tasks, job = (environment[name] for name in wanted)
    # Below the ports that Linux hands out by itself; jobs that share a node have others.
    port = 20000 + int(job) % 1000 * 12
    try:
        tasks_on = zip(slurm.expand_hostlist(nodes), slurm.expand_tasks_per_node(tasks), strict=True)
        addresses = [f"{host}:{port + i}" for host, count in tasks_on for i in range(count)]
    except ValueError as error:
        raise ConfigError(f"SLURM_STEP_NODELIST, SLURM_STEP_TASKS_PER_NODE: {error}; set TF_CONFIG") from None
    if not 0 <= int(number) < len(addresses):
        raise ConfigError(f"SLURM_PROCID: is {number}, but the step has {len(addresses)} tasks")
    return Cluster((("worker", tuple(addresses)),), "worker", int(number))


def port_is_free(cluster: Cluster) -> None:
    """Tries this worker's port: TensorFlow would share it with another process, and wait for ever.

    Raises:
        ConfigError: it is taken.
    """
    address = cluster.addresses[cluster.number]
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", int(address.rpartition(":")[2])))
        except OSError as error:
            raise ConfigError(
                f"worker {cluster.number}: the port of {address} cannot be used ({error.strerror}); end what uses it, "
                "or name another port to all workers"
            ) from None


def _is_address(text: str) -> bool:
    host, _, port = text.rpartition(":")
    return bool(host) and port.isdigit() and 0 < int(port) < 65536
