"""How long a training waits for its data: the pipeline of a config against a consumer.

    python benchmarks/input_pipeline.py --config configs/mask_rcnn_dsb2018.yaml \\
        data.train.annotations=A.json data.train.images=DIR

By default the consumer is the config's own model taking training steps on this machine, so that both compete for
the same cores. `--consumer sleep --step-seconds 0.2` stands for an accelerator that takes 0.2 s a step and leaves
the host alone; `--consumer none` takes batches as fast as they come. Prints one JSON line; `wait_share` is the
share of the time in which the consumer waited, and is to be below 0.05.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import tensorflow as tf

from mrcnn_tf.build import build_batches, build_datasets, build_model
from mrcnn_tf.config import load_config
from mrcnn_tf.data.coco import CocoDataset
from mrcnn_tf.schema import Config
from mrcnn_tf.training.optimizers import Schedule, make_optimizer


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="configs/quickstart.yaml")
    parser.add_argument("--consumer", choices=["model", "sleep", "none"], default="model")
    parser.add_argument("--step-seconds", type=float, default=0.2, help="of a step, with --consumer sleep")
    parser.add_argument("--steps", type=int, default=30, help="steps that are measured")
    parser.add_argument("--warmup", type=int, default=4, help="steps before them: tracing, full buffers")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="as for train.py")
    return parser.parse_args()


def training_step(config: Config, dataset: CocoDataset) -> Callable[[dict[str, tf.Tensor]], None]:
    """The config's own training step, on random weights."""
    keras.utils.set_random_seed(config.seed)
    keras.config.set_dtype_policy(config.precision)
    model = build_model(config, dataset.class_names, dataset.category_ids)
    schedule = Schedule(1e-6)  # random weights must not run away
    model.compile(optimizer=make_optimizer(model, name="sgd", schedule=schedule), jit_compile=False)
    step = tf.function(model.train_step, reduce_retracing=True)

    def consume(batch: dict[str, tf.Tensor]) -> None:
        for value in tf.nest.flatten(step(batch)):
            value.numpy()  # waits for the device

    return consume


def main() -> None:
    """Measures and prints."""
    args = parse_args()
    config = load_config(args.config, args.overrides)
    dataset, _ = build_datasets(config)
    consumers = {
        "model": lambda: training_step(config, dataset),
        "sleep": lambda: lambda batch: time.sleep(args.step_seconds),
        "none": lambda: lambda batch: None,
    }
    consume = consumers[args.consumer]()
    batches = iter(build_batches(config, dataset))
    waits, steps = [], []
    for _ in range(args.warmup + args.steps):
        start = time.perf_counter()
        batch = next(batches)
        middle = time.perf_counter()
        consume(batch)
        waits.append(middle - start)
        steps.append(time.perf_counter() - middle)
    waits, steps = waits[args.warmup :], steps[args.warmup :]
    total = sum(waits) + sum(steps)
    report = {
        "config": config.name,
        "consumer": args.consumer,
        "batch_size": config.train.batch_size,
        "canvas": list(config.data.canvas),
        "steps": args.steps,
        "wait_share": round(sum(waits) / total, 4),
        "wait_median_seconds": round(statistics.median(waits), 5),
        "wait_longest_seconds": round(max(waits), 5),
        "step_median_seconds": round(statistics.median(steps), 5),
        "images_per_second": round(args.steps * config.train.batch_size / total, 2),
        "cores": os.cpu_count(),
        "tensorflow": tf.__version__,
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
