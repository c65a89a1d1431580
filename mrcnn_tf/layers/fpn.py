"""Feature pyramid network (Lin et al., 2017)."""

from __future__ import annotations

import keras
import tensorflow as tf

from mrcnn_tf.layers.conv import Conv


@keras.saving.register_keras_serializable("mrcnn_tf")
class FPN(keras.layers.Layer):
    """P2 to P6 from C2 to C5: lateral 1x1, top-down by nearest neighbour, 3x3 on each; P6 is every second of P5.

    Args:
        channels: of every level.
        norm: of the convolutions; the papers have none.
    """

    strides = (4, 8, 16, 32, 64)

    def __init__(self, channels: int = 256, norm: str | None = None, **kwargs):
        super().__init__(autocast=False, **kwargs)
        self.channels, self.norm = channels, norm

        def conv(name: str, size: int) -> Conv:
            return Conv(
                channels,
                size,
                norm=norm,
                kernel_initializer="glorot_uniform",
                dtype=self.dtype_policy,
                name=name,
            )

        self.laterals = [conv(f"lateral{level}", 1) for level in range(2, 6)]
        self.outputs = [conv(f"output{level}", 3) for level in range(2, 6)]

    def build(self, channels: list[int]) -> None:
        """`channels`: of C2 to C5."""
        for lateral, output, c in zip(self.laterals, self.outputs, channels, strict=True):
            lateral.build((None, None, None, c))
            output.build((None, None, None, self.channels))
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
        return [*out, out[-1][:, ::2, ::2]]

    def get_config(self) -> dict:
        """The constructor's arguments."""
        return {**super().get_config(), "channels": self.channels, "norm": self.norm}


def upsample_to(x: tf.Tensor, reference: tf.Tensor) -> tf.Tensor:
    """Doubles `[B, H, W, C]` by nearest neighbour; an odd `reference` cuts the last row or column off."""
    b, c = tf.shape(x)[0], x.shape[-1]
    h, w = tf.shape(x)[1], tf.shape(x)[2]
    # Broadcasting is several times faster than tf.image.resize here, forward and backward.
    x = tf.broadcast_to(x[:, :, None, :, None, :], [b, h, 2, w, 2, c])
    x = tf.reshape(x, [b, h * 2, w * 2, c])
    size = tf.shape(reference)
    return tf.ensure_shape(x[:, : size[1], : size[2]], [None, *reference.shape[1:3], c])
