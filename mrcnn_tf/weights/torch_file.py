"""Files of torch.save, in its zip format and in the one before torch 1.6, read without torch."""

from __future__ import annotations

import functools
import io
import math
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from mrcnn_tf.weights.pickles import (
    NAMES,
    Leaf,
    Refused,
    Unpickler,
    check_growth,
    model_leaves,
    nothing,
    uncopied,
)

# A file of the old format starts with a pickle of one long integer, which ends in these bytes.
LEGACY_MAGIC = b"\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19."

STORAGES: dict[str, Any] = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "UntypedStorage": np.uint8,
    "BoolStorage": np.bool_,
}


def read_zip(path: Path) -> dict[str, NDArray]:
    """Tensors of a file of torch 1.6 or later.

    Raises:
        Refused: it needs code to be run, or has what torch.save does not write for a state_dict.
        Exception: of many kinds, if it is damaged.
    """
    size = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        # Every part is in one folder, of any name.
        entries = {entry.filename.partition("/")[2]: entry for entry in archive.infolist()}
        # torch.save compresses nothing; what is compressed could unpack to any size.
        if any(e.compress_type != zipfile.ZIP_STORED for e in entries.values()):
            raise Refused(
                "has compressed parts, as a TorchScript program; save the model's state_dict() instead"
            )
        # Those that lie over each other would each be read into memory of its own.
        if sum(e.file_size for e in entries.values()) > size:
            raise Refused("has parts that are larger than the whole file, so it is damaged; fetch it again")
        if "byteorder" in entries:
            _check_byte_order(archive.read(entries["byteorder"]) == b"little")
        pickled = io.BytesIO(archive.read(entries["data.pkl"]))
        leaves = model_leaves(Unpickler(pickled, TORCH_NAMES, _storage).load())
        return _tensors(leaves, functools.cache(lambda key: archive.read(entries[f"data/{key}"])), size)


def read_legacy(path: Path) -> dict[str, NDArray]:
    """Tensors of a file in the format before torch 1.6.

    It is a row of pickles (magic number, version, machine, the object, keys of the storages), then the storages
    in the order of their keys, each behind its count of elements.

    Raises:
        Refused, Exception: as `read_zip`.
    """
    content = path.read_bytes()
    stream = io.BytesIO(content)
    dtypes: dict[str, np.dtype] = {}

    def storage(saved: Any) -> tuple[np.dtype, str]:
        dtype, key = _storage(saved)
        dtypes[key] = dtype
        return dtype, key

    _, _, machine = (Unpickler(stream, {}).load() for _ in range(3))
    _check_byte_order(machine["little_endian"])
    leaves = model_leaves(Unpickler(stream, TORCH_NAMES, storage).load())
    keys = Unpickler(stream, {}).load()
    storages: dict[str, memoryview] = {}
    end = stream.tell()
    for key in keys:
        start = end + 8
        end = start + int.from_bytes(content[end:start], "little") * dtypes[key].itemsize
        if end > len(content):
            raise Refused(
                f"is broken off: {len(content)} bytes where {end} or more are needed; fetch it again"
            )
        storages[key] = memoryview(content)[start:end]
    return _tensors(leaves, storages.__getitem__, len(content))


def _check_byte_order(little: bool) -> None:
    if not little:
        raise Refused("was written on a big-endian machine; save it again on another")


def _storage(saved: Any) -> tuple[np.dtype, str]:
    """Type and key of a storage; the numbers themselves are outside of the pickle."""
    kind, dtype, key, _, _, *view = saved
    if kind != "storage" or not isinstance(dtype, np.dtype) or view not in ([], [None]):
        raise Refused(
            "holds something else than tensors and their storages; save the model's state_dict() instead"
        )
    return dtype, key


def _tensors(
    leaves: dict[str, Any], read: Callable[[str], bytes | memoryview], size: int
) -> dict[str, NDArray]:
    """Reads the storages of these leaves only: an optimizer's state, often twice the model's, is left where it is."""
    tensors = {k: v if isinstance(v, np.ndarray) else _tensor(read, *v) for k, v in leaves.items()}
    check_growth(tensors.values(), size)
    return tensors


def _tensor(
    read: Callable[[str], bytes | memoryview],
    storage: tuple[np.dtype, str],
    offset: int,
    size: tuple[int, ...],
    stride: tuple[int, ...],
) -> NDArray:
    """A view of a storage; offset and strides are counted in elements."""
    dtype, key = storage
    data = read(key)
    count, available = math.prod(size), len(data) // dtype.itemsize
    # Checked here, as np.ndarray takes a negative offset. A stride of 0 could claim any size.
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if min((offset, *size, *stride)) < 0 or count > available or (count and last >= available):
        raise Refused(
            "holds a tensor that does not fit its storage; fetch it again, or save a contiguous() copy of it"
        )
    if not count:
        return np.empty(size, dtype)
    return np.ndarray(size, dtype, data, offset * dtype.itemsize, [step * dtype.itemsize for step in stride])


def _rebuild_tensor(storage: Any, offset: Any, size: Any, stride: Any, *args: Any) -> Leaf:
    # In the old format the storages come behind the pickle, so that the tensor is made later.
    return Leaf((storage, offset, size, stride))


TORCH_NAMES: dict[tuple[str, str], Any] = {
    **NAMES,
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): lambda tensor, *args: tensor,
    ("torch", "Size"): uncopied(list, tuple),  # makes no tuples, for the reason of `_not_nested`
    ("torch", "device"): nothing,
    **{
        (module, name): np.dtype(dtype)
        for module in ("torch", "torch.cuda", "torch.storage")
        for name, dtype in STORAGES.items()
    },
}
