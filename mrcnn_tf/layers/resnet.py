"""ResNet (He et al., 2015) and ResNeXt (Xie et al., 2017) as feature extractors, in published weights' dialects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import keras
import tensorflow as tf

from mrcnn_tf.layers.conv import Conv
from mrcnn_tf.layers.deformable import DeformableConv

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


@dataclass(frozen=True)
class Dialect:
    """What differs between projects' ResNets.

    `stride_first`: a bottleneck's stride is in its first 1x1 convolution instead of its 3x3;
    `mean`, `std`: per channel in RGB order, on [0, 255];
    `same_padding`: of convolutions and pool with a stride, see `Conv`.
    """

    stride_first: bool
    conv_bias: bool
    epsilon: float
    bgr: bool
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    same_padding: bool = False


DIALECTS = {
    "torchvision": Dialect(False, False, 1e-5, False, (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
    "caffe2": Dialect(True, False, 1e-5, True, (122.7717, 115.9465, 102.9801), (1.0, 1.0, 1.0)),
    "keras": Dialect(True, True, 1.001e-5, True, (123.68, 116.779, 103.939), (1.0, 1.0, 1.0)),
    "model_garden": Dialect(
        False, False, 1e-4, False, (123.675, 116.28, 103.53), (58.395, 57.12, 57.375), same_padding=True
    ),
}


@keras.saving.register_keras_serializable("mrcnn_tf")
class ResidualBlock(keras.layers.Layer):
    """Two 3x3 convolutions, or 1x1 - 3x3 - 1x1 with the outer width four times `filters`, and a shortcut.

    Args:
        filters: inner width, of a bottleneck with the default groups.
        strides: of the block.
        bottleneck: which of the two forms.
        project: whether the shortcut is a 1x1 convolution.
        stride_first, conv_bias, epsilon: see `Dialect`.
        norm: see `Conv`.
        groups, width_per_group, deformable, modulated: of a bottleneck's 3x3 convolution; see `ResNet`.
        same_padding: see `Conv`; a deformable convolution cannot have it.

    Raises:
        ValueError: those of a bottleneck in the other form, groups without width, or both of the last two.
    """

    def __init__(
        self,
        filters: int,
        strides: int = 1,
        bottleneck: bool = True,
        project: bool = False,
        stride_first: bool = False,
        conv_bias: bool = False,
        epsilon: float = 1e-5,
        norm: str | None = "frozen_batch",
        groups: int = 1,
        width_per_group: int = 64,
        deformable: bool = False,
        modulated: bool = False,
        same_padding: bool = False,
        **kwargs,
    ):
        super().__init__(autocast=False, **kwargs)
        if not bottleneck and (groups, width_per_group, deformable, modulated) != (1, 64, False, False):
            raise ValueError("groups, width_per_group, deformable and modulated need a bottleneck")
        inner = filters * width_per_group // 64 * groups
        if inner < 1:
            raise ValueError(
                f"groups is {groups} and width_per_group {width_per_group}, which at {filters} filters leaves no width"
            )
        self.own = {
            "filters": filters,
            "strides": strides,
            "bottleneck": bottleneck,
            "project": project,
            "stride_first": stride_first,
            "conv_bias": conv_bias,
            "epsilon": epsilon,
            "norm": norm,
            "groups": groups,
            "width_per_group": width_per_group,
            "deformable": deformable,
            "modulated": modulated,
            "same_padding": same_padding,
        }
        common = {
            "norm": norm,
            "use_bias": conv_bias or norm is None,
            "epsilon": epsilon,
            "same_padding": same_padding,
            "dtype": self.dtype_policy,
        }

        def conv(name: str, width: int, size: int, stride: int, relu: bool, gamma: float = 1.0) -> Conv:
            return Conv(width, size, stride, relu=relu, gamma=gamma, name=name, **common)

        out = filters * (4 if bottleneck else 1)
        # A branch that starts at zero (Goyal et al., 2017) matters where norms train; a frozen one is overwritten.
        last = 1.0 if norm == "frozen_batch" else 0.0
        if bottleneck:
            first, second = (strides, 1) if stride_first else (1, strides)
            middle = {"strides": second, "relu": True, "groups": groups, "name": "conv2", **common}
            self.convs = [
                conv("conv1", inner, 1, first, True),
                DeformableConv(inner, modulated=modulated, **middle) if deformable else Conv(inner, **middle),
                conv("conv3", out, 1, 1, True, last),
            ]
        else:
            self.convs = [conv("conv1", filters, 3, strides, True), conv("conv2", out, 3, 1, True, last)]
        self.shortcut = conv("shortcut", out, 1, strides, False) if project else None

    def build(self, input_shape: tuple) -> None:
        """Builds the convolutions."""
        shape = tuple(input_shape)
        for layer in self.convs:
            layer.build(shape)
            shape = layer.compute_output_shape(shape)
        if self.shortcut is not None:
            self.shortcut.build(tuple(input_shape))

    def call(self, x: tf.Tensor, training: bool = False, share: tf.Tensor | None = None) -> tf.Tensor:
        """`[B, H, W, C]` -> `[B, H / strides, W / strides, width]`; `share`: see `GroupNorm`."""
        shortcut = x if self.shortcut is None else self.shortcut(x, training=training, share=share)
        for layer in self.convs[:-1]:
            x = layer(x, training=training, share=share)
        return self.convs[-1](x, training=training, residual=shortcut, share=share)

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        """See `call`."""
        shape = tuple(input_shape)
        for layer in self.convs:
            shape = layer.compute_output_shape(shape)
        return shape

    def get_config(self) -> dict:
        """The constructor's arguments."""
        return {**super().get_config(), **self.own}


@keras.saving.register_keras_serializable("mrcnn_tf")
class ResNet(keras.layers.Layer):
    """The feature maps C2 to C5 of a ResNet.

    Args:
        depth: 18, 34, 50, 101 or 152.
        dialect: `"torchvision"`, `"caffe2"`, `"keras"` or `"model_garden"` (TensorFlow's): place of the stride,
            convolution biases, epsilon, padding.
        norm: see `Conv`. `"frozen_batch"` is for pretrained weights; from random weights take `"batch"`,
            `"sync_batch"` or `"group"`.
        freeze_at: how many of stem and stages stay as they are in training: 0 none, 1 the stem, 2 the stem and
            the first stage (Detectron's), up to 5.
        width: channels of the first stage, 64 in the paper; less for toys.
        checkpointing: recompute each block's inside in the backward pass instead of keeping it: about 1.3 times
            the work for a fraction of the memory.
        groups, width_per_group: of the bottlenecks' 3x3 convolutions (ResNeXt), in torchvision's counting: at 64
            filters, each group has `width_per_group` channels. ResNeXt-50-32x4d has 32 and 4, ResNeXt-101-32x8d 32
            and 8.
        epsilon: added to the norms' variances; `None`: the dialect's. torchvision's first Mask R-CNN was trained
            with 0.
        deformable: the stages, from 3 to 5, whose 3x3 convolutions are deformable (Dai et al., 2017).
        modulated: whether those also weigh their samples (Zhu et al., 2019).

    Raises:
        ValueError: arguments out of range, or what needs bottlenecks at a depth below 50.
    """

    def __init__(
        self,
        depth: int = 50,
        dialect: str = "torchvision",
        norm: str | None = "frozen_batch",
        freeze_at: int = 2,
        width: int = 64,
        checkpointing: bool = False,
        groups: int = 1,
        width_per_group: int = 64,
        epsilon: float | None = None,
        deformable: Sequence[int] = (),
        modulated: bool = False,
        **kwargs,
    ):
        super().__init__(autocast=False, **kwargs)
        if depth not in BLOCKS:
            raise ValueError(f"depth is {depth}; it must be one of {', '.join(map(str, BLOCKS))}")
        if dialect not in DIALECTS:
            raise ValueError(f"dialect is {dialect!r}; it must be one of {', '.join(DIALECTS)}")
        if not 0 <= freeze_at <= 5:
            raise ValueError(f"freeze_at is {freeze_at}; it must be from 0 to 5")
        if epsilon is not None and epsilon < 0:
            raise ValueError(f"epsilon is {epsilon}; it must not be negative")
        if not set(deformable) <= {3, 4, 5}:
            raise ValueError(f"deformable is {tuple(deformable)}; it must name stages from 3 to 5")
        bottleneck = depth >= 50
        if not bottleneck and ((groups, width_per_group) != (1, 64) or deformable):
            raise ValueError(f"groups, width_per_group and deformable need a depth from 50 on, not {depth}")
        if modulated and not deformable:
            raise ValueError("modulated acts only with deformable stages")
        self.depth, self.dialect, self.norm = depth, dialect, norm
        self.freeze_at, self.width, self.checkpointing = freeze_at, width, checkpointing
        self.groups, self.width_per_group, self.epsilon = groups, width_per_group, epsilon
        self.deformable, self.modulated = tuple(deformable), modulated
        spec = DIALECTS[dialect]
        eps = spec.epsilon if epsilon is None else epsilon
        kind = {
            "conv_bias": spec.conv_bias,
            "epsilon": eps,
            "norm": norm,
            "groups": groups,
            "width_per_group": width_per_group,
            "same_padding": spec.same_padding,
            "dtype": self.dtype_policy,
        }
        self.stem = Conv(
            width,
            7,
            2,
            norm=norm,
            relu=True,
            use_bias=spec.conv_bias or norm is None,
            epsilon=eps,
            same_padding=spec.same_padding,
            dtype=self.dtype_policy,
            name="stem",
        )
        self.blocks = []
        for stage, count in enumerate(BLOCKS[depth]):
            for i in range(count):
                block = ResidualBlock(
                    width * 2**stage,
                    strides=2 if i == 0 and stage > 0 else 1,
                    bottleneck=bottleneck,
                    project=i == 0 and (bottleneck or stage > 0),
                    stride_first=spec.stride_first,
                    deformable=stage + 2 in self.deformable,
                    modulated=modulated and stage + 2 in self.deformable,
                    name=f"stage{stage + 2}_block{i + 1}",
                    **kind,
                )
                block.trainable = stage + 2 > freeze_at
                self.blocks.append(block)
        self.stem.trainable = freeze_at < 1

    def build(self, input_shape: tuple = (None, None, None, 3)) -> None:
        """Builds every block."""
        shape = tuple(input_shape)
        self.stem.build(shape)
        shape = (*shape[:-1], self.width)
        for block in self.blocks:
            block.build(shape)
            shape = block.compute_output_shape(shape)

    @property
    def channels(self) -> list[int]:
        """Channels of C2 to C5."""
        return [self.width * 2**stage * (4 if self.depth >= 50 else 1) for stage in range(4)]

    def call(self, x: tf.Tensor, training: bool = False, share: tf.Tensor | None = None) -> list[tf.Tensor]:
        """`[B, H, W, 3]`, normalised -> C2, C3, C4, C5: `[B, H / 4, W / 4, .]` to `[B, H / 32, W / 32, .]`.

        `share` `[B, 2]`: the part of height and width that is image and not padding; group norms need it.
        """
        x = self.stem(x, training=training, share=share)
        if DIALECTS[self.dialect].same_padding:
            x = tf.nn.max_pool2d(x, 3, 2, "SAME")
        else:
            x = tf.nn.max_pool2d(tf.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]]), 3, 2, "VALID")
        out, i = [], 0
        for stage, count in enumerate(BLOCKS[self.depth]):
            for block in self.blocks[i : i + count]:
                if self.checkpointing and training and block.trainable:
                    again = tf.recompute_grad(
                        lambda y, share=None, block=block: block(y, training=True, share=share)
                    )
                    x = again(x) if share is None else again(x, share)
                else:
                    x = block(x, training=training, share=share)
            i += count
            if stage + 2 <= self.freeze_at:
                x = tf.stop_gradient(x)
            out.append(x)
        return out

    def get_config(self) -> dict:
        """The constructor's arguments."""
        return {
            **super().get_config(),
            "depth": self.depth,
            "dialect": self.dialect,
            "norm": self.norm,
            "freeze_at": self.freeze_at,
            "width": self.width,
            "checkpointing": self.checkpointing,
            "groups": self.groups,
            "width_per_group": self.width_per_group,
            "epsilon": self.epsilon,
            "deformable": list(self.deformable),
            "modulated": self.modulated,
        }
