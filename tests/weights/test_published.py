"""configs/published/: each is the architecture that the importer tells from names and shapes of that model's file."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from mrcnn_tf.build import build_model
from mrcnn_tf.commands.evaluate import beside_published
from mrcnn_tf.config import load_config, make_config
from mrcnn_tf.importer import SOURCES
from tests.weights.test_model_garden import shapes as model_garden_shapes

CONFIGS = Path(__file__).parents[2] / "configs"
PUBLISHED = sorted(
    path.stem for path in (CONFIGS / "published").glob("*.yaml") if "published:" in path.read_text()
)
GOLDEN = Path(__file__).parents[1] / "golden"


def names_of(config: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes in the file of a published model, from those that its project has for the nearest one."""
    if config.startswith("torchvision"):
        return json.loads(str(np.load(GOLDEN / f"torchvision_{config[-2:]}.npz")["state"]))
    if config.startswith("model_garden"):
        return model_garden_shapes()
    near = "x101" if "x101" in config else "r50"
    names = json.loads(str(np.load(GOLDEN / f"detectron2_{near}.npz")["info"]))["weights"]
    if "r101" in config:
        for name in [n for n in names if ".res4.5." in n]:
            names |= {name.replace(".res4.5.", f".res4.{i}."): names[name] for i in range(6, 23)}
    if config.startswith("maskrcnn_benchmark"):
        return {benchmark_name(name): shape for name, shape in names.items()} | {
            f"rpn.anchor_generator.cell_anchors.{i}": (3, 4) for i in range(5)
        }
    if "dconv" in config:
        for name in [n for n in names if re.search(r"res[345]\.\d+\.conv2\.weight", n)]:
            names[name.replace("conv2.weight", "conv2_offset.weight")] = (18, names[name][1], 3, 3)
            names[name.replace("conv2.weight", "conv2_offset.bias")] = (18,)
    if re.search("gn|syncbn|ep$", config):
        del names["roi_heads.box_head.fc2.weight"], names["roi_heads.box_head.fc2.bias"]
        for i in range(1, 5):
            names[f"roi_heads.box_head.conv{i}.weight"] = (256, 256, 3, 3)
        heads = re.compile(r"(.*(?:fpn_lateral|fpn_output|box_head\.conv|mask_fcn)\d)\.weight")
        for name in [n for n in names if heads.fullmatch(n)]:
            names |= dict.fromkeys(
                (
                    name.replace("weight", f"norm.{end}")
                    for end in ("weight", "bias", "running_mean", "running_var")
                ),
                (256,),
            )
            names.pop(name.replace("weight", "bias"), None)
    if "gn" in config:
        names = {name: shape for name, shape in names.items() if "running" not in name}
    if config.endswith("ep"):
        for end in ("weight", "bias"):
            shape = names.pop(f"proposal_generator.rpn_head.conv.{end}")
            names |= {f"proposal_generator.rpn_head.conv.conv{i}.{end}": shape for i in range(2)}
    return names


def benchmark_name(name: str) -> str:
    """detectron2's name of a tensor -> maskrcnn-benchmark's."""
    for pattern, new in (
        (r"backbone\.bottom_up\.stem\.conv1\.norm", "backbone.body.stem.bn1"),
        (r"backbone\.bottom_up\.stem", "backbone.body.stem"),
        (r"shortcut\.norm", "downsample.1"),
        (r"shortcut", "downsample.0"),
        (r"(res.*)conv(\d)\.norm", r"\1bn\2"),
        (r"proposal_generator\.rpn_head\.anchor_deltas", "rpn.head.bbox_pred"),
        (r"proposal_generator\.rpn_head\.objectness_logits", "rpn.head.cls_logits"),
        (r"proposal_generator\.rpn_head", "rpn.head"),
        (r"roi_heads\.box_head\.fc1", "roi_heads.box.feature_extractor.fc6"),
        (r"roi_heads\.box_head\.fc2", "roi_heads.box.feature_extractor.fc7"),
        (r"roi_heads\.box_predictor", "roi_heads.box.predictor"),
        (r"roi_heads\.mask_head\.mask_fcn", "roi_heads.mask.feature_extractor.mask_fcn"),
        (r"roi_heads\.mask_head\.deconv", "roi_heads.mask.predictor.conv5_mask"),
        (r"roi_heads\.mask_head\.predictor", "roi_heads.mask.predictor.mask_fcn_logits"),
    ):
        name = re.sub(pattern, new, name)
    name = re.sub(r"backbone\.bottom_up\.res(\d)", lambda m: f"backbone.body.layer{int(m[1]) - 1}", name)
    kinds = {"lateral": "inner", "output": "layer"}
    return re.sub(r"fpn_(lateral|output)(\d)", lambda m: f"fpn.fpn_{kinds[m[1]]}{int(m[2]) - 1}", name)


@pytest.mark.parametrize("config", PUBLISHED)
def test_config_is_what_the_importer_finds(config):
    project = next(name for name in SOURCES if config.startswith(name.replace("-", "_")))
    reader = SOURCES[project]
    tensors = {name: np.broadcast_to(np.float32(0), shape) for name, shape in names_of(config).items()}
    tensors = reader.tidy(tensors)
    assert reader.recognised(tensors)
    ours = load_config(CONFIGS / "published" / f"{config}.yaml")
    found = reader.settings(tensors)
    if project == "model-garden":  # the size is in no tensor
        found |= {"min_size": 640, "max_size": 640, "canvas": [640, 640]}
    assert ours.model == make_config({"model": found, "data": {"canvas": ours.data.canvas}}).model
    assert 30 < ours.published.mask_ap < ours.published.box_ap < 50
    count = reader.class_count(tensors)
    assert count in (80, 90)
    if "101" in config:
        return  # the same code as for 50, and seconds to build
    model = build_model(ours, [str(i) for i in range(count)], list(range(count)))
    moves = reader.moves(model, tensors)
    assert {id(move.weight) for move in moves} == {id(weight) for weight in model.weights}
    asked = {
        name for move in moves for name in ([move.tensor] if isinstance(move.tensor, str) else move.tensor)
    }
    assert all(name in asked or reader.ignored(name) for name in tensors)
    assert asked <= set(tensors)


def test_measured_beside_published():
    published = load_config(CONFIGS / "published" / "detectron2_r50_fpn_3x.yaml").published
    table = beside_published({"bbox/AP": 0.4098, "segm/AP": 0.3712, "images": 5000}, published)
    assert table.splitlines()[-2:] == [
        "measured      41.0     37.1  on 5000 images",
        "published     41.0     37.2  detectron2's model zoo, 137849600; not measured here",
    ]
