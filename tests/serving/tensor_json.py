"""The JSON of TensorFlow Serving's REST interface: requests to tensors, tensors to replies (its `json_tensor.cc`)."""

from __future__ import annotations

import base64
import binascii
import json
from typing import Any

import numpy as np
import tensorflow as tf
from grpc import StatusCode


class Failure(Exception):
    """An error with one of gRPC's codes, as absl::Status is."""

    def __init__(self, code: StatusCode, message: str) -> None:
        super().__init__(message)
        self.code = code


def invalid(message: str) -> Failure:
    return Failure(StatusCode.INVALID_ARGUMENT, message)


def parse(body: bytes) -> tuple[dict[str, Any], str]:
    """A request and the signature that it names, if any."""
    if not body:
        raise invalid("JSON Parse error: The document is empty")
    try:
        # What follows the first value is not looked at.
        document = json.JSONDecoder().raw_decode(body.decode().lstrip())[0]
    except ValueError as error:
        raise invalid(f"JSON Parse error: Invalid value. at offset: {getattr(error, 'pos', 0)}") from error
    if not isinstance(document, dict):
        raise invalid(f"JSON Value: {show(document)} Is not object")
    signature = document.get("signature_name", "")
    if not isinstance(signature, str):
        raise invalid(
            f"JSON Value: {show(document)} not formatted correctly. 'signature_name' key must be a string value."
        )
    return document, signature


def tensors(document: dict[str, Any], infos: dict[str, Any]) -> tuple[bool, dict[str, np.ndarray]]:
    """Whether a request is in the row format, and its tensors.

    Args:
        document: the request.
        infos: the signature's inputs by name, each with its dtype.
    """
    dtypes = {name: tf.dtypes.as_dtype(infos[name].dtype).as_numpy_dtype for name in sorted(infos)}
    if "instances" in document and "inputs" in document:
        raise invalid(
            f"JSON Value: {show(document)} Not formatted correctly expecting only one of 'inputs' or 'instances' "
            "keys to exist "
        )
    if "instances" in document:
        return True, from_rows(document, dtypes)
    if "inputs" in document:
        return False, from_columns(document["inputs"], dtypes)
    raise invalid("Missing 'inputs' or 'instances' key")


def from_rows(document: dict[str, Any], dtypes: dict[str, Any]) -> dict[str, np.ndarray]:
    rows = document["instances"]
    if not isinstance(rows, list):
        raise invalid(f"JSON Value: {show(document)} Expecting 'instances' to be an list/array")
    if not rows:
        raise invalid(f"JSON Value: {show(document)} No values in 'instances' array")
    if not isinstance(rows[0], dict) and len(dtypes) > 1:
        raise invalid(
            "instances is a plain list, but expecting list of objects as multiple input tensors required as per "
            "tensorinfo_map"
        )
    named = isinstance(rows[0], dict) and not is_base64(rows[0])
    columns: dict[str, list[np.ndarray]] = {}
    for i, row in enumerate(rows):
        if (isinstance(row, dict) and not is_base64(row)) != named:
            found, needed = ("list", "object") if named else ("object", "value/list")
            raise invalid(f"Expecting {needed} but got {found} at item {i} of input list")
        items = row if named else {next(iter(dtypes)): row}
        for name, value in items.items():
            key = f" key: {name}" if named else ""
            try:
                if name not in dtypes:
                    raise invalid(f"JSON object: does not have named input: {name}")
                array = tensor(value, dtypes[name])
                first = columns.setdefault(name, [array])[0]
                if array.size != first.size:
                    raise invalid(f"Expecting tensor size: {first.size} but got: {array.size}")
                if array.shape != first.shape:
                    shapes = [str(list(a.shape)).replace(" ", "") for a in (first, array)]
                    raise invalid(f"Expecting shape {shapes[0]} but got: {shapes[1]}")
                columns[name] += [array] if i else []
            except Failure as error:
                raise invalid(
                    f"Failed to process element: {i}{key} of 'instances' list. Error: INVALID_ARGUMENT: {error}"
                ) from error
        if set(items) != set(dtypes):
            raise invalid(
                f"Failed to process element: {i} of 'instances' list. JSON object: {show(row)} keys must be equal to: "
                + ",".join(dtypes)
            )
    return {name: np.stack(arrays) for name, arrays in columns.items()}


def from_columns(inputs: Any, dtypes: dict[str, Any]) -> dict[str, np.ndarray]:
    if not isinstance(inputs, dict) or is_base64(inputs):
        if len(dtypes) > 1:
            raise invalid(
                "inputs is a plain value/list, but expecting an object as multiple input tensors required as per "
                "tensorinfo_map"
            )
        inputs = {next(iter(dtypes)): inputs}
    for name in dtypes:
        if name not in inputs:
            raise invalid(f"Missing named input: {name} in 'inputs' object.")
    return {name: tensor(inputs[name], dtype) for name, dtype in dtypes.items()}


def tensor(value: Any, dtype: Any) -> np.ndarray:
    """A JSON value as a dense tensor; its first elements tell its shape."""
    shape, inner = [], value
    while isinstance(inner, list):
        shape.append(len(inner))
        inner = inner[0] if inner else None
    leaves: list[Any] = []

    def fill(value: Any, level: int) -> None:
        if not isinstance(value, list):
            if level != len(shape):
                raise invalid(
                    f"JSON Value: {show(value)} found at incorrect level: {level + 1} in the JSON DOM. "
                    f"Expected at level: {len(shape)}"
                )
            leaves.append(scalar(value, dtype))
            return
        if level >= len(shape):
            raise invalid(f"Encountered list at unexpected level: {level} expected < {len(shape)}")
        if len(value) != shape[level]:
            raise invalid(
                f"Encountered list at unexpected size: {len(value)} at level: {level} expected size: {shape[level]}"
            )
        for item in value:
            fill(item, level + 1)

    fill(value, 0)
    array = np.empty(len(leaves), dtype)
    array[:] = leaves
    return array.reshape(shape)


def scalar(value: Any, dtype: Any) -> Any:
    """A JSON value that is no list, as an element of a tensor."""
    if is_string(dtype):
        if isinstance(value, str):
            return value.encode()
        if isinstance(value, dict):
            if not is_base64(value):
                raise invalid(f"JSON Value: {show(value)} not formatted correctly for base64 data")
            try:
                return base64.b64decode(value["b64"], validate=True)
            except binascii.Error as error:
                raise invalid("Unable to base64 decode") from error
    elif np.issubdtype(dtype, np.floating):
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return value
    elif np.issubdtype(dtype, np.integer):
        if isinstance(value, int) and not isinstance(value, bool):
            return np.int64(value).astype(dtype)
    elif isinstance(value, bool):
        return value
    kinds = {dict: "Object", list: "Array", str: "String", bool: str(value), type(None): "Null"}
    raise invalid(
        f"JSON Value: {show(value)} Type: {kinds.get(type(value), 'Number')} is not of expected type: "
        + tf.dtypes.as_dtype(dtype).name
    )


def is_string(dtype: Any) -> bool:
    return np.dtype(dtype) == np.dtype(object)


def is_base64(value: Any) -> bool:
    return isinstance(value, dict) and list(value) == ["b64"] and isinstance(value["b64"], str)


def show(value: Any) -> str:
    """A JSON value in an error message, cut like the server's."""
    return json.dumps(value, ensure_ascii=False)[:256]


def write_json(outputs: dict[str, np.ndarray], by_row: bool) -> str:
    """The reply, laid out as the server's: by row an array has one line, by column each of its numbers has."""
    if not by_row:
        values = {name: encoded(name, array) for name, array in outputs.items()}
        return (
            "{\n"
            + f'    "outputs": {lines(values if len(values) > 1 else next(iter(values.values())), 1)}\n'
            + "}"
        )
    size = None
    for name, array in outputs.items():
        if array.ndim == 0:
            raise invalid(f"Tensor name: {name} has no shape information ")
        if size not in (None, len(array)):
            raise invalid(f"Tensor name: {name} has inconsistent batch size: {len(array)} expecting: {size}")
        size = len(array)
    values = {name: encoded(name, array) for name, array in outputs.items()}
    if len(values) == 1:
        rows = ", ".join(one_line(value, 2) for value in next(iter(values.values())))
        return '{\n    "predictions": [' + rows + "\n    ]\n}"
    rows = []
    for i in range(size or 0):
        fields = ",\n".join(f"{' ' * 12}{json.dumps(k)}: {one_line(v[i], 3)}" for k, v in values.items())
        rows.append(f"{' ' * 8}{{\n{fields}\n{' ' * 8}}}")
    return '{\n    "predictions": [\n' + ",\n".join(rows) + "\n    ]\n}"


def encoded(name: str, array: np.ndarray) -> Any:
    """An output as nested lists whose leaves are written JSON, or base64 objects where the name ends in `_bytes`."""

    def leaf(value: Any) -> Any:
        if isinstance(value, bytes):
            if name.endswith("_bytes"):
                return {"b64": json.dumps(base64.b64encode(value).decode())}
            return json.dumps(value.decode("utf-8", "replace"), ensure_ascii=False)
        return decimal(value, array.dtype) if isinstance(value, float) else json.dumps(value)

    def walk(value: Any) -> Any:
        return [walk(v) for v in value] if isinstance(value, list) else leaf(value)

    return walk(array.tolist())


def decimal(value: float, dtype: np.dtype) -> str:
    """Six digits, or as many as tell the number from its neighbours."""
    if not np.isfinite(value):
        return "NaN" if np.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    text = f"{value:g}"
    if dtype.type(text) != dtype.type(value):
        text = f"{value:.{9 if dtype == np.float32 else 17}g}"
    return text if "." in text or "e" in text else text + ".0"


def one_line(value: Any, level: int) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(one_line(v, level + 1) for v in value) + "]"
    return lines(value, level)


def lines(value: Any, level: int) -> str:
    pad = "\n" + " " * 4 * (level + 1)
    if isinstance(value, list):
        inner = ",".join(pad + lines(v, level + 1) for v in value)
        return f"[{inner}{pad[:-4]}]" if value else "[]"
    if isinstance(value, dict):
        inner = ",".join(f"{pad}{json.dumps(k)}: {lines(v, level + 1)}" for k, v in value.items())
        return f"{{{inner}{pad[:-4]}}}"
    return value
