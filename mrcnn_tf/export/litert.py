"""LiteRT (TensorFlow Lite) files: one image of a fixed size, built-in operations only, float32, float16 or int8."""

from __future__ import annotations

import io
import os
import re
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

# TensorFlow has no public name for the file format's own.
from tensorflow.lite.python import schema_py_generated as schema

from mrcnn_tf.data.images import read_image
from mrcnn_tf.export.litert_model import CLASSES, Agreement, LiteRTModel, agreement
from mrcnn_tf.export.static import description, float32_copy, letterbox, preset, static_function
from mrcnn_tf.files import written_aside
from mrcnn_tf.models.mask_rcnn import MaskRCNN

PRECISIONS = ("float32", "float16", "int8")
# More images change the ranges little, and each is run with all that it computes kept in memory.
CALIBRATION_IMAGES = 50
COMPARED_IMAGES = 10


@dataclass(frozen=True)
class LiteRTReport:
    """What was written.

    Attributes:
        file: the file.
        size: height and width of its input.
        precision: one of `PRECISIONS`.
        num_bytes: its size.
        operations: how many there are of each built-in operation.
        agreement: with the Keras model on the calibration images; None without any.
    """

    file: Path
    size: tuple[int, int]
    precision: str
    num_bytes: int
    operations: dict[str, int]
    agreement: Agreement | None

    def __str__(self) -> str:
        """Some lines for people."""
        lines = [
            f"{self.file}: {self.precision}, {self.size[0]}x{self.size[1]}, {self.num_bytes / 1e6:.1f} MB, "
            f"{sum(self.operations.values())} operations of {len(self.operations)} kinds, all built-in"
        ]
        return "\n".join(lines if self.agreement is None else [*lines, str(self.agreement)])


def export_litert(
    model: MaskRCNN,
    file: str | Path,
    *,
    size: tuple[int, int] | None = None,
    precision: str = "float32",
    calibration: str | Path | Iterable[NDArray[np.uint8]] | None = None,
) -> LiteRTReport:
    """Writes a LiteRT file; `mrcnn_tf.export.static.static_function` tells its inputs and outputs.

    It can also be opened as a zip archive, whose `classes.json` holds class names, category ids and how to resize.

    Args:
        model: the model; it stays as it is. Computed in float32, whatever it was trained in.
        file: to write, such as `model.tflite`.
        size: height and width of the input, multiples of 32; None: those that the model was trained for.
        precision: `"float32"`; `"float16"`, weights of half the size; or `"int8"`: convolutions and matrix products in
            integers, and with them the whole backbone and pyramid, unless these have group norms or deformable
            convolutions. Boxes, RoIAlign and scores stay float32: a step of an 8-bit coordinate would be pixels wide.
        calibration: uint8 RGB images or a folder of images, like those that the file will see; of a folder, at most 50,
            spread over it. From them come the ranges of int8, and on the first ten the file is compared with the model.

    Raises:
        ValueError: a size or precision out of range, no images for int8, or a model that samples adaptively.
        RuntimeError: int8 without `pip install "mrcnn_tf[litert]"`.
        OSError: images cannot be read, or the file cannot be written; what was there before is untouched.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision is {precision!r}; it must be one of {', '.join(PRECISIONS)}")
    if precision == "int8":
        if calibration is None:
            raise ValueError("int8 needs calibration images: some dozens, like those that the model will see")
        try:
            import ai_edge_quantizer  # noqa: F401  # before minutes of other work
        except ImportError as error:
            raise RuntimeError('int8 needs a package more: pip install "mrcnn_tf[litert]"') from error
    file = Path(file)
    copy = float32_copy(model)
    size = preset(copy, size)
    images = [letterbox(image, size, copy.interpolation) for image in calibration_images(calibration)]
    data = convert(copy, size, float16=precision == "float16")
    if precision == "int8":
        data = quantize(data, images, copy)
    data = with_classes(data, description(copy))
    with written_aside(file) as aside:
        aside.write_bytes(data)
    compared = images[:COMPARED_IMAGES]
    return LiteRTReport(
        file=file,
        size=size,
        precision=precision,
        num_bytes=len(data),
        operations=operations(data),
        agreement=agreement(float32_copy(model), LiteRTModel(file), compared) if compared else None,
    )


def calibration_images(source: str | Path | Iterable[NDArray[np.uint8]] | None) -> list[NDArray[np.uint8]]:
    """The images themselves, see `export_litert`.

    Raises:
        FileNotFoundError: no such folder, or nothing in it that OpenCV reads.
        ValueError: an empty list, or something that is not an image.
    """
    if source is None:
        return []
    if isinstance(source, (str, Path)):
        folder = Path(source)
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder}: no such folder of calibration images")
        files = [
            path for path in sorted(folder.iterdir()) if path.is_file() and cv2.haveImageReader(str(path))
        ]
        if not files:
            raise FileNotFoundError(f"{folder}: no images in this folder")
        chosen = np.linspace(0, len(files) - 1, min(len(files), CALIBRATION_IMAGES)).astype(int)
        return [read_image(files[i]) for i in chosen]
    images = [np.asarray(image) for image in source]
    if not images:
        raise ValueError("calibration holds no images")
    for image in images:
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise ValueError(
                f"a calibration image must be uint8 [height, width, 3] in RGB order, not {image.dtype} {image.shape}"
            )
    return images


def convert(model: MaskRCNN, size: tuple[int, int], *, float16: bool = False) -> bytes:
    """The file's bytes, in float32 or with float16 weights."""
    function = static_function(model, size).get_concrete_function()
    # The converter makes constants of a module's variables. Of Keras' it does not know, and a graph that holds
    # constants from the start takes 50 times their size of memory to convert.
    holder = tf.Module()
    holder.variables_of_model = [weight.value for weight in model.variables]
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function], holder)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
    if float16:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.target_spec.supported_types = [tf.float16]
    return converter.convert()


def quantize(data: bytes, images: list[tuple[NDArray, NDArray]], model: MaskRCNN) -> bytes:
    """A float32 file in int8, see `export_litert`; `images` are its inputs."""
    from ai_edge_quantizer import calibrator, qtyping, quantizer

    # TensorFlow's own post-training quantizer cannot leave operations out reliably: it also rounds box coordinates.
    tool = quantizer.Quantizer(data)
    kind = qtyping.TFLOperationName
    integer: dict[str, tuple] = {".*": (kind.CONV_2D, kind.FULLY_CONNECTED)}
    for part in (model.backbone, model.fpn):
        # A group norm's statistics need more than 8 bits, and a deformable convolution computes indices.
        if part.norm != "group" and not getattr(part, "deformable", ()):
            integer[rf"/{re.escape(part.name)}(_\d+)*/"] = (
                *(kind.ADD, kind.PAD, kind.MAX_POOL_2D),
                *(kind.RESHAPE, kind.BROADCAST_TO, kind.STRIDED_SLICE),
            )
    for scope, kinds in integer.items():
        for operation in kinds:
            tool.add_static_config(scope, operation, activation_num_bits=8, weight_num_bits=8)
    inputs = [{"image": image, "image_size": used} for image, used in images]
    mode = (
        calibrator.CalibrationMode.CALIBRATION_PROFILER_BASED
    )  # the other keeps all that is computed in memory
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # for debuggers of the quantizer
        ranges = tool.calibrate({"serving_default": inputs}, num_threads=os.cpu_count() or 1, mode=mode)
        made = tool.quantize(ranges, enable_progress_bar=False, enable_progress_report=False)
    return bytes(made.quantized_model)


def with_classes(data: bytes, text: str) -> bytes:
    """The same file with a zip archive behind it, the format's own way to carry other files."""
    buffer = io.BytesIO(data)
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr(CLASSES, text)
    return buffer.getvalue()


def operations(data: bytes) -> dict[str, int]:
    """How many there are of each operation; those that are not built in begin with `custom `."""
    names = {code: name for name, code in vars(schema.BuiltinOperator).items() if isinstance(code, int)}
    file = schema.Model.GetRootAs(data)
    kinds = []
    for i in range(file.OperatorCodesLength()):
        code = file.OperatorCodes(i)
        custom = code.CustomCode()
        builtin = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
        kinds.append(names[builtin] if custom is None else f"custom {custom.decode()}")
    graphs = [file.Subgraphs(i) for i in range(file.SubgraphsLength())]
    return dict(
        Counter(
            kinds[graph.Operators(i).OpcodeIndex()]
            for graph in graphs
            for i in range(graph.OperatorsLength())
        ).most_common()
    )
