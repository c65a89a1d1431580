"""Mask Refining R-CNN (Ding, Qiao, Shen, Yuille): Mask R-CNN, whose boxes and masks are looked at a second time.

Not "Mask-Refined R-CNN" (Sensors, 2020), another method with nearly the same name.
"""

from __future__ import annotations

from typing import ClassVar

import keras
import tensorflow as tf

from mrcnn_tf.geometry import boxes as box_ops
from mrcnn_tf.geometry import nms
from mrcnn_tf.layers.heads import BoxHead, RefiningMaskHead
from mrcnn_tf.models import targets
from mrcnn_tf.models.mask_rcnn import Candidates, MaskRCNN, deltas_of_class
from mrcnn_tf.ops.shape_aware import shape_aware_roi_align


@keras.saving.register_keras_serializable("mrcnn_tf")
class MaskRefiningRCNN(MaskRCNN):
    """Finds instances, and tells huddled ones apart.

    Mask R-CNN gives a box B and its mask's probabilities P. RoI features are taken again from B, each sampling point
    weighted with P there (Shape-aware RoIAlign), so that a neighbour within the box counts less; from them the
    refining box head classifies again and corrects the box, and the refining mask head draws the mask of that box.

    Args:
        class_names, category_ids: as for `MaskRCNN`.
        refining_box_head: a box head for features of Shape-aware RoIAlign; the default has the box head's size.
        refining_mask_head: a mask head that also sees the first one's features; the default has the mask head's size.
        shape_aware: false pools B by plain RoIAlign.
        refine_classes: false leaves the scores as they are.
        refine_boxes: false leaves the boxes as they are.
        refine_masks: false lets the first mask head draw the masks of the final boxes.
        alpha: weight of the refined class logits against the first ones, at inference: `(S^b + alpha S^r) / (1 +
            alpha)`; see `set_alpha`.
        refining_samples: RoIs per image that the refining module learns from. The first mask head runs on each of them,
            which is what costs memory and time in training.
        refined_boxes: boxes per image that are refined at inference, at most.
        refining_nms_threshold: IoU above which the lower-scored box of a class is not refined; higher than
            `nms_threshold`, since what is too close to a neighbour to tell is what refining is for.
        map_gradient: whether the gradient of the refining box head flows through P into the first mask head.
        **kwargs: those of `MaskRCNN`. `loss_weights` also has `refined_class, refined_box, refined_mask`.

    Raises:
        ValueError: as `MaskRCNN`; for refining heads that do not fit the model; and if nothing is refined.
    """

    PARTS: ClassVar[tuple[str, ...]] = (*MaskRCNN.PARTS, "refining_box_head", "refining_mask_head")
    LOSSES: ClassVar[tuple[str, ...]] = (*MaskRCNN.LOSSES, "refined_class", "refined_box", "refined_mask")

    def __init__(
        self,
        class_names: list[str],
        category_ids: list[int] | None = None,
        *,
        refining_box_head: BoxHead | None = None,
        refining_mask_head: RefiningMaskHead | None = None,
        shape_aware: bool = True,
        refine_classes: bool = True,
        refine_boxes: bool = True,
        refine_masks: bool = True,
        alpha: float = 1.0,
        refining_samples: int = 128,
        refined_boxes: int = 100,
        refining_nms_threshold: float = 0.7,
        map_gradient: bool = False,
        **kwargs,
    ):
        super().__init__(class_names, category_ids, **kwargs)
        if not (refine_classes or refine_boxes or refine_masks):
            raise ValueError(
                "refine_classes, refine_boxes and refine_masks are all false; use MaskRCNN instead"
            )
        if shape_aware and kwargs.get("sampling_ratio", 2) == 0:
            raise ValueError(
                "shape_aware needs a sampling_ratio of 1 or more: its maps are read on one grid of samples"
            )
        self.settings = {
            **self.settings,
            "shape_aware": shape_aware,
            "refine_classes": refine_classes,
            "refine_boxes": refine_boxes,
            "refine_masks": refine_masks,
            "alpha": alpha,
            "refining_samples": refining_samples,
            "refined_boxes": refined_boxes,
            "refining_nms_threshold": refining_nms_threshold,
            "map_gradient": map_gradient,
        }
        self.shape_aware, self.map_gradient, self.alpha = shape_aware, map_gradient, alpha
        self.refine_classes, self.refine_boxes, self.refine_masks = refine_classes, refine_boxes, refine_masks
        self.refining_samples, self.refined_boxes = refining_samples, refined_boxes
        self.refining_nms_threshold = refining_nms_threshold

        box_head, mask_head = self.box_head, self.mask_head
        self.refining_box_head = refining_box_head or BoxHead(**arguments_of(box_head))
        self.refining_mask_head = refining_mask_head or RefiningMaskHead(**arguments_of(mask_head))
        for name in ("refining_box_head", "refining_mask_head"):
            head = getattr(self, name)
            if head.num_classes != self.num_classes:
                raise ValueError(
                    f"{name} is for {head.num_classes} classes, but class_names has {self.num_classes}"
                )
            if not head.built:
                head.build(self.fpn.channels)
        for name in ("mask_size", "channels"):
            here, there = getattr(self.refining_mask_head, name), getattr(mask_head, name)
            if here != there:
                raise ValueError(
                    f"refining_mask_head has {name} {here}, mask_head has {there}; they must agree"
                )

    # ---------------------------------------------------------------- forward

    def candidates(self, inputs: dict[str, tf.Tensor], training: bool = False) -> Candidates:
        """The boxes B of the first stage, and what the second look makes of their scores and places."""
        sizes = tf.cast(inputs["image_sizes"], tf.float32)
        features, proposals, valid, class_logits, box_deltas = self.propose(inputs["images"], sizes, training)
        sizes, thresholds = self.limits(inputs["images"], sizes), self.thresholds(inputs)
        # A lower threshold of a call needs more boxes; a higher one holds for the refined scores only.
        threshold = tf.minimum(thresholds[0], self.score_threshold)
        boxes, classes, valid, row = self.boxes_to_refine(
            proposals, valid, class_logits, box_deltas, sizes, threshold
        )
        class_logits = tf.gather(class_logits, row, batch_dims=1)

        hidden, probabilities = self.first_masks(features, boxes, classes, training)
        new_logits, deltas = self.second_look(features, boxes, probabilities, training)
        if self.refine_classes:
            class_logits = (class_logits + self.alpha * new_logits) / (1.0 + self.alpha)
        if not self.refine_boxes:
            deltas = tf.zeros_like(deltas)
        return Candidates(features, boxes, valid, class_logits, deltas, proposals, hidden)

    def masks_of(
        self, found: Candidates, boxes: tf.Tensor, classes: tf.Tensor, row: tf.Tensor, training: bool
    ) -> tf.Tensor:
        """The refined masks' logits, see `MaskRCNN.masks_of`; the mask head's without `refine_masks`."""
        if not self.refine_masks:
            return super().masks_of(found, boxes, classes, row, training)
        pooled = self.align(found.features, boxes, self.mask_head.roi_size)
        hidden = tf.gather(found.hidden, row, batch_dims=1)
        return self.refining_mask_head(pooled, hidden, classes, training=training)

    def boxes_to_refine(
        self,
        proposals: tf.Tensor,
        valid: tf.Tensor,
        class_logits: tf.Tensor,
        box_deltas: tf.Tensor,
        sizes: tf.Tensor,
        score_threshold: float | tf.Tensor | None = None,
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
        """The box B of each proposal's best class, the most promising ones.

        Returns:
            `[B, R, 4]` boxes, `[B, R]` classes (1..K), which are valid, and which proposal each came from.
        """
        if score_threshold is None:
            score_threshold = self.score_threshold
        scores = self.probabilities(class_logits)
        classes = tf.argmax(scores, -1, output_type=tf.int32) + 1
        best = tf.where(valid, tf.reduce_max(scores, -1), -1.0)
        boxes = box_ops.decode(deltas_of_class(box_deltas, classes), proposals, self.box_weights)
        boxes = box_ops.clip(boxes, sizes)
        keep, found = nms.nms(
            boxes,
            best,
            classes,
            iou_threshold=self.refining_nms_threshold,
            score_threshold=score_threshold,
            max_outputs=self.refined_boxes,
        )
        boxes = tf.where(found[..., None], tf.gather(boxes, keep, batch_dims=1), 0.0)
        return boxes, tf.gather(classes, keep, batch_dims=1), found, keep

    def first_masks(
        self, features: list[tf.Tensor], boxes: tf.Tensor, classes: tf.Tensor, training: bool
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """The first mask head on B: its hidden features F^- `[B, R, S, S, C]` and probabilities P `[B, R, m, m]`."""
        pooled = self.align(features, boxes, self.mask_head.roi_size)
        hidden = self.mask_head.hidden(pooled, training=training)
        return hidden, tf.sigmoid(self.mask_head.predict(hidden, classes))

    def second_look(
        self, features: list[tf.Tensor], boxes: tf.Tensor, probabilities: tf.Tensor, training: bool = False
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """The refining box head on B as P shows it: logits S^r `[B, R, K + 1]` and deltas `[B, R, K or 1, 4]`."""
        size = self.refining_box_head.roi_size
        if self.shape_aware:
            pooled = shape_aware_roi_align(
                features[: self.roi_levels],
                self.rois(boxes),
                probabilities,
                output_size=size,
                **self.roi_align,
            )
        else:
            pooled = self.align(features, boxes, size)
        return self.refining_box_head(pooled, training=training)

    # --------------------------------------------------------------- training

    def losses_of(self, batch: dict[str, tf.Tensor], step: tf.Tensor) -> tuple[dict, dict]:
        """Mask R-CNN's losses and those of the refining module; arguments and results as there.

        The refining module learns from the boxes that the box head made of its own RoIs. These are matched with the
        truth anew: what counts is where B is, not where the proposal was.
        """
        values, figures, first = self.first_stage(batch, step)
        rois, truth = first.rois, first.truth
        # Pseudo foreground label: a background RoI has no class, so P is the mask of its best-scored one.
        best = tf.argmax(first.class_logits[..., 1:], -1, output_type=tf.int32) + 1
        classes = tf.where(rois.classes > 0, rois.classes, best)
        boxes = box_ops.decode(deltas_of_class(first.box_deltas, classes), rois.boxes, self.box_weights)
        boxes = tf.stop_gradient(box_ops.clip(boxes, first.limits))
        sampling = {**self.roi_sampling, "source": "rpn", "count": self.refining_samples}
        seed = targets.seeds(step, batch["image_ids"], 2)
        again = targets.roi_targets(boxes, rois.valid, truth, seed=seed, **sampling)
        classes = tf.gather(classes, again.index, batch_dims=1)

        hidden, probabilities = self.first_masks(first.features, again.boxes, classes, training=True)
        if not self.map_gradient:
            probabilities = tf.stop_gradient(probabilities)
        class_logits, box_deltas = self.second_look(first.features, again.boxes, probabilities, training=True)
        classification, box = self.box_head_losses(again, truth, class_logits, box_deltas)
        zero = tf.zeros([])
        values["refined_class"] = classification if self.refine_classes else zero
        values["refined_box"] = box if self.refine_boxes else zero
        values["refined_mask"] = zero
        if self.refine_masks:
            masked = self.first_rois(again)
            count = masked.boxes.shape[1]
            boxes = masked.boxes
            if self.refine_boxes:
                deltas = deltas_of_class(box_deltas[:, :count], masked.classes)
                boxes = box_ops.clip(box_ops.decode(deltas, boxes, self.box_weights), first.limits)
            boxes = tf.stop_gradient(boxes)
            pooled = self.align(first.features, boxes, self.refining_mask_head.roi_size)
            mask_logits = self.refining_mask_head(pooled, hidden[:, :count], masked.classes, training=True)
            values["refined_mask"] = self.mask_head_loss(masked, boxes, truth, mask_logits)
        return values, figures

    # ------------------------------------------------------------------ weights

    def set_alpha(self, alpha: float) -> None:
        """Another weight of the refined scores, from the next detection on; no training is needed."""
        self.alpha = self.settings["alpha"] = float(alpha)
        self.make_functions()  # what was traced has the old one in it

    def start_from(self, model: MaskRCNN) -> None:
        """Takes a trained Mask R-CNN's weights; the refining heads of a new model start as copies of its heads.

        Raises:
            ValueError: the parts have other shapes.
        """
        for part in MaskRCNN.PARTS:
            getattr(self, part).set_weights(getattr(model, part).get_weights())
        self.refining_box_head.set_weights(model.box_head.get_weights())
        pairs = zip(
            (*self.refining_mask_head.convs, self.refining_mask_head.deconv),
            (*model.mask_head.convs, model.mask_head.deconv),
            strict=True,
        )
        for mine, source in pairs:
            mine.set_weights(source.get_weights())
        self.refining_mask_head.kernel.assign(model.mask_head.kernel)
        self.refining_mask_head.bias.assign(model.mask_head.bias)


def arguments_of(layer: keras.layers.Layer) -> dict:
    """The arguments that make another such layer, with a name of its own."""
    return {
        key: value for key, value in layer.get_config().items() if key not in ("name", "trainable", "dtype")
    }
