"""`mrcnn predict`."""

from __future__ import annotations

import argparse

from mrcnn_tf.allocator import keep_memory

SUMMARY = "draw what a model finds in pictures and videos"
EXAMPLES = """examples:
  mrcnn predict runs/quickstart/model.keras photos/ 'more/*.jpg' clip.mp4 --out found
  mrcnn predict model.keras slide.tif --tile 1024 --overlap 256 --out found    a picture far larger than the model's"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Its arguments."""
    parser.add_argument("model", metavar="MODEL", help="a .keras file")
    parser.add_argument("paths", nargs="+", metavar="PATH", help="images, videos, folders or glob patterns")
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
    keep_memory()
    from mrcnn_tf.predict import predict_paths
    from mrcnn_tf.training.checkpoints import load_model

    failed = predict_paths(
        load_model(options.model),
        options.paths,
        options.out,
        score=options.score,
        tile=options.tile,
        overlap=options.overlap,
    )
    return 1 if failed else 0
