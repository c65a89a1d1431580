"""Moves tensors of another project's file into a model's weights, and tells of each what became of it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import keras
import numpy as np

from mrcnn_tf.layers.conv import BatchNorm, Conv
from mrcnn_tf.layers.heads import MaskHead
from mrcnn_tf.layers.resnet import BLOCKS
from mrcnn_tf.tables import some

Tensors = Mapping[str, np.ndarray]


class Move(NamedTuple):
    """A weight, the tensor that it gets, the function that makes one of the other, and what that does in words.

    `tensor` may name several, which `convert` gets one by one. `how` is empty where values stay in their order but for
    the axes' layout.
    """

    weight: keras.Variable
    tensor: str | tuple[str, ...]
    convert: Callable[..., np.ndarray]
    how: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """Of all its tensors."""
        return (self.tensor,) if isinstance(self.tensor, str) else self.tensor


@dataclass
class LoadReport:
    """What became of every tensor of a file and every weight of a model.

    Attributes:
        source: the file's name.
        loaded: `(tensor, weight)`, values as they were.
        remapped: `(tensor, weight, how)`, values in another order or a part of them.
        left_out: tensors that no weight got, with the reason.
        fresh: weights that no tensor went to; they have their initial values.
    """

    source: str
    loaded: list[tuple[str, str]] = field(default_factory=list)
    remapped: list[tuple[str, str, str]] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    fresh: list[str] = field(default_factory=list)

    def summary(self) -> str:
        """One line."""
        loaded, remapped = ({tensor for tensor, *_ in lines} for lines in (self.loaded, self.remapped))
        return (
            f"{self.source}: {len(loaded)} tensors loaded, {len(remapped)} remapped, "
            f"{len(self.left_out)} left out; {len(self.fresh)} weights freshly initialised"
        )

    def __str__(self) -> str:
        """The summary, then a line for every tensor and weight."""
        lines = [self.summary(), ""]
        lines += [f"loaded      {tensor} -> {weight}" for tensor, weight in self.loaded]
        lines += [f"remapped    {tensor} -> {weight} ({how})" for tensor, weight, how in self.remapped]
        lines += [f"left out    {tensor} ({why})" for tensor, why in self.left_out.items()]
        lines += [f"fresh       {weight}" for weight in self.fresh]
        return "\n".join(lines) + "\n"


def transfer(
    tensors: Tensors,
    moves: Sequence[Move],
    weights: Iterable[keras.Variable],
    *,
    source: str,
    ignored: Callable[[str], str | None] = lambda name: None,
    allow_missing: bool = False,
    allow_unexpected: bool = False,
) -> LoadReport:
    """Assigns every move's tensor to its weight. All is checked first: a model is never left half loaded.

    Args:
        tensors: the file's, by name.
        moves: from which tensor each weight comes.
        weights: all of the model's, for the report.
        source: the file's name, for messages.
        ignored: name of a tensor -> why it is of no use here (a counter of batches, say), or None.
        allow_missing: weights whose tensor is not in the file keep their initial values.
        allow_unexpected: tensors that nothing asks for are left out.

    Raises:
        ValueError: a tensor is missing, unexpected, not finite or of a shape that does not fit.
    """
    used = {name for move in moves for name in move.names}
    missing = sorted(used - set(tensors))
    reasons = {name: ignored(name) for name in tensors if name not in used}
    unexpected = sorted(name for name, why in reasons.items() if why is None)
    if missing and not allow_missing:
        raise ValueError(
            f"{source}: has no tensor {some(missing)}; it holds another architecture, or only a part of one "
            "(--allow-missing initialises what is missing)"
        )
    if unexpected and not allow_unexpected:
        raise ValueError(
            f"{source}: nothing in the model takes {some(unexpected)}; the file holds another architecture "
            "(--allow-unexpected leaves such tensors out)"
        )
    report = LoadReport(source)
    values: list[tuple[keras.Variable, np.ndarray]] = []
    whole = [move for move in moves if all(name in tensors for name in move.names)]
    for move in whole:
        values.append((move.weight, converted(move, [tensors[name] for name in move.names], source)))
        for name in move.names:
            if move.how:
                report.remapped.append((name, move.weight.path, move.how))
            else:
                report.loaded.append((name, move.weight.path))
    for weight, value in values:
        weight.assign(value)
    alone = (used & set(tensors)) - {name for move in whole for name in move.names}
    reasons |= dict.fromkeys(sorted(alone), "a tensor that it goes with is missing")
    report.left_out = {name: why or "nothing in the model takes it" for name, why in reasons.items()}
    loaded = {id(weight) for weight, _ in values}
    report.fresh = [weight.path for weight in weights if id(weight) not in loaded]
    return report


def converted(move: Move, values: Sequence[np.ndarray], source: str) -> np.ndarray:
    """A move's tensors as its weight wants them, float32; see `transfer` for the errors."""
    try:
        out = np.asarray(move.convert(*values), np.float32)
    except (ValueError, IndexError):
        out = None
    if out is None or out.shape != tuple(move.weight.shape):
        shapes = " and ".join(
            f"{name} has shape {list(value.shape)}" for name, value in zip(move.names, values, strict=True)
        )
        raise ValueError(
            f"{source}: {shapes}, which does not fit {move.weight.path} {list(move.weight.shape)}; the model and the "
            "file are of different architectures"
        )
    if not np.isfinite(out).all():
        raise ValueError(
            f"{source}: {' or '.join(move.names)} holds values that are not finite; the file is damaged"
        )
    return out


# --- PyTorch's layouts -------------------------------------------------------------------------------------


def as_is(value: np.ndarray) -> np.ndarray:
    """The same."""
    return value


def conv_kernel(value: np.ndarray) -> np.ndarray:
    """`[out, in, h, w]` -> `[h, w, in, out]`."""
    return value.transpose(2, 3, 1, 0)


def conv_moves(conv: Conv, name: str, norm: str | None = None) -> list[Move]:
    """Of a convolution `name` and the norm `norm` behind it, named as PyTorch names them."""
    moves = [Move(conv.kernel, f"{name}.weight", conv_kernel)]
    if conv.bias is not None:
        moves.append(Move(conv.bias, f"{name}.bias", as_is))
    if norm is not None:
        if conv.norm is None:
            raise ValueError(f"it has a norm {norm}, the model has none there")
        ends = {"weight": conv.norm.gamma, "bias": conv.norm.beta}
        if isinstance(conv.norm, BatchNorm):
            ends |= {"running_mean": conv.norm.moving_mean, "running_var": conv.norm.moving_variance}
        moves += [Move(weight, f"{norm}.{end}", as_is) for end, weight in ends.items()]
    return moves


def dense_moves(layer: keras.layers.Dense, name: str) -> list[Move]:
    """Of a fully connected layer on a vector."""
    return [Move(layer.kernel, f"{name}.weight", np.transpose), Move(layer.bias, f"{name}.bias", as_is)]


def dense_on_map_moves(layer: keras.layers.Dense, name: str, size: int) -> list[Move]:
    """Of a fully connected layer on a flattened `[C, size, size]` map, which is `[size, size, C]` here."""

    def kernel(value: np.ndarray) -> np.ndarray:
        out = value.shape[0]
        return value.reshape(out, -1, size, size).transpose(2, 3, 1, 0).reshape(-1, out)

    return [
        Move(layer.kernel, f"{name}.weight", kernel, "channels last"),
        Move(layer.bias, f"{name}.bias", as_is),
    ]


def deltas_in_yx(value: np.ndarray) -> np.ndarray:
    """The first axis, groups of (x, y, width, height), as groups of (y, x, height, width)."""
    groups = value.reshape(-1, 4, *value.shape[1:])
    return groups[:, [1, 0, 3, 2]].reshape(value.shape)


def deconv_moves(conv: Conv, name: str) -> list[Move]:
    """Of a 2x2 deconvolution of stride 2, which is a 1x1 convolution to four times the channels here."""

    def kernel(value: np.ndarray) -> np.ndarray:
        # [in, out, y, x] -> [1, 1, in, (y, x, out)]
        return value.transpose(0, 2, 3, 1).reshape(1, 1, value.shape[0], -1)

    return [
        Move(conv.kernel, f"{name}.weight", kernel, "as a 1x1 convolution"),
        Move(conv.bias, f"{name}.bias", lambda value: np.tile(value, 4), "as a 1x1 convolution"),
    ]


def in_yx(pair: list[Move], skip: int = 0) -> list[Move]:
    """A layer's moves with its outputs, box deltas, in this project's order; the first `skip` are left out."""

    def reordered(move: Move) -> Move:
        return Move(
            move.weight,
            move.tensor,
            lambda value: move.convert(deltas_in_yx(value[skip:])),
            "x, y, width, height to y, x, height, width" + (", without background" if skip else ""),
        )

    return [reordered(move) for move in pair]


def predictor_moves(head: MaskHead, name: str, background: bool) -> list[Move]:
    """Of the 1x1 convolution that ends a mask head; `background`: it has a mask for class 0, too."""
    skip, how = (1, "without background") if background else (0, "")
    return [
        Move(head.kernel, f"{name}.weight", lambda value: value[skip:, :, 0, 0], how),
        Move(head.bias, f"{name}.bias", lambda value: value[skip:], how),
    ]


def resnet_depth(blocks: Sequence[int], bottleneck: bool) -> int:
    """The depth of a ResNet whose stages have so many blocks, of the one kind or the other.

    Raises:
        ValueError: there is none.
    """
    for depth, counts in BLOCKS.items():
        if counts == tuple(blocks) and (depth >= 50) == bottleneck:
            return depth
    raise ValueError(f"is no ResNet that is known here: its stages have {tuple(blocks)} blocks")


def count(tensors: Tensors, pattern: str) -> int:
    """How many different numbers a pattern with one group finds in the names."""
    return len({m[1] for m in (re.fullmatch(pattern, name) for name in tensors) if m})
