"""The `mrcnn` command. `train.py` and `evaluate.py` are its first two subcommands."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mrcnn_tf.allocator import keep_memory

if TYPE_CHECKING:
    from mrcnn_tf.config import Published

# Those of `importer`, which imports TensorFlow.
SOURCES = ("torchvision", "detectron2", "maskrcnn-benchmark", "model-garden", "keras")
DESCRIPTION = "Mask R-CNN and Mask Refining R-CNN for Keras 3 on TensorFlow."


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a subcommand; returns the exit status: 0, 1 for an error that was explained, 130 when interrupted."""
    # TensorFlow's start-up notes would hide ours.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    top = parser()
    options, rest = top.parse_known_args(arguments)
    # argparse takes positional arguments from one place only; KEY=VALUE may stand between and behind options.
    if rest and (not hasattr(options, "overrides") or any("=" not in r or r[0] == "-" for r in rest)):
        top.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        options.overrides = [*options.overrides, *rest]
    try:
        return options.run(options) or 0
    except (ValueError, OSError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        # What fails inside tf.data (an image that cannot be read) comes as TensorFlow's own error.
        if not hasattr(error, "error_code"):
            raise
        from mrcnn_tf.data.pipeline import explain  # imports TensorFlow, which not every command needs

        print(f"error: {explain(error)}", file=sys.stderr)
    return 1


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(prog="mrcnn", description=DESCRIPTION)
    commands = top.add_subparsers(metavar="COMMAND", required=True)

    def command(name: str, run, summary: str, details: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name,
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}.",
            epilog=details,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.set_defaults(run=run)
        return sub

    train = command(
        "train",
        run_train,
        "train a model, evaluate, draw and export it",
        """examples:
  python train.py                                     the quickstart: generated shapes, minutes on a CPU
  python train.py --config configs/mask_rcnn_r50_fpn_coco_1x.yaml \\
      data.train.annotations=A.json data.train.images=DIR \\
      data.val.annotations=B.json data.val.images=DIR  your own COCO-format data set
  python train.py --config C.yaml train.batch_size=4   any key of configs/base.yaml
  python train.py --config C.yaml --resume             go on where a run was stopped""",
    )
    train.add_argument(
        "--config", default=None, metavar="YAML", help="the experiment (default: configs/quickstart.yaml)"
    )
    train.add_argument("--resume", action="store_true", help="go on from the run folder's newest checkpoint")
    train.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="such as train.batch_size=4")

    evaluate = command(
        "evaluate",
        run_evaluate,
        "box and mask AP of a model or of a results file",
        """examples:
  python evaluate.py --config configs/quickstart.yaml          the model that this config trained
  python evaluate.py --model M.keras --annotations A.json --images DIR
  python evaluate.py --annotations A.json --results R.json     any COCO results file, whoever made it
  python evaluate.py --config configs/mr_rcnn_dsb2018.yaml --alpha 0 0.5 1 2    weights of MR R-CNN's second look""",
    )
    evaluate.add_argument("--config", metavar="YAML", help="evaluate the model in the config's run folder")
    evaluate.add_argument(
        "--model", metavar="KERAS", help="a model file (default with --config: its model.keras)"
    )
    evaluate.add_argument("--annotations", metavar="JSON", help="the truth, in COCO's format")
    evaluate.add_argument("--images", metavar="DIR", help="folder of the images")
    evaluate.add_argument("--results", metavar="JSON", help="COCO results to evaluate instead of a model")
    evaluate.add_argument("--out", metavar="DIR", help="write metrics.json and predictions.json there")
    evaluate.add_argument(
        "--batch-size", type=int, default=1, metavar="N", help="images at a time (default: 1)"
    )
    evaluate.add_argument("--first", type=int, metavar="N", help="only the first N images")
    evaluate.add_argument(
        "--max-detections",
        type=int,
        nargs=3,
        default=None,
        metavar="N",
        help="COCO's maxDets (default: 1 10 100, or the config's)",
    )
    evaluate.add_argument(
        "--alpha",
        type=float,
        nargs="+",
        metavar="A",
        help="evaluate an MR R-CNN at each of these weights of its refined scores; --out gets alpha.md and alpha.csv",
    )
    evaluate.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="with --config; to stand before --alpha"
    )

    predict = command(
        "predict",
        run_predict,
        "draw what a model finds in pictures and videos",
        """example:
  mrcnn predict runs/quickstart/model.keras photos/ 'more/*.jpg' clip.mp4 --out found""",
    )
    predict.add_argument("model", metavar="MODEL", help="a .keras file")
    predict.add_argument("paths", nargs="+", metavar="PATH", help="images, videos, folders or glob patterns")
    predict.add_argument("--out", required=True, metavar="DIR", help="for the pictures and predictions.json")
    predict.add_argument(
        "--score",
        type=float,
        default=0.5,
        metavar="S",
        help="draw and list detections from this score (default: 0.5)",
    )

    check = command(
        "check-data",
        run_check_data,
        "read a COCO-format data set and report everything that would hurt",
        """exit status 1 if there are errors.
example:
  mrcnn check-data --annotations A.json --images DIR --out report""",
    )
    check.add_argument("--annotations", required=True, metavar="JSON", help="the annotation file")
    check.add_argument("--images", required=True, metavar="DIR", help="folder of the images")
    check.add_argument("--out", metavar="DIR", help="write report.json and samples.png there")

    export = command(
        "export",
        run_export,
        "write a SavedModel for TensorFlow Serving, or a LiteRT or ONNX file",
        """A metrics.json and a config.yaml beside the model, as training leaves them, go into the model card.
examples:
  mrcnn export runs/quickstart/model.keras --out saved_models/quickstart
  mrcnn export runs/quickstart/model.keras --out saved_models/quickstart --precision bfloat16
  mrcnn export runs/quickstart/model.keras --format litert --out model.tflite --size 128x128
  mrcnn export runs/quickstart/model.keras --format litert --out int8.tflite --precision int8 \\
      --calibration data/shapes/train/images \\
      --annotations data/shapes/val/annotations.json --images data/shapes/val/images""",
    )
    export.add_argument("model", metavar="MODEL", help="a .keras file")
    export.add_argument(
        "--out",
        required=True,
        metavar="PATH",
        help="gets the next numbered version folder; or the file to write",
    )
    export.add_argument("--format", choices=("saved_model", "litert", "onnx"), default="saved_model")
    export.add_argument(
        "--precision",
        choices=("float32", "bfloat16", "float16", "int8"),
        help="SavedModel: float32 or bfloat16 (default: the model's); LiteRT: float32 (default), float16 or int8",
    )
    export.add_argument(
        "--full-masks",
        action="store_true",
        help="SavedModel: one more signature, with masks of the images' sizes",
    )
    export.add_argument(
        "--no-check",
        action="store_true",
        help="SavedModel: do not run it in a process of its own and compare",
    )
    export.add_argument(
        "--size",
        type=height_and_width,
        metavar="HxW",
        help="LiteRT, ONNX: of the input (default: as trained)",
    )
    export.add_argument(
        "--calibration", metavar="DIR", help="LiteRT: images to compare on, and for the ranges of int8"
    )
    export.add_argument(
        "--annotations", metavar="JSON", help="LiteRT: report AP beside the model's on this data set"
    )
    export.add_argument("--images", metavar="DIR", help="folder of its images")
    export.add_argument("--first", type=int, metavar="N", help="only its first N images")

    bring = command(
        "import",
        run_import,
        "turn another project's weights into a model file",
        """The model's .report.txt has a line for what became of every tensor. Nothing in a file is ever executed.
examples:
  mrcnn import maskrcnn_resnet50_fpn_coco.pth --from torchvision --out mask_rcnn.keras
  mrcnn import model_final_a3ec72.pkl --from detectron2 --out mask_rcnn.keras
  mrcnn import mine.pth --from torchvision --classes names.txt --out mine.keras model.backbone.epsilon=1e-5
  mrcnn import resnet50.pth --from torchvision --out backbone.keras   a classifier: the rest has fresh weights""",
    )
    bring.add_argument(
        "file", metavar="FILE", help=".pth, .pkl, .safetensors, .npz, .h5 or a TensorFlow checkpoint"
    )
    bring.add_argument(
        "--from", dest="source", required=True, choices=SOURCES, help="the project that it is of"
    )
    bring.add_argument("--out", required=True, metavar="KERAS", help="the model file to write")
    bring.add_argument(
        "--classes",
        metavar="FILE",
        help="names of its classes, a line each, or a COCO annotation file (not needed for COCO's own)",
    )
    bring.add_argument(
        "--config",
        metavar="YAML",
        help="its architecture, where it cannot be told from the file (configs/published/)",
    )
    bring.add_argument("--allow-missing", action="store_true", help="initialise what the file does not have")
    bring.add_argument(
        "--allow-unexpected", action="store_true", help="leave out what the model does not have"
    )
    bring.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="such as model.sampling_ratio=2")

    build = command(
        "build-ops",
        run_build_ops,
        "compile RoIAlign ahead of its first use",
        """examples:
  mrcnn build-ops              into the cache folder (MRCNN_TF_CACHE, else ~/.cache/mrcnn_tf)
  mrcnn build-ops --package    into the package, before `pip wheel .`: machines without a compiler then have it""",
    )
    build.add_argument("--package", action="store_true", help="build into the package's own folder")

    ablate = command(
        "ablate",
        run_ablate,
        "train several configs with several seeds and compare them",
        """Runs are in DIR/NAME/seedN; what is finished is kept, so the same command goes on where it was stopped.
example:
  mrcnn ablate configs/ablations/shapes_*.yaml --seeds 0 1 2 --out runs/ablation --baseline shapes_vanilla""",
    )
    # argparse cannot tell two lists apart: `run_ablate` does.
    ablate.add_argument(
        "configs", nargs="+", metavar="CONFIG", help="YAML files, and KEY=VALUE for all of them"
    )
    ablate.set_defaults(overrides=[])
    ablate.add_argument(
        "--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="N", help="one run each (default: 0 1 2)"
    )
    ablate.add_argument("--out", required=True, metavar="DIR", help="gets the runs, table.md and table.csv")
    ablate.add_argument(
        "--baseline", metavar="NAME", help="config that the others are compared with (default: the first)"
    )
    ablate.add_argument(
        "--metrics",
        nargs="+",
        metavar="KEY",
        help="columns, keys of metrics.json (default: box and mask AP, of all and of huddled instances)",
    )
    return top


def run_train(options: argparse.Namespace) -> int:
    """`mrcnn train`."""
    from mrcnn_tf.config import load_config
    from mrcnn_tf.training.train import train

    config = load_config(options.config or default_config(), options.overrides)
    return 0 if train(config, resume=options.resume).finished else 130


def run_evaluate(options: argparse.Namespace) -> int:
    """`mrcnn evaluate`."""
    keep_memory()
    from mrcnn_tf.evaluation.coco import format_table
    from mrcnn_tf.evaluation.huddled import evaluate_all, format_huddled

    max_detections = tuple(options.max_detections or (1, 10, 100))
    if options.results:
        if not options.annotations:
            raise ValueError("--results needs --annotations, the truth to compare with")
        if options.alpha:
            raise ValueError("--alpha needs a model: results have one score only")
        metrics = evaluate_all(options.annotations, options.results, max_detections=max_detections)
        print(f"{format_table(metrics)}\n\n{format_huddled(metrics)}")
        save_evaluation(options.out, metrics, None)
        return 0

    from mrcnn_tf.data.coco import CocoDataset
    from mrcnn_tf.evaluation.run import evaluate_model, sweep_alpha
    from mrcnn_tf.training.checkpoints import load_model

    dataset: CocoDataset | None = None
    if options.config:
        from mrcnn_tf.build import validation_set
        from mrcnn_tf.config import load_config

        config = load_config(options.config, options.overrides)
        model = load_model(options.model or config.run_folder / "model.keras")
        max_detections = tuple(options.max_detections or config.evaluation.max_detections)
        if not options.annotations:
            dataset = validation_set(config)
    elif options.model:
        model = load_model(options.model)
    else:
        raise ValueError(
            "give --config, or --model with --annotations and --images, or --annotations with --results"
        )
    if options.annotations:
        if not options.images:
            raise ValueError("--annotations with a model needs --images, the folder of the images")
        dataset = CocoDataset(options.annotations, options.images)
    if dataset is None:
        raise ValueError("there is no data set to evaluate on; give --annotations and --images")
    settings = {
        "batch_size": options.batch_size,
        "first": options.first,
        "max_detections": max_detections,
    }
    if options.alpha:
        save_sweep(options.out, options.alpha, sweep_alpha(model, dataset, options.alpha, **settings))
        return 0
    evaluation = evaluate_model(model, dataset, **settings)
    print(f"{format_table(evaluation.metrics)}\n\n{format_huddled(evaluation.metrics)}\n")
    recall = {k.split("/")[1]: v for k, v in evaluation.metrics.items() if k.startswith("proposals/")}
    print("proposals " + ", ".join(f"{name} {value:.3f}" for name, value in recall.items()))
    print(evaluation.speed_line())
    if options.config and config.published:
        print(beside_published(evaluation.metrics, config.published))
    save_evaluation(options.out, evaluation.metrics, evaluation.results)
    return 0


def beside_published(metrics: dict, published: Published) -> str:
    """Measured and published AP, in percent."""
    measured = (100 * metrics["bbox/AP"], 100 * metrics["segm/AP"])
    return (
        "\n            box AP  mask AP\n"
        f"measured    {measured[0]:6.1f}   {measured[1]:6.1f}  on {metrics['images']} images\n"
        f"published   {published.box_ap:6.1f}   {published.mask_ap:6.1f}  {published.source}; not measured here"
    )


def save_evaluation(folder: str | None, metrics: dict, results: list | None) -> None:
    """Writes `metrics.json` and, if there are new ones, `predictions.json`."""
    if folder is None:
        return
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    (target / "metrics.json").write_text(json.dumps(metrics, indent=1))
    if results is not None:
        (target / "predictions.json").write_text(json.dumps(results))
    print(f"written to {target}")


def save_sweep(folder: str | None, alphas: Sequence[float], rows: list[dict]) -> None:
    """Prints the metrics at each alpha as a table; writes it as `alpha.md` and `alpha.csv`, if there is a folder."""
    from mrcnn_tf.evaluation.coco import format_number
    from mrcnn_tf.tables import markdown, save_csv, save_text

    columns = [f"{t}/AP" for t in ("bbox", "segm") if f"{t}/AP" in rows[0]]
    columns += [key for key in rows[0] if key.startswith("huddled/") and key.endswith("/AP")]
    cells = [
        [f"{a:g}", *(format_number(row[c]) for c in columns)] for a, row in zip(alphas, rows, strict=True)
    ]
    table = markdown(["alpha", *columns], cells)
    print(table)
    if folder is not None:
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        save_text(target / "alpha.md", table + "\n")
        save_csv(
            target / "alpha.csv",
            [{"alpha": a, **{c: row[c] for c in columns}} for a, row in zip(alphas, rows, strict=True)],
        )
        print(f"written to {target}")


def run_ablate(options: argparse.Namespace) -> int:
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


def run_predict(options: argparse.Namespace) -> int:
    """`mrcnn predict`."""
    keep_memory()
    from mrcnn_tf.predict import predict_paths
    from mrcnn_tf.training.checkpoints import load_model

    failed = predict_paths(load_model(options.model), options.paths, options.out, score=options.score)
    return 1 if failed else 0


def run_check_data(options: argparse.Namespace) -> int:
    """`mrcnn check-data`."""
    from mrcnn_tf.data.check import check_data

    report = check_data(options.annotations, options.images, sheet=options.out is not None)
    print(report)
    if options.out:
        report.save(options.out)
    return 0 if report.ok else 1


def run_export(options: argparse.Namespace) -> int:
    """`mrcnn export`."""
    own = {
        "saved_model": ("full_masks", "no_check"),
        "litert": ("size", "calibration", "annotations", "images", "first"),
        "onnx": ("size",),
    }
    for name in {name for names in own.values() for name in names} - set(own[options.format]):
        if getattr(options, name):
            raise ValueError(f"--{name.replace('_', '-')} is not for --format {options.format}")
    if bool(options.annotations) != bool(options.images):
        raise ValueError("--annotations and --images belong together: a data set to report AP on")
    from mrcnn_tf.training.checkpoints import load_model

    model = load_model(options.model)
    if options.format == "litert":
        from mrcnn_tf.data.coco import CocoDataset
        from mrcnn_tf.export.litert import export_litert
        from mrcnn_tf.export.litert_model import compare_litert

        precision = options.precision or "float32"
        settings = {"size": options.size, "precision": precision, "calibration": options.calibration}
        print(export_litert(model, options.out, **settings))
        if options.annotations:
            dataset = CocoDataset(options.annotations, options.images)
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


def run_import(options: argparse.Namespace) -> int:
    """`mrcnn import`."""
    from mrcnn_tf.importer import describe, import_model
    from mrcnn_tf.tables import save_text
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


def run_build_ops(options: argparse.Namespace) -> int:
    """`mrcnn build-ops`."""
    from mrcnn_tf.ops.compile import build

    print(build(package=options.package))
    return 0


def default_config() -> Path:
    """`configs/quickstart.yaml`, seen from the current folder or from the checkout that this package lies in."""
    for root in (Path(), Path(__file__).resolve().parents[1]):
        path = root / "configs" / "quickstart.yaml"
        if path.exists():
            return path
    raise ValueError("there is no configs/quickstart.yaml here; give --config")


if __name__ == "__main__":
    sys.exit(main())
