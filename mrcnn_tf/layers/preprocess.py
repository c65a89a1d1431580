"""Resizing and normalising, shared by training, evaluation, notebooks and exported models."""

from __future__ import annotations

import keras
import tensorflow as tf


def resized_shape(height: tf.Tensor, width: tf.Tensor, min_size: int, max_size: int) -> tf.Tensor:
    """The size an image takes: shorter side `min_size`, unless the longer one would pass `max_size`.

    Args:
        height, width: the image's size in pixels, integers or integer tensors.
        min_size: wanted length of the shorter side, in pixels.
        max_size: bound on the longer side, in pixels.

    Returns:
        int32 `[2]`: new height and width, each at least 1.
    """
    size = tf.cast(tf.stack([height, width]), tf.float32)
    short, long = tf.reduce_min(size), tf.reduce_max(size)
    scale = tf.minimum(min_size / short, max_size / long)
    # Half up, not half to even: what the PyTorch projects do, so that published weights see equal sizes.
    return tf.maximum(tf.cast(tf.floor(size * scale + 0.5), tf.int32), 1)


def resize(image: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
    """Bilinear resize without antialiasing, half-pixel centres.

    Args:
        image: `[H, W, 3]` or `[B, H, W, 3]`, uint8 or float in [0, 255].
        size: int32 `[2]`, the new height and width.

    Returns:
        float32 of the new size, in [0, 255].
    """
    return tf.image.resize(tf.cast(image, tf.float32), size, method="bilinear", antialias=False)


@keras.saving.register_keras_serializable("mrcnn_tf")
class Normalize(keras.layers.Layer):
    """`(image - mean) / std` in the backbone's channel order.

    Args:
        mean, std: per channel, RGB order, on the scale of [0, 255].
        bgr: hand the channels on in BGR order, as Caffe2 and `keras.applications` ResNets expect.

    Call: `[B, H, W, 3]` RGB in [0, 255] -> the same shape in the compute dtype. Pixels below and right of
    `image_sizes` (`[B, 2]`, height and width of each image on the canvas) become exactly zero, i.e. the mean,
    whatever the canvas was filled with.
    """

    def __init__(
        self,
        mean: tuple[float, float, float] = (123.675, 116.28, 103.53),
        std: tuple[float, float, float] = (58.395, 57.12, 57.375),
        bgr: bool = False,
        **kwargs,
    ):
        super().__init__(autocast=False, **kwargs)
        self.mean, self.std, self.bgr = tuple(mean), tuple(std), bgr
        self.built = True

    def call(self, images: tf.Tensor, image_sizes: tf.Tensor) -> tf.Tensor:
        """See the class."""
        # 16-bit floats cannot hold 0..255 with fractions: subtract first, then cast.
        x = (tf.cast(images, tf.float32) - tf.constant(self.mean)) / tf.constant(self.std)
        sizes = tf.cast(image_sizes, tf.float32)[:, None, None, :]
        rows = tf.range(tf.shape(images)[1], dtype=tf.float32)[None, :, None]
        columns = tf.range(tf.shape(images)[2], dtype=tf.float32)[None, None, :]
        inside = (rows < sizes[..., 0]) & (columns < sizes[..., 1])
        x = tf.where(inside[..., None], x, 0.0)
        return tf.cast(x[..., ::-1] if self.bgr else x, self.compute_dtype)

    def get_config(self) -> dict:
        """The constructor's arguments."""
        return {**super().get_config(), "mean": self.mean, "std": self.std, "bgr": self.bgr}
