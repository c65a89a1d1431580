"""Records what torchvision's Mask R-CNN and ResNets compute, for weights that follow from their names (drawn.py).

    python3 -m venv tv && tv/bin/pip install torch==2.15.0 torchvision==0.29.1
    cd tests/golden
    python make_torchvision_golden.py --model maskrcnn_resnet50_fpn --golden torchvision_v1.npz
    python make_torchvision_golden.py --model maskrcnn_resnet50_fpn_v2 --golden torchvision_v2.npz
    python make_torchvision_golden.py --model resnet101 --golden torchvision_resnet101.npz

With `--out DIR` instead: the whole of every stage in DIR/stages.npz and the weights in DIR/model.pth, for
benchmarks/parity.py. Boxes are x1, y1, x2, y2 there, maps [1, C, H, W], as torchvision has them.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
import torchvision
from drawn import draw, picture, sample
from torchvision.models.detection import MaskRCNN, maskrcnn_resnet50_fpn_v2
from torchvision.models.detection._utils import overwrite_eps
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.ops.misc import FrozenBatchNorm2d

WHOLE = ("image", "proposals", "boxes", "scores", "labels")


def build(name: str, size: tuple[int, int], proposals: int) -> torch.nn.Module:
    """The model as torchvision makes it for its published weights, resizing to these sides."""
    if not name.startswith("maskrcnn"):
        return getattr(torchvision.models, name)(weights=None).eval()
    options = {
        "min_size": size[0],
        "max_size": size[1],
        "rpn_post_nms_top_n_test": proposals,
    }
    if name.endswith("v2"):
        return maskrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None, **options).eval()
    body = torchvision.models.resnet50(weights=None, norm_layer=FrozenBatchNorm2d)
    model = MaskRCNN(_resnet_fpn_extractor(body, 3), 91, **options)
    overwrite_eps(model, 0.0)  # as maskrcnn_resnet50_fpn does for its COCO_V1 weights
    return model.eval()


def fill(model: torch.nn.Module, seed: int, adjust: dict[str, tuple[float, float]]) -> None:
    """Gives every tensor the value of its name."""
    state = {
        name: torch.from_numpy(draw(name, tuple(value.shape), seed, adjust))
        for name, value in model.state_dict().items()
    }
    model.load_state_dict(state)


def stages(model: MaskRCNN, image: np.ndarray) -> dict[str, np.ndarray]:
    """Every stage's output for one image, uint8 [H, W, 3]."""
    out: dict[str, np.ndarray] = {"image": image}
    hooks = []

    def keep(name: str, value: torch.Tensor) -> None:
        out[name] = value.detach().numpy().copy()

    def on(module: torch.nn.Module, action) -> None:
        def hook(_, inputs, output) -> None:  # what a hook returns would replace the output
            action(inputs, output)

        hooks.append(module.register_forward_hook(hook))

    def levels(prefix: str, first: int, values) -> None:
        for level, value in enumerate(values, first):
            keep(f"{prefix}{level}", value)

    rpn, heads = model.rpn, model.roi_heads
    on(model.backbone.body, lambda _, o: levels("c", 2, o.values()))
    on(model.backbone.fpn, lambda _, o: levels("p", 2, o.values()))
    on(rpn.head, lambda _, o: (levels("objectness", 2, o[0]), levels("deltas", 2, o[1])))
    on(rpn, lambda _, o: keep("proposals", o[0][0]))
    on(heads.box_predictor, lambda _, o: (keep("class_logits", o[0]), keep("box_deltas", o[1])))
    on(heads.mask_predictor, lambda _, o: keep("mask_logits", o))
    # Before masks are pasted into the image.
    on(heads, lambda _, o: keep("mask_probabilities", o[0][0]["masks"][:, 0]))
    with torch.no_grad():
        result = model([torch.from_numpy(image.transpose(2, 0, 1).copy()).float() / 255])[0]
    for hook in hooks:
        hook.remove()
    for name in ("boxes", "scores", "labels"):
        keep(name, result[name])
    return out


def condition(model: MaskRCNN, image: np.ndarray, seed: int) -> dict[str, tuple[float, float]]:
    """Factors for the last layers of each part, so that the numbers are of the size of a trained model's."""
    adjust: dict[str, tuple[float, float]] = {}

    def run() -> dict[str, np.ndarray]:
        fill(model, seed, adjust)
        return stages(model, image)

    out = run()
    norms = "backbone.fpn.layer_blocks.0.1.weight" in model.state_dict()
    for i, wanted in enumerate((1.0, 1.4, 2.0, 2.8)):  # coarse levels louder, for boxes of every size
        adjust[f"backbone.fpn.layer_blocks.{i}.{1 if norms else 0}.weight"] = (
            float(wanted / out[f"p{i + 2}"].std()),
            0.0,
        )
    out = run()
    for layer, stage, wanted in (("cls_logits", "objectness", 1.0), ("bbox_pred", "deltas", 0.3)):
        spread = np.concatenate([out[f"{stage}{level}"].ravel() for level in range(2, 7)]).std()
        adjust[f"rpn.head.{layer}.weight"] = (float(wanted / spread), 0.0)
    out = run()
    for layer, stage, wanted in (("cls_score", "class_logits", 3.0), ("bbox_pred", "box_deltas", 0.7)):
        adjust[f"roi_heads.box_predictor.{layer}.weight"] = (float(wanted / out[stage].std()), 0.0)
    low, high = 0.0, 30.0
    for _ in range(12):  # the background's bias, until about thirty detections are left
        bias = (low + high) / 2
        adjust["roi_heads.box_predictor.cls_score.bias"] = (1.0, bias)
        out = run()
        low, high = (bias, high) if len(out["scores"]) > 30 else (low, bias)
    adjust["roi_heads.mask_predictor.mask_fcn_logits.weight"] = (float(2.0 / out["mask_logits"].std()), 0.0)
    run()
    return adjust


def main() -> None:
    """Reads the options, records and writes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="maskrcnn_resnet50_fpn")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", default="340x470", help="of the image")
    parser.add_argument(
        "--resize", help="HEIGHTxWIDTH: shortest side and bound on the longest; default: no change"
    )
    parser.add_argument("--proposals", type=int, default=200)
    parser.add_argument("--golden", type=Path)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(2)
    height, width = (int(side) for side in options.size.split("x"))
    resize = options.resize or f"{min(height, width)}x{max(height, width)}"
    shorter, longest = (int(side) for side in resize.split("x"))
    image = picture(height, width, options.seed)
    model = build(options.model, (shorter, longest), options.proposals)
    adjust: dict[str, tuple[float, float]] = {}
    if isinstance(model, MaskRCNN):
        adjust = condition(model, image, options.seed)
        out = stages(model, image)
    else:
        fill(model, options.seed, adjust)
        x = torch.from_numpy(
            np.random.default_rng(options.seed).normal(size=(1, 3, 96, 96)).astype(np.float32)
        )
        out = {"input": x.numpy()}
        with torch.no_grad():
            x = model.maxpool(model.relu(model.bn1(model.conv1(x))))
            for stage in range(1, 5):
                x = getattr(model, f"layer{stage}")(x)
                out[f"c{stage + 1}"] = x.numpy()
    about = {
        "model": options.model,
        "seed": options.seed,
        "min_size": shorter,
        "max_size": longest,
        "proposals_kept": options.proposals,
        "size": [height, width],
        "shapes": json.dumps({name: list(value.shape) for name, value in out.items()}),
        "torchvision": torchvision.__version__,
        "state": json.dumps({name: list(value.shape) for name, value in model.state_dict().items()}),
        "adjusted": list(adjust),
        "adjustments": np.array(list(adjust.values())).reshape(-1, 2),
    }
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        torch.save(model.state_dict(), options.out / "model.pth")
        np.savez(options.out / "stages.npz", **out, **about)
    if options.golden:
        small = {name: value if name in WHOLE else sample(value) for name, value in out.items()}
        # The picture and a classifier's input follow from their seeds.
        for name in ("image", "input"):
            small.pop(name, None)
        np.savez_compressed(options.golden, **small, **about)
    print(options.model, {name: value.shape for name, value in out.items()})
    if "scores" in out:
        print(len(out["scores"]), "detections", out["scores"][:5], np.unique(out["labels"]).size, "classes")


if __name__ == "__main__":
    main()
