"""Writes detectron2_r50.npz and detectron2_x101.npz: what detectron2's Mask R-CNN makes of weights by `drawn.py`.

detectron2 is built from source, for the CPU, in an environment of its own:

    python3.11 -m venv d2
    d2/bin/pip install torch==2.15.0 torchvision==0.29.1 "setuptools<81" wheel ninja
    d2/bin/pip install "fvcore<0.1.6" iopath "omegaconf<2.4" hydra-core pycocotools cloudpickle tabulate yacs
    d2/bin/pip install matplotlib termcolor tqdm packaging tensorboard
    (cd DETECTRON2 && FORCE_CUDA=0 ../d2/bin/python setup.py build_ext --inplace)
    export PYTHONPATH=DETECTRON2
    d2/bin/python tests/golden/make_detectron2_golden.py --model r50 --golden tests/golden/detectron2_r50.npz
    d2/bin/python tests/golden/make_detectron2_golden.py --model x101 --golden tests/golden/detectron2_x101.npz

The weights are those of `drawn.draw` by detectron2's names, with the factors of `adjust` and but for `value/NAME`,
which are whole tensors: a short pass gives the layers that decide something outputs with a spread. The image is
`drawn.picture(*size, seed)`, in BGR, and goes in unresized; the results are asked for in another size, so that they
are scaled back.

The golden file has, per stage NAME (all in detectron2's layout: NCHW, boxes x1 y1 x2 y2), `sample/NAME`, which is
`drawn.sample` of it; proposals, detections and mask probabilities are there whole. `info` is JSON: settings, adjust,
shapes, mean absolute values, and how far the decisions are from turning. With `--out DIR` everything is written whole,
with the weights in the form of detectron2's model zoo.

Stages:
  input                     normalised and padded image
  res2 .. res5, p2 .. p6    backbone and FPN
  objectness_2 .. _6        RPN logits, [1, 3, H, W]
  deltas_2 .. _6            RPN deltas, [1, 12, H, W]
  anchors                   of all levels, one after another
  proposals, proposal_logits, proposal_levels
                            after NMS, best first, and the FPN level each is pooled from
  box_rois                  pooled, [R, 256, 7, 7]
  box_head                  [R, 1024]
  class_logits, box_deltas  [R, 81] with the background last, [R, 320]
  det_boxes, det_scores, det_classes
                            detections in the image that went in
  mask_rois, mask_logits    [D, 256, 14, 14], [D, 80, 28, 28]
  mask_probs                [D, 28, 28], of the detected class
  boxes, scores, classes, masks
                            the result, in the size asked for
"""

from __future__ import annotations

import argparse
import json
import logging
import pickle
import zlib
from pathlib import Path

import detectron2
import numpy as np
import PIL
import torch
import torchvision
from detectron2 import model_zoo
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.data import transforms
from detectron2.modeling import build_model
from detectron2.modeling.poolers import assign_boxes_to_levels
from detectron2.modeling.proposal_generator import proposal_utils
from detectron2.modeling.roi_heads import fast_rcnn
from drawn import draw, picture, sample

CONFIGS = {
    "r50": "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x.yaml",
    "x101": "COCO-InstanceSegmentation/mask_rcnn_X_101_32x8d_FPN_3x.yaml",
    "dconv": "Misc/mask_rcnn_R_50_FPN_3x_dconv_c3-c5.yaml",
    "gn": "Misc/mask_rcnn_R_50_FPN_3x_gn.yaml",
}
SIZE, OUTPUT_SIZE = (450, 611), (233, 317)  # padded to 480 x 640: P5 is 15 x 20, P6 8 x 10
PROPOSALS, DETECTIONS, THRESHOLD = 200, 30, 0.05
RPN, BOX, MASK = "proposal_generator.rpn_head", "roi_heads.box_predictor", "roi_heads.mask_head"
WHOLE = ("proposals", "proposal_logits", "proposal_levels", "det_boxes", "det_scores", "det_classes")
WHOLE += ("boxes", "scores", "classes")


def build(name: str) -> torch.nn.Module:
    """The model of a config, on the CPU, with detectron2's own initial weights."""
    cfg = model_zoo.get_config(CONFIGS[name])
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = "cpu", ""
    cfg.MODEL.RPN.POST_NMS_TOPK_TEST = PROPOSALS
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = THRESHOLD
    return build_model(cfg).eval()


def fill(
    model: torch.nn.Module, seed: int, adjust: dict, values: dict, names: list[str] | None = None
) -> None:
    """Gives tensors, all of them by default, their drawn values."""
    for name, old in model.state_dict().items():
        if names is None or name in names:
            value = values[name] if name in values else draw(name, tuple(old.shape), seed, adjust)
            old.copy_(torch.from_numpy(value))


def inputs(image: np.ndarray) -> list[dict]:
    """What DefaultPredictor gives the model, but for the resize."""
    bgr = torch.from_numpy(image[:, :, ::-1].transpose(2, 0, 1).astype("float32"))
    return [{"image": bgr, "height": OUTPUT_SIZE[0], "width": OUTPUT_SIZE[1]}]


def condition(model: torch.nn.Module, seed: int, image: np.ndarray) -> tuple[dict, dict]:
    """Factors of kernels and values of biases with which the random network decides something everywhere."""
    adjust, values, batch = {}, {}, inputs(image)
    modules = dict(model.named_modules())
    fill(model, seed, adjust, values)

    def scale(wanted: dict[str, float], before_norm: bool = False) -> None:
        """Runs the model and gives layers factors with which their outputs have these standard deviations."""
        seen = {name: [] for name in wanted}
        hooks = []
        for name in wanted:
            if before_norm:
                keep = lambda _, args, name=name: seen[name].append(args[0].detach().flatten())  # noqa: E731
                hooks.append(modules[name].norm.register_forward_pre_hook(keep))
            else:
                keep = lambda _, args, out, name=name: seen[name].append(out.detach().flatten())  # noqa: E731
                hooks.append(modules[name].register_forward_hook(keep))
        model(batch)
        for hook in hooks:
            hook.remove()
        for name, std in wanted.items():
            adjust[f"{name}.weight"] = (std / torch.cat(seen[name]).std().item(), 0.0)
        fill(model, seed, adjust, values, [f"{name}.weight" for name in wanted])

    def best_logits() -> list[float]:
        """The best objectness of each level."""
        features = model.backbone(model.preprocess_image(batch).tensor)
        logits, _ = model.proposal_generator.rpn_head(list(features.values()))
        return [x.max().item() for x in logits]

    # The MSRA models take pixels of up to 255: their first kernel is small.
    scale({"backbone.bottom_up.stem.conv1": 1.0}, before_norm=True)
    scale({f"backbone.fpn_output{k}": 2.0 for k in (2, 3, 4, 5)})
    # Proposals of every size come through when the best logits of the levels are alike. (P6 follows P5.)
    for k, now, wanted in zip((2, 3, 4, 5), best_logits(), (3.4, 3.8, 4.2, 5.0), strict=False):
        factor, _ = adjust[f"backbone.fpn_output{k}.weight"]
        adjust[f"backbone.fpn_output{k}.weight"] = (factor * wanted / now, 0.0)
    fill(model, seed, adjust, values, list(adjust))
    scale({f"{RPN}.objectness_logits": 2.0, f"{RPN}.anchor_deltas": 0.3})
    # The best logit is 3: sigmoids near 1 would tie.
    bias = f"{RPN}.objectness_logits.bias"
    values[bias] = draw(bias, (3,), seed) + np.float32(3.0 - max(best_logits()))
    fill(model, seed, adjust, values, [bias])
    scale({f"{BOX}.cls_score": 3.0, f"{BOX}.bbox_pred": 0.7})
    scale({f"{MASK}.predictor": 2.0})
    # The background's bias leaves about DETECTIONS of them.
    kept = {}
    hook = modules[BOX].register_forward_hook(lambda m, i, o: kept.update(predictions=o))
    model(batch)
    hook.remove()
    logits, deltas = kept["predictions"]
    features = model.backbone(model.preprocess_image(batch).tensor)
    proposals, _ = model.proposal_generator(model.preprocess_image(batch), features, None)
    low, high = -10.0, 30.0
    for _ in range(30):
        middle = (low + high) / 2
        raised = logits.clone()
        raised[:, -1] += middle
        found = len(model.roi_heads.box_predictor.inference((raised, deltas), proposals)[0][0])
        if found == DETECTIONS:
            break
        low, high = (middle, high) if found > DETECTIONS else (low, middle)
    bias = f"{BOX}.cls_score.bias"
    values[bias] = draw(bias, (logits.shape[1],), seed)
    values[bias][-1] += np.float32(middle)
    fill(model, seed, adjust, values, [bias])
    return adjust, values


def record(model: torch.nn.Module, image: np.ndarray) -> tuple[dict[str, np.ndarray], list[dict]]:
    """Every stage of one image, and what the two non-maximum suppressions were given and kept."""
    out, suppressed, hooks = {}, [], []
    roi, backbone = model.roi_heads, model.backbone

    def keep(**named):  # a copy: later stages work in place
        out.update({name: np.array(value.detach().numpy()) for name, value in named.items()})

    def on(module, fn):
        hooks.append(module.register_forward_hook(lambda m, args, result: fn(args, result)))

    def rpn_head(_, result):
        for k, (objectness, deltas) in enumerate(zip(*result, strict=True), 2):
            keep(**{f"objectness_{k}": objectness, f"deltas_{k}": deltas})

    def pooled(args, result):
        keep(proposal_levels=assign_boxes_to_levels(args[1], 2, 5, 224, 4) + 2, box_rois=result)

    def detected(_, result):
        keep(
            proposals=result[0].proposal_boxes.tensor,
            proposal_logits=result[0].objectness_logits,
        )

    def masked(_, result):
        found = result[0]
        keep(det_boxes=found.pred_boxes.tensor, det_scores=found.scores, det_classes=found.pred_classes)
        keep(mask_probs=found.pred_masks[:, 0])

    def watch(module):
        original = module.batched_nms

        def batched_nms(boxes, scores, groups, threshold):
            result = original(boxes, scores, groups, threshold)
            names = {"boxes": boxes, "scores": scores, "groups": groups, "kept": result}
            suppressed.append({name: np.array(v) for name, v in names.items()} | {"threshold": threshold})
            return result

        module.batched_nms = batched_nms
        return module, original

    on(backbone.bottom_up, lambda args, result: keep(input=args[0], **result))
    on(backbone, lambda _, result: keep(**result))
    on(model.proposal_generator.anchor_generator, lambda _, r: keep(anchors=torch.cat([b.tensor for b in r])))
    on(model.proposal_generator.rpn_head, rpn_head)
    on(model.proposal_generator, lambda _, result: detected(_, result[0]))
    on(roi.box_pooler, pooled)
    on(roi.box_head, lambda _, result: keep(box_head=result))
    on(roi.box_predictor, lambda _, result: keep(class_logits=result[0], box_deltas=result[1]))
    on(roi.mask_pooler, lambda _, result: keep(mask_rois=result))
    on(roi.mask_head.predictor, lambda _, result: keep(mask_logits=result))
    on(roi.mask_head, masked)
    watched = [watch(proposal_utils), watch(fast_rcnn)]
    final = model(inputs(image))[0]["instances"]
    for hook in hooks:
        hook.remove()
    for module, original in watched:
        module.batched_nms = original
    keep(
        boxes=final.pred_boxes.tensor, scores=final.scores, classes=final.pred_classes, masks=final.pred_masks
    )
    return out, suppressed


def suppression_margin(case: dict, last: float = 0.0) -> dict:
    """How near a box scored at least `last` comes to the IoU at which it goes; whether float64 keeps the same boxes.

    Of few boxes torchvision suppresses all groups at once, moved apart, which costs digits of the coordinates.
    """
    order = np.argsort(-case["scores"], kind="stable")
    boxes, groups, scores = (
        case["boxes"][order].astype(np.float64),
        case["groups"][order],
        case["scores"][order],
    )
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    alive, exact, nearest = np.ones(len(boxes), bool), [], 1.0
    for i in range(len(boxes)):
        if not alive[i]:
            continue
        exact.append(order[i])
        rest = np.flatnonzero(alive & (groups == groups[i]) & (np.arange(len(boxes)) > i))
        corners = np.maximum(boxes[i, :2], boxes[rest, :2]), np.minimum(boxes[i, 2:], boxes[rest, 2:])
        inter = np.prod(np.maximum(corners[1] - corners[0], 0), -1)
        iou = inter / (area[i] + area[rest] - inter)
        distance = np.abs(iou - case["threshold"])[scores[rest] >= last]
        nearest = min(nearest, float(distance.min(initial=1.0)))
        alive[rest[iou > case["threshold"]]] = False
    return {
        "candidates": len(boxes),
        "nearest": nearest,
        "exact_the_same": set(exact) == set(case["kept"].tolist()),
    }


def margins(out: dict[str, np.ndarray], suppressed: list[dict]) -> dict:
    """How far the discrete decisions are from turning round."""

    def gap(values):
        return float(np.min(-np.diff(np.sort(values.ravel())[::-1])))

    last, cut = out["proposal_logits"][-1], {}
    for k in range(2, 7):
        logits = np.sort(out[f"objectness_{k}"].ravel())[::-1]
        if len(logits) > 1000 and logits[999] >= last:
            cut[k] = float(logits[999] - logits[1000])
    proposal_scores = suppressed[0]["scores"][suppressed[0]["kept"]]
    exponential = np.exp(out["class_logits"] - out["class_logits"].max(1, keepdims=True))
    probability = (exponential / exponential.sum(1, keepdims=True))[:, :-1]
    side = np.sqrt(np.prod(out["proposals"][:, 2:] - out["proposals"][:, :2], axis=-1))
    level = 4 + np.log2(side / 224)
    bins = (out["proposals"][:, 2:] - out["proposals"][:, :2]) / 2.0 ** out["proposal_levels"][:, None] / 7
    return {
        "top_1000_by_level": cut,
        "proposal_logits": gap(out["proposal_logits"]),
        "last_proposal": float(proposal_scores[PROPOSALS - 1] - proposal_scores[PROPOSALS]),
        "proposal_suppression": suppression_margin(suppressed[0], last),
        "level": float(np.abs(level - np.round(level)).min()),
        "samples_a_bin": float(np.abs(bins - np.round(bins)).min()),
        "score_threshold": float(np.abs(probability - THRESHOLD).min()),
        "scores": gap(out["scores"]),
        "detection_suppression": suppression_margin(suppressed[1]),
    }


def resizes(seed: int) -> dict[str, np.ndarray]:
    """Results of ResizeShortestEdge: up, down, and up until the long side's limit."""
    out = {}
    for height, width, short, longest in ((30, 45, 64, 1333), (97, 131, 40, 1333), (40, 101, 64, 120)):
        resize = transforms.ResizeShortestEdge([short, short], longest)
        image = picture(height, width, seed)
        out[f"resize/{height}x{width}_{short}_{longest}"] = resize.get_transform(image).apply_image(image)
    return out


def zoo_file(model: torch.nn.Module, path: Path) -> None:
    """Writes the weights as the model zoo has them; its files hold the anchors of a cell, too."""
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    for k, anchors in enumerate(model.proposal_generator.anchor_generator.cell_anchors):
        state[f"proposal_generator.anchor_generator.cell_anchors.{k}"] = anchors.numpy()
    path.write_bytes(pickle.dumps({"model": state, "__author__": "Detectron2 Model Zoo"}))


@torch.no_grad()
def main() -> None:
    """Conditions and records one model, and writes what is asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=CONFIGS, default="r50")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--golden", type=Path, help="the small file")
    parser.add_argument("--out", type=Path, help="a folder for everything, and the weights")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    logging.getLogger("fvcore").setLevel(logging.ERROR)

    model, image = build(args.model), picture(*SIZE, args.seed)
    adjust, values = condition(model, args.seed, image)
    out, suppressed = record(model, image)
    info = {
        "config": CONFIGS[args.model],
        "versions": {m.__name__: m.__version__ for m in (detectron2, torch, torchvision, np, PIL)},
        "seed": args.seed,
        "size": SIZE,
        "output_size": OUTPUT_SIZE,
        "image_crc32": zlib.crc32(image.tobytes()),
        "proposals": PROPOSALS,
        "score_threshold": THRESHOLD,
        "adjust": adjust,
        "shapes": {name: value.shape for name, value in out.items()},
        "mean_abs": {name: float(np.abs(value.astype(np.float64)).mean()) for name, value in out.items()},
        "weights": {name: tuple(value.shape) for name, value in model.state_dict().items()},
        "margins": margins(out, suppressed),
    }
    whole_values = {f"value/{name}": value for name, value in values.items()}

    if args.golden:
        golden = {f"sample/{name}": sample(value) for name, value in out.items() if name not in WHOLE}
        golden |= {name: out[name] for name in WHOLE}
        golden |= {"mask_probs": out["mask_probs"].astype(np.float16), "mask_areas": out["masks"].sum((1, 2))}
        golden |= {"masks_3": np.packbits(out["masks"][:3])} | whole_values | resizes(args.seed)
        np.savez_compressed(args.golden, info=np.array(json.dumps(info)), **golden)
        print(f"wrote {args.golden}, {args.golden.stat().st_size} bytes")
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        zoo_file(model, args.out / "model.pkl")
        fresh = build(args.model)
        DetectionCheckpointer(fresh).load(str(args.out / "model.pkl"))
        again, _ = record(fresh, image)
        assert all(np.array_equal(again[name], out[name]) for name in out), (
            "the files do not reproduce the outputs"
        )
        about = np.array(json.dumps(info))
        np.savez(
            args.out / "outputs.npz", info=about, image=image, **out, **whole_values, **resizes(args.seed)
        )
        (args.out / "info.json").write_text(json.dumps(info, indent=1) + "\n")
        print(f"wrote {args.out}")
    print(json.dumps({"detections": len(out["boxes"]), "margins": info["margins"]}, indent=1))


if __name__ == "__main__":
    main()
