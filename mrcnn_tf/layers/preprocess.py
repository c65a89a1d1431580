"""Resizing and normalising, shared by training, evaluation, notebooks and exported models."""

from __future__ import annotations

import keras
import tensorflow as tf

SIZE_RULES = ("round", "half_even", "floor", "short_first")
INTERPOLATIONS = ("bilinear", "pil")


def resized_shape(
    height: tf.Tensor, width: tf.Tensor, min_size: int, max_size: int, rule: str = "round"
) -> tf.Tensor:
    """The size an image takes: shorter side `min_size`, unless the longer one would pass `max_size`.

    Args:
        height, width: the image's size in pixels, integers or integer tensors.
        min_size: wanted length of the shorter side, in pixels.
        max_size: bound on the longer side, in pixels.
        rule: how lengths become whole: `"round"`, half up (detectron2); `"half_even"` (Model Garden); `"floor"`
            (torchvision); `"short_first"`: the shorter side is settled first, the longer follows from it, rounded
            down (maskrcnn-benchmark).

    Returns:
        int32 `[2]`: new height and width, each at least 1.
    """
    # Double precision and the order of operations are the PyTorch projects' own: a product just below a whole number,
    # or below a half, is common.
    size = tf.cast(tf.stack([height, width]), tf.float64)
    short, long = tf.reduce_min(size), tf.reduce_max(size)
    if rule == "short_first":
        wanted = tf.constant(min_size, tf.float64)
        bounded = tf.minimum(wanted, tf.round(max_size * short / long))
        side = tf.where(long / short * min_size > max_size, bounded, wanted)
        new = tf.where(size == short, side, tf.floor(side * size / short))
    elif rule == "floor":
        new = tf.floor(size * tf.minimum(min_size / short, max_size / long))
    elif rule == "half_even":
        new = tf.round(size * tf.minimum(min_size / short, max_size / long))
    else:
        new = tf.where(size == short, tf.constant(min_size, tf.float64), min_size / short * size)
        largest = tf.reduce_max(new)
        new = tf.floor(tf.where(largest > max_size, new * (max_size / largest), new) + 0.5)
    return tf.maximum(tf.cast(new, tf.int32), 1)


def resize(image: tf.Tensor, size: tf.Tensor, interpolation: str = "bilinear") -> tf.Tensor:
    """Bilinear resize with half-pixel centres.

    Args:
        image: `[H, W, 3]` or `[B, H, W, 3]`, uint8 or float in [0, 255].
        size: int32 `[2]`, the new height and width.
        interpolation: `"bilinear"`, without antialiasing; or `"pil"`: as Pillow shrinks 8-bit images, which averages
            over all pixels that a new one covers and rounds to whole levels (detectron2, maskrcnn-benchmark).

    Returns:
        float32 of the new size, in [0, 255].
    """
    image = tf.cast(image, tf.float32)
    if interpolation == "bilinear":
        return tf.image.resize(image, size, method="bilinear", antialias=False)
    # Pillow goes along the rows first, and has 8 bits in between.
    for shape in ([tf.shape(image)[-3], size[1]], size):
        image = tf.floor(tf.image.resize(image, shape, method="bilinear", antialias=True) + 0.5)
    return image


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
