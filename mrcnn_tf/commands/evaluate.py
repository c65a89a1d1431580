"""`mrcnn evaluate`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mrcnn_tf.allocator import keep_memory
from mrcnn_tf.commands.loading import HELP, NOT_OF_RESULTS, load_with, open_data
from mrcnn_tf.files import save_json, save_text

if TYPE_CHECKING:
    from mrcnn_tf.schema import Published

SUMMARY = "box and mask AP of a model or of a results file"
EXAMPLES = """examples:
  python evaluate.py --config configs/quickstart.yaml          the model that this config trained
  python evaluate.py --model M.keras --annotations A.json --images DIR
  python evaluate.py --model M.keras --annotations A.json --images DIR model.nms_threshold=0.6
  python evaluate.py --annotations A.json --results R.json     any COCO results file, whoever made it
  python evaluate.py --config configs/mr_rcnn_dsb2018.yaml --alpha 0 0.5 1 2    weights of MR R-CNN's second look"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Its arguments."""
    parser.add_argument("--config", metavar="YAML", help="evaluate the model in the config's run folder")
    parser.add_argument(
        "--model", metavar="KERAS", help="a model file (default with --config: its model.keras)"
    )
    parser.add_argument("--annotations", metavar="JSON", help="the truth, in COCO's format")
    parser.add_argument("--images", metavar="DIR", help="folder of the images")
    parser.add_argument("--results", metavar="JSON", help="COCO results to evaluate instead of a model")
    parser.add_argument("--out", metavar="DIR", help="write metrics.json and predictions.json there")
    parser.add_argument(
        "--batch-size", type=int, default=1, metavar="N", help="images at a time (default: 1)"
    )
    parser.add_argument("--first", type=int, metavar="N", help="only the first N images")
    parser.add_argument(
        "--max-detections",
        type=int,
        nargs=3,
        default=None,
        metavar="N",
        help="COCO's maxDets (default: 1 10 100, or the config's)",
    )
    parser.add_argument(
        "--alpha",
        type=float,
        nargs="+",
        metavar="A",
        help="evaluate an MR R-CNN at each of these weights of its refined scores; --out gets alpha.md and alpha.csv",
    )
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help=f"{HELP}; with --config, any key")


def run(options: argparse.Namespace) -> int:
    """`mrcnn evaluate`."""
    keep_memory()
    from mrcnn_tf.evaluation.coco import format_table
    from mrcnn_tf.evaluation.huddled import evaluate_all, format_huddled

    max_detections = tuple(options.max_detections or (1, 10, 100))
    if options.results:
        if not options.annotations:
            raise ValueError("--results needs --annotations, the truth to compare with")
        if options.overrides:
            raise ValueError(NOT_OF_RESULTS)
        if options.alpha:
            raise ValueError("--alpha needs a model: results have one score only")
        metrics = evaluate_all(options.annotations, options.results, max_detections=max_detections)
        print(f"{format_table(metrics)}\n\n{format_huddled(metrics)}")
        save_evaluation(options.out, metrics, None)
        return 0

    from mrcnn_tf.evaluation.run import evaluate_model, sweep_alpha

    dataset = None
    if options.config:
        from mrcnn_tf.build import validation_set
        from mrcnn_tf.config import load_config
        from mrcnn_tf.models.selection import SELECTION

        config = load_config(options.config, options.overrides)
        # Of a config, only the settings that were given: a model has those that it was trained with.
        keys = {f"model.{key}" for key in SELECTION}
        chosen = [text for text in options.overrides if text.partition("=")[0] in keys]
        model = load_with(options.model or config.run_folder / "model.keras", chosen)
        max_detections = tuple(options.max_detections or config.evaluation.max_detections)
        if not options.annotations:
            dataset = validation_set(config)
    elif options.model:
        model = load_with(options.model, options.overrides)
    else:
        raise ValueError(
            "give --config, or --model with --annotations and --images, or --annotations with --results"
        )
    if options.annotations:
        dataset = open_data(options.annotations, options.images)
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
    save_json(target / "metrics.json", metrics, indent=1)
    if results is not None:
        save_json(target / "predictions.json", results)
    print(f"written to {target}")


def save_sweep(folder: str | None, alphas: Sequence[float], rows: list[dict]) -> None:
    """Prints the metrics at each alpha as a table; writes it as `alpha.md` and `alpha.csv`, if there is a folder."""
    from mrcnn_tf.evaluation.coco import format_number
    from mrcnn_tf.tables import markdown, save_csv

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
