"""SavedModels for TensorFlow Serving: stock operations only, image bytes or pixels in, compact results out."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import keras
import tensorflow as tf

from mrcnn_tf.models.mask_rcnn import MaskRCNN


def export_saved_model(model: MaskRCNN, folder: str | Path) -> Path:
    """Writes the next version of a servable model.

    Signatures: `serving_default` takes `image_bytes`, `[B]` JPEG or PNG files of any sizes; `image` takes `images`,
    uint8 `[B, h, w, 3]` RGB. Both return

    - `num_detections` int32 `[B]`;
    - `detection_boxes` float32 `[B, D, 4]`, `[y1, x1, y2, x2]` in pixels of the image that came in;
    - `detection_scores` float32 `[B, D]`, descending, 0 beyond `num_detections`;
    - `detection_classes` int32 `[B, D]`, 1..K, -1 beyond `num_detections`;
    - `detection_masks` uint8 `[B, D, m, m]`, probability times 255 on a grid over the box.

    `assets.extra/classes.json` names the classes.

    Args:
        model: the model.
        folder: such as `saved_models/quickstart`; the version becomes a numbered folder in it.

    Returns:
        The folder of the new version. It appears whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    versions = [int(p.name) for p in folder.iterdir() if p.name.isdigit()]
    target = folder / str(max(versions, default=0) + 1)
    aside = folder / f".{target.name}.partial"
    shutil.rmtree(aside, ignore_errors=True)
    backend = model.roi_align["backend"]
    # Sparse matrices are stock too, but lean servers and converters may lack them; adaptive sampling has nothing else.
    model.roi_align["backend"] = "crop" if model.roi_align["sampling_ratio"] else "sparse"
    try:
        archive = keras.export.ExportArchive()
        archive.track(model)
        archive.add_endpoint(
            "serving_default",
            lambda image_bytes: _from_bytes(model, image_bytes),
            input_signature=[tf.TensorSpec([None], tf.string, name="image_bytes")],
        )
        archive.add_endpoint(
            "image",
            lambda images: _from_pixels(model, images),
            input_signature=[tf.TensorSpec([None, None, None, 3], tf.uint8, name="images")],
        )
        # Nobody trains a served model: its gradients stay out.
        options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
        archive.write_out(str(aside), options=options, verbose=False)
        extra = aside / "assets.extra"
        extra.mkdir()
        classes = {"class_names": model.class_names, "category_ids": model.category_ids}
        (extra / "classes.json").write_text(json.dumps(classes, indent=1, ensure_ascii=False))
        os.replace(aside, target)
    except OSError as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise OSError(f"{target}: could not be written ({error}); earlier versions are untouched") from error
    finally:
        model.roi_align["backend"] = backend
    return target


@tf.autograph.experimental.do_not_convert
def _from_pixels(model: MaskRCNN, images: tf.Tensor) -> dict[str, tf.Tensor]:
    original = tf.shape(images)[1:3]
    images, size = model.resize(images)
    canvas = model.canvas_for(size)
    batch = tf.shape(images)[0]
    images = tf.pad(images, [[0, 0], [0, canvas[0] - size[0]], [0, canvas[1] - size[1]], [0, 0]])
    sizes, originals = (tf.tile(tf.cast(s, tf.float32)[None], [batch, 1]) for s in (size, original))
    return _detect(model, images, sizes, originals)


@tf.autograph.experimental.do_not_convert
def _from_bytes(model: MaskRCNN, image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
    # The rule "short_first" may pass the longest side a little.
    side = (-(-model.max_size // 32) + 2) * 32 if model.canvas is None else max(model.canvas)

    def read(data: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        # For PNG and still GIF files, too. TensorFlow's default is up to 19 levels off what every other decoder gives.
        image = tf.io.decode_jpeg(data, channels=3, dct_method="INTEGER_ACCURATE")
        original = tf.shape(image)[:2]
        image, size = model.resize(image)
        size = tf.minimum(size, side)  # beyond that only images a hundred times as long as wide reach
        image = tf.pad(image[:side, :side], [[0, side - size[0]], [0, side - size[1]], [0, 0]])
        return image, size, original

    images, sizes, originals = tf.map_fn(
        read, image_bytes, fn_output_signature=(tf.TensorSpec([side, side, 3]), tf.int32, tf.int32)
    )
    canvas = model.canvas_for(tf.reduce_max(sizes, 0))
    images = images[:, : canvas[0], : canvas[1]]
    return _detect(model, images, tf.cast(sizes, tf.float32), tf.cast(originals, tf.float32))


def _detect(
    model: MaskRCNN, images: tf.Tensor, sizes: tf.Tensor, originals: tf.Tensor
) -> dict[str, tf.Tensor]:
    found = model({"images": images, "image_sizes": sizes}, training=False)
    scale = tf.tile(originals / sizes, [1, 2])[:, None, :]
    return {
        "num_detections": tf.reduce_sum(tf.cast(found["classes"] > 0, tf.int32), 1),
        "detection_boxes": found["boxes"] * scale,
        "detection_scores": found["scores"],
        "detection_classes": found["classes"],
        "detection_masks": tf.cast(tf.round(found["masks"] * 255.0), tf.uint8),
    }
