"""SavedModels for TensorFlow Serving: stock operations only, image bytes or pixels in, compact results out."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tensorflow as tf

from mrcnn_tf.export.card import model_card
from mrcnn_tf.export.check import check_folder
from mrcnn_tf.export.signatures import make_signatures
from mrcnn_tf.export.warmup import write_warmup
from mrcnn_tf.files import save_json
from mrcnn_tf.models.mask_rcnn import MaskRCNN

PRECISIONS = ("float32", "bfloat16")


def export_saved_model(
    model: MaskRCNN,
    folder: str | Path,
    *,
    precision: str | None = None,
    full_masks: bool = False,
    check: bool = True,
    card: Mapping[str, Any] | None = None,
) -> Path:
    """Writes the next version of a servable model.

    Signatures, by their inputs:

    - `serving_default`: `image_bytes`, `[B]` JPEG or PNG files of any sizes; the EXIF orientation is applied;
    - `image`: `images`, uint8 `[B, h, w, 3]` RGB;
    - `compact`: `image_bytes`, `score_threshold` and `iou_threshold`, float32 `[B]`; below 0: the model's own;
    - `full_masks`, if wanted: `image_bytes`.

    They return

    - `num_detections` int32 `[B]`;
    - `detection_boxes` float32 `[B, D, 4]`, `[y1, x1, y2, x2]` in pixels of the image that came in;
    - `detection_scores` float32 `[B, D]`, descending, 0 beyond `num_detections`;
    - `detection_classes` int32 `[B, D]`, 1..K, -1 beyond; `detection_class_names` string, empty beyond;
      `detection_category_ids` int64, the data set's own, -1 beyond;
    - `detection_masks` uint8 `[B, D, m, m]`, probability times 255 on a grid over the box; in `compact` instead
      `detection_masks_bytes`, string `[B, D]`, the same as m * m bytes, which REST sends as base64 and not as numbers;
      in `full_masks` `detection_masks_reframed`, uint8 `[B, D, H, W]`, 1 where the instance is, H and W the largest of
      the batch;
    - `image_size` int32 `[B, 2]`, height and width of the upright image;
    - `status` string `[B]`: `"ok"`, or why an image could not be used. It then has no detections, and size 0.

    In `assets.extra`, `classes.json` names the classes, `model_card.json` tells what the model is, and
    `tf_serving_warmup_requests`, written where `tensorflow-serving-api` is installed, lets a server answer the first
    request as fast as the others.

    Args:
        model: the model; it stays as it is.
        folder: such as `saved_models/quickstart`; the version becomes a numbered folder in it.
        precision: to compute in, `"float32"` or `"bfloat16"`; None: as the model does.
        full_masks: whether to write the signature `full_masks`.
        check: whether to run the folder in a process of its own and compare with `model.detect`.
        card: more for the model card, such as `training_of(run_folder)`.

    Returns:
        The folder of the new version. It appears whole or not at all.

    Raises:
        ValueError: for another precision.
        OSError: it cannot be written.
        ExportError: the folder does not do what the model does.
    """
    if precision not in (None, *PRECISIONS):
        raise ValueError(f"precision is {precision!r}; it must be one of {', '.join(PRECISIONS)}")
    folder = Path(folder)
    aside, logger = None, tf.get_logger()
    level = logger.level
    logger.setLevel("WARNING")  # it would tell where the folder was before it was moved
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # A name that servers do not take for a version, and on the same disk.
        aside = Path(tempfile.mkdtemp(prefix=".partial-", dir=folder))
        signatures = make_signatures(model, precision=precision, full_masks=full_masks)
        # Nobody trains a served model: its gradients stay out.
        options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
        tf.saved_model.save(tf.Module(), str(aside), signatures=signatures, options=options)
        extra = aside / "assets.extra"
        extra.mkdir()
        classes = {"class_names": model.class_names, "category_ids": model.category_ids}
        readable: dict[str, Any] = {"indent": 1, "ensure_ascii": False, "default": str}
        save_json(extra / "classes.json", classes, **readable)
        save_json(extra / "model_card.json", {**model_card(model, precision), **(card or {})}, **readable)
        write_warmup(extra, folder.name)
        if check:
            # In 16 bits, kernels that are fused otherwise round otherwise, even where the model itself has them.
            check_folder(
                model, aside, exact={precision or model.compute_dtype, model.compute_dtype} == {"float32"}
            )
        aside.chmod(0o755)  # temporary folders are their owner's alone; a server may be somebody else
        return put_in_place(aside, folder)
    except (OSError, tf.errors.OpError) as error:
        raise OSError(f"{folder}: could not be written ({error}); earlier versions are untouched") from error
    finally:
        logger.setLevel(level)
        if aside is not None:
            shutil.rmtree(aside, ignore_errors=True)


def put_in_place(aside: Path, folder: Path) -> Path:
    """Makes `aside` the next version in `folder`, even if another process is doing the same."""
    while True:
        versions = [int(p.name) for p in folder.iterdir() if p.name.isdigit()]
        target = folder / str(max(versions, default=0) + 1)
        try:
            os.rename(aside, target)  # never onto a version: those are not empty
            return target
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
