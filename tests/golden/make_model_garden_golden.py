"""Writes model_garden_r50.npz: what TensorFlow Model Garden's Mask R-CNN makes of weights that follow from their names.

Its ResNet-50-FPN Mask R-CNN for COCO (`maskrcnn_resnetfpn_coco`) as it is, but for the size of the canvas. Needs
tf-models-official 2.20, which may have its own environment:

    python3.11 -m venv mg && mg/bin/pip install tf-models-official==2.20.0
    mg/bin/python tests/golden/make_model_garden_golden.py --golden tests/golden/model_garden_r50.npz
    mg/bin/python tests/golden/make_model_garden_golden.py --out FOLDER

The second form writes every stage in full and a checkpoint as the trainer saves it. A weight's name is its key in the
checkpoint without `/.ATTRIBUTES/VARIABLE_VALUE`, its value `drawn.draw(name, shape, seed, adjust)`; only
the class layer's bias is in the file.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
sys.path.insert(0, str(Path(__file__).parent))

import drawn  # noqa: E402
import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402
from official.core import base_trainer, exp_factory  # noqa: E402
from official.vision.configs import maskrcnn  # noqa: E402, F401 (registers the experiment)
from official.vision.ops import anchor, box_ops, mask_ops, preprocess_ops  # noqa: E402
from official.vision.tasks.maskrcnn import MaskRCNNTask  # noqa: E402

CANVAS, IMAGE = (256, 320), (200, 280)
PROBE = 1024  # pixels a side of the pyramid that RoIAlign is probed with: boxes for all its levels have room
SUFFIX = "/.ATTRIBUTES/VARIABLE_VALUE"
CLASS_BIAS = "detection_head/0/_classifier/bias"  # the one weight that does not follow from its name
DETECTIONS = 30  # about how many shall be left above the threshold


def build():
    """The config, the model and the checkpoint of its trainer."""
    config = exp_factory.get_exp_config("maskrcnn_resnetfpn_coco")
    config.task.model.input_size = [*CANVAS, 3]
    task = MaskRCNNTask(config.task)
    model = task.build_model()
    optimizer = task.create_optimizer(config.trainer.optimizer_config, config.runtime)
    trainer = base_trainer.Trainer(config, task, model, optimizer, train=False, evaluate=False)
    return config.task.model, model, trainer.checkpoint


def weights(checkpoint: tf.train.Checkpoint) -> dict[str, tf.Variable]:
    """The model's variables by their keys in a checkpoint."""
    with tempfile.TemporaryDirectory() as folder:
        keys = [key for key, _ in tf.train.list_variables(checkpoint.write(f"{folder}/ckpt"))]
    view, out = tf.train.TrackableView(checkpoint), {}
    for key in keys:
        parts = key.removesuffix(SUFFIX).split("/")
        if parts[0] in ("backbone", "decoder", "rpn_head", "detection_head", "mask_head"):
            node = checkpoint
            for part in parts:
                node = view.children(node)[part]
            out["/".join(parts)] = node
    return out


def prepare(image: np.ndarray) -> tuple[tf.Tensor, tf.Tensor]:
    """The image as its evaluation feeds it, `[1, H, W, 3]`, and `image_info [1, 4, 2]`."""
    x = preprocess_ops.normalize_image(tf.constant(image))
    padded = preprocess_ops.compute_padded_size(list(CANVAS), 2**6)
    x, info = preprocess_ops.resize_and_crop_image(x, list(CANVAS), padded)
    return x[None], info[None]


def make_anchors(config) -> dict[str, tf.Tensor]:
    """Per level `[1, H, W, 4 A]`."""
    generator = anchor.build_anchor_generator(
        config.min_level,
        config.max_level,
        config.anchor.num_scales,
        config.anchor.aspect_ratios,
        config.anchor.anchor_size,
    )
    return {level: boxes[None] for level, boxes in generator(image_size=CANVAS).items()}


def condition(config, model, variables, seed: int, x, sizes) -> dict[str, tuple[float, float]]:
    """Sets the weights, with `adjust`, which it returns, such that every stage has values of a sane size."""
    adjust: dict[str, tuple[float, float]] = {}

    def put(name: str, factor: float = 1.0, first: float = 0.0) -> None:
        if (factor, first) != (1.0, 0.0):
            adjust[name] = (float(np.float32(factor)), float(np.float32(first)))
        variable = variables[name]
        variable.assign(drawn.draw(name, tuple(variable.shape), seed, adjust))

    for name in variables:
        put(name, 0.3 if name.endswith("_norm3/gamma") else 1.0)

    detect = tf.function(lambda *x: model.detection_generator(*x, [10.0, 10.0, 5.0, 5.0]))

    def spread(values) -> float:
        return float(np.std(np.concatenate([np.reshape(v, -1) for v in values])))

    decoder = {layer.name: f"decoder/layer_with_weights-{i}" for i, layer in enumerate(weighted(model))}
    features = model.backbone(x, training=False)
    pyramid = model.decoder(features, training=False)
    for level in "2345":
        put(f"{decoder[f'post_hoc_{level}']}/kernel", 1.0 / spread([pyramid[level]]))
    pyramid = model.decoder(features, training=False)
    put(f"{decoder['coarser_6']}/kernel", 1.0 / spread([pyramid["6"]]))
    pyramid = model.decoder(features, training=False)

    scores, _ = model.rpn_head(pyramid, training=False)
    for i, level in enumerate(sorted(scores)):
        for part in ("gamma", "beta"):  # every level shall have proposals
            put(f"rpn_head/_norms/{i}/0/{part}", 2.0 / spread([scores[level]]))
    _, deltas = model.rpn_head(pyramid, training=False)
    put("rpn_head/_box_regressor/kernel", 0.12 / spread(deltas.values()))  # more would leave the image
    scores, deltas = model.rpn_head(pyramid, training=False)
    rois, _ = model.roi_generator(deltas, scores, make_anchors(config), sizes, False)

    head, pooled = model.detection_head[0], model.roi_aligner(pyramid, rois)
    logits, deltas = head(pooled, training=False)
    put("detection_head/0/_classifier/kernel", 3.0 / spread([logits - tf.reduce_mean(logits, 1)]))
    put("detection_head/0/_box_regressor/kernel", 0.7 / spread([deltas]))
    logits, deltas = head(pooled, training=False)
    # Without what all RoIs share: it would make them all of one class.
    start, first = variables[CLASS_BIAS].numpy(), np.eye(logits.shape[-1], dtype=np.float32)[0]
    centred = logits - np.mean(logits, (0, 1))

    def count(background: float) -> int:
        found = detect(deltas, centred + np.float32(background) * first, rois, sizes)
        return int(found["num_detections"][0])

    def margin(background: float) -> float:
        p = tf.nn.softmax(centred + np.float32(background) * first)[..., 1:]
        return float(tf.reduce_min(tf.abs(tf.math.log(p / 0.05))))

    low, high = 0.0, 40.0
    for _ in range(8):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if count(middle) > DETECTIONS else (low, middle)
    # No score shall be so near the threshold that a rounding decides.
    background = max(np.linspace(low - 0.5, low + 0.5, 41), key=margin)
    variables[CLASS_BIAS].assign(start - np.mean(logits, (0, 1)) + np.float32(background) * first)
    found = detect(deltas, centred + np.float32(background) * first, rois, sizes)

    pooled = model.mask_roi_aligner(pyramid, found["detection_boxes"])
    logits = model.mask_head([pooled, found["detection_classes"]], training=False)
    put("mask_head/_mask_regressor/kernel", 2.0 / spread([logits]))
    return adjust


def weighted(model) -> list:
    """The layers of the decoder that have weights, in the order of the checkpoint's `layer_with_weights-i`."""
    return [layer for layer in model.decoder.layers if layer.weights]


def probe() -> tuple[dict[str, np.ndarray], np.ndarray]:
    """A pyramid with few channels and boxes `[1, N, 4]` for all its levels; some are thin, tiny or without area."""
    pyramid = {
        str(level): np.random.default_rng([7, level]).normal(size=(1, PROBE >> level, PROBE >> level, 4))
        for level in range(2, 7)
    }
    rng = np.random.default_rng(7)
    size = 2.0 ** rng.uniform(0, 10.5, (64, 1)) * 2.0 ** rng.uniform(-0.5, 0.5, (64, 2))
    centre = rng.uniform(0, PROBE, (64, 2))
    boxes = np.clip(np.concatenate([centre - size / 2, centre + size / 2], -1), 0, PROBE)
    boxes[:4, 2:] = boxes[:4, :2] + [[0, 0], [0, 30], [40, 0], [0.5, 300]]
    boxes[4:8] = [0, 0, PROBE, PROBE], [9, 9, 457, 457], [9, 9, 233, 233], [9, 9, 121, 121]
    return {k: v.astype(np.float32) for k, v in pyramid.items()}, boxes[None].astype(np.float32)


def run(config, model, x, info) -> dict[str, np.ndarray]:
    """Every stage of inference, without the batch's axis."""
    anchors, sizes = make_anchors(config), info[:, 1]
    out = model(x, image_shape=sizes, anchor_boxes=anchors, training=False)
    pyramid = out["decoder_features"]
    rois, scores = model.roi_generator(out["rpn_boxes"], out["rpn_scores"], anchors, sizes, False)
    stages = {"input": x, "image_info": info}
    for name, levels in (
        ("backbone", out["backbone_features"]),
        ("fpn", pyramid),
        ("rpn_scores", out["rpn_scores"]),
        ("rpn_deltas", out["rpn_boxes"]),
        ("anchors", anchors),
    ):
        stages.update({f"{name}/{level}": value for level, value in levels.items()})
    count = int(out["num_detections"][0])
    maps, probes = probe()
    stages |= {
        "probe_boxes": probes,
        "probe_features": model.roi_aligner({k: tf.constant(v) for k, v in maps.items()}, probes),
        "proposals": rois,
        "proposal_scores": scores,
        "roi_features": model.roi_aligner(pyramid, rois),
        "class_logits": out["class_outputs"],
        "box_deltas": out["box_outputs"],
        "mask_features": model.mask_roi_aligner(pyramid, out["detection_boxes"])[:, :count],
        "boxes": out["detection_boxes"][:, :count],
        "scores": out["detection_scores"][:, :count],
        "classes": out["detection_classes"][:, :count],
        "masks": out["detection_masks"][:, :count],
    }
    values = {name: np.asarray(value)[0] for name, value in stages.items()}
    # As its COCO evaluation does it.
    boxes = values["boxes"] / np.tile(values["image_info"][2:3], (1, 2))
    pasted = mask_ops.paste_instance_masks(values["masks"], box_ops.yxyx_to_xywh(boxes), *IMAGE)
    return {**values, "image_boxes": boxes, "image_masks": pasted.astype(bool)}


def small(stages: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What a golden file keeps: detections and proposals whole, other stages as `drawn.sample` of them."""
    whole = (
        "image_info",
        "probe_boxes",
        "proposals",
        "proposal_scores",
        "boxes",
        "scores",
        "classes",
        "image_boxes",
    )
    out = {name: stages[name] for name in whole}
    out["masks"] = stages["masks"].astype(np.float16)
    out["mask_areas"] = stages["image_masks"].sum((1, 2))
    rest = [name for name in stages if name not in (*whole, "masks", "image_masks")]
    out |= {name: drawn.sample(stages[name]) for name in rest}
    return out | {"probe_features": drawn.sample(stages["probe_features"], 2000)}


def main() -> None:
    """Writes what the arguments ask for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, help="folder for all stages and the checkpoint")
    parser.add_argument("--golden", type=Path, help="small .npz file")
    parser.add_argument("--seed", type=int, default=0, help="of the weights and the image")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    tf.config.threading.set_intra_op_parallelism_threads(args.threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)

    config, model, checkpoint = build()
    x, info = prepare(drawn.picture(*IMAGE, args.seed))
    variables = weights(checkpoint)
    adjust = condition(config, model, variables, args.seed, x, info[:, 1])
    stages = run(config, model, x, info)
    for name, value in stages.items():
        print(f"{name:16} {value.shape!s:20} mean {value.mean():8.3f} std {value.std():8.3f}")
    how = {
        "seed": args.seed,
        "canvas": CANVAS,
        "image": IMAGE,
        "adjust_names": np.array(list(adjust)),
        "adjust": np.array(list(adjust.values())),
        "class_bias": variables[CLASS_BIAS].numpy(),
    }
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        picture = drawn.picture(*IMAGE, args.seed)
        np.savez(
            args.out / "stages.npz",
            picture=picture,
            **{k.replace("/", "_"): v for k, v in (stages | how).items()},
        )
        print(f"wrote {checkpoint.save(str(args.out / 'ckpt'))}")
    if args.golden:
        kept = {k.replace("/", "_"): v for k, v in (small(stages) | how).items()}
        np.savez_compressed(args.golden, **kept)
        print(f"wrote {args.golden}, {args.golden.stat().st_size} bytes")


if __name__ == "__main__":
    main()
