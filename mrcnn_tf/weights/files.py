"""Files of weights of other projects, of whatever format, as arrays by name."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import h5py
import ml_dtypes
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from mrcnn_tf.weights import torch_file
from mrcnn_tf.weights.pickles import GROWTH, GROWTH_OF_SMALL, Refused, read_pickle

SAFETENSORS_TYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}

# A zip archive may unpack to so many times its size, which no trained weights do, or to so many bytes, since the zeros
# of small or new models shrink to nearly nothing.
INFLATION, INFLATED = 20, 2 << 30


def read_tensors(path: str | Path) -> dict[str, NDArray]:
    """Reads a file of weights; its contents, not its ending, tell the format.

    Args:
        path: a file of torch (`.pth`, `.pt`), a pickle of Detectron or detectron2 (`.pkl`), a `.safetensors`, `.npz`
            or Keras 2 HDF5 file, or a TensorFlow checkpoint: its folder, its `.index` file or what comes before that.

    Returns:
        Arrays by the names that they have in the file, without a "module." that all have. Where a training run saved
        more than its model, only the model, except for TensorFlow, where all is in one. Keras' weights are named
        `layer/kernel`. Half precision becomes float32. Arrays may be read-only and share memory; a file whose arrays
        would be many times its own size is refused, as is an `.npz` file that unpacks to 20 times its size and 2 GiB.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no file of weights, or damaged, or can only be read by running code that it brings along.
    """
    path = Path(path)
    kind, read = _format(path)
    try:
        tensors = {name: widened(array) for name, array in read(path).items()}
    except Refused as error:
        raise ValueError(f"{path}: {error}") from None
    except Exception as error:
        # A damaged file makes each library fail in ways of its own.
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        raise ValueError(
            f"{path}: cannot be read as {kind} ({reason}); if it is damaged, fetch it again"
        ) from error
    if not tensors:
        raise ValueError(
            f"{path}: {kind} in which there are no tensors by name; give a file of a model's weights"
        )
    return tensors


def _format(path: Path) -> tuple[str, Callable[[Path], dict[str, NDArray]]]:
    """The format's name for messages, and its reader."""
    is_index = path.suffix == ".index" and path.exists()
    if path.is_dir() or is_index or path.with_name(f"{path.name}.index").exists():
        return "a TensorFlow checkpoint", _read_checkpoint
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file of weights") from None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror or error})") from None
    if not head:
        reason = "is empty; fetch it again"
    elif head.startswith(b"version https://git-lfs"):
        reason = "is only a Git LFS pointer to the file; run git lfs pull, or download the file itself"
    elif head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
        reason = "is a web page, not weights; open the address it came from in a browser to see why"
    elif head.startswith(b"PK\x03\x04"):
        return _zip_format(path)
    elif head.startswith(b"\x89HDF\r\n\x1a\n"):
        return "a Keras 2 HDF5 file", _read_hdf5
    elif head[6:9] == b"\0\0{":  # eight bytes of length, then JSON
        return "a safetensors file", _read_safetensors
    elif torch_file.LEGACY_MAGIC in head:
        return "a torch file", torch_file.read_legacy
    elif head.startswith(b"\x80") or path.suffix == ".pkl":  # the oldest pickles start with anything
        return "a pickle", read_pickle
    else:
        reason = (
            "is no file of weights; give a .pth, .pkl, .safetensors, .npz, .h5 or the .index of a checkpoint"
        )
    raise ValueError(f"{path}: {reason}")


def _zip_format(path: Path) -> tuple[str, Callable[[Path], dict[str, NDArray]]]:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except Exception as error:
        raise ValueError(
            f"{path}: is a broken-off or damaged zip archive ({error}); fetch it again"
        ) from error
    if any(name.endswith("/data.pkl") for name in names):
        return "a torch file", torch_file.read_zip
    if all(name.endswith(".npy") for name in names):
        return "an .npz file", _read_npz
    if "model.weights.h5" in names:
        raise ValueError(f"{path}: is a model file of Keras 3; load it with mrcnn_tf.load_model")
    raise ValueError(
        f"{path}: is a zip archive, but neither a torch nor an .npz file; give the file inside it"
    )


def _read_checkpoint(path: Path) -> dict[str, NDArray]:
    """All numbers in a TensorFlow checkpoint, optimizer included."""
    prefix = path.with_suffix("") if path.suffix == ".index" else path
    if path.is_dir():
        found = sorted(index.with_suffix("") for index in path.glob("*.index"))
        latest = tf.train.latest_checkpoint(str(path))
        if latest is None and len(found) != 1:
            raise Refused(
                f"is a folder with {len(found)} checkpoints and none named as its latest; give one .index file"
            )
        prefix = Path(latest or found[0])
    reader = tf.train.load_checkpoint(str(prefix))
    types = reader.get_variable_to_dtype_map()
    return {name: np.asarray(reader.get_tensor(name)) for name, dtype in types.items() if dtype != tf.string}


def _read_npz(path: Path) -> dict[str, NDArray]:
    with zipfile.ZipFile(path) as archive:
        check_inflation(archive, path)
    return dict(np.load(path, allow_pickle=False))


def check_inflation(archive: zipfile.ZipFile, path: Path) -> None:
    """Refuses an archive that would unpack to far more than weights can."""
    total, size = sum(entry.file_size for entry in archive.infolist()), path.stat().st_size
    if total > max(INFLATION * size, INFLATED):
        raise Refused(f"would unpack from {size} to {total} bytes, which no weights do; fetch it elsewhere")


def _read_hdf5(path: Path) -> dict[str, NDArray]:
    """Weights by `layer/kernel` and so on; where a layer is a model of its own, by its layers' names."""
    places: dict[str, str] = {}
    with h5py.File(path) as file:
        # As a list, since `in` alone would follow links.
        root = "model_weights/" if "model_weights" in list(file) else ""
        for layer in hdf5_item(file, root) if root else file:
            group = hdf5_item(file, root + layer)
            # Keras' names are such as `conv1/kernel:0` or `model/conv1/kernel:0`.
            names = [n.decode() if isinstance(n, bytes) else n for n in group.attrs.get("weight_names", ())]
            parts = [name.partition(":")[0].split("/") for name in names]
            is_model = len({part[-1] for part in parts}) < len(parts)
            for name, part in zip(names, parts, strict=True):
                key = "/".join(part[-2:]) if is_model else f"{layer}/{part[-1]}"
                if key in places:
                    raise Refused(f"holds two weights {key!r}; save the model's parts one by one")
                places[key] = f"{root}{layer}/{name}"
        return hdf5_arrays(file, places, path.stat().st_size)


def hdf5_item(file: h5py.Group, place: str) -> h5py.Group | h5py.Dataset:
    """A group or dataset; Refused if it is elsewhere: a file can name others of this machine, as if they were in it."""
    item = file
    for part in filter(None, place.split("/")):
        link = item.get(part, getlink=True)
        if link is None:
            raise Refused(f"lacks {place!r}, which its names of weights tell of; fetch it again")
        if not isinstance(link, h5py.HardLink):
            raise Refused(f"has a link at {place!r}, which may lead to other files; save the model again")
        item = item[part]
    if isinstance(item, h5py.Dataset) and (item.external or item.is_virtual):
        raise Refused(f"has the numbers of {place!r} in other files; save the model again, in one file")
    return item


def hdf5_arrays(file: h5py.File, places: Mapping[str, str], size: int) -> dict[str, NDArray]:
    """Arrays by the names of `places`, each from its place in an HDF5 file of `size` bytes."""
    arrays, left = {}, GROWTH * size + GROWTH_OF_SMALL
    for name, place in places.items():
        dataset = hdf5_item(file, place)
        # Keras' way of writing a type that HDF5 lacks.
        is_bfloat16 = dataset.dtype == "V2" and dataset.attrs.get("dtype") == "bfloat16"
        if dataset.dtype.kind not in "biuf" and not is_bfloat16:
            raise Refused(f"has {place!r} of type {dataset.dtype}, not of numbers; leave it out")
        if dataset.nbytes > size:
            raise Refused(f"has {place!r} larger than the whole file, so it is damaged; fetch it again")
        left -= dataset.nbytes
        if left < 0:
            raise Refused("has weights that are far larger than the whole file; save the model again")
        arrays[name] = dataset[()].view(ml_dtypes.bfloat16) if is_bfloat16 else dataset[()]
    return arrays


def _read_safetensors(path: Path) -> dict[str, NDArray]:
    try:
        from safetensors import deserialize
    except ImportError:
        raise Refused("needs a library to be read; install it with pip install safetensors") from None
    # The library's own conversion to NumPy lacks bfloat16.
    return {
        name: np.frombuffer(part["data"], SAFETENSORS_TYPES[part["dtype"]]).reshape(part["shape"])
        for name, part in deserialize(path.read_bytes())
    }


def widened(array: NDArray) -> NDArray:
    """The array, in single precision if it is in half."""
    return array.astype(np.float32) if array.dtype in (np.float16, ml_dtypes.bfloat16) else array
