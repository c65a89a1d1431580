"""Writes tfa_losses.json: focal loss and GIoU as tensorflow-addons 0.23.0 computes them.

tensorflow-addons is archived and works with TensorFlow up to 2.15 and Python up to 3.11, so it needs its own
environment:

    python3.11 -m venv tfa && tfa/bin/pip install tensorflow==2.15.1 tensorflow-addons==0.23.0
    tfa/bin/python tests/golden/make_tfa_golden.py
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import tensorflow as tf
import tensorflow_addons as tfa


def focal(rng: np.random.Generator) -> list[dict]:
    """Eight rows of four foreground classes and extreme logits, for several alphas and gammas."""
    cases = []
    for alpha, gamma in ((0.25, 2.0), (0.5, 1.0), (0.75, 0.0), (0.25, 1.5)):
        # 0 is background, 1 to 4 are the classes, whose sigmoids are independent of each other.
        labels = rng.integers(0, 5, 8)
        logits = np.round(rng.normal(0, 3, (8, 4)), 3)
        logits[0], logits[1] = [30, -30, 20, -20], [0, 0, 0, 0]
        targets = np.eye(5)[labels][:, 1:]
        loss = tfa.losses.sigmoid_focal_crossentropy(
            tf.constant(targets, tf.float64), tf.constant(logits, tf.float64), alpha, gamma, from_logits=True
        )
        cases.append(
            {
                "alpha": alpha,
                "gamma": gamma,
                "labels": labels.tolist(),
                "logits": logits.tolist(),
                "loss": loss.numpy().tolist(),
            }
        )
    return cases


def giou(rng: np.random.Generator) -> dict:
    """Pairs of boxes: random ones, then equal, nested, touching, distant, and one without area."""
    corner = np.round(rng.uniform(0, 60, (2, 12, 2)), 2)
    first, second = np.concatenate([corner, corner + np.round(rng.uniform(1, 60, (2, 12, 2)), 2)], -1)
    special = [
        ([10, 10, 20, 30], [10, 10, 20, 30]),
        ([0, 0, 40, 40], [10, 10, 20, 20]),
        ([0, 0, 10, 10], [0, 10, 10, 20]),
        ([0, 0, 10, 10], [500, 700, 510, 720]),
        ([5, 5, 5, 5], [0, 0, 10, 10]),
    ]
    first = np.concatenate([first, [pair[0] for pair in special]])
    second = np.concatenate([second, [pair[1] for pair in special]])
    a, b = tf.constant(first, tf.float64), tf.constant(second, tf.float64)
    return {
        "first": first.tolist(),
        "second": second.tolist(),
        "giou_loss": tfa.losses.giou_loss(a, b).numpy().tolist(),
        "iou_loss": tfa.losses.giou_loss(a, b, mode="iou").numpy().tolist(),
    }


def main() -> None:
    """Writes the file beside this script."""
    rng = np.random.default_rng(2023)
    golden = {
        "tensorflow": tf.__version__,
        "tensorflow_addons": tfa.__version__,
        "focal": focal(rng),
        "giou": giou(rng),
    }
    path = Path(__file__).with_name("tfa_losses.json")
    path.write_text(json.dumps(golden, indent=1) + "\n")
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
