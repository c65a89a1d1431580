"""Pickled weights, read without running anything that the pickle says."""

from __future__ import annotations

import io
import pickle
import re
from collections.abc import Callable, Iterable, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Where training scripts keep the model among optimizer, epoch and arguments; "blobs" is Detectron's.
MODEL_KEYS = ("model", "state_dict", "model_state_dict", "blobs")

# The unpickler that is written in Python: only there single opcodes can be replaced, and the one in C reserves
# whatever memory a file claims to need. Any, as type checkers know only the one in C.
PythonUnpickler: Any = pickle._Unpickler

# Old and rare ways to make objects; EXT1 to EXT4 can pass by `find_class`.
BANNED = b"".join([pickle.INST, pickle.OBJ, pickle.NEWOBJ_EX, pickle.EXT1, pickle.EXT2, pickle.EXT4])
TUPLES = b"".join([pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3])

# How many times its own size a file may take in memory, and what any file may: weights in half precision double,
# some are named twice, but a small file can name one storage of its a million times.
GROWTH, GROWTH_OF_SMALL = 4, 16 << 20


class Refused(ValueError):
    """A file that will not be read; says why and what to do, and leaves the file's name to the caller."""


@dataclass
class Leaf:
    """What is no plain container: a numpy type or array, which pickles complete later, or a torch tensor."""

    value: Any = None


def read_pickle(path: Path) -> dict[str, NDArray]:
    """Arrays of a pickle of Detectron or detectron2, written with Python 2 or 3.

    Raises:
        Refused: it needs code to be run.
        Exception: of many kinds, if it is damaged.
    """
    content = path.read_bytes()
    arrays = model_leaves(Unpickler(io.BytesIO(content), NAMES).load())
    check_growth(arrays.values(), len(content))
    return arrays


def check_growth(arrays: Iterable[NDArray], size: int) -> None:
    """Refuses arrays that share memory of a file of this size, but once each has its own, are far larger."""
    total = sum(a.nbytes * (2 if a.itemsize == 2 else 1) for a in arrays)  # half precision is widened
    if total > GROWTH * size + GROWTH_OF_SMALL:
        raise Refused(
            f"holds {size} bytes, but its tensors would take {total}, as they share them; save a clone() of each"
        )


def model_leaves(tree: Any) -> dict[str, Any]:
    """The model's arrays or tensors by name, out of whatever was saved with them; what is none is left out.

    The prefix "module." of torch's DataParallel is taken off.
    """
    if not isinstance(tree, dict):
        return {}
    model = next((tree[key] for key in MODEL_KEYS if isinstance(tree.get(key), dict)), tree)
    leaves = {k: v.value for k, v in model.items() if isinstance(k, str) and isinstance(v, Leaf)}
    prefix = "module." if all(k.startswith("module.") for k in leaves) else ""
    return {k.removeprefix(prefix): v for k, v in leaves.items()}


def _not_nested(load_tuple: Callable[[Any], None]) -> Callable[[Any], None]:
    """An opcode for a tuple that makes a list if there are tuples in it: a key of very many crashes Python."""

    def load(unpickler: Any) -> None:
        load_tuple(unpickler)
        if any(isinstance(item, tuple) for item in unpickler.stack[-1]):
            unpickler.stack[-1] = list(unpickler.stack[-1])

    return load


class Unpickler(PythonUnpickler):
    """Unpickles plain containers and the given names only.

    Args:
        file: positioned at the pickle; afterwards just behind it.
        names: what stands in for each allowed global; it is never mutated, and called with anything at all.
        persistent_load: what stands in for an object that the file keeps outside of the pickle.
    """

    dispatch = {code: do for code, do in PythonUnpickler.dispatch.items() if code not in BANNED}
    dispatch |= {code: _not_nested(PythonUnpickler.dispatch[code]) for code in TUPLES}

    def __init__(self, file: io.BytesIO, names: dict, persistent_load: Callable[[Any], Any] | None = None):
        # Python 2 wrote array data as text strings, which latin1 turns back byte for byte.
        super().__init__(file, encoding="latin1")
        self.names = names
        self.budget = GROWTH * len(file.getbuffer()) + GROWTH_OF_SMALL
        if persistent_load:
            self.persistent_load = persistent_load

    def _spend(self, args: Any) -> None:
        """Counts what a call may copy: a pickle can pass one large object, written once, to any number of calls."""
        self.budget -= len(args)
        self.budget -= sum(len(item) for item in args if isinstance(item, Sized))
        if self.budget < 0:
            raise Refused("makes the same large objects again and again; save the model's state_dict() alone")

    def find_class(self, module: str, name: str) -> Any:
        """What stands in for a global; Refused if it is not an allowed one."""
        if (module, name) not in self.names:
            raise Refused(
                f"refers to {f'{module}.{name}'[:100]!r}, which is neither a tensor nor a plain container, so it was "
                "not loaded and nothing of it was run; if it is a whole model, save its state_dict() instead"
            )
        return self.names[module, name]

    def load_reduce(self) -> None:
        """The opcode that calls what stands in for a global."""
        args, function = self.stack.pop(), self.stack[-1]
        self._spend(args)
        self.stack[-1] = function(*args)

    dispatch[pickle.REDUCE[0]] = load_reduce
    # A new object by its class is made as one by a function: `names` has no classes of others.
    dispatch[pickle.NEWOBJ[0]] = load_reduce

    def load_build(self) -> None:
        """The opcode that sets an object's state: for numpy's own; of others the state is dropped."""
        state, made = self.stack.pop(), self.stack[-1]
        if isinstance(made, Leaf):
            self._spend(state)
            _complete(made, state)
        # A state_dict has its `_metadata` as an attribute.
        elif made is not None and not isinstance(made, dict):
            raise Refused(
                f"sets the state of a {type(made).__name__}, so it was not loaded; save a state_dict() instead"
            )

    dispatch[pickle.BUILD[0]] = load_build

    def load_bytearray8(self) -> None:
        """The opcode for a bytearray, without reserving the claimed size first."""
        size = int.from_bytes(self.read(8), "little")
        self.append(bytearray(self.read(size)))

    dispatch[pickle.BYTEARRAY8[0]] = load_bytearray8


def nothing(*args: Any) -> None:
    """Stands in for what lies beside the tensors and is of no use here."""


def uncopied(make: type, *alike: type) -> Callable[..., Any]:
    """Stands in for a type of containers, and leaves those alike as they are: one can be passed to many calls."""
    return lambda made=(): made if isinstance(made, (make, *alike)) else make(made)


def _dtype(code: Any, *args: Any) -> Leaf:
    # Numbers only: an array of objects would have pickles within.
    if not isinstance(code, str) or not re.fullmatch(r"[biufc]\d{1,2}", code):
        raise Refused(
            f"holds an array of type {str(code)[:100]!r}, which is not one of numbers; leave it out"
        )
    return Leaf(np.dtype(code))


def _complete(leaf: Leaf, state: Any) -> None:
    """Gives a type its byte order, or an empty array its contents."""
    if isinstance(leaf.value, np.dtype):
        leaf.value = leaf.value.newbyteorder(state[1])
    else:
        _, shape, dtype, fortran, data = state
        leaf.value = _array(data, dtype, shape, "F" if fortran else "C").value


def _array(data: Any, dtype: Leaf, shape: tuple[int, ...] = (), order: Any = "C") -> Leaf:
    data = data.encode("latin1") if isinstance(data, str) else data
    return Leaf(np.frombuffer(data, dtype.value).reshape(shape, order=order))


NAMES: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): uncopied(dict),
    ("collections", "Counter"): nothing,  # milestones of a learning rate schedule
    ("argparse", "Namespace"): nothing,  # torchvision's scripts save their arguments
    ("_codecs", "encode"): lambda text, encoding: text.encode("latin1"),
    ("__builtin__", "bytes"): lambda: b"",
    ("numpy", "dtype"): _dtype,
    ("numpy", "ndarray"): None,
}
for _core in ("numpy.core", "numpy._core"):
    NAMES[f"{_core}.multiarray", "_reconstruct"] = lambda *args: Leaf()
    NAMES[f"{_core}.multiarray", "scalar"] = lambda dtype, data: _array(data, dtype)
    NAMES[f"{_core}.numeric", "_frombuffer"] = lambda data, dtype, shape, order: _array(
        data, dtype, shape, order
    )
