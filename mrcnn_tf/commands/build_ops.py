"""`mrcnn build-ops`."""

from __future__ import annotations

import argparse

SUMMARY = "compile RoIAlign ahead of its first use"
EXAMPLES = """examples:
  mrcnn build-ops              into the cache folder (MRCNN_TF_CACHE, else ~/.cache/mrcnn_tf)
  mrcnn build-ops --package    into the package, before `pip wheel .`: machines without a compiler then have it"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Its arguments."""
    parser.add_argument("--package", action="store_true", help="build into the package's own folder")


def run(options: argparse.Namespace) -> int:
    """`mrcnn build-ops`."""
    from mrcnn_tf.ops.compile import build

    print(build(package=options.package))
    return 0
