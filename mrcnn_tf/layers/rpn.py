"""Region proposal network (Ren et al., 2015) over a feature pyramid: anchors, head, proposals."""

from __future__ import annotations

import keras
import tensorflow as tf

from mrcnn_tf.geometry import anchors, boxes, nms
from mrcnn_tf.layers.conv import BatchNorm, Conv
from mrcnn_tf.layers.fpn import FPN

RPN_NORMS = (None, "frozen_batch", "batch", "sync_batch")


@keras.saving.register_keras_serializable("mrcnn_tf")
class RPN(keras.layers.Layer):
    """Scores and box deltas for every anchor, and the proposals that follow from them.

    Args:
        channels: filters of the hidden 3x3 convolutions.
        depth: how many of those.
        anchor_sizes: per level P2 to P6, the square roots of its anchors' areas in pixels.
        aspect_ratios: height over width; `len(sizes) * len(ratios)` anchors a location.
        anchor_offset: of the first anchor's centre from the image's corner, in strides.
        anchor_rounding: `None`, `"torchvision"` or `"detectron"`, see `geometry.anchors.cell_anchors`. torchvision also
            has cells `canvas // cells` apart: on a canvas of 480 pixels P6 has 8 cells, 60 and not 64 apart.
        pre_nms: proposals kept on each level before NMS, in training and at inference.
        post_nms: proposals of an image kept after it.
        nms_threshold: IoU above which the lower-scored of two proposals of one level goes.
        min_size: proposals with a side shorter than this many pixels go.
        norm: batch norm, one of each level's own, between hidden convolutions and ReLU (Model Garden): `None`,
            `"frozen_batch"`, `"batch"` or `"sync_batch"`.

    Raises:
        ValueError: the sizes are not a list a level, all of one length, or there is no such norm.
    """

    def __init__(
        self,
        channels: int = 256,
        depth: int = 1,
        anchor_sizes: tuple[tuple[float, ...], ...] = ((32,), (64,), (128,), (256,), (512,)),
        aspect_ratios: tuple[float, ...] = (0.5, 1.0, 2.0),
        anchor_offset: float = 0.0,
        anchor_rounding: str | None = None,
        pre_nms: tuple[int, int] = (2000, 1000),
        post_nms: tuple[int, int] = (1000, 1000),
        nms_threshold: float = 0.7,
        min_size: float = 1e-3,
        norm: str | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if norm not in RPN_NORMS:
            raise ValueError(f"norm is {norm!r}; it must be one of {', '.join(map(repr, RPN_NORMS))}")
        self.anchor_sizes = tuple(tuple(sizes) for sizes in anchor_sizes)
        if len(self.anchor_sizes) != len(FPN.strides) or len({len(s) for s in self.anchor_sizes}) != 1:
            raise ValueError(
                f"anchor_sizes is {self.anchor_sizes}; it must hold {len(FPN.strides)} lists, one a level "
                "from P2 to P6, all of one length"
            )
        self.channels, self.depth, self.aspect_ratios = channels, depth, tuple(aspect_ratios)
        self.anchor_offset, self.anchor_rounding = anchor_offset, anchor_rounding
        self.pre_nms, self.post_nms = tuple(pre_nms), tuple(post_nms)
        self.nms_threshold, self.min_size, self.norm = nms_threshold, min_size, norm
        count = len(self.anchor_sizes[0]) * len(self.aspect_ratios)
        self.hidden = [self._conv(f"hidden{i + 1}", channels, 3, relu=norm is None) for i in range(depth)]
        # Level by level: the levels share the convolutions, but the statistics behind them differ.
        self.norms = [
            BatchNorm(norm, dtype=self.dtype_policy, name=f"norm{i + 1}_{level}")
            for level in range(2, 2 + len(FPN.strides))
            for i in range(depth)
            if norm is not None
        ]
        self.objectness = self._conv("objectness", count, 1)
        self.deltas = self._conv("deltas", 4 * count, 1)

    def _conv(self, name: str, filters: int, size: int, relu: bool = False) -> Conv:
        start = keras.initializers.RandomNormal(stddev=0.01)
        return Conv(filters, size, relu=relu, kernel_initializer=start, dtype=self.dtype_policy, name=name)

    def build(self, channels: int) -> None:
        """`channels`: of every pyramid level."""
        for layer in self.hidden:
            layer.build((None, None, None, channels))
            channels = self.channels
        for norm in self.norms:
            norm.build((None, None, None, channels))
        self.objectness.build((None, None, None, channels))
        self.deltas.build((None, None, None, channels))
        self.built = True

    def call(
        self, features: list[tf.Tensor], training: bool = False
    ) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
        """P2 to P6 -> per level logits `[B, A_l]` and deltas `[B, A_l, 4]`, float32; A_l runs over y, x, anchor.

        `training`: for the norms.
        """
        logits, deltas = [], []
        for level, x in enumerate(features):
            for i, layer in enumerate(self.hidden):
                x = layer(x)
                if self.norms:
                    x = tf.nn.relu(self.norms[level * self.depth + i](x, training=training))
            b = tf.shape(x)[0]
            logits.append(tf.cast(tf.reshape(self.objectness(x), [b, -1]), tf.float32))
            deltas.append(tf.cast(tf.reshape(self.deltas(x), [b, -1, 4]), tf.float32))
        return logits, deltas

    def anchors(self, features: list[tf.Tensor]) -> list[tf.Tensor]:
        """Per level the anchors `[A_l, 4]` in pixels, in the order of `call`."""
        shapes = [(tf.shape(x)[1], tf.shape(x)[2]) for x in features]
        finest = FPN.strides[0]
        canvas = (finest * shapes[0][0], finest * shapes[0][1])
        return anchors.pyramid_anchors(
            shapes,
            FPN.strides,
            self.anchor_sizes,
            self.aspect_ratios,
            offset=self.anchor_offset,
            rounding=self.anchor_rounding,
            canvas=canvas if self.anchor_rounding == "torchvision" else None,
        )

    def propose(
        self,
        logits: list[tf.Tensor],
        deltas: list[tf.Tensor],
        anchors: list[tf.Tensor],
        image_sizes: tf.Tensor,
        training: bool = False,
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """The best proposals of every image, after NMS within each level.

        Args:
            logits, deltas: of `call`.
            anchors: of `anchors`.
            image_sizes: `[B, 2]`, height and width that proposals are clipped to.
            training: which of `pre_nms` and `post_nms` holds.

        Returns:
            Boxes `[B, N, 4]` in pixels, zeros where there are fewer than N; their scores `[B, N]` in [0, 1],
            descending; `[B, N]`, whether a row is a proposal. No gradient flows through them.
        """
        which = 0 if training else 1
        rows, scores, levels = [], [], []
        for level, (score, delta, anchor) in enumerate(zip(logits, deltas, anchors, strict=True)):
            k = tf.minimum(self.pre_nms[which], tf.shape(score)[1])
            top, index = tf.math.top_k(tf.stop_gradient(score), k)
            delta = tf.gather(tf.stop_gradient(delta), index, batch_dims=1)
            rows.append(boxes.clip(boxes.decode(delta, tf.gather(anchor, index)), image_sizes))
            scores.append(top)
            levels.append(tf.fill(tf.shape(top), level))
        box, score, level = tf.concat(rows, 1), tf.concat(scores, 1), tf.concat(levels, 1)
        large = tf.reduce_all(box[..., 2:] - box[..., :2] >= self.min_size, -1)
        keep, valid = nms.nms(
            box,
            tf.where(large, tf.sigmoid(score), -1.0),
            level,
            iou_threshold=self.nms_threshold,
            score_threshold=-0.5,
            max_outputs=self.post_nms[which],
        )
        box = tf.where(valid[..., None], tf.gather(box, keep, batch_dims=1), 0.0)
        score = tf.where(valid, tf.sigmoid(tf.gather(score, keep, batch_dims=1)), 0.0)
        return box, score, valid

    def get_config(self) -> dict:
        """The constructor's arguments."""
        return {
            **super().get_config(),
            "channels": self.channels,
            "depth": self.depth,
            "anchor_sizes": self.anchor_sizes,
            "aspect_ratios": self.aspect_ratios,
            "anchor_offset": self.anchor_offset,
            "anchor_rounding": self.anchor_rounding,
            "pre_nms": self.pre_nms,
            "post_nms": self.post_nms,
            "nms_threshold": self.nms_threshold,
            "min_size": self.min_size,
            "norm": self.norm,
        }
