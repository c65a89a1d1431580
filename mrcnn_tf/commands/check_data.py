"""`mrcnn check-data`."""

from __future__ import annotations

import argparse

SUMMARY = "read a COCO-format data set and report everything that would hurt"
EXAMPLES = """exit status 1 if there are errors.
example:
  mrcnn check-data --annotations A.json --images DIR --out report"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Its arguments."""
    parser.add_argument("--annotations", required=True, metavar="JSON", help="the annotation file")
    parser.add_argument("--images", required=True, metavar="DIR", help="folder of the images")
    parser.add_argument("--out", metavar="DIR", help="write report.json and samples.png there")


def run(options: argparse.Namespace) -> int:
    """`mrcnn check-data`."""
    from mrcnn_tf.data.check import check_data

    report = check_data(options.annotations, options.images, sheet=options.out is not None)
    print(report)
    if options.out:
        report.save(options.out)
    return 0 if report.ok else 1
