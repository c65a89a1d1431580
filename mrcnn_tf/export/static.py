"""A model for one image of a fixed size, as phones want it: the function that LiteRT and ONNX files hold."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from mrcnn_tf.export.signatures import servable_copy
from mrcnn_tf.layers.preprocess import resize
from mrcnn_tf.models.mask_rcnn import MaskRCNN


def float32_copy(model: MaskRCNN) -> MaskRCNN:
    """The model in float32, whatever precision it was trained in.

    Raises:
        ValueError: it samples adaptively, which takes shapes that depend on values.
    """
    if model.roi_align["sampling_ratio"] == 0:
        raise ValueError(
            "this model's RoIAlign samples adaptively (sampling_ratio 0), which has no form of fixed shapes; make it "
            "with sampling_ratio=2, such as `mrcnn import FILE --from detectron2 --out M.keras model.sampling_ratio=2`"
        )
    return servable_copy(model, "float32")


def preset(model: MaskRCNN, size: tuple[int, int] | None) -> tuple[int, int]:
    """Height and width of the input: `size`, or what the model's own resizing gives a landscape picture.

    Raises:
        ValueError: a side is not a positive multiple of 32.
    """
    if size is None:
        size = model.canvas or (-(-model.min_size // 32) * 32, -(-model.max_size // 32) * 32)
    height, width = size
    if min(height, width) < 32 or height % 32 or width % 32:
        raise ValueError(f"size is {height}x{width}; both sides must be multiples of 32, and not 0")
    return height, width


def static_function(model: MaskRCNN, size: tuple[int, int]) -> tf.types.experimental.GenericFunction:
    """What a file of fixed input size does.

    Args:
        model: in float32, see `float32_copy`. Its RoIAlign's backend becomes `"gather"`.
        size: of the input in pixels, see `preset`.

    Returns:
        A function of `image`, uint8 `[1, H, W, 3]`, and `image_size`, int32 `[2]`, the height and width that the
        picture takes of it. It returns `num_detections` int32 `[1]`; `detection_boxes` float32 `[1, D, 4]` in pixels of
        `image`; `detection_scores` float32 `[1, D]`; `detection_classes` int32 `[1, D]`, -1 beyond `num_detections`;
        `detection_masks` float32 `[1, D, m, m]`, probabilities on a grid over the box.
    """
    model.roi_align["backend"] = "gather"
    inputs = [tf.TensorSpec([1, *size, 3], tf.uint8, "image"), tf.TensorSpec([2], tf.int32, "image_size")]

    def call(image: tf.Tensor, image_size: tf.Tensor) -> dict[str, tf.Tensor]:
        images, sizes = tf.cast(image, tf.float32), tf.cast(image_size, tf.float32)[None]
        found = model({"images": images, "image_sizes": sizes}, training=False)
        count = tf.reduce_sum(tf.cast(found["classes"] > 0, tf.int32), 1)
        outputs = {f"detection_{name}": found[name] for name in ("boxes", "scores", "classes", "masks")}
        return {"num_detections": count, **outputs}

    return tf.function(call, input_signature=inputs, autograph=False)


def letterbox(
    image: NDArray[np.uint8], size: tuple[int, int], interpolation: str = "bilinear"
) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """A picture as large as it fits, in the upper left corner.

    Args:
        image: uint8 `[h, w, 3]`, RGB.
        size: height and width to fit into.
        interpolation: see `mrcnn_tf.layers.preprocess.resize`.

    Returns:
        `image` and `image_size` of `static_function`. The rest is black; its colour does not matter.
    """
    height, width = image.shape[:2]
    scale = min(size[0] / height, size[1] / width)
    used = np.clip(np.floor(np.array([height, width]) * scale + 0.5), 1, size).astype(np.int32)
    canvas = np.zeros((1, *size, 3), np.uint8)
    small = resize(tf.constant(image), tf.constant(used), interpolation)
    canvas[0, : used[0], : used[1]] = np.clip(np.round(small), 0, 255)
    return canvas, used


def description(model: MaskRCNN) -> str:
    """What the caller of a file must know beside its inputs and outputs, as JSON."""
    known: dict[str, Any] = {
        "class_names": model.class_names,
        "category_ids": model.category_ids,
        "interpolation": model.interpolation,
    }
    return json.dumps(known, indent=1, ensure_ascii=False)
