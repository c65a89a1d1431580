"""Bytes that workers really send in a training step, beside what `mrcnn plan` says of a ring.

Starts the workers on this machine, over the loopback interface alone, whose counter tells what went through it:
    python benchmarks/traffic.py --config configs/quickstart_mask_rcnn.yaml --workers 2 4
Other programs' loopback traffic would be counted as well; `unshare -rn sh -c 'ip link set lo up && python ...'` keeps
them out.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

STEPS = 4


def main() -> None:
    """Measures, or is one of the workers."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", required=True)
    parser.add_argument("--workers", type=int, nargs="+", default=[2])
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    options, rest = parser.parse_known_args()
    options.overrides += rest
    if "TF_CONFIG" in os.environ:
        work(options)
        return
    for count in options.workers:
        ports = [free_port() for _ in range(count)]
        processes = [start(i, ports, options) for i in range(count)]
        lines = [p.communicate()[0] for p in processes]
        if any(p.returncode for p in processes):
            sys.exit(f"{count} workers: one of them failed")
        found = json.loads(lines[0].splitlines()[-1])
        sent, said = found["bytes"] / STEPS / count, found["planned"]
        print(
            f"{count} workers: each sent {sent / 1e6:.3f} MB a step; planned {said / 1e6:.3f} MB ({sent / said:.3f})"
        )


def free_port() -> int:
    """A port of this machine that nobody has now."""
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return s.getsockname()[1]


def start(index: int, ports: list[int], options: argparse.Namespace) -> subprocess.Popen:
    """This script as one of the workers."""
    cluster = {"worker": [f"localhost:{port}" for port in ports]}
    tf_config = json.dumps({"cluster": cluster, "task": {"type": "worker", "index": index}})
    command = [sys.executable, __file__, *options.overrides, "--config", options.config]
    environment = {**os.environ, "TF_CONFIG": tf_config, "TF_CPP_MIN_LOG_LEVEL": "3"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def loopback() -> int:
    """Bytes that have gone through the loopback interface."""
    line = next(x for x in Path("/proc/net/dev").read_text().splitlines() if x.strip().startswith("lo:"))
    return int(line.split(":")[1].split()[8])


def work(options: argparse.Namespace) -> None:
    """Some steps on made-up images; prints what went through the interface meanwhile."""
    from mrcnn_tf.training.distribution import make_strategy, train_function

    strategy = make_strategy("auto")  # before TensorFlow's first tensor
    import tensorflow as tf

    from mrcnn_tf.build import build_model
    from mrcnn_tf.config import load_config
    from mrcnn_tf.planning.measure import made_up_batch
    from mrcnn_tf.planning.plan import number_of_classes, plain_optimizer
    from mrcnn_tf.planning.scaling import sent, traffic_of

    config = load_config(options.config, options.overrides)
    count = number_of_classes(config)
    with strategy.scope():
        model = build_model(config, [str(i) for i in range(count)], list(range(1, count + 1)))
        model.compile(optimizer=plain_optimizer(config, model), jit_compile=False)
    batch = {key: tf.constant(value) for key, value in made_up_batch(config).items()}
    data = strategy.distribute_datasets_from_function(lambda _: tf.data.Dataset.from_tensors(batch).repeat())
    step, batches, before = train_function(strategy, model), iter(data), 0
    for number in range(-2, STEPS):
        if number == 0:
            before = loopback()
        float(step(batches)["loss"])
    devices = strategy.num_replicas_in_sync
    print(json.dumps({"bytes": loopback() - before, "planned": sent(traffic_of(model).total, devices)}))


if __name__ == "__main__":
    main()
