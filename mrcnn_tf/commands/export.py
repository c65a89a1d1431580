"""`mrcnn export`."""

from __future__ import annotations

import argparse
from pathlib import Path

from mrcnn_tf.commands.loading import add_overrides, load_with, open_data

SUMMARY = "write a SavedModel for TensorFlow Serving, or a LiteRT or ONNX file"
EXAMPLES = """A metrics.json and a config.yaml beside the model, as training leaves them, go into the model card.
examples:
  mrcnn export runs/quickstart/model.keras --out saved_models/quickstart
  mrcnn export runs/quickstart/model.keras --out saved_models/quickstart --precision bfloat16
  mrcnn export runs/quickstart/model.keras --out saved_models/quickstart model.nms_groups=all
  mrcnn export runs/quickstart/model.keras --format litert --out model.tflite --size 128x128
  mrcnn export runs/quickstart/model.keras --format litert --out int8.tflite --precision int8 \\
      --calibration data/shapes/train/images \\
      --annotations data/shapes/val/annotations.json --images data/shapes/val/images"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Its arguments."""
    parser.add_argument("model", metavar="MODEL", help="a .keras file")
    parser.add_argument(
        "--out",
        required=True,
        metavar="PATH",
        help="gets the next numbered version folder; or the file to write",
    )
    parser.add_argument("--format", choices=("saved_model", "litert", "onnx"), default="saved_model")
    parser.add_argument(
        "--precision",
        choices=("float32", "bfloat16", "float16", "int8"),
        help="SavedModel: float32 or bfloat16 (default: the model's); LiteRT: float32 (default), float16 or int8",
    )
    parser.add_argument(
        "--full-masks",
        action="store_true",
        help="SavedModel: one more signature, with masks of the images' sizes",
    )
    parser.add_argument(
        "--no-check",
        action="store_true",
        help="SavedModel: do not run it in a process of its own and compare",
    )
    parser.add_argument(
        "--size",
        type=height_and_width,
        metavar="HxW",
        help="LiteRT, ONNX: of the input (default: as trained)",
    )
    parser.add_argument(
        "--calibration", metavar="DIR", help="LiteRT: images to compare on, and for the ranges of int8"
    )
    parser.add_argument(
        "--annotations", metavar="JSON", help="LiteRT: report AP beside the model's on this data set"
    )
    parser.add_argument("--images", metavar="DIR", help="folder of its images")
    parser.add_argument("--first", type=int, metavar="N", help="only its first N images")
    add_overrides(parser)


def run(options: argparse.Namespace) -> int:
    """`mrcnn export`."""
    own = {
        "saved_model": ("full_masks", "no_check"),
        "litert": ("size", "calibration", "annotations", "images", "first"),
        "onnx": ("size",),
    }
    for name in {name for names in own.values() for name in names} - set(own[options.format]):
        if getattr(options, name):
            raise ValueError(f"--{name.replace('_', '-')} is not for --format {options.format}")
    if options.images and not options.annotations:
        raise ValueError("--images needs --annotations, the truth of a data set to report AP on")
    dataset = open_data(options.annotations, options.images) if options.annotations else None
    model = load_with(options.model, options.overrides)
    if options.format == "litert":
        from mrcnn_tf.export.litert import export_litert
        from mrcnn_tf.export.litert_model import compare_litert

        precision = options.precision or "float32"
        settings = {"size": options.size, "precision": precision, "calibration": options.calibration}
        print(export_litert(model, options.out, **settings))
        if dataset is not None:
            print(compare_litert(model, [options.out], dataset, first=options.first))
    elif options.format == "onnx":
        from mrcnn_tf.export.onnx import export_onnx

        if options.precision not in (None, "float32"):
            raise ValueError(f"--precision {options.precision} is not for --format onnx, which is float32")
        print(export_onnx(model, options.out, size=options.size))
    else:
        from mrcnn_tf.export.card import training_of
        from mrcnn_tf.export.saved_model import export_saved_model

        target = export_saved_model(
            model,
            options.out,
            precision=options.precision,
            full_masks=options.full_masks,
            check=not options.no_check,
            card=training_of(Path(options.model).parent),
        )
        print(target)
        if not options.no_check:
            print("checked: runs without this package and gives what the model gives")
        if not (target / "assets.extra" / "tf_serving_warmup_requests").exists():
            print('no warm-up requests, so the first answers will be slow: pip install "mrcnn_tf[serving]"')
    return 0


def height_and_width(text: str) -> tuple[int, int]:
    """`"480x640"` -> `(480, 640)`."""
    height, _, width = text.partition("x")
    if not (height.isdecimal() and width.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r}; give height and width in pixels, such as 480x640")
    return int(height), int(width)
