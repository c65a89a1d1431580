"""The schema of `configs/*.yaml`.

Each section names the constructor arguments of the thing it builds, whose docstring explains them.
`configs/base.yaml` holds every key with its default and a line of explanation.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Norm = Literal["frozen_batch", "batch", "sync_batch", "group"] | None
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]


class Section(BaseModel):
    """Refuses keys it does not know and values of another type."""

    model_config = ConfigDict(extra="forbid", strict=False)


def need(condition: bool, key: str, problem: str) -> None:
    """Raises with the key's path below the section that checks."""
    if not condition:
        raise ValueError(f"{key} {problem}")


class Backbone(Section):
    """`mrcnn_tf.layers.resnet.ResNet`, and where its weights come from."""

    depth: Literal[18, 34, 50, 101, 152] = 50
    groups: Count = 1
    width_per_group: Count = 64
    dialect: Literal["torchvision", "caffe2", "keras", "model_garden"] = "torchvision"
    norm: Norm = "frozen_batch"
    epsilon: NotNegative | None = None
    freeze_at: Annotated[int, Field(ge=0, le=5)] = 2
    width: Count = 64
    deformable: list[Literal[3, 4, 5]] = []
    modulated: bool = False
    checkpointing: bool = False
    weights: Literal["imagenet"] | None = None

    @model_validator(mode="after")
    def _agree(self) -> Backbone:
        plain = (self.groups, self.width_per_group) == (1, 64)
        for key, given in (("groups or width_per_group", not plain), ("deformable", bool(self.deformable))):
            need(not given or self.depth >= 50, key, f"needs depth 50, 101 or 152, not {self.depth}")
        inner = self.width * self.width_per_group // 64 * self.groups
        need(inner >= 1, "width_per_group", f"is {self.width_per_group}, too few at width {self.width}")
        need(
            not self.deformable or self.dialect != "model_garden",
            "deformable",
            "stages do not go with dialect model_garden",
        )
        need(not self.modulated or bool(self.deformable), "modulated", "acts only with deformable stages")
        need(self.weights is None or plain, "weights", "imagenet are those of ResNets, not of ResNeXts")
        return self


class NormalizeConfig(Section):
    """`mrcnn_tf.layers.preprocess.Normalize`."""

    mean: tuple[float, float, float]
    std: tuple[Positive, Positive, Positive]
    bgr: bool


class Fpn(Section):
    """`mrcnn_tf.layers.fpn.FPN`."""

    channels: Count = 256
    norm: Norm = None
    lateral_norm: bool = True
    coarsest: Literal["subsample", "conv"] = "subsample"


class Rpn(Section):
    """`mrcnn_tf.layers.rpn.RPN`."""

    channels: Count = 256
    depth: Count = 1
    anchor_sizes: list[list[Positive]] = [[32], [64], [128], [256], [512]]
    aspect_ratios: list[Positive] = [0.5, 1.0, 2.0]
    anchor_offset: float = 0.0
    anchor_rounding: Literal["torchvision", "detectron"] | None = None
    pre_nms: tuple[Count, Count] = (2000, 1000)
    post_nms: tuple[Count, Count] = (1000, 1000)
    nms_threshold: Share = 0.7
    min_size: NotNegative = 0.001
    norm: Literal["frozen_batch", "batch", "sync_batch"] | None = None


class BoxHeadConfig(Section):
    """`mrcnn_tf.layers.heads.BoxHead`."""

    units: Count = 1024
    depth: Count = 2
    roi_size: Count = 7
    class_agnostic: bool = False
    conv_depth: Natural = 0
    conv_channels: Count = 256
    norm: Norm = None

    @model_validator(mode="after")
    def _agree(self) -> BoxHeadConfig:
        need(self.norm is None or self.conv_depth > 0, "norm", "acts only with conv_depth of 1 or more")
        return self


class MaskHeadConfig(Section):
    """`mrcnn_tf.layers.heads.MaskHead`."""

    channels: Count = 256
    depth: Count = 4
    mask_size: Literal[28, 56] = 28
    class_agnostic: bool = False
    norm: Norm = None


class LossWeights(Section):
    """Factors of the losses."""

    rpn_class: NotNegative = 1.0
    rpn_box: NotNegative = 1.0
    class_: NotNegative = Field(1.0, alias="class")
    box: NotNegative = 1.0
    mask: NotNegative = 1.0
    refined_class: NotNegative = 1.0
    refined_box: NotNegative = 1.0
    refined_mask: NotNegative = 1.0


class Refining(Section):
    """What `mrcnn_tf.models.mask_refining_rcnn.MaskRefiningRCNN` adds."""

    shape_aware: bool = True
    refine_classes: bool = True
    refine_boxes: bool = True
    refine_masks: bool = True
    mask_flow: bool = True
    alpha: NotNegative = 1.0
    refining_samples: Count = 128
    refined_boxes: Count = 100
    refining_nms_threshold: Share = 0.7
    map_gradient: bool = False

    @model_validator(mode="after")
    def _agree(self) -> Refining:
        need(
            self.refine_classes or self.refine_boxes or self.refine_masks,
            "refine_masks",
            "is false, and so are refine_classes and refine_boxes: nothing is refined; set refining to null instead",
        )
        return self


Classification = Literal["cross_entropy", "sigmoid_focal"]
BoxLossName = Literal["smooth_l1", "l1", "iou", "giou"]


class Model(Section):
    """`mrcnn_tf.models.mask_rcnn.MaskRCNN`, or with `refining` the `MaskRefiningRCNN` on top of it."""

    backbone: Backbone = Backbone()
    normalize: NormalizeConfig | None = None
    fpn: Fpn = Fpn()
    rpn: Rpn = Rpn()
    box_head: BoxHeadConfig = BoxHeadConfig()
    mask_head: MaskHeadConfig = MaskHeadConfig()
    refining: Refining | None = None
    min_size: Count = 800
    max_size: Count = 1333
    size_rule: Literal["round", "half_even", "floor", "short_first"] = "round"
    interpolation: Literal["bilinear", "pil"] = "bilinear"
    canvas: tuple[Count, Count] | None = None
    norm_padding: bool = False
    sampling_ratio: Natural = 2
    aligned: bool = True
    roi_end: float = 0.0
    roi_shift: float = 0.0
    roi_levels: Literal[4, 5] = 4
    roi_align_backend: Literal["auto", "custom", "sparse", "crop", "gather"] = "auto"
    box_weights: tuple[Positive, Positive, Positive, Positive] = (10.0, 10.0, 5.0, 5.0)
    rpn_fg_iou: Share = 0.7
    rpn_bg_iou: Share = 0.3
    rpn_samples: Count = 256
    rpn_positive_fraction: Share = 0.5
    roi_fg_iou: Share = 0.5
    roi_bg_iou: Share = 0.5
    roi_samples: Count = 512
    roi_positive_fraction: Share = 0.25
    proposal_source: Literal["rpn", "rpn+truth", "truth"] = "rpn+truth"
    min_proposals: Natural = 0
    rpn_class_loss: Classification = "cross_entropy"
    rpn_box_loss: BoxLossName = "smooth_l1"
    class_loss: Classification = "cross_entropy"
    box_loss: BoxLossName = "smooth_l1"
    mask_loss: Literal["binary_cross_entropy", "dice"] = "binary_cross_entropy"
    rpn_beta: NotNegative = 1 / 9
    box_beta: NotNegative = 1.0
    loss_weights: LossWeights = Field(default_factory=lambda: LossWeights.model_validate({}))
    score_threshold: Share = 0.05
    class_score_thresholds: dict[str, Share] | None = None
    nms_threshold: Share = 0.5
    nms_groups: Literal["class", "all"] | list[list[str]] = "class"
    nms_method: Literal["hard", "linear", "gaussian"] = "hard"
    nms_sigma: Positive = 0.5
    mask_nms_threshold: Share | None = None
    min_detection: NotNegative | None = None
    max_detection: Positive | None = None
    detection_unit: Literal["pixels", "share"] = "pixels"
    max_detections: Count = 100

    @model_validator(mode="after")
    def _agree(self) -> Model:
        need(
            self.min_size <= self.max_size, "min_size", f"is {self.min_size}, above max_size {self.max_size}"
        )
        for stage in ("rpn", "roi"):
            low, high = getattr(self, f"{stage}_bg_iou"), getattr(self, f"{stage}_fg_iou")
            need(low <= high, f"{stage}_bg_iou", f"is {low}, above {stage}_fg_iou {high}")
        need(
            self.backbone.weights is None or self.backbone.dialect == "keras",
            "backbone.weights",
            "imagenet are those of keras.applications: they need backbone.dialect keras (and depth 50, 101 or 152)",
        )
        adaptive = self.sampling_ratio == 0
        need(
            not adaptive or self.roi_align_backend in ("auto", "sparse"),
            "sampling_ratio",
            f"is 0, which roi_align_backend {self.roi_align_backend} does not have; take auto or sparse",
        )
        need(
            not adaptive or self.refining is None or not self.refining.shape_aware,
            "sampling_ratio",
            "is 0, which Shape-aware RoIAlign does not have; take 1 or more, or refining.shape_aware=false",
        )
        if self.canvas is not None:
            need(
                all(side % 32 == 0 for side in self.canvas),
                "canvas",
                f"is {self.canvas}; sides must be multiples of 32",
            )
        need(
            self.min_proposals == 0 or self.proposal_source == "truth",
            "min_proposals",
            "acts only with proposal_source truth",
        )
        return self


class DataSource(Section):
    """`mrcnn_tf.data.coco.CocoDataset`: a COCO-format annotation file, its images, and which part of it.

    `annotations` may name TFRecords instead, which hold the images: `mrcnn_tf.data.records.dataset.RecordDataset`.
    """

    annotations: str | None = None
    images: str | None = None
    fraction: Annotated[float, Field(gt=0, le=1)] | None = None
    first: Count | None = None
    classes: list[str] | None = None
    keep_empty: bool = True


class Generated(Section):
    """`mrcnn_tf.data.shapes.generate_shapes`: the built-in set of crowded shapes."""

    folder: str = "data/shapes"
    train_images: Count = 2000
    val_images: Count = 200
    size: Count = 128
    crowding: Share = 0.5
    seed: Natural = 0


class Data(Section):
    """Where the data are, and `mrcnn_tf.data.pipeline.training_batches`."""

    train: DataSource = DataSource()
    val: DataSource = DataSource()
    generated: Generated | None = None
    canvas: tuple[Count, Count] = (800, 1344)
    min_sizes: list[Count] | None = None
    aspect_grouping: bool = True
    flip: bool = True
    scale_jitter: tuple[Positive, Positive] | None = None
    vertical_flip: bool = False
    colour_jitter: tuple[Share, Share, Share, Share] | None = None
    max_instances: Count = 100
    mask_size: Count = 112
    workers: Count | None = None

    @model_validator(mode="after")
    def _agree(self) -> Data:
        need(
            all(side % 32 == 0 for side in self.canvas),
            "canvas",
            f"is {self.canvas}; sides must be multiples of 32",
        )
        if self.scale_jitter is not None:
            low, high = self.scale_jitter
            need(low <= high, "scale_jitter", f"is {self.scale_jitter}; the first must not exceed the second")
        if self.generated is not None:
            given = [k for k in ("train", "val") if getattr(self, k).annotations or getattr(self, k).images]
            need(
                not given,
                "generated",
                f"and {' and '.join(given)} paths are both set; set one, or generated=null",
            )
        return self


class Train(Section):
    """`mrcnn_tf.training.train`."""

    steps: Count = 90000
    batch_size: Count = 16
    batch_per_device: Count | None = None
    optimizer: Literal["sgd", "adamw"] = "sgd"
    learning_rate: Positive = 0.02
    momentum: Share = 0.9
    weight_decay: NotNegative = 1e-4
    decay_norms: bool = False
    decay_biases: bool = True
    schedule: Literal["constant", "step", "cosine"] = "step"
    warmup_steps: Natural = 1000
    warmup_factor: Share = 0.001
    milestones: list[Count] = [60000, 80000]
    gamma: Share = 0.1
    final: Share = 0.0
    clip_norm: Positive | None = None
    ema: Annotated[float, Field(ge=0, lt=1)] | None = None
    devices: Literal["auto"] | Count = "auto"
    deterministic: bool = False
    log_every: Count = 20
    checkpoint_every: Count = 5000
    keep_checkpoints: Count = 2
    tensorboard: bool = False

    @model_validator(mode="after")
    def _agree(self) -> Train:
        need(
            self.schedule != "step" or self.milestones == sorted(set(self.milestones)),
            "milestones",
            f"is {self.milestones}; steps must rise",
        )
        need(
            self.warmup_steps < self.steps,
            "warmup_steps",
            f"is {self.warmup_steps}, not below steps {self.steps}; lower the first or raise the second",
        )
        return self


class Evaluation(Section):
    """`mrcnn_tf.evaluation`: when and how."""

    every: Natural = 5000
    subset: Count | None = 500
    batch_size: Count = 1
    max_detections: tuple[Count, Count, Count] = (1, 10, 100)
    pictures: Natural = 8
    picture_score: Share = 0.5


class Export(Section):
    """Whether and where a finished training writes a SavedModel."""

    saved_model: bool = True
    folder: str = "saved_models"


class Published(Section):
    """What the authors of a model state, in percent: for comparison, never measured here."""

    box_ap: Positive
    mask_ap: Positive
    source: str


class Config(Section):
    """A whole experiment."""

    name: str = "run"
    description: str = ""
    published: Published | None = None
    output: str = "runs/{name}"
    seed: Natural = 0
    precision: Literal["float32", "mixed_float16", "mixed_bfloat16"] = "float32"
    init_from: str | None = None
    model: Model = Model()
    data: Data = Data()
    train: Train = Train()
    evaluation: Evaluation = Evaluation()
    export: Export = Export()

    @model_validator(mode="after")
    def _agree(self) -> Config:
        longest, shortest = max(self.data.canvas), min(self.data.canvas)
        need(
            self.model.canvas is None or self.model.canvas == self.data.canvas,
            "data.canvas",
            f"is {self.data.canvas}, but model.canvas is {self.model.canvas}: training must see what the model sees",
        )
        if self.data.scale_jitter is None:
            sizes = self.data.min_sizes or [self.model.min_size]
            # The canvas must hold what the resize rule gives; the rule caps the longer side at max_size.
            need(
                max(sizes) <= shortest and (self.model.max_size <= longest),
                "data.canvas",
                f"is {self.data.canvas}: too small for images of min size {max(sizes)} and max size "
                f"{self.model.max_size}",
            )
        for path in (self.output, self.export.folder):
            need("{" not in path.replace("{name}", ""), "output", f"is {path!r}; only {{name}} is filled in")
        return self

    @property
    def run_folder(self) -> Path:
        """Where the run writes."""
        return Path(self.output.replace("{name}", self.name))
