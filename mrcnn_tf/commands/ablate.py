"""`mrcnn ablate`."""

from __future__ import annotations

import argparse

SUMMARY = "train several configs with several seeds and compare them"
EXAMPLES = """Runs are in DIR/NAME/seedN; what is finished is kept, so the same command goes on where it was stopped.
example:
  mrcnn ablate configs/ablations/shapes_*.yaml --seeds 0 1 2 --out runs/ablation --baseline shapes_vanilla"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Its arguments."""
    # argparse cannot tell two lists apart: `run_ablate` does.
    parser.add_argument(
        "configs", nargs="+", metavar="CONFIG", help="YAML files, and KEY=VALUE for all of them"
    )
    parser.set_defaults(overrides=[])
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="N", help="one run each (default: 0 1 2)"
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="gets the runs, table.md and table.csv")
    parser.add_argument(
        "--baseline", metavar="NAME", help="config that the others are compared with (default: the first)"
    )
    parser.add_argument(
        "--metrics",
        nargs="+",
        metavar="KEY",
        help="columns, keys of metrics.json (default: box and mask AP, of all and of huddled instances)",
    )


def run(options: argparse.Namespace) -> int:
    """`mrcnn ablate`."""
    from mrcnn_tf.ablate import DEFAULT_METRICS, ablate

    # KEY=VALUE may stand anywhere, behind --metrics too; neither metrics nor configs have a "=".
    given = [*options.configs, *(options.metrics or []), *options.overrides]
    overrides = [argument for argument in given if "=" in argument]
    configs = [argument for argument in options.configs if "=" not in argument]
    metrics = [argument for argument in options.metrics or DEFAULT_METRICS if "=" not in argument]
    if not configs:
        raise ValueError("there is no config among the arguments; give one YAML file or more")
    done = ablate(
        configs,
        seeds=options.seeds,
        out=options.out,
        baseline=options.baseline,
        metrics=metrics,
        overrides=overrides,
    )
    return 0 if done else 1
