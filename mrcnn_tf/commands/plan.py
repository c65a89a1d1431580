"""`mrcnn plan`."""

from __future__ import annotations

import argparse
import json

SUMMARY = "parameters, memory, work, traffic and expected scaling of a config, before it is trained"
EXAMPLES = """examples:
  mrcnn plan --config C.yaml --classes 80                              no data and no GPU needed
  mrcnn plan --config C.yaml --measure                                 time a few steps on this machine
  mrcnn plan --config C.yaml --step-seconds 0.9 --devices-per-worker 8 --workers 1 2 4 8 --bandwidth 10 --latency 20
  mrcnn plan --config C.yaml --step-seconds 0.9 --workers 1 2 4 8 --allreduce 2=0.021 4=0.032
docs/plan.md explains the model behind the numbers"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Its arguments."""
    parser.add_argument("--config", required=True, metavar="YAML", help="the experiment")
    parser.add_argument(
        "--classes",
        type=int,
        metavar="N",
        help="number of classes (default: those of the config's training set)",
    )
    parser.add_argument(
        "--workers", type=int, nargs="+", default=[1], metavar="N", help="numbers of machines (default: 1)"
    )
    parser.add_argument(
        "--devices-per-worker",
        type=int,
        metavar="G",
        help="GPUs of each (default: 1, or as many as are measured on)",
    )
    parser.add_argument(
        "--step-seconds", type=float, metavar="S", help="time of a step on one worker, measured"
    )
    parser.add_argument(
        "--tflops",
        type=float,
        metavar="T",
        help="or what a device reaches in training; data sheets say far more",
    )
    parser.add_argument(
        "--measure",
        type=int,
        nargs="?",
        const=5,
        metavar="STEPS",
        help="or time so many steps here (default: 5)",
    )
    parser.add_argument("--bandwidth", type=float, metavar="GB/s", help="between workers, each way")
    parser.add_argument("--latency", type=float, metavar="US", help="between workers, in microseconds")
    parser.add_argument(
        "--allreduce",
        nargs="+",
        metavar="N=S",
        help="instead of a bandwidth: seconds that N workers took to sum the gradients",
    )
    parser.add_argument(
        "--overlap",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="of a step's compute time, behind which the sum hides (default: 0)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="such as train.batch_size=4")


def run(options: argparse.Namespace) -> int:
    """`mrcnn plan`."""
    from mrcnn_tf.config import load_config
    from mrcnn_tf.planning.plan import plan
    from mrcnn_tf.planning.report import report

    # argparse gives KEY=VALUE behind --allreduce to it.
    times = [text for text in options.allreduce or [] if text.partition("=")[0].isdigit()]
    rest = [text for text in options.allreduce or [] if text not in times]
    config = load_config(options.config, [*options.overrides, *rest])
    found = plan(
        config,
        classes=options.classes,
        workers=options.workers,
        devices_per_worker=options.devices_per_worker,
        step_seconds=options.step_seconds,
        tflops=options.tflops,
        measure_steps=options.measure,
        bandwidth=None if options.bandwidth is None else options.bandwidth * 1e9,
        latency=None if options.latency is None else options.latency / 1e6,
        all_reduce=dict(time_of(text) for text in times),
        overlap=options.overlap,
    )
    print(json.dumps(found, indent=1) if options.json else report(found))
    return 0


def time_of(text: str) -> tuple[int, float]:
    """`"4=0.03"` as 4 and 0.03."""
    workers, _, seconds = text.partition("=")
    try:
        return int(workers), float(seconds)
    except ValueError:
        raise ValueError(f"--allreduce: {text!r} must look like 4=0.03, workers and seconds") from None
