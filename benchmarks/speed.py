"""Speed of our Mask R-CNN with random weights, on the work that the peers' benchmarks fix.

    python benchmarks/speed.py --what infer|train|roialign|conv --size 800x1344 --batch 1 --iters 5

Prints one JSON line. Flags, synthetic input, timing and that line come from `peer_common.py`, which lies beside the
other projects' benchmarks: `--peers FOLDER`, or the variable MRCNN_TF_PEERS, says where (default: `../shared/peers`
beside the project's folder). `--what conv` measures the machine: one large convolution in both precisions.
"""

from __future__ import annotations

import argparse
import sys
import time

from peer_path import make_importable

make_importable(sys.argv[1:])

import peer_common as pc


def own_flags(parser: argparse.ArgumentParser) -> None:
    """What the peers' scripts do not have."""
    next(a for a in parser._actions if a.dest == "what").choices.append("conv")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--peers", metavar="FOLDER", help="where peer_common.py is")
    parser.add_argument("--refining", action="store_true", help="MR R-CNN instead of Mask R-CNN")
    parser.add_argument("--inter-op", type=int, help="TensorFlow's inter-op threads (default: --threads)")


args = pc.parse_args(__doc__, own_flags)
pc.limit_threads(args.threads)

import keras
import numpy as np
import tensorflow as tf

from mrcnn_tf.layers.fpn import FPN
from mrcnn_tf.models import targets
from mrcnn_tf.models.mask_rcnn import MaskRCNN
from mrcnn_tf.models.mask_refining_rcnn import MaskRefiningRCNN
from mrcnn_tf.ops.roi_align import roi_align
from mrcnn_tf.training.optimizers import Schedule, make_optimizer
from mrcnn_tf.training.repeatable import sums_in_order

MASK_SIZE = 112  # of the training batch's masks, each cropped to its box: the input pipeline's default
VERSIONS = {"tensorflow": tf.__version__, "keras": keras.__version__, "numpy": np.__version__}


def make_model() -> MaskRCNN:
    """ResNet-50-FPN for 90 classes; everything that the benchmark fixes is a default, but for the thresholds."""
    model = (MaskRefiningRCNN if args.refining else MaskRCNN)(
        [f"class{i + 1}" for i in range(pc.NUM_CLASSES - 1)],
        min_size=min(args.h, args.w),
        max_size=max(args.h, args.w),
        score_threshold=args.score_thresh,
        roi_fg_iou=args.fg_iou,
        roi_bg_iou=args.fg_iou,
    )
    for block in model.backbone.blocks:  # keeps random activations near unit size
        gamma = block.convs[-1].norm.gamma
        gamma.assign(np.full(gamma.shape, 0.25))
    return model


def settings() -> dict:
    """What the peers' lines say about the work, for ours."""
    return {
        "classes": pc.NUM_CLASSES,
        "frozen": "batch norm, stem, first stage",
        "rpn_per_level_pre_nms": {"infer": 1000, "train": 2000}[args.what],
        "proposals": 1000,
        "stride_in": "3x3",
        "box_head": "2 fc",
        "sampling_ratio": 2,
        "layout": "NHWC",
        "mode": "tf.function, no XLA",
    }


def to_uint8(image: np.ndarray) -> np.ndarray:
    """The benchmark's image as a file would give it."""
    return np.round(image * 255).astype(np.uint8)


def run_infer() -> None:
    """From uint8 images to masks at the image's size."""
    model = make_model()
    images = [to_uint8(image) for image, _ in pc.make_batch(args)]
    stacked = np.stack(images).astype(np.float32)
    sizes = np.full((args.batch, 2), (args.h, args.w), np.float32)

    def forward() -> dict[str, tf.Tensor]:
        features = model.pyramid(stacked, sizes)
        proposals, _, _ = model.rpn.propose(*model.rpn(features), model.rpn.anchors(features), sizes)
        return model.box_head(model.align(features, proposals, model.box_head.roi_size))[0]

    if args.logit_std:
        factor = args.logit_std / np.std(tf.function(forward)().numpy())
        for weight in model.box_head.classes.weights:
            weight.assign(weight * factor)
        if args.refining:
            model.start_from(model)
    out: dict = {}

    def step() -> None:
        if args.batch == 1:
            out["found"] = [model.detect(images[0])]
        else:  # detect() takes images of any sizes and so one by one; this is what evaluation does
            found = {k: v.numpy() for k, v in model.detect_batch(stacked, sizes, sizes).items()}
            out["found"] = []
            for row in range(args.batch):
                kept = found["classes"][row] > 0
                own = {k: found[k][row][kept] for k in ("boxes", "scores", "classes", "masks")}
                out["found"].append(model.results(own, (args.h, args.w)))
        out["masks"] = [found.dense_masks() for found in out["found"]]

    times = pc.time_calls(step, args.iters, args.warmup, args.quiet_wait)
    emit(
        times,
        {
            **settings(),
            "score_thresh": args.score_thresh,
            "logit_std": args.logit_std,
            "nms": 0.5,
            "max_detections": 100,
            "pasted_masks": [list(m.shape) for m in out["masks"]],
        },
        detections=[len(found) for found in out["found"]],
        box_rois=[model.rpn.post_nms[1]] * args.batch,
        mask_rois=[model.max_detections] * args.batch,
        gflop=round(gflop(model), 1),
        parameters=model.count_params(),
        **({"stages": stages(model, stacked, sizes, out["found"])} if args.stages else {}),
    )


def stages(model: MaskRCNN, images: np.ndarray, sizes: np.ndarray, found: list) -> dict[str, float]:
    """Seconds of each stage as a tf.function of its own: their sum is not the whole."""
    timer = pc.Stages(True)

    def timed(name, function):
        graph = tf.function(function)

        def call(*inputs):
            start = time.perf_counter()
            out = graph(*inputs)
            timer.add(name, time.perf_counter() - start)
            return out

        return call

    normalize = timed("normalize", lambda x: model.normalize(x, sizes))
    backbone = timed("backbone", model.backbone.call)
    fpn = timed("fpn", model.fpn.call)
    rpn = timed("rpn_head", model.rpn.call)
    propose = timed("rpn_topk_nms", lambda s, d, f: model.rpn.propose(s, d, model.rpn.anchors(f), sizes))
    align = timed("box_roialign", lambda f, b: model.align(f, b, model.box_head.roi_size))
    box_head = timed("box_head", model.box_head.call)
    select = timed("detections_nms", lambda p, v, c, d: model.select(p, v, c, d, tf.constant(sizes)))
    mask_align = timed("mask_roialign", lambda f, b: model.align(f, b, model.mask_head.roi_size))
    mask_head = timed("mask_head", lambda x, c: tf.sigmoid(model.mask_head(x, c)))
    if args.refining:
        to_refine = timed(
            "refine_nms", lambda p, v, c, d: model.boxes_to_refine(p, v, c, d, tf.constant(sizes))
        )
        first_masks = timed("first_masks", lambda f, b, c: model.first_masks(f, b, c, False))
        second_look = timed("second_look", model.second_look)
        refining_mask_head = timed(
            "refining_mask_head", lambda x, h, c: tf.sigmoid(model.refining_mask_head(x, h, c))
        )
    images = tf.constant(images)
    for _ in range(args.warmup + args.iters):
        features = fpn(backbone(normalize(images)))
        logits, deltas = rpn(features)
        proposals, _, valid = propose(logits, deltas, features)
        logits, deltas = box_head(align(features, proposals))
        if args.refining:
            proposals, classes, valid, row = to_refine(proposals, valid, logits, deltas)
            hidden, probabilities = first_masks(features, proposals, classes)
            logits, deltas = second_look(features, proposals, probabilities)
        boxes, _, classes, row = select(proposals, valid, logits, deltas)
        pooled = mask_align(features, boxes)
        if args.refining:
            refining_mask_head(pooled, tf.gather(hidden, row, batch_dims=1), classes)
        else:
            mask_head(pooled, classes)
        start = time.perf_counter()
        for one in found:
            one.dense_masks()
        timer.add("paste_masks", time.perf_counter() - start)
        timer.next_run()
    return timer.medians(args.warmup)


def gflop(model: MaskRCNN) -> float:
    """Multiplications and additions of all convolutions and matrix products of one image's inference, in 1e9."""

    def count(function, *shapes) -> int:
        specs = [tf.TensorSpec(*shape) if isinstance(shape, tuple) else shape for shape in shapes]
        graph = tf.function(function).get_concrete_function(*specs).graph
        total = 0
        for op in graph.get_operations():
            if op.type in ("Conv2D", "MatMul", "BatchMatMulV2"):
                left, right = (x.shape.as_list() for x in op.inputs[:2])
                depth = np.prod(right[:3]) if op.type == "Conv2D" else left[-1]
                total += 2 * int(np.prod(op.outputs[0].shape.as_list())) * int(depth)
        return total

    dtype, c = model.compute_dtype, model.fpn.channels
    size = np.array([[args.h, args.w]], np.float32)
    box, mask = model.box_head.roi_size, model.mask_head.roi_size
    total = count(lambda x: model.rpn(model.pyramid(x, size)), ([1, args.h, args.w, 3], tf.float32))
    total += count(model.box_head.call, ([1, model.rpn.post_nms[1], box, box, c], dtype))
    count_of = model.max_detections
    total += count(model.mask_head.call, ([1, count_of, mask, mask, c], dtype), ([1, count_of], tf.int32))
    if args.refining:  # the first mask head has the boxes to refine instead, the refining one the detections
        again = model.refined_boxes
        total += count(model.refining_box_head.call, ([1, again, box, box, c], dtype))
        total += count(model.mask_head.call, ([1, again, mask, mask, c], dtype), ([1, again], tf.int32))
    return total / 1e9


def run_train() -> None:
    """The step that Keras' `fit` runs. Cropping the true masks, the input pipeline's work, is timed with it."""
    model = make_model()
    schedule = Schedule(1e-4)
    optimizer = make_optimizer(model, name="sgd", schedule=schedule, momentum=0.9, weight_decay=1e-4)
    model.compile(optimizer=optimizer, jit_compile=False)
    samples = pc.make_batch(args)
    images = np.stack([to_uint8(image) for image, _ in samples]).astype(np.float32)
    boxes = np.stack([gt[0][:, [1, 0, 3, 2]] for _, gt in samples])
    labels = np.stack([gt[1] for _, gt in samples]).astype(np.int32)
    spec = [tf.TensorSpec([args.gt, args.h, args.w, 1]), tf.TensorSpec([args.gt, 4])]

    @tf.function(input_signature=spec)
    def crop(masks: tf.Tensor, boxes: tf.Tensor) -> tf.Tensor:
        share = boxes / tf.constant([args.h, args.w, args.h, args.w], tf.float32)
        crops = tf.image.crop_and_resize(masks, share, tf.range(args.gt), [MASK_SIZE, MASK_SIZE])
        return tf.cast(crops[..., 0] >= 0.5, tf.uint8)

    full = [tf.constant(gt[2][..., None], tf.float32) for _, gt in samples]
    batch = {
        "images": tf.constant(images),
        "image_sizes": tf.fill([args.batch, 2], 0.0) + [args.h, args.w],
        "image_ids": tf.range(args.batch, dtype=tf.int64),
        "gt_boxes": tf.constant(boxes),
        "gt_classes": tf.constant(labels),
        "gt_crowd": tf.zeros(labels.shape, tf.bool),
        "gt_has_mask": tf.ones(labels.shape, tf.bool),
    }
    model.make_train_function()
    last: dict = {}

    def step() -> None:
        start = time.perf_counter()
        masks = [crop(mask, box) for mask, box in zip(full, boxes, strict=True)]
        cropped = time.perf_counter()
        logs = model.train_function(iter([{**batch, "gt_masks": tf.stack(masks)}]))
        last["loss"] = float(logs["loss"])
        stages.add("crop_masks", cropped - start)
        stages.add("train_step", time.perf_counter() - cropped)
        stages.next_run()

    stages = pc.Stages(True)
    with sums_in_order():  # as `train` does
        times = pc.time_calls(step, args.iters, args.warmup, args.quiet_wait)

    @tf.function
    def sampled() -> tuple[tf.Tensor, tf.Tensor]:
        gt_masks = tf.zeros([args.batch, args.gt, MASK_SIZE, MASK_SIZE], tf.uint8)
        truth = targets.truth_of({**batch, "gt_masks": gt_masks})
        features = model.pyramid(batch["images"], batch["image_sizes"])
        logits, deltas = model.rpn(features)
        level_anchors = model.rpn.anchors(features)
        boxes, _, valid = model.rpn.propose(
            logits, deltas, level_anchors, batch["image_sizes"], training=True
        )
        seed = targets.seeds(tf.constant(0), batch["image_ids"], 1)
        rois = targets.roi_targets(boxes, valid, truth, seed=seed, **model.roi_sampling)
        return tuple(tf.reduce_sum(tf.cast(x, tf.int32), 1) for x in (rois.valid, rois.positive))

    box_rois, mask_rois = (x.numpy().tolist() for x in sampled())
    emit(
        times,
        {
            **settings(),
            "fg_iou": args.fg_iou,
            "rois_per_image": 512,
            "fg_fraction": 0.25,
            "gt": args.gt,
            "optimizer": "SGD momentum 0.9 wd 1e-4",
            "labels": "anchor matching and mask cropping timed with the step",
        },
        loss=round(last["loss"], 3),
        box_rois=box_rois,
        mask_rois=mask_rois,
        stages=stages.medians(args.warmup),
    )


def run_roialign() -> None:
    """RoIAlign alone, forward, and forward with backward."""
    nchw = pc.make_features(args.h, args.w, args.batch, 256, args.seed)
    maps = [tf.constant(f.transpose(0, 2, 3, 1), args.dtype) for f in nchw.values()]
    times = {}
    for count, size in ((1000, 7), (100, 14)):
        rois = tf.constant(
            np.stack(
                [
                    pc.make_rois(args.h, args.w, count, args.seed + b)[:, [1, 0, 3, 2]]
                    for b in range(args.batch)
                ]
            )
        )

        def align(maps, rois=rois, size=size):
            return roi_align(maps, rois, strides=FPN.strides[:4], output_size=size, sampling_ratio=2)

        forward = tf.function(align)

        @tf.function
        def both(maps, align=align):
            with tf.GradientTape() as tape:
                tape.watch(maps)
                out = align(maps)
            return tape.gradient(out, maps, tf.ones_like(out))

        for name, function in (("fwd", forward), ("fwdbwd", both)):
            times[f"{count}x{size}x{size}_sr2_{name}"] = pc.time_calls(
                lambda function=function: function(maps), args.iters, args.warmup, args.quiet_wait
            )
    emit(times, {"op": "mrcnn_tf.ops.roi_align (aligned=True)", "levels": [2, 3, 4, 5], "channels": 256})


def run_conv() -> None:
    """The machine's speed: 3x3, 256 to 256 channels, on a map of stride 4."""
    shape, times, rates = [args.batch, args.h // 4, args.w // 4, 256], {}, {}
    work = 2 * np.prod(shape) * 9 * 256 / 1e9
    for dtype in ("float32", "bfloat16"):
        x = tf.cast(tf.random.stateless_normal(shape, [0, args.seed]), dtype)
        kernel = tf.cast(tf.random.stateless_normal([3, 3, 256, 256], [1, args.seed], stddev=0.02), dtype)
        conv = tf.function(lambda x, k: tf.nn.conv2d(x, k, 1, "SAME"))
        times[dtype] = pc.time_calls(
            lambda conv=conv, x=x, k=kernel: conv(x, k), args.iters, args.warmup, args.quiet_wait
        )
        rates[dtype] = round(work / np.median(times[dtype].quiet() or times[dtype]))
    emit(times, {"op": "Conv2D 3x3, 256 to 256 channels"}, gflop=round(float(work), 1), gflop_per_s=rates)


def emit(times, own_settings: dict, **extra) -> None:
    """Prints the line."""
    name = "mrcnn_tf" if args.dtype == "float32" else "mrcnn_tf bf16"
    pc.emit(args, name, times, VERSIONS, own_settings, dtype=args.dtype, **extra)


def main() -> None:
    """Sets TensorFlow up as the peers' scripts do and runs one measurement."""
    tf.config.threading.set_intra_op_parallelism_threads(args.threads)
    tf.config.threading.set_inter_op_parallelism_threads(args.inter_op or args.threads)
    keras.utils.set_random_seed(args.seed)
    keras.config.set_dtype_policy("float32" if args.dtype == "float32" else "mixed_bfloat16")
    {"infer": run_infer, "train": run_train, "roialign": run_roialign, "conv": run_conv}[args.what]()


if __name__ == "__main__":
    main()
