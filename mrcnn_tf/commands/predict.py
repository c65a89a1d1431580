"""`mrcnn predict`."""

from __future__ import annotations

import argparse

from mrcnn_tf.allocator import keep_memory
from mrcnn_tf.commands.loading import load_with

SUMMARY = "draw what a model finds in pictures and videos"
EXAMPLES = """examples:
  mrcnn predict runs/quickstart/model.keras photos/ 'more/*.jpg' clip.mp4 --out found
  mrcnn predict model.keras photos/ --out found model.nms_groups=all model.nms_threshold=0.6
  mrcnn predict model.keras slide.tif --tile 1024 --overlap 256 --out found    a picture far larger than the model's"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Its arguments."""
    parser.add_argument("model", metavar="MODEL", help="a .keras file")
    parser.add_argument("paths", nargs="+", metavar="PATH", help="images, videos, folders or glob patterns")
    parser.set_defaults(overrides=[])
    parser.add_argument("--out", required=True, metavar="DIR", help="for the pictures and predictions.json")
    parser.add_argument(
        "--score",
        type=float,
        default=0.5,
        metavar="S",
        help="draw and list detections from this score (default: 0.5)",
    )
    parser.add_argument(
        "--tile",
        type=int,
        metavar="N",
        help="detect on overlapping tiles of N x N pixels, joined across borders",
    )
    parser.add_argument(
        "--overlap", type=int, metavar="N", help="pixels that tiles share (default: a quarter of the tile)"
    )


def run(options: argparse.Namespace) -> int:
    """`mrcnn predict`."""
    # argparse cannot tell the two apart.
    overrides = [p for p in options.paths if p.startswith("model.") and "=" in p] + options.overrides
    paths = [p for p in options.paths if p not in overrides]
    if not paths:
        raise ValueError("there is no picture among the arguments; give files, folders or patterns")
    if not 0 <= options.score <= 1:
        raise ValueError(f"--score must be in [0, 1], not {options.score}")
    keep_memory()
    from mrcnn_tf.predict import predict_paths

    failed = predict_paths(
        load_with(options.model, overrides),
        paths,
        options.out,
        score=options.score,
        tile=options.tile,
        overlap=options.overlap,
    )
    return 1 if failed else 0
