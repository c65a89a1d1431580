"""`mrcnn import`."""

from __future__ import annotations

import argparse
from pathlib import Path

from mrcnn_tf.files import save_text

# Those of `importer`, which imports TensorFlow.
SOURCES = ("torchvision", "detectron2", "maskrcnn-benchmark", "model-garden", "keras")

SUMMARY = "turn another project's weights into a model file"
EXAMPLES = """The model's .report.txt has a line for what became of every tensor. Nothing in a file is ever executed.
examples:
  mrcnn import maskrcnn_resnet50_fpn_coco.pth --from torchvision --out mask_rcnn.keras
  mrcnn import model_final_a3ec72.pkl --from detectron2 --out mask_rcnn.keras
  mrcnn import mine.pth --from torchvision --classes names.txt --out mine.keras model.backbone.epsilon=1e-5
  mrcnn import resnet50.pth --from torchvision --out backbone.keras   a classifier: the rest has fresh weights"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Its arguments."""
    parser.add_argument(
        "file", metavar="FILE", help=".pth, .pkl, .safetensors, .npz, .h5 or a TensorFlow checkpoint"
    )
    parser.add_argument(
        "--from", dest="source", required=True, choices=SOURCES, help="the project that it is of"
    )
    parser.add_argument("--out", required=True, metavar="KERAS", help="the model file to write")
    parser.add_argument(
        "--classes",
        metavar="FILE",
        help="names of its classes, a line each, or a COCO annotation file (not needed for COCO's own)",
    )
    parser.add_argument(
        "--config",
        metavar="YAML",
        help="its architecture, where it cannot be told from the file (configs/published/)",
    )
    parser.add_argument("--allow-missing", action="store_true", help="initialise what the file does not have")
    parser.add_argument(
        "--allow-unexpected", action="store_true", help="leave out what the model does not have"
    )
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="such as model.sampling_ratio=2")


def run(options: argparse.Namespace) -> int:
    """`mrcnn import`."""
    from mrcnn_tf.importer import describe, import_model
    from mrcnn_tf.training.checkpoints import save_aside

    target = Path(options.out)
    if target.suffix != ".keras":
        raise ValueError(f"--out {target}: a model file's name ends in .keras")
    model, report = import_model(
        options.file,
        options.source,
        classes=options.classes,
        config=options.config,
        overrides=options.overrides,
        allow_missing=options.allow_missing,
        allow_unexpected=options.allow_unexpected,
    )
    save_aside(model, target)
    save_text(target.with_suffix(".report.txt"), f"{describe(model)}\n{report}")
    print(report.summary())
    print(describe(model))
    print(f"written to {target}; {target.with_suffix('.report.txt').name} has a line for every tensor")
    return 0
