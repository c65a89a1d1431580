"""`mrcnn train`."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

SUMMARY = "train a model, evaluate, draw and export it"
EXAMPLES = """examples:
  python train.py                                     the quickstart: generated shapes, minutes on a CPU
  python train.py --config configs/mask_rcnn_r50_fpn_coco_1x.yaml \\
      data.train.annotations=A.json data.train.images=DIR \\
      data.val.annotations=B.json data.val.images=DIR  your own COCO-format data set
  python train.py --config C.yaml train.batch_size=4   any key of configs/base.yaml
  python train.py --config C.yaml --resume             go on where a run was stopped
  python train.py --config C.yaml --max-restarts 10    and by itself when it is killed or loses a worker"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Its arguments."""
    parser.add_argument(
        "--config", default=None, metavar="YAML", help="the experiment (default: configs/quickstart.yaml)"
    )
    parser.add_argument(
        "--resume", action="store_true", help="go on from the run folder's newest checkpoint, if there is one"
    )
    parser.add_argument(
        "--max-restarts",
        type=int,
        default=0,
        metavar="N",
        help="start training again, up to N times, when it is killed or loses a worker",
    )
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="such as train.batch_size=4")


def run(options: argparse.Namespace) -> int:
    """`mrcnn train`."""
    from mrcnn_tf.config import load_config
    from mrcnn_tf.training.supervise import LOST, supervised

    path = options.config or default_config()
    config = load_config(path, options.overrides)
    if options.max_restarts < 0:
        raise ValueError(f"--max-restarts: is {options.max_restarts}; it must be 0 or more")
    if options.max_restarts:
        resume = ["--resume"] * options.resume
        again = ["--config", str(path), *resume, *options.overrides]
        return supervised(again, config.run_folder, options.max_restarts)
    from mrcnn_tf.training.train import train
    from mrcnn_tf.training.workers import WorkerLost

    # Until training itself takes it over: the first process of a container would not be ended by it otherwise.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return 0 if train(config, resume=options.resume).finished else 130
    except WorkerLost as error:
        print(f"error: {error}", file=sys.stderr)
        return LOST
    finally:
        signal.signal(signal.SIGTERM, before)


def default_config() -> Path:
    """`configs/quickstart.yaml`, seen from the current folder or from the checkout that this package lies in."""
    for root in (Path(), Path(__file__).resolve().parents[2]):
        path = root / "configs" / "quickstart.yaml"
        if path.exists():
            return path
    raise ValueError("there is no configs/quickstart.yaml here; give --config")
