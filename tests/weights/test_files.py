"""Weight files of other projects are read without running them, or named in one line that says what is wrong."""

import copy
import io
import json
import os
import pickle
import struct
import sys
import tracemalloc
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf

from mrcnn_tf.weights import files
from mrcnn_tf.weights.files import read_tensors

GOLDEN = Path(__file__).parents[1] / "golden"
ARRAYS = {
    "a/weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "fortran": np.asfortranarray(np.arange(6, dtype=np.float64).reshape(2, 3)),
    "count": np.array(7),
    "big-endian": np.arange(3, dtype=">i4"),
    "bool": np.array([True, False]),
    "half": np.array([0.5, -2], np.float16),
    "none": np.zeros((0, 3), np.float32),
}


class Global(NamedTuple):
    """A class or function that need not be there to be pickled."""

    module: str
    name: str


class Call(NamedTuple):
    """A call that is made while unpickling."""

    function: Any
    args: tuple


class Built(NamedTuple):
    """An object whose state is set while unpickling."""

    made: Any
    state: Any


class Text2(bytes):
    """A `str` of Python 2."""


class Storage(NamedTuple):
    kind: str
    key: str


class Writer(pickle._Pickler):
    """Pickles the classes above, in protocol 2 as torch does."""

    dispatch = dict(pickle._Pickler.dispatch)

    def save_global_name(self, value):
        self.write(pickle.GLOBAL + f"{value.module}\n{value.name}\n".encode())

    def save_call(self, value):
        self.save(value.function)
        self.save(value.args)
        self.write(pickle.REDUCE)

    def save_text2(self, value):
        self.write(pickle.BINSTRING + struct.pack("<i", len(value)) + value)

    def save_built(self, value):
        self.save(value.made)
        self.save(value.state)
        self.write(pickle.BUILD)

    dispatch.update({Global: save_global_name, Call: save_call, Built: save_built, Text2: save_text2})

    def persistent_id(self, value):
        if isinstance(value, Storage):
            count = len(STORAGES.get(value.key, ()))
            return ("storage", Global("torch", f"{value.kind}Storage"), value.key, "cpu", count, *self.view)
        return None


def dumps(value, view=()):
    """Bytes are passed on as they are; `view` is None once in torch's old format."""
    if isinstance(value, bytes):
        return value
    stream = io.BytesIO()
    writer = Writer(stream, 2)
    writer.view = view
    writer.dump(value)
    return stream.getvalue()


def tensor(kind="Float", key="0", offset=0, size=(2, 3), stride=(3, 1)):
    rebuild = Global("torch._utils", "_rebuild_tensor_v2")
    return Call(rebuild, (Storage(kind, key), offset, size, stride, False, OrderedDict()))


# torch 2.15 reads what these two write, as was checked by hand.
def torch_zip(path, saved, storages):
    parts = {"data.pkl": dumps(saved), "version": b"3\n"}
    parts |= {f"data/{key}": array.tobytes() for key, array in storages.items()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in parts.items():
            archive.writestr(f"archive/{name}", data)
    return path


def torch_legacy(path, saved, storages):
    head = [0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True}]
    parts = [*map(dumps, head), dumps(saved, (None,)), dumps(list(storages))]
    for array in storages.values():
        parts += [struct.pack("<q", len(array)), array.tobytes()]
    path.write_bytes(b"".join(parts))
    return path


def plain_pickle(path, saved, storages):
    path.write_bytes(dumps(saved))
    return path


TORCH = [torch_zip, torch_legacy]
STORAGE = {"0": np.arange(6, dtype=np.float32)}
STORAGES = {**STORAGE, "1": np.array([1.5, -2], ml_dtypes.bfloat16)}


def safetensors(path, arrays):
    types = {"float32": "F32", "bfloat16": "BF16", "int64": "I64"}
    header, end = {}, 0
    for name, array in arrays.items():
        start, end = end, end + array.nbytes
        header[name] = {"dtype": types[array.dtype.name], "shape": array.shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(a.tobytes() for a in arrays.values()))
    return path


def keras_2(path, layers, root="/"):
    with h5py.File(path, "w") as file:
        for layer, weights in layers.items():
            group = file.require_group(root).create_group(layer)
            group.attrs["weight_names"] = [name.encode() for name in weights]
            for name, value in weights.items():
                group[name] = value
    return path


def assert_same(tensors, expected):
    assert sorted(tensors) == sorted(expected)
    for name, value in expected.items():
        assert tensors[name].shape == np.shape(value), name
        np.testing.assert_array_equal(tensors[name], np.asarray(value), name)


def refusal(path):
    """The message with which a file is refused."""
    with pytest.raises(ValueError) as error:
        read_tensors(path)
    message = str(error.value)
    assert message.startswith(f"{path}: ") and "\n" not in message and len(message) < 500
    return message.removeprefix(f"{path}: ")


@pytest.mark.parametrize("name", ["torch_zip.pth", "torch_legacy.pth"])
def test_files_of_torch_itself(name):
    tensors = read_tensors(GOLDEN / name)
    base = np.arange(6, dtype=np.float32).reshape(2, 3)
    expected = {"base": base, "transposed": base.T, "sliced": [3, 5], "bfloat16": [1.5, -2]}
    assert_same(tensors, {**expected, "count": 7, "parameter": [np.float32(0.9)] * 2})
    assert {n: t.dtype for n, t in tensors.items() if t.dtype != np.float32} == {"count": np.dtype(np.int64)}


@pytest.mark.parametrize("write", TORCH)
def test_views_of_a_torch_storage(tmp_path, write):
    state = OrderedDict(
        row=tensor(offset=3, size=(3,), stride=(1,)),
        transposed=tensor(size=(3, 2), stride=(1, 3)),
        scalar=tensor(offset=5, size=(), stride=()),
        none=tensor(offset=0, size=(0, 3), stride=(3, 1)),
        half=tensor("BFloat16", "1", size=(2,), stride=(1,)),
        parameter=Call(Global("torch._utils", "_rebuild_parameter"), (tensor(), True, OrderedDict())),
        _version=1,
    )
    tensors = read_tensors(write(tmp_path / "a.bin", {"state_dict": state, "epoch": 3}, STORAGES))
    whole = np.arange(6, dtype=np.float32).reshape(2, 3)
    expected = {
        "row": whole[1],
        "transposed": whole.T,
        "scalar": 5,
        "none": np.zeros((0, 3)),
        "half": [1.5, -2],
    }
    assert_same(tensors, {**expected, "parameter": whole})


@pytest.mark.parametrize("write", TORCH)
def test_what_training_scripts_save_beside_the_model(tmp_path, write):
    milestones = Call(Global("collections", "Counter"), ({3: 1},))
    best = Call(Global("numpy._core.multiarray", "scalar"), (np.dtype("f8"), b"\0" * 8))
    saved = {
        "optimizer": {"state": {0: {"momentum": tensor(key="absent")}}, "lr": best},
        "schedule": {"milestones": milestones},
        "args": Call(Global("argparse", "Namespace"), ()),
        "model": {"module.a": tensor(), "module.module.b": tensor()},
    }
    if write is torch_legacy:
        saved["optimizer"]["state"] = {}
    assert sorted(read_tensors(write(tmp_path / "a.pt", saved, STORAGE))) == ["a", "module.b"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"offset": 1},
        {"offset": -1},
        {"size": (2, 4)},
        {"size": (-2, -3)},
        {"stride": (6, 1)},
        {"stride": (-3, 1)},
        {"size": (1 << 40, 6), "stride": (0, 1)},
        {"size": (1 << 62, 1 << 62)},
        {"offset": 1 << 80},
        {"size": (6,)},
        {"size": "ab"},
        {"kind": "QInt8"},
        {"key": "../0"},
    ],
)
@pytest.mark.parametrize("write", TORCH)
def test_tensors_beyond_their_storage(tmp_path, write, wrong):
    refusal(write(tmp_path / "a.pth", {"a": tensor(**wrong)}, STORAGE))


def test_compressed_torch_file(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", dumps({"a": tensor()}))
        archive.writestr("archive/data/0", bytes(100_000))
    assert "has compressed parts" in refusal(tmp_path / "a.pth")


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("key", ["model", "blobs", None])
def test_pickles(tmp_path, protocol, key):
    value = {key: ARRAYS, "__author__": "x", "matching_heuristics": True} if key else ARRAYS
    path = plain_pickle(tmp_path / "a.pkl", pickle.dumps(value, protocol), {})
    assert_same(read_tensors(path), ARRAYS)


def test_pickle_of_python_2(tmp_path):
    data = np.arange(120, 136, dtype=np.float32)  # bytes below and above 127
    array = Call(
        Global("numpy.core.multiarray", "_reconstruct"), (Global("numpy", "ndarray"), (0,), Text2(b"b"))
    )
    dtype = Call(Global("numpy", "dtype"), (Text2(b"f4"), 0, 1))
    dtype = Built(dtype, (3, Text2(b"<"), None, None, None, -1, -1, 0))
    array = Built(array, (1, (4, 4), dtype, False, Text2(data.tobytes())))
    path = plain_pickle(tmp_path / "a.pkl", {Text2(b"blobs"): {Text2(b"conv1_w"): array}}, {})
    assert_same(read_tensors(path), {"conv1_w": data.reshape(4, 4)})


def test_pickles_of_other_than_numbers(tmp_path):
    for value in ([1, 2], {"a": 1}, 5, {"a": np.array([{}], object)}, {"a": np.array(["b"])}):
        refusal(plain_pickle(tmp_path / "a.pkl", pickle.dumps(value), {}))


class Runs:
    """Runs a function when it is unpickled in the usual way."""

    def __init__(self, function, *args):
        self.function, self.args = function, args

    def __reduce__(self):
        return self.function, self.args


def payloads(mark):
    """Pickles that would create the file `mark`."""
    touch = f"touch {mark}"
    opened = f"open({str(mark)!r}, 'w')"
    for protocol in (0, 2, 4):
        yield pickle.dumps({"model": {"a": Runs(os.system, touch)}}, protocol)
        yield pickle.dumps({"model": {"a": Runs(eval, opened)}}, protocol)
        yield pickle.dumps({"model": {"a": Runs(open, str(mark), "w")}}, protocol)
    # Names in steps, by getattr or by dots.
    yield dumps(Call(Call(Global("builtins", "getattr"), (Global("os", "path"), "os")), (touch,)))
    yield dumps({"a": Call(Global("torch._utils", "os.system"), (touch,))})
    yield b"\x80\x04\x8c\x0bcollections\x8c\x14OrderedDict.fromkeys\x93\x8c\x01a\x85R."
    yield b"\x80\x04\x8c\x05numpy\x8c\x0fdtype.__class__\x93."
    # Other ways to make an object.
    yield b"(S'" + touch.encode() + b"'\nios\nsystem\n."
    yield b"(cos\nsystem\nS'" + touch.encode() + b"'\no."
    yield b"\x80\x02\x82\x01."
    # The state of what is allowed to be named.
    for name in (Global("collections", "OrderedDict"), Global("numpy", "dtype")):
        yield dumps({"a": Built(name, {"copy": 1})})
        yield dumps({"a": Built(name, (None, {"__defaults__": ()}))})
        yield dumps({"a": Call(name, (name,))})


@pytest.mark.parametrize("write", [plain_pickle, *TORCH])
def test_nothing_in_a_pickle_is_run(tmp_path, write):
    mark = tmp_path / "ran"
    for payload in payloads(mark):
        message = refusal(write(tmp_path / "a.pkl", payload, STORAGE))
        assert not mark.exists()
        if b"system" in payload and payload[:1] == b"\x80":
            assert "nothing of it was run" in message and "system'" in message
    # The first payload does what it says where nothing forbids it.
    pickle.loads(next(payloads(mark)))
    assert mark.exists()


@pytest.mark.parametrize("opcode", [pickle.BINBYTES8, pickle.BYTEARRAY8, pickle.BINUNICODE8, pickle.FRAME])
def test_claimed_sizes_are_not_reserved(tmp_path, opcode):
    refusal(plain_pickle(tmp_path / "a.pkl", b"\x80\x05" + opcode + struct.pack("<Q", 1 << 46) + b"a.", {}))
    # A place in the memo, for which the unpickler in C makes a table.
    refusal(plain_pickle(tmp_path / "a.pkl", b"\x80\x02Nr\xff\xff\xff\xff.", {}))


def test_nested_tuples_as_a_key(tmp_path):
    refusal(plain_pickle(tmp_path / "a.pkl", b"\x80\x02}N" + b"\x85" * 200_000 + b"Ns.", {}))
    size = b"\x80\x02ctorch\nSize\nq\0)q\x01}" + b"h\0]h\x01a\x85Rq\x010" * 200_000 + b"h\x01Ns."
    refusal(torch_zip(tmp_path / "a.pth", size, {}))


def calls_again(module, function, value):
    """A pickle that keeps what 20 000 calls make of one and the same value."""
    kept = struct.pack("<I", 1 << 20)  # a place in the memo
    call = pickle.GLOBAL + f"{module}\n{function}\n".encode() + pickle.MARK + pickle.LONG_BINGET + kept
    call += (dumps("latin1")[2:-1] if function == "encode" else b"") + pickle.TUPLE + pickle.REDUCE
    return dumps(value)[:-1] + pickle.LONG_BINPUT + kept + call * 20_000 + b"."


@pytest.mark.parametrize(
    "call",
    [
        ("torch", "Size", list(range(100_000))),
        ("collections", "OrderedDict", dict.fromkeys(range(100_000))),
        ("_codecs", "encode", "a" * 100_000),
    ],
)
def test_containers_are_not_copied_again_and_again(tmp_path, call):
    path = torch_zip(tmp_path / "a.pth", calls_again(*call), {})
    tracemalloc.start()
    try:
        assert "again and again" in refusal(path)
        assert tracemalloc.get_traced_memory()[1] < 300 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("write", [plain_pickle, *TORCH])
def test_many_views_of_one_storage(tmp_path, write):
    half = np.zeros(1 << 16, np.float16)
    view = half if write is plain_pickle else tensor("Half", size=half.shape, stride=(1,))
    for count, refused in ((2, False), (1000, True)):
        saved = {str(i): view for i in range(count)}
        path = write(
            tmp_path / "a.pth", pickle.dumps(saved, 2) if write is plain_pickle else saved, {"0": half}
        )
        if refused:
            assert "its tensors would take 262144000" in refusal(path)
        else:
            assert_same(read_tensors(path), dict.fromkeys(saved, half))


def test_parts_of_a_torch_file_over_each_other(tmp_path):
    path = torch_zip(tmp_path / "a.pth", {"a": tensor()}, {"0": np.zeros(1 << 16, np.float32)})
    with zipfile.ZipFile(path, "a") as archive:
        for name in ("data/1", "data/2"):
            entry = copy.copy(archive.getinfo("archive/data/0"))
            entry.filename = f"archive/{name}"
            archive.filelist.append(entry)
        archive.writestr("archive/last", b"")
    assert "larger than the whole file" in refusal(path)


def test_whole_torch_model(tmp_path):
    path = torch_zip(tmp_path / "a.pth", Call(Global("torch.nn.modules.linear", "Linear"), ()), {})
    assert "'torch.nn.modules.linear.Linear'" in refusal(path) and "save its state_dict()" in refusal(path)


def test_npz(tmp_path):
    np.savez(tmp_path / "a.npz", **ARRAYS)
    assert_same(read_tensors(tmp_path / "a.npz"), ARRAYS)
    np.savez(tmp_path / "b.npz", a=np.array([Runs(os.system, f"touch {tmp_path / 'ran'}")]))
    assert "cannot be read as an .npz file" in refusal(tmp_path / "b.npz")
    assert not (tmp_path / "ran").exists()


def test_npz_that_unpacks_to_far_more(tmp_path, monkeypatch):
    path = tmp_path / "a.npz"
    np.savez_compressed(path, zeros=np.zeros(1 << 18, np.float32))
    assert read_tensors(path)["zeros"].nbytes == 1 << 20
    monkeypatch.setattr(files, "INFLATED", 1 << 20)
    assert "would unpack from" in refusal(path)
    np.savez_compressed(path, noise=np.random.default_rng(0).normal(size=1 << 18))
    assert read_tensors(path)["noise"].nbytes == 2 << 20


def test_safetensors(tmp_path):
    pytest.importorskip("safetensors")
    arrays = {"a": ARRAYS["a/weight"], "half": STORAGES["1"], "count": np.array(7)}
    tensors = read_tensors(safetensors(tmp_path / "a.safetensors", arrays))
    assert_same(tensors, arrays)
    assert tensors["half"].dtype == np.float32


def test_safetensors_without_the_library(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    assert "pip install safetensors" in refusal(safetensors(tmp_path / "a.safetensors", STORAGE))


@pytest.mark.parametrize("root", ["/", "model_weights"])
def test_keras_2(tmp_path, root):
    one, two = np.ones(2, np.float32), np.zeros((1, 1, 2, 2), np.float32)
    layers = {
        "conv1": {"conv1_1/kernel:0": two, "conv1_1/bias:0": one},
        "bn": {"model/bn/gamma:0": one, "model/bn/moving_mean:0": one * 3},
        "input": {},
        "rpn_model": {"rpn_class/kernel:0": two, "rpn_class/bias:0": one, "rpn_box/kernel:0": two + 1},
    }
    expected = {"conv1/kernel": two, "conv1/bias": one, "bn/gamma": one, "bn/moving_mean": one * 3}
    expected |= {"rpn_class/kernel": two, "rpn_class/bias": one, "rpn_box/kernel": two + 1}
    assert_same(read_tensors(keras_2(tmp_path / "a.h5", layers, root)), expected)


def test_other_hdf5(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["a"] = [1, 2]
    assert "no tensors by name" in refusal(tmp_path / "a.h5")
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file.create_dataset("a/w", (1 << 40,), "f4", chunks=(64,))
        file["a"].attrs["weight_names"] = ["w"]
    assert "larger than the whole file" in refusal(tmp_path / "b.h5")


def leads_out(file, place, kind, other):
    """Puts at a place in an HDF5 file what leads to `other`, or elsewhere."""
    if kind == "external":
        file.create_dataset(place, (2,), "f4", external=[(str(other), 0, 8)])
    elif kind == "virtual":
        layout = h5py.VirtualLayout((2,), "f4")
        layout[:] = h5py.VirtualSource(str(other), "secret", (2,))
        file.create_virtual_dataset(place, layout)
    elif kind == "soft link":
        file["elsewhere/deep"] = np.ones(2, np.float32)
        file[place] = h5py.SoftLink("/elsewhere/deep")
    else:
        file[place] = h5py.ExternalLink(str(other), "/secret")


@pytest.mark.parametrize("kind", ["external", "virtual", "soft link", "external link"])
def test_hdf5_that_leads_out_of_the_file(tmp_path, kind):
    other = tmp_path / "other.h5"
    with h5py.File(other, "w") as file:
        file["secret"] = np.ones(2, np.float32)
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file.create_group("model_weights/conv1").attrs["weight_names"] = ["model/kernel:0"]
        leads_out(file, "model_weights/conv1/model/kernel:0", kind, other)
    assert "'model_weights/conv1/model/kernel:0'" in refusal(path)


@pytest.mark.parametrize("place", ["model_weights", "model_weights/conv1", "model_weights/conv1/model"])
@pytest.mark.parametrize("kind", ["soft link", "external link"])
def test_hdf5_groups_that_lead_out_of_the_file(tmp_path, place, kind):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        if place.endswith("model"):
            file.create_group("model_weights/conv1").attrs["weight_names"] = ["model/kernel:0"]
        leads_out(file, place, kind, tmp_path / "other.h5")
    assert "has a link at" in refusal(tmp_path / "a.h5")


def test_hdf5_of_other_than_numbers_or_far_too_many(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["a/w"] = ["text", "of any length"]
        file["a"].attrs["weight_names"] = ["w"]
    assert "not of numbers" in refusal(tmp_path / "a.h5")
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["a/0"] = np.zeros(1 << 20, np.float32)
        for i in range(1, 20):
            file[f"a/{i}"] = file["a/0"]
        file["a"].attrs["weight_names"] = [str(i) for i in range(20)]
    assert "far larger than the whole file" in refusal(tmp_path / "b.h5")


def checkpoint(folder):
    weight, half = tf.Variable([1.0, 2.0]), tf.Variable(tf.constant([1.5], tf.bfloat16))
    return tf.train.Checkpoint(weight=weight, half=half).write(str(folder / "model.ckpt-3"))


def test_tensorflow_checkpoint(tmp_path):
    prefix = checkpoint(tmp_path)
    for path in (prefix, f"{prefix}.index", tmp_path):
        tensors = read_tensors(path)
        names = [f"{name}/.ATTRIBUTES/VARIABLE_VALUE" for name in ("weight", "half")]
        assert_same(tensors, dict(zip(names, ([1, 2], [1.5]), strict=True)))
        assert tensors[names[1]].dtype == np.float32
    os.truncate(f"{prefix}.data-00000-of-00001", 9)
    assert "cannot be read as a TensorFlow checkpoint" in refusal(prefix)


def test_folders_without_one_checkpoint(tmp_path):
    assert "a folder with 0 checkpoints" in refusal(tmp_path)
    for name in ("a.index", "b.index"):
        (tmp_path / name).touch()
    assert "a folder with 2 checkpoints" in refusal(tmp_path)


def small_files(folder):
    state = {"a": tensor(), "b": tensor("BFloat16", "1", size=(2,), stride=(1,))}
    yield torch_zip(folder / "zip.pth", state, STORAGES)
    yield torch_legacy(folder / "legacy.pth", state, STORAGES)
    yield plain_pickle(folder / "a.pkl", pickle.dumps({"model": ARRAYS}, 2), {})
    np.savez(folder / "a.npz", a=ARRAYS["a/weight"], b=ARRAYS["count"])
    yield folder / "a.npz"
    yield safetensors(folder / "a.safetensors", STORAGE)
    yield keras_2(folder / "a.h5", {"conv1": {"conv1/kernel:0": np.ones((2, 2), np.float32)}})
    yield Path(f"{checkpoint(folder)}.index")


@pytest.mark.parametrize(
    "name", ["zip.pth", "legacy.pth", "a.pkl", "a.npz", "a.safetensors", "a.h5", "model.ckpt-3.index"]
)
def test_broken_off_and_damaged_files(tmp_path, name):
    if name == "a.safetensors":
        pytest.importorskip("safetensors")
    path = {file.name: file for file in small_files(tmp_path)}[name]
    whole = path.read_bytes()
    for length in {*range(0, len(whole), max(1, len(whole) // 50)), len(whole) - 1}:
        path.write_bytes(whole[:length])
        refusal(path)
    rng = np.random.default_rng(0)
    # libhdf5 can be caught in an endless loop by a changed byte, which nothing here could prevent.
    for _ in range(0 if name == "a.h5" else 20):
        damaged = bytearray(whole)
        damaged[rng.integers(len(whole))] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            read_tensors(path)
        except ValueError as error:
            assert str(error).startswith(str(path))
    path.write_bytes(whole)
    assert read_tensors(path)


@pytest.mark.parametrize(
    "content, reason",
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is only a Git LFS pointer"),
        (b"\n<!DOCTYPE html><html>", "is a web page"),
        (b"<?xml version='1.0'?><Error>AccessDenied</Error>", "is a web page"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 60, "is no file of weights"),
        (b"PK\x03\x04" + b"\0" * 60, "is a broken-off or damaged zip archive"),
        (b"\x80\x02" + b"\0" * 60, "cannot be read as a pickle"),
    ],
)
@pytest.mark.parametrize("name", ["a.pth", "a.h5", "a.safetensors"])
def test_what_is_no_file_of_weights(tmp_path, content, reason, name):
    (tmp_path / name).write_bytes(content)
    assert refusal(tmp_path / name).startswith(reason)


def test_other_zip_archives(tmp_path):
    for name, reason in (
        ("model.weights.h5", "load it with mrcnn_tf.load_model"),
        ("a.txt", "neither a torch"),
    ):
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
            archive.writestr(name, b"")
        assert reason in refusal(tmp_path / "a.zip")


@pytest.mark.parametrize("name", ["gone.pth", "gone.index", "gone/model.ckpt"])
def test_missing_file(tmp_path, name):
    with pytest.raises(FileNotFoundError, match=r"gone.*: no such file of weights"):
        read_tensors(tmp_path / name)
