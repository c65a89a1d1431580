"""ONNX files: one image of a fixed size, operations of ONNX's own domain only."""

from __future__ import annotations

from pathlib import Path

from mrcnn_tf.export.static import description, float32_copy, preset, static_function
from mrcnn_tf.files import written_aside
from mrcnn_tf.models.mask_rcnn import MaskRCNN

OPSET = 18


def export_onnx(model: MaskRCNN, file: str | Path, *, size: tuple[int, int] | None = None) -> Path:
    """Writes an ONNX file with the inputs and outputs that `mrcnn_tf.export.static.static_function` tells.

    Its metadata has `classes.json`: class names, category ids and how to resize.

    Args:
        model: the model; it stays as it is. Computed in float32, whatever it was trained in.
        file: to write, such as `model.onnx`.
        size: height and width of the input, multiples of 32; None: those that the model was trained for.

    Raises:
        ValueError: a size out of range, a model that samples adaptively, or a layer that ONNX has no operation for.
        RuntimeError: without `pip install "mrcnn_tf[onnx]"`.
        OSError: the file cannot be written; what was there before is untouched.
    """
    try:
        import onnx
        import tf2onnx
    except ImportError as error:
        raise RuntimeError('ONNX files need packages more: pip install "mrcnn_tf[onnx]"') from error
    file = Path(file)
    copy = float32_copy(model)
    function = static_function(copy, preset(copy, size))
    made, _ = tf2onnx.convert.from_function(function, function.input_signature, opset=OPSET)
    foreign = sorted({f"{node.domain}.{node.op_type}" for node in made.graph.node if node.domain})
    if foreign:
        raise ValueError(f"ONNX has no operation for something in this model ({', '.join(foreign)})")
    del made.opset_import[:]
    made.opset_import.append(onnx.helper.make_opsetid("", OPSET))
    made.metadata_props.add(key="classes.json", value=description(copy))
    onnx.checker.check_model(made, full_check=True)
    with written_aside(file) as aside:
        aside.write_bytes(made.SerializeToString())
    return file
