"""What a served model does: image files or pixels in, compact results out, in stock TensorFlow operations."""

from __future__ import annotations

from collections.abc import Callable

import keras
import tensorflow as tf

from mrcnn_tf.export.folded import folded
from mrcnn_tf.export.images import decode
from mrcnn_tf.models.mask_rcnn import MaskRCNN

FILES = tf.TensorSpec([None], tf.string, name="image_bytes")
PIXELS = tf.TensorSpec([None, None, None, 3], tf.uint8, name="images")
THRESHOLDS = [tf.TensorSpec([None], tf.float32, name=name) for name in ("score_threshold", "iou_threshold")]


def make_signatures(
    model: MaskRCNN, *, precision: str | None = None, full_masks: bool = False
) -> dict[str, tf.types.experimental.ConcreteFunction]:
    """The functions of a SavedModel by name; see `export_saved_model` for their inputs and outputs."""
    served = servable_copy(model, precision)
    detect = folded_detect(served)

    def traced(function: Callable, *inputs: tf.TensorSpec) -> tf.types.experimental.ConcreteFunction:
        return tf.function(function, input_signature=inputs, autograph=False).get_concrete_function()

    def serving_default(image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        found, masks = from_files(served, detect, image_bytes)
        return {**found, "detection_masks": as_levels(masks)}

    def image(images: tf.Tensor) -> dict[str, tf.Tensor]:
        found, masks = from_pixels(served, detect, images)
        return {**found, "detection_masks": as_levels(masks)}

    def compact(
        image_bytes: tf.Tensor, score_threshold: tf.Tensor, iou_threshold: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        found, masks = from_files(served, detect, image_bytes, score_threshold, iou_threshold)
        return {**found, "detection_masks_bytes": as_bytes(as_levels(masks), found["num_detections"])}

    def full(image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        found, masks = from_files(served, detect, image_bytes)
        pasted = paste(masks, found["detection_boxes"], found["image_size"])
        return {**found, "detection_masks_reframed": pasted}

    signatures = {
        "serving_default": traced(serving_default, FILES),
        "image": traced(image, PIXELS),
        "compact": traced(compact, FILES, *THRESHOLDS),
    }
    return {**signatures, "full_masks": traced(full, FILES)} if full_masks else signatures


def servable_copy(model: MaskRCNN, precision: str | None) -> MaskRCNN:
    """The model with stock operations alone, on one device, and in this precision (None: its own)."""
    served = type(model).from_config(model.get_config())
    served.set_weights(model.get_weights())
    # Sparse matrices are stock too, but lean servers and converters may lack them; adaptive sampling has nothing else.
    served.roi_align["backend"] = "crop" if served.roi_align["sampling_ratio"] else "sparse"
    if precision is not None:
        policy = keras.DTypePolicy("float32" if precision == "float32" else f"mixed_{precision}")
        for layer in served._flatten_layers():
            layer.dtype_policy = policy
    return served


def folded_detect(model: MaskRCNN) -> Callable[..., dict[str, tf.Tensor]]:
    """`model.call` as one graph without variables that all signatures share.

    Its arguments: canvases, the sizes of the images on them and before, and both thresholds.
    """
    names = ("boxes", "scores", "classes", "masks")

    def call(
        images: tf.Tensor,
        sizes: tf.Tensor,
        originals: tf.Tensor,
        score_threshold: tf.Tensor,
        iou_threshold: tf.Tensor,
    ) -> list[tf.Tensor]:
        inputs = {
            "images": images,
            "image_sizes": sizes,
            "original_sizes": originals,
            "score_threshold": score_threshold,
            "iou_threshold": iou_threshold,
        }
        found = model(inputs, training=False)
        return [found[name] for name in names]

    shapes = ([None, None, None, 3], [None, 2], [None, 2], [None], [None])
    signature = [tf.TensorSpec(shape, tf.float32) for shape in shapes]
    graph = folded(call, model, signature)
    return lambda *inputs: dict(zip(names, graph(*inputs), strict=True))


def from_pixels(
    model: MaskRCNN, detect: Callable, images: tf.Tensor
) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
    """Detects on uint8 `[B, h, w, 3]`; see `named` for the results."""
    batch, original = tf.shape(images)[:1], tf.shape(images)[1:3]
    images, size = model.resize(images)
    canvas = model.canvas_for(size)
    images = tf.pad(images, [[0, 0], [0, canvas[0] - size[0]], [0, canvas[1] - size[1]], [0, 0]])
    sizes, originals = (tf.tile(s[None], [batch[0], 1]) for s in (size, original))
    thresholds = [tf.fill(batch, t) for t in (model.score_threshold, model.nms_threshold)]
    found = detect(images, *(tf.cast(s, tf.float32) for s in (sizes, originals)), *thresholds)
    return named(model, found, sizes, originals, tf.fill(batch, "ok"))


def from_files(
    model: MaskRCNN,
    detect: Callable,
    image_bytes: tf.Tensor,
    score_threshold: tf.Tensor | None = None,
    iou_threshold: tf.Tensor | None = None,
) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
    """Detects on image files, string `[B]`; thresholds `[B]` below 0 are the model's own; see `named`."""
    # The rule "short_first" may pass the longest side a little.
    side = (-(-model.max_size // 32) + 2) * 32 if model.canvas is None else max(model.canvas)

    def read(data: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
        image, status = decode(data)

        def resized() -> tuple[tf.Tensor, tf.Tensor]:
            small, size = model.resize(image)
            size = tf.minimum(size, side)  # beyond that only images a hundred times as long as wide reach
            padding = [[0, side - size[0]], [0, side - size[1]], [0, 0]]
            return tf.pad(small[:side, :side], padding), size

        def nothing() -> tuple[tf.Tensor, tf.Tensor]:
            return tf.zeros([side, side, 3]), tf.ones([2], tf.int32)

        canvas, size = tf.cond(status == "ok", resized, nothing)
        return tf.ensure_shape(canvas, [side, side, 3]), size, tf.shape(image)[:2], status

    images, sizes, originals, status = tf.map_fn(
        read,
        image_bytes,
        fn_output_signature=(tf.TensorSpec([side, side, 3]), tf.int32, tf.int32, tf.string),
    )
    canvas = model.canvas_for(tf.reduce_max(sizes, 0))
    thresholds = []
    for given, own in ((score_threshold, model.score_threshold), (iou_threshold, model.nms_threshold)):
        value = tf.fill(tf.shape(status), tf.constant(own, tf.float32))
        thresholds.append(value if given is None else tf.where(given < 0.0, value, given))
    # No score is above 1.
    thresholds[0] = tf.where(status == "ok", thresholds[0], 1.0)
    floats = (tf.cast(s, tf.float32) for s in (sizes, originals))
    found = detect(images[:, : canvas[0], : canvas[1]], *floats, *thresholds)
    return named(model, found, sizes, originals, status)


def named(
    model: MaskRCNN, found: dict[str, tf.Tensor], sizes: tf.Tensor, originals: tf.Tensor, status: tf.Tensor
) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
    """The outputs of a signature but for the masks, and these as probabilities `[B, D, m, m]`.

    `sizes` and `originals`, int32 `[B, 2]`, are the images' heights and widths on the canvas and as they came.
    """
    scale = tf.cast(originals, tf.float32) / tf.cast(sizes, tf.float32)
    classes = found["classes"]
    # -1, padding, and 0, background, have neither name nor id.
    row = tf.maximum(classes, 0)
    outputs = {
        "num_detections": tf.reduce_sum(tf.cast(classes > 0, tf.int32), 1),
        "detection_boxes": found["boxes"] * tf.tile(scale, [1, 2])[:, None, :],
        "detection_scores": found["scores"],
        "detection_classes": classes,
        "detection_class_names": tf.gather(tf.constant(["", *model.class_names]), row),
        "detection_category_ids": tf.gather(tf.constant([-1, *model.category_ids], tf.int64), row),
        "image_size": originals,
        "status": status,
    }
    return outputs, found["masks"]


def as_levels(masks: tf.Tensor) -> tf.Tensor:
    """Probabilities as uint8, 0 to 255."""
    return tf.cast(tf.round(masks * 255.0), tf.uint8)


def as_bytes(masks: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
    """Masks `[B, D, m, m]` as strings of their bytes, `[B, D]`; those beyond `count` `[B]` are empty."""
    shape = tf.shape(masks)
    alphabet = tf.constant([bytes([i]) for i in range(256)])
    found = tf.range(shape[1])[None] < count[:, None]
    rows = tf.reshape(tf.boolean_mask(masks, found), [-1, shape[2] * shape[3]])
    joined = tf.strings.reduce_join(tf.gather(alphabet, tf.cast(rows, tf.int32)), -1)
    return tf.tensor_scatter_nd_update(
        tf.fill(shape[:2], tf.constant(b"")), tf.cast(tf.where(found), tf.int32), joined
    )


def paste(masks: tf.Tensor, boxes: tf.Tensor, sizes: tf.Tensor) -> tf.Tensor:
    """Masks `[B, D, m, m]` of probabilities on boxes `[B, D, 4]` -> uint8 `[B, D, H, W]`, 1 where an instance is.

    H and W are the largest of `sizes` `[B, 2]`. As `mrcnn_tf.geometry.masks.paste`: bilinear at the pixels' centres, at
    least one half.
    """
    batch, count, cells = tf.shape(masks)[0], tf.shape(masks)[1], masks.shape[2]
    height, width = tf.unstack(tf.reduce_max(sizes, 0))

    def weights(low: tf.Tensor, high: tf.Tensor, pixels: tf.Tensor) -> tf.Tensor:
        """`[pixels, cells]`: bilinear interpolation of the cells along one side of the box."""
        at = (tf.range(pixels, dtype=tf.float32) + 0.5 - low) * (cells / tf.maximum(high - low, 1e-6)) - 0.5
        return tf.nn.relu(1.0 - tf.abs(at[:, None] - tf.range(cells, dtype=tf.float32)))

    def one(pair: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
        mask, box = pair
        rows, columns = weights(box[0], box[2], height), weights(box[1], box[3], width)
        return tf.cast(rows @ mask @ tf.transpose(columns) >= 0.5, tf.uint8)

    flat = (tf.reshape(masks, [-1, cells, cells]), tf.reshape(boxes, [-1, 4]))
    pasted = tf.map_fn(one, flat, fn_output_signature=tf.uint8)
    return tf.reshape(pasted, [batch, count, height, width])
