"""Feature pyramid network (Lin et al., 2017)."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from mrcnn_tf.layers.conv import Conv, make_norm, normalised

COARSEST = ("subsample", "conv")


@keras.saving.register_keras_serializable("mrcnn_tf")
class FPN(keras.layers.Layer):
    """P2 to P6 from C2 to C5: lateral 1x1, top-down by nearest neighbour, 3x3 on each; P6 follows from P5.

    Args:
        channels: of every level.
        norm: of the convolutions; the papers have none.
        lateral_norm: false leaves the lateral convolutions without it.
        coarsest: how P6 comes about: `"subsample"`, every second cell of P5 both ways; `"conv"`, a 3x3 convolution of
            stride 2 with TensorFlow's padding, of what P5 is before its norm (Model Garden).

    Raises:
        ValueError: there is no such way to P6.
    """

    strides = (4, 8, 16, 32, 64)

    def __init__(
        self,
        channels: int = 256,
        norm: str | None = None,
        lateral_norm: bool = True,
        coarsest: str = "subsample",
        **kwargs,
    ):
        super().__init__(autocast=False, **kwargs)
        if coarsest not in COARSEST:
            raise ValueError(f"coarsest is {coarsest!r}; it must be one of {', '.join(COARSEST)}")
        self.channels, self.norm = channels, norm
        self.lateral_norm, self.coarsest = lateral_norm, coarsest
        policy = self.dtype_policy

        def conv(name: str, size: int, norm: str | None, **own) -> Conv:
            return Conv(
                channels,
                size,
                norm=norm,
                kernel_initializer="glorot_uniform",
                dtype=policy,
                name=name,
                **own,
            )

        self.laterals = [conv(f"lateral{level}", 1, norm if lateral_norm else None) for level in range(2, 6)]
        # "conv" needs P5 before its norm and after, so there that norm stands apart. Multiplied into P5's convolution,
        # it could not be undone in P6's: its shift does not reach the zeros around the map, which P6's reads, too.
        apart = coarsest == "conv"
        norms = (norm, norm, norm, None if apart else norm)
        self.outputs = [conv(f"output{level}", 3, own) for level, own in enumerate(norms, 2)]
        self.norm5: Any = make_norm(norm, channels, dtype=policy, name="norm5") if apart else None
        self.output6: Any = conv("output6", 3, norm, strides=2, same_padding=True) if apart else None

    def build(self, channels: list[int]) -> None:
        """`channels`: of C2 to C5."""
        for lateral, output, c in zip(self.laterals, self.outputs, channels, strict=True):
            lateral.build((None, None, None, c))
            output.build((None, None, None, self.channels))
        for extra in (self.output6, self.norm5):
            if extra is not None:
                extra.build((None, None, None, self.channels))
        self.built = True

    def call(
        self, features: list[tf.Tensor], training: bool = False, share: tf.Tensor | None = None
    ) -> list[tf.Tensor]:
        """C2 to C5 -> P2 to P6, each `[B, H_l, W_l, channels]` at strides 4, 8, 16, 32, 64; `share` as for `ResNet`."""
        options = {"training": training, "share": share}
        laterals = [layer(c, **options) for layer, c in zip(self.laterals, features, strict=True)]
        merged = [laterals[-1]]
        for lateral in laterals[-2::-1]:
            merged.append(lateral + upsample_to(merged[-1], lateral))
        out = [layer(x, **options) for layer, x in zip(self.outputs, merged[::-1], strict=True)]
        if self.output6 is None:
            return [*out, out[-1][:, ::2, ::2]]
        coarsest = self.output6(out[-1], **options)
        if self.norm5 is not None:
            out[-1] = normalised(self.norm5, out[-1], training, share)
        return [*out, coarsest]

    def get_config(self) -> dict:
        """The constructor's arguments."""
        return {
            **super().get_config(),
            "channels": self.channels,
            "norm": self.norm,
            "lateral_norm": self.lateral_norm,
            "coarsest": self.coarsest,
        }


def upsample_to(x: tf.Tensor, reference: tf.Tensor) -> tf.Tensor:
    """Doubles `[B, H, W, C]` by nearest neighbour; an odd `reference` cuts the last row or column off."""
    b, c = tf.shape(x)[0], x.shape[-1]
    h, w = tf.shape(x)[1], tf.shape(x)[2]
    # Broadcasting is several times faster than tf.image.resize here, forward and backward. Reshaped, and not indexed
    # with None, which LiteRT cannot in so many dimensions.
    x = tf.broadcast_to(tf.reshape(x, [b, h, 1, w, 1, c]), [b, h, 2, w, 2, c])
    x = tf.reshape(x, [b, h * 2, w * 2, c])
    size = tf.shape(reference)
    return tf.ensure_shape(x[:, : size[1], : size[2]], [None, *reference.shape[1:3], c])
