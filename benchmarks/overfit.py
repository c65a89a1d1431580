"""Can the model learn eight crowded photographs by heart? Random weights, ResNet-50, 512 pixels.

    python benchmarks/overfit.py --data ../shared/data/coco_mini [KEY=VALUE ...]

Of the folder's training images with at least ten instances, takes the eight in which the smallest share of them is
small (COCO's word for less than 32 x 32 pixels: at 512 pixels many of those are a cell or two of the finest feature
map). Trains on them with `configs/mask_rcnn_coco_mini.yaml` without any augmentation, and evaluates on the same eight.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from mrcnn_tf.config import load_config
from mrcnn_tf.training.train import train

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = [
    "name=overfit8",
    "data.flip=false",
    # Two sizes a level, from small to image-filling: what no proposal reaches, no head can find.
    "model.rpn.anchor_sizes=[[16,24],[32,48],[64,96],[128,192],[256,400]]",
    "model.rpn.pre_nms=[1000,1000]",
    "model.rpn.post_nms=[500,500]",
    # The masks decide: many of them in every step, and a loss that counts double.
    "model.roi_samples=128",
    "model.roi_positive_fraction=0.4",
    "model.box_beta=0.1",
    "model.loss_weights.mask=2.0",
    "precision=mixed_bfloat16",
    "train.optimizer=adamw",
    "train.learning_rate=0.0005",
    "train.steps=700",
    "train.weight_decay=0.0",
    "train.checkpoint_every=100000",
    "evaluation.every=350",
    "export.saved_model=false",
]


def crowded_subset(annotations: Path, target: Path, images: int = 8, instances: int = 10) -> Path:
    """Writes the COCO annotations of the chosen `images` images with at least `instances` instances."""
    data = json.loads(annotations.read_text())
    areas: dict[int, list[float]] = {image["id"]: [] for image in data["images"]}
    for row in data["annotations"]:
        if not row["iscrowd"]:
            areas[row["image_id"]].append(row["area"])
    small = {
        key: sum(a < 32**2 for a in own) / len(own) for key, own in areas.items() if len(own) >= instances
    }
    ids = set(sorted(small, key=lambda key: (small[key], key))[:images])
    rows = [row for row in data["annotations"] if row["image_id"] in ids]
    used = {row["category_id"] for row in rows}
    chosen = [image for image in data["images"] if image["id"] in ids]
    categories = [category for category in data["categories"] if category["id"] in used]
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps({**data, "images": chosen, "annotations": rows, "categories": categories}))
    return target


def main() -> None:
    """Trains and prints the metrics."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data" / "coco_mini")
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_args()
    subset = crowded_subset(
        options.data / "annotations" / "instances_train2017.json", Path("runs/overfit8.json")
    )
    paths = [f"data.{split}.annotations={subset}" for split in ("train", "val")]
    paths += [f"data.{split}.images={options.data / 'train2017'}" for split in ("train", "val")]
    config = load_config(ROOT / "configs" / "mask_rcnn_coco_mini.yaml", SETTINGS + paths + options.overrides)
    run = train(config)
    if run.finished:
        keys = ("bbox/AP", "bbox/AP50", "segm/AP", "segm/AP50")
        print(json.dumps({key: round(run.metrics[key], 4) for key in keys}))


if __name__ == "__main__":
    main()
