"""Evaluates a model or a COCO results file; `python evaluate.py --help` tells the forms."""

import sys

from mrcnn_tf.cli import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
