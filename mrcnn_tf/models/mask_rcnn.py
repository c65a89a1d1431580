"""Mask R-CNN (He et al., 2017) with a feature pyramid: the whole model on one page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple, overload

import keras
import numpy as np
import tensorflow as tf

from mrcnn_tf import losses
from mrcnn_tf.geometry import boxes as box_ops
from mrcnn_tf.layers.fpn import FPN
from mrcnn_tf.layers.heads import BoxHead, MaskHead
from mrcnn_tf.layers.preprocess import INTERPOLATIONS, SIZE_RULES, Normalize, resize, resized_shape
from mrcnn_tf.layers.resnet import DIALECTS, ResNet
from mrcnn_tf.layers.rpn import RPN
from mrcnn_tf.models import targets
from mrcnn_tf.models.detections import Detections
from mrcnn_tf.models.selection import SELECTION, Selection
from mrcnn_tf.ops.roi_align import assign_levels, roi_align


class Candidates(NamedTuple):
    """What a model has found before non-maximum suppression.

    `features`: the pyramid; `rois [B, N, 4]` in pixels of the canvas, and which are `valid [B, N]`;
    `class_logits [B, N, K + 1]`; `box_deltas [B, N, K or 1, 4]` from the RoIs; `proposals [B, P, 4]` of the RPN; and in
    MR R-CNN `hidden [B, N, S, S, C]`, the first mask head's features of the RoIs.
    """

    features: list[tf.Tensor]
    rois: tf.Tensor
    valid: tf.Tensor
    class_logits: tf.Tensor
    box_deltas: tf.Tensor
    proposals: tf.Tensor
    hidden: tf.Tensor | None = None


class FirstStage(NamedTuple):
    """What a training step of Mask R-CNN leaves for a second look at its RoIs.

    `features`: the pyramid; `truth`: the batch's; `limits`: of boxes, see `MaskRCNN.limits`; `rois`: those sampled;
    `class_logits [B, N, K + 1]` and `box_deltas [B, N, K or 1, 4]`: the box head's for them.
    """

    features: list[tf.Tensor]
    truth: targets.Truth
    limits: tf.Tensor
    rois: targets.RoIs
    class_logits: tf.Tensor
    box_deltas: tf.Tensor


@keras.saving.register_keras_serializable("mrcnn_tf")
class MaskRCNN(keras.Model):
    """Finds instances and their masks.

    Args:
        class_names: of the foreground classes 1..K, in order.
        category_ids: the data set's own id of each; 1..K if not given.
        backbone, fpn, rpn, box_head, mask_head, normalize: the parts; each has the papers' defaults.
        min_size, max_size: images are resized so that the shorter side is `min_size` pixels, or less if the longer
            one would pass `max_size`.
        size_rule, interpolation: how that is rounded and resized, see `mrcnn_tf.layers.preprocess`.
        canvas: height and width, multiples of 32, that every image is padded to when it is detected on, and that boxes
            may fill (Model Garden); None: the next multiples of 32, and boxes end where the image does.
        norm_padding: whether group norms of backbone and FPN see the padding around an image, too, as detectron2's
            do. An image is then seen with other eyes on another canvas.
        sampling_ratio, aligned, roi_align_backend: see `mrcnn_tf.ops.roi_align`.
        roi_end: pixels added to a box's bottom and right before RoIAlign; -1 in maskrcnn-benchmark, whose boxes
            include their last pixel everywhere else.
        roi_shift: cells of its level that a box is moved down and right before RoIAlign; 0.5 in Model Garden.
        roi_levels: how many levels, from P2 on, RoI features come from.
        box_weights: factors of the box head's deltas (y, x, height, width).
        rpn_fg_iou, rpn_bg_iou, rpn_samples, rpn_positive_fraction: which anchors the RPN learns from.
        roi_fg_iou, roi_bg_iou, roi_samples, roi_positive_fraction: which RoIs the heads learn from.
        proposal_source, min_proposals: `"rpn"`, `"rpn+truth"` or `"truth"`, see `targets.roi_targets`.
        rpn_class_loss, class_loss: `"cross_entropy"` or `"sigmoid_focal"`.
        rpn_box_loss, box_loss: `"smooth_l1"`, `"l1"`, `"iou"` or `"giou"`.
        mask_loss: `"binary_cross_entropy"` or `"dice"`.
        rpn_beta, box_beta: where smooth L1 turns from square to linear.
        loss_weights: factors of `rpn_class, rpn_box, class, box, mask`; 1 where not given.
        score_threshold, class_score_thresholds, nms_threshold, nms_groups, nms_method, nms_sigma, mask_nms_threshold,
            min_detection, max_detection, detection_unit, max_detections: which candidates become detections, see
            `mrcnn_tf.models.selection.Selection`.

    Raises:
        ValueError: for a loss or a proposal source that does not exist, for class names that are not unique, for
            heads whose class count is not that of `class_names`, and what `Selection` raises.
    """

    PARTS: ClassVar[tuple[str, ...]] = ("backbone", "fpn", "rpn", "box_head", "mask_head", "normalize")
    LOSSES: ClassVar[tuple[str, ...]] = ("rpn_class", "rpn_box", "class", "box", "mask")

    def __init__(
        self,
        class_names: list[str],
        category_ids: list[int] | None = None,
        *,
        backbone: ResNet | None = None,
        fpn: FPN | None = None,
        rpn: RPN | None = None,
        box_head: BoxHead | None = None,
        mask_head: MaskHead | None = None,
        normalize: Normalize | None = None,
        min_size: int = 800,
        max_size: int = 1333,
        size_rule: str = "round",
        interpolation: str = "bilinear",
        canvas: tuple[int, int] | None = None,
        norm_padding: bool = False,
        sampling_ratio: int = 2,
        aligned: bool = True,
        roi_end: float = 0.0,
        roi_shift: float = 0.0,
        roi_levels: int = 4,
        roi_align_backend: str = "auto",
        box_weights: tuple[float, float, float, float] = (10.0, 10.0, 5.0, 5.0),
        rpn_fg_iou: float = 0.7,
        rpn_bg_iou: float = 0.3,
        rpn_samples: int = 256,
        rpn_positive_fraction: float = 0.5,
        roi_fg_iou: float = 0.5,
        roi_bg_iou: float = 0.5,
        roi_samples: int = 512,
        roi_positive_fraction: float = 0.25,
        proposal_source: str = "rpn+truth",
        min_proposals: int = 0,
        rpn_class_loss: str = "cross_entropy",
        rpn_box_loss: str = "smooth_l1",
        class_loss: str = "cross_entropy",
        box_loss: str = "smooth_l1",
        mask_loss: str = "binary_cross_entropy",
        rpn_beta: float = 1 / 9,
        box_beta: float = 1.0,
        loss_weights: dict[str, float] | None = None,
        score_threshold: float = 0.05,
        class_score_thresholds: dict[str, float] | None = None,
        nms_threshold: float = 0.5,
        nms_groups: str | list[list[str]] = "class",
        nms_method: str = "hard",
        nms_sigma: float = 0.5,
        mask_nms_threshold: float | None = None,
        min_detection: float | None = None,
        max_detection: float | None = None,
        detection_unit: str = "pixels",
        max_detections: int = 100,
        **kwargs,
    ):
        settings = {
            k: v for k, v in locals().items() if k not in (*MaskRCNN.PARTS, "self", "kwargs", "__class__")
        }
        super().__init__(autocast=False, **kwargs)
        if len(set(class_names)) != len(class_names):
            raise ValueError(f"class_names has a name twice: {sorted(class_names)}")
        if proposal_source not in ("rpn", "rpn+truth", "truth"):
            raise ValueError(
                f"proposal_source is {proposal_source!r}; it must be 'rpn', 'rpn+truth' or 'truth'"
            )
        for name, value, allowed in (
            ("size_rule", size_rule, SIZE_RULES),
            ("interpolation", interpolation, INTERPOLATIONS),
        ):
            if value not in allowed:
                raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(allowed)}")
        if canvas is not None and any(side % 32 for side in canvas):
            raise ValueError(f"canvas is {list(canvas)}; its sides must be multiples of 32")
        self.class_names = list(class_names)
        self.category_ids = list(category_ids or range(1, len(class_names) + 1))
        self.settings = {**settings, "class_names": self.class_names, "category_ids": self.category_ids}
        self.num_classes = len(class_names)

        self.backbone = backbone or ResNet()
        spec = DIALECTS[self.backbone.dialect]
        self.normalize = normalize or Normalize(spec.mean, spec.std, spec.bgr)
        self.fpn = fpn or FPN()
        self.rpn = rpn or RPN()
        self.box_head = box_head or BoxHead(self.num_classes)
        self.mask_head = mask_head or MaskHead(self.num_classes)
        for name, head in (("box_head", self.box_head), ("mask_head", self.mask_head)):
            if head.num_classes != self.num_classes:
                raise ValueError(
                    f"{name} is for {head.num_classes} classes, but class_names has {self.num_classes}"
                )

        self.min_size, self.max_size = min_size, max_size
        self.size_rule, self.interpolation, self.canvas = size_rule, interpolation, canvas
        self.roi_end, self.roi_shift, self.roi_levels = roi_end, roi_shift, roi_levels
        self.roi_align: dict[str, Any] = {
            "strides": FPN.strides[:roi_levels],
            "sampling_ratio": sampling_ratio,
            "aligned": aligned,
            "backend": roi_align_backend,
        }
        self.box_weights = box_weights
        self.anchor_sampling: dict[str, Any] = {
            "fg_iou": rpn_fg_iou,
            "bg_iou": rpn_bg_iou,
            "count": rpn_samples,
            "positive_fraction": rpn_positive_fraction,
        }
        self.roi_sampling: dict[str, Any] = {
            "fg_iou": roi_fg_iou,
            "bg_iou": roi_bg_iou,
            "count": roi_samples,
            "positive_fraction": roi_positive_fraction,
            "source": proposal_source,
            "min_proposals": min_proposals,
        }
        self.rpn_class_loss = losses.lookup(losses.OBJECTNESS, rpn_class_loss)
        self.class_loss = losses.lookup(losses.CLASSIFICATION, class_loss)
        self.mask_loss = losses.lookup(losses.MASK, mask_loss)
        for name in (rpn_box_loss, box_loss):
            losses.lookup(losses.BOX, name)
        self.rpn_box_loss: dict[str, Any] = {
            "name": rpn_box_loss,
            "beta": rpn_beta,
            "weights": (1.0, 1.0, 1.0, 1.0),
        }
        self.box_loss: dict[str, Any] = {"name": box_loss, "beta": box_beta, "weights": self.box_weights}
        unknown = sorted(set(loss_weights or {}) - set(self.LOSSES))
        if unknown:
            raise ValueError(f"loss_weights has {', '.join(unknown)}; there are {', '.join(self.LOSSES)}")
        self.loss_weights = {**dict.fromkeys(self.LOSSES, 1.0), **(loss_weights or {})}
        self.clip_norm: float | None = None  # set by training: bound on the norm of all gradients together

        # Every shape is known from the arguments: built here, a model can be saved, counted and distributed at once.
        inputs = ((None, None, None, 3), self.backbone.channels, *[self.fpn.channels] * 3)
        for part, input_shape in zip(MaskRCNN.PARTS, inputs, strict=False):
            if not getattr(self, part).built:  # a part read from a file is
                getattr(self, part).build(input_shape)
        self.built = True
        self.set_selection()

    def make_functions(self) -> None:
        """What `detect` and the evaluation call; anew after a setting that a graph holds has changed."""
        self._detect = tf.function(
            self._detect_image,
            input_signature=[tf.TensorSpec([None, None, 3], tf.uint8), tf.TensorSpec([], tf.float32)],
            # Nothing here branches on a tensor in Python, and converting all the code takes longer than tracing it.
            autograph=False,
        )
        self.detect_batch = tf.function(
            lambda images, image_sizes, original_sizes: self(
                {"images": images, "image_sizes": image_sizes, "original_sizes": original_sizes}
            ),
            input_signature=[tf.TensorSpec(shape) for shape in ([None, None, None, 3], [None, 2], [None, 2])],
            autograph=False,
        )

    def set_selection(self, **settings: Any) -> None:
        """Other settings of what becomes a detection (`Selection`), from the next detection on; no training is needed.

        Raises:
            ValueError: for a setting that is not one of `Selection`'s, and what that raises.
        """
        unknown = sorted(set(settings) - set(SELECTION))
        if unknown:
            raise ValueError(
                f"{', '.join(unknown)} cannot be set on a trained model; what can is {', '.join(SELECTION)}"
            )
        chosen = {key: settings.get(key, self.settings[key]) for key in SELECTION}
        self.selection = Selection(self.class_names, **chosen)
        self.score_threshold = chosen["score_threshold"] = float(chosen["score_threshold"])
        self.nms_threshold = chosen["nms_threshold"] = float(chosen["nms_threshold"])
        self.max_detections = chosen["max_detections"] = int(chosen["max_detections"])
        self.settings |= chosen
        self.make_functions()

    # ---------------------------------------------------------------- forward

    def pyramid(self, images: tf.Tensor, image_sizes: tf.Tensor, training: bool = False) -> list[tf.Tensor]:
        """Images on a canvas, `[B, H, W, 3]` RGB in [0, 255] -> P2 to P6. H and W are multiples of 32."""
        canvas = tf.cast(tf.shape(images)[1:3], tf.float32)
        share = None if self.settings["norm_padding"] else image_sizes / canvas
        options = {"training": training, "share": share}
        return self.fpn(self.backbone(self.normalize(images, image_sizes), **options), **options)

    def call(self, inputs: dict[str, tf.Tensor], training: bool = False) -> dict[str, tf.Tensor]:
        """Detects.

        Args:
            inputs: `images [B, H, W, 3]`, RGB in [0, 255], resized, padded at bottom and right to multiples of 32;
                `image_sizes [B, 2]`, height and width without the padding; if wanted, `score_threshold [B]` and
                `iou_threshold [B]`, used instead of the model's `score_threshold` and `nms_threshold`, and
                `original_sizes [B, 2]`, before resizing, for bounds on the size of detections in pixels.
            training: for the norms.

        Returns:
            `boxes [B, D, 4]` in pixels of the canvas, `scores [B, D]` descending, `classes [B, D]` (1..K, -1 where
            there is no detection), `masks [B, D, m, m]` probabilities within the box, and `proposals [B, N, 4]`, best
            first, zeros where there are fewer. All float32 but the classes, which are int32.
        """
        sizes = tf.cast(inputs["image_sizes"], tf.float32)
        candidates, thresholds = self.candidates(inputs, training), self.thresholds(inputs)
        boxes, scores, classes, row = self.select(
            *candidates[1:5],
            self.limits(inputs["images"], sizes),
            thresholds,
            image_sizes=sizes,
            original_sizes=inputs.get("original_sizes"),
        )
        masks = tf.sigmoid(self.masks_of(candidates, boxes, classes, row, training))
        found = {"boxes": boxes, "scores": scores, "classes": classes, "masks": masks}
        return {**self.selection.masks(found, thresholds[0]), "proposals": candidates.proposals}

    def candidates(self, inputs: dict[str, tf.Tensor], training: bool = False) -> Candidates:
        """Everything before non-maximum suppression; `inputs` are those of `call`."""
        sizes = tf.cast(inputs["image_sizes"], tf.float32)
        features, proposals, valid, logits, deltas = self.propose(inputs["images"], sizes, training)
        return Candidates(features, proposals, valid, logits, deltas, proposals)

    def masks_of(
        self, found: Candidates, boxes: tf.Tensor, classes: tf.Tensor, row: tf.Tensor, training: bool
    ) -> tf.Tensor:
        """Mask logits `[B, D, m, m]` of detections: `boxes [B, D, 4]`, `classes` and candidates' `row [B, D]`."""
        pooled = self.align(found.features, boxes, self.mask_head.roi_size)
        return self.mask_head(pooled, classes, training=training)

    def propose(
        self, images: tf.Tensor, sizes: tf.Tensor, training: bool
    ) -> tuple[list[tf.Tensor], tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
        """The pyramid; proposals `[B, N, 4]` and which are valid; the box head's logits and deltas for them."""
        features = self.pyramid(images, sizes, training)
        logits, deltas = self.rpn(features, training=training)
        limits = self.limits(images, sizes)
        proposals, _, valid = self.rpn.propose(logits, deltas, self.rpn.anchors(features), limits)
        pooled = self.align(features, proposals, self.box_head.roi_size)
        return features, proposals, valid, *self.box_head(pooled, training=training)

    def thresholds(self, inputs: dict[str, tf.Tensor]) -> tuple[float | tf.Tensor, float | tf.Tensor]:
        """From which score and up to which IoU a detection counts, see `call`."""
        score = inputs.get("score_threshold", self.score_threshold)
        return score, inputs.get("iou_threshold", self.nms_threshold)

    def limits(self, images: tf.Tensor, sizes: tf.Tensor) -> tf.Tensor:
        """Height and width that boxes are clipped to, `[B, 2]`: the images' `sizes`, or their canvas; see `canvas`."""
        if self.canvas is None:
            return sizes
        return tf.zeros_like(sizes) + tf.cast(tf.shape(images)[1:3], tf.float32)

    def align(self, features: list[tf.Tensor], boxes: tf.Tensor, size: int) -> tf.Tensor:
        """RoI features `[B, N, size, size, C]`."""
        return roi_align(features[: self.roi_levels], self.rois(boxes), output_size=size, **self.roi_align)

    def rois(self, boxes: tf.Tensor) -> tf.Tensor:
        """The boxes `[..., 4]` as RoIAlign is to see them."""
        if self.roi_shift:
            strides = self.roi_align["strides"]
            stride = tf.gather(tf.constant(strides, tf.float32), assign_levels(boxes, strides))
            boxes += self.roi_shift * stride[..., None]
        return boxes if self.roi_end == 0 else boxes + [0.0, 0.0, self.roi_end, self.roi_end]

    def select(
        self,
        proposals: tf.Tensor,
        valid: tf.Tensor,
        class_logits: tf.Tensor,
        box_deltas: tf.Tensor,
        sizes: tf.Tensor,
        thresholds: tuple[float | tf.Tensor, float | tf.Tensor] | None = None,
        image_sizes: tf.Tensor | None = None,
        original_sizes: tf.Tensor | None = None,
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
        """Every class's box of every proposal, clipped to `sizes` `[B, 2]`, after NMS; see `Selection.boxes`.

        Without `image_sizes`, they are `sizes`; without `original_sizes`, images came as they are.

        Returns:
            Boxes `[B, D, 4]`, scores and classes `[B, D]`, and `[B, D]`, which proposal each came from.
        """
        score_threshold, iou_threshold = thresholds or self.thresholds({})
        image_sizes = sizes if image_sizes is None else image_sizes
        scores = tf.where(valid[..., None], self.probabilities(class_logits), -1.0)
        boxes = box_ops.decode(box_deltas, proposals[:, :, None, :], self.box_weights)
        shape = [*tf.unstack(tf.shape(proposals)[:2]), self.num_classes, 4]
        boxes = tf.reshape(tf.broadcast_to(boxes, shape), [shape[0], -1, 4])
        return self.selection.boxes(
            tf.reshape(box_ops.clip(boxes, sizes), shape),
            scores,
            image_sizes=image_sizes,
            original_sizes=image_sizes if original_sizes is None else original_sizes,
            score_threshold=score_threshold,
            iou_threshold=iou_threshold,
        )

    def probabilities(self, class_logits: tf.Tensor) -> tf.Tensor:
        """`[..., K + 1]` -> foreground scores `[..., K]`, in the way that the loss trained them."""
        if self.settings["class_loss"] == "sigmoid_focal":
            return tf.sigmoid(class_logits[..., 1:])
        return tf.nn.softmax(class_logits)[..., 1:]

    # --------------------------------------------------------------- training

    def losses_of(self, batch: dict[str, tf.Tensor], step: tf.Tensor) -> tuple[dict, dict]:
        """The losses of a training batch, and figures that tell whether the sampling works.

        A loss is a sum over this replica divided by a count over all replicas, so the replicas' gradients add up
        to the gradient of the whole batch.

        Args:
            batch: as `mrcnn_tf.data.pipeline.training_batches` yields it.
            step: number of the step; seeds the sampling.

        Returns:
            Losses by name, unweighted; figures by name, each over the whole batch.
        """
        values, figures, _ = self.first_stage(batch, step)
        return values, figures

    def first_stage(
        self, batch: dict[str, tf.Tensor], step: tf.Tensor
    ) -> tuple[dict[str, tf.Tensor], dict[str, tf.Tensor], FirstStage]:
        """Mask R-CNN's five losses and its figures, see `losses_of`, and what they were computed from."""
        truth, ids = targets.truth_of(batch), batch["image_ids"]
        sizes = tf.cast(batch["image_sizes"], tf.float32)
        images = tf.cast(tf.shape(ids)[0], tf.float32)
        features = self.pyramid(batch["images"], sizes, training=True)
        logits, deltas = self.rpn(features, training=True)
        level_anchors = self.rpn.anchors(features)
        anchors = tf.concat(level_anchors, 0)
        index, positive, valid, matched = targets.anchor_targets(
            anchors, truth, seed=targets.seeds(step, ids, 0), **self.anchor_sampling
        )
        logits_of = tf.gather(tf.concat(logits, 1), index, batch_dims=1)
        deltas_of = tf.gather(tf.concat(deltas, 1), index, batch_dims=1)
        count = total(valid)
        rpn_positive = total(positive)
        cost = self.rpn_class_loss(tf.cast(positive, tf.int32), logits_of)
        rpn_class = masked_sum(cost, valid) / self._classification_count(
            self.settings["rpn_class_loss"], count, rpn_positive
        )
        goal = tf.gather(truth.boxes, matched, batch_dims=1)
        cost = box_cost(deltas_of, tf.gather(anchors, index), goal, **self.rpn_box_loss)
        rpn_box = masked_sum(cost, positive) / count

        limits = self.limits(batch["images"], sizes)
        proposals, _, proposal_valid = self.rpn.propose(logits, deltas, level_anchors, limits, training=True)
        rois = targets.roi_targets(
            proposals, proposal_valid, truth, seed=targets.seeds(step, ids, 1), **self.roi_sampling
        )
        pooled = self.align(features, rois.boxes, self.box_head.roi_size)
        class_logits, box_deltas = self.box_head(pooled, training=True)
        classification, box = self.box_head_losses(rois, truth, class_logits, box_deltas)
        mask_rois = self.first_rois(rois)
        mask_logits = self.mask_head(
            self.align(features, mask_rois.boxes, self.mask_head.roi_size), mask_rois.classes, training=True
        )
        mask = self.mask_head_loss(mask_rois, mask_rois.boxes, truth, mask_logits)

        reached = tf.reduce_max(box_ops.pairwise_iou(truth.boxes, proposals), -1) >= 0.5
        images = global_sum(images)
        figures = {
            "proposal_recall": global_sum(count_of(reached & truth.valid)) / total(truth.valid),
            "rpn_positives": global_sum(count_of(positive)) / images,
            "roi_positives": global_sum(count_of(rois.positive)) / images,
        }
        values = (rpn_class, rpn_box, classification, box, mask)
        stage = FirstStage(features, truth, limits, rois, class_logits, box_deltas)
        return dict(zip(MaskRCNN.LOSSES, values, strict=True)), figures, stage

    def first_rois(self, rois: targets.RoIs) -> targets.RoIs:
        """The rows that can be positive, which are the first: the costly mask head sees no others."""
        count = max(1, int(rois.boxes.shape[1] * self.roi_sampling["positive_fraction"]))
        return targets.RoIs(*(x[:, :count] for x in rois))

    def box_head_losses(
        self, rois: targets.RoIs, truth: targets.Truth, class_logits: tf.Tensor, box_deltas: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Classification loss of all RoIs, and box loss of the positive ones."""
        count, positive = total(rois.valid), total(rois.positive)
        cost = self.class_loss(rois.classes, class_logits)
        classification = masked_sum(cost, rois.valid) / self._classification_count(
            self.settings["class_loss"], count, positive
        )
        rois = self.first_rois(rois)
        deltas = deltas_of_class(box_deltas[:, : rois.boxes.shape[1]], rois.classes)
        goal = tf.gather(truth.boxes, rois.matched, batch_dims=1)
        cost = box_cost(deltas, rois.boxes, goal, **self.box_loss)
        return classification, masked_sum(cost, rois.positive) / count

    def mask_head_loss(
        self, rois: targets.RoIs, boxes: tf.Tensor, truth: targets.Truth, mask_logits: tf.Tensor
    ) -> tf.Tensor:
        """Mask loss of the positive RoIs, whose masks lie in `boxes [B, N, 4]`."""
        has_mask = rois.positive & tf.gather(truth.has_mask, rois.matched, batch_dims=1)
        goal = targets.mask_targets(boxes, rois.matched, truth, self.mask_head.mask_size)
        return masked_sum(self.mask_loss(goal, mask_logits), has_mask) / total(has_mask)

    @staticmethod
    def _classification_count(name: str, sampled: tf.Tensor, positive: tf.Tensor) -> tf.Tensor:
        # Focal loss is normalised by the positives (Lin et al., 2017): easy negatives weigh next to nothing.
        return positive if name == "sigmoid_focal" else sampled

    def _maybe_symbolic_build(self, iterator: Any = None, data_batch: Any = None) -> None:
        """Keras would trace a batch to build what is built already; over several replicas it cannot (bool entries)."""

    def train_step(self, batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """One step of Keras' `fit`. Returns losses and figures of the whole batch over all replicas."""
        with tf.GradientTape() as tape:
            values, figures = self.losses_of(batch, self.optimizer.iterations)
            loss = tf.add_n([values[name] * self.loss_weights[name] for name in self.LOSSES])
            scaled = self.optimizer.scale_loss(loss)
        weights = self.trainable_weights
        # A head that is switched off takes no part in the loss; its weights stay.
        zero = tf.UnconnectedGradients.ZERO
        gradients = tape.gradient(scaled, [w.value for w in weights], unconnected_gradients=zero)
        gradients = [tf.convert_to_tensor(g) for g in gradients]
        # Summed here rather than by Keras, which sums after clipping and after looking for infinities: replicas would
        # clip differently, and could disagree on whether to skip a step.
        context = tf.distribute.get_replica_context()
        if context.num_replicas_in_sync > 1:
            gradients = context.all_reduce("SUM", gradients)
        norm = tf.linalg.global_norm(gradients) / self.optimizer.scale_loss(tf.ones([]))
        factor = 1.0 if self.clip_norm is None else self.clip_norm / tf.maximum(norm, self.clip_norm)
        # Keras would sum over the replicas once more, and send every gradient through the network twice.
        optimizer: Any = getattr(self.optimizer, "inner_optimizer", self.optimizer)
        optimizer._all_reduce_sum_gradients = list
        self.optimizer.apply_gradients((g * factor, w) for g, w in zip(gradients, weights, strict=True))
        figures["gradient_norm"] = norm
        logs = {f"{name}_loss": global_sum(value) for name, value in values.items()}
        return {"loss": global_sum(loss), **logs, **figures}

    # ----------------------------------------------------------------- results

    def preprocess(self, image: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """One image as the model wants it.

        Args:
            image: `[h, w, 3]` RGB, uint8 or float in [0, 255].

        Returns:
            The resized image on a canvas, `[1, H, W, 3]` float32, sides multiples of 32, and its size `[1, 2]`.
        """
        image, size = self.resize(image)
        canvas = self.canvas_for(size)
        image = tf.pad(image, [[0, canvas[0] - size[0]], [0, canvas[1] - size[1]], [0, 0]])
        return image[None], tf.cast(size, tf.float32)[None]

    def resize(self, images: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """`[..., h, w, 3]` -> the same at the size that the model wants, float32, and that size, int32 `[2]`."""
        shape = tf.shape(images)
        size = resized_shape(shape[-3], shape[-2], self.min_size, self.max_size, self.size_rule)
        if self.canvas is not None:  # made smaller where it would not fit, as the data pipeline does
            room = tf.reduce_min(tf.constant(self.canvas, tf.float64) / tf.cast(shape[-3:-1], tf.float64))
            smaller = tf.cast(tf.cast(shape[-3:-1], tf.float64) * room, tf.int32)
            size = tf.where(tf.reduce_all(size <= self.canvas), size, tf.maximum(smaller, 1))
        return resize(images, size, self.interpolation), size

    def canvas_for(self, size: tf.Tensor) -> tf.Tensor:
        """Height and width, int32 `[2]`, that images of up to this size are padded to."""
        return (size + 31) // 32 * 32 if self.canvas is None else tf.constant(self.canvas)

    def _detect_image(self, image: tf.Tensor, score_threshold: tf.Tensor) -> dict[str, tf.Tensor]:
        images, sizes = self.preprocess(image)
        original = tf.cast(tf.shape(image)[:2], tf.float32)
        inputs = {"images": images, "image_sizes": sizes, "original_sizes": original[None]}
        found = self(inputs, training=False)
        del found["proposals"]
        found["boxes"] *= tf.tile(original / sizes[0], [2])
        keep = found["scores"][0] > tf.maximum(score_threshold, 0.0)
        return {name: tf.boolean_mask(value[0], keep) for name, value in found.items()}

    @overload
    def detect(self, images: np.ndarray, score_threshold: float = ...) -> Detections: ...

    @overload
    def detect(self, images: list[np.ndarray], score_threshold: float = ...) -> list[Detections]: ...

    def detect(
        self, images: np.ndarray | list[np.ndarray], score_threshold: float = 0.0
    ) -> Detections | list[Detections]:
        """Instances of one image or of several, in coordinates of the original images.

        Args:
            images: uint8 `[h, w, 3]` RGB, or a list of such, of any sizes.
            score_threshold: leaves out detections up to this score; the model's own threshold holds as well.

        Returns:
            A `Detections`, or a list of them for a list.

        Raises:
            ValueError: for an array that is not such an image.
        """
        single = isinstance(images, np.ndarray) and images.ndim == 3
        results = []
        for image in [images] if single else images:
            image = np.asarray(image)
            if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
                raise ValueError(
                    f"an image must be uint8 [height, width, 3] in RGB order, not {image.dtype} {image.shape}"
                )
            found = self._detect(image, score_threshold)
            results.append(self.results({k: v.numpy() for k, v in found.items()}, image.shape[:2]))
        return results[0] if single else results

    def results(
        self,
        found: dict[str, np.ndarray],
        image_size: tuple[int, int],
        category_ids: Sequence[int | None] | None = None,
    ) -> Detections:
        """Names what was found in one image: arrays without padding, boxes in the original image's pixels.

        `category_ids` replaces the model's own where results are for a data set that numbers its classes otherwise;
        None in it stands for a class that is not among those found.
        """
        classes = found["classes"].astype(int)
        ids = category_ids or self.category_ids
        return Detections(
            image_size=image_size,
            boxes=found["boxes"],
            scores=found["scores"],
            class_ids=classes,
            category_ids=np.array([ids[c - 1] for c in classes], int),
            class_names=[self.class_names[c - 1] for c in classes],
            masks=found["masks"],
        )

    # ------------------------------------------------------------------ saving

    def get_config(self) -> dict:
        """The constructor's arguments, the parts serialised."""
        parts = {name: keras.saving.serialize_keras_object(getattr(self, name)) for name in self.PARTS}
        return {**super().get_config(), **self.settings, **parts}

    @classmethod
    def from_config(cls, config: dict) -> MaskRCNN:
        """Inverse of `get_config`."""
        parts = {name: keras.saving.deserialize_keras_object(config[name]) for name in cls.PARTS}
        return cls(**{**config, **parts})


def box_cost(
    deltas: tf.Tensor,
    reference: tf.Tensor,
    goal: tf.Tensor,
    *,
    name: str,
    beta: float,
    weights: tuple[float, float, float, float],
) -> tf.Tensor:
    """Loss of predicted `deltas` from `reference` boxes towards `goal` boxes, each `[..., 4]` -> `[...]`."""
    if name in losses.ON_BOXES:
        return losses.BOX[name](box_ops.decode(deltas, reference, weights), goal)
    extra = {"beta": beta} if name == "smooth_l1" else {}
    return losses.BOX[name](deltas, box_ops.encode(goal, reference, weights), **extra)


def deltas_of_class(deltas: tf.Tensor, classes: tf.Tensor) -> tf.Tensor:
    """`[B, N, K or 1, 4]` -> `[B, N, 4]`: those of each row's class; background is read as class 1."""
    if deltas.shape[2] == 1:
        return deltas[:, :, 0]
    return tf.gather(deltas, tf.maximum(classes, 1) - 1, batch_dims=2)


def global_sum(value: tf.Tensor) -> tf.Tensor:
    """The sum of a number over all replicas."""
    context = tf.distribute.get_replica_context()
    return value if context.num_replicas_in_sync == 1 else context.all_reduce("SUM", value)


def count_of(flags: tf.Tensor) -> tf.Tensor:
    """How many are true on this replica, float32."""
    return tf.reduce_sum(tf.cast(flags, tf.float32))


def total(flags: tf.Tensor) -> tf.Tensor:
    """How many are true over all replicas, at least 1: a divisor for losses."""
    return tf.maximum(global_sum(count_of(flags)), 1.0)


def masked_sum(values: tf.Tensor, flags: tf.Tensor) -> tf.Tensor:
    """Sum of the `values` whose flag is set; what the others hold, NaN included, does not matter."""
    return tf.reduce_sum(tf.where(flags, values, 0.0))
