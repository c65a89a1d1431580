"""Trains Mask R-CNN: `python train.py`, or `python train.py --config configs/NAME.yaml KEY=VALUE ...`."""

import sys

from mrcnn_tf.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
