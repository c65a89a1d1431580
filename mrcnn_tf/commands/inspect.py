"""`mrcnn inspect`."""

from __future__ import annotations

import argparse

from mrcnn_tf.allocator import keep_memory
from mrcnn_tf.commands.loading import NOT_OF_RESULTS, add_overrides, load_with

SUMMARY = "a page that tells what is wrong with a model's detections, or with a results file"
EXAMPLES = """The page is one HTML file that opens from disk. Results files need no TensorFlow.
examples:
  mrcnn inspect --annotations A.json --images DIR --model runs/quickstart/model.keras --out page.html
  mrcnn inspect --annotations A.json --images DIR --results R.json --out page.html    any COCO results file
  mrcnn inspect --annotations A.json --results R.json --out page.html --report report.json"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Its arguments."""
    parser.add_argument("--annotations", required=True, metavar="JSON", help="the truth, in COCO's format")
    parser.add_argument(
        "--images", metavar="DIR", help="folder of the images; without it there are no pictures"
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--model", metavar="KERAS", help="a .keras file; needs --images")
    what.add_argument("--results", metavar="JSON", help="COCO results, whoever made them")
    parser.add_argument("--out", required=True, metavar="HTML", help="the page to write")
    parser.add_argument("--report", metavar="JSON", help="write the page's numbers there, too")
    parser.add_argument("--first", type=int, metavar="N", help="only the first N images")
    parser.add_argument(
        "--score",
        type=float,
        default=0.3,
        metavar="S",
        help="AP aside, look at detections from this score (default: 0.3)",
    )
    parser.add_argument(
        "--max-detections",
        type=int,
        nargs=3,
        default=(1, 10, 100),
        metavar="N",
        help="COCO's maxDets (default: 1 10 100)",
    )
    parser.add_argument(
        "--pictures", type=int, default=8, metavar="N", help="of each of three groups, at most (default: 8)"
    )
    add_overrides(parser)


def run(options: argparse.Namespace) -> None:
    """`mrcnn inspect`."""
    from mrcnn_tf.files import save_json
    from mrcnn_tf.inspection.inspect import inspect, plain
    from mrcnn_tf.inspection.page import write_page

    if options.results and options.overrides:
        raise ValueError(NOT_OF_RESULTS)
    model = None
    if options.model:
        if not options.images:
            raise ValueError("--model needs --images, the folder of the images")
        keep_memory()
        model = load_with(options.model, options.overrides)
    report = inspect(
        options.annotations,
        images=options.images,
        model=model,
        results=options.results,
        first=options.first,
        score_threshold=options.score,
        max_detections=tuple(options.max_detections),
        pictures=options.pictures,
        name=options.model,
    )
    for finding in report["findings"]:
        print(f"{finding['severity']:<5} {finding['title']}")
    write_page(report, options.out)
    if options.report:
        save_json(options.report, plain(report), indent=1)
    print(f"page: {options.out}")
