"""Counts products and kept numbers in TensorFlow's own graph of a step, knowing nothing of the model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import tensorflow as tf

# Their output is their input's memory, or too small to count.
VIEWS = ("Reshape", "Identity", "IdentityN", "ExpandDims", "Squeeze", "StopGradient", "EnsureShape")
SHAPES = ("Shape", "ShapeN", "Size", "Rank", "ZerosLike")
GIVEN = ("Const", "ReadVariableOp", "Placeholder")


def graph_of(function: Callable, *arguments) -> tf.Graph:
    return tf.function(function, autograph=False).get_concrete_function(*arguments).graph


def training_graph(model, batch) -> tf.Graph:
    """The loss, which is output 0, and the gradients."""

    def step(batch):
        with tf.GradientTape() as tape:
            values, _ = model.losses_of(batch, tf.zeros([], tf.int32))
            loss = tf.add_n([values[name] * model.loss_weights[name] for name in model.LOSSES])
        weights = [w.value for w in model.trainable_weights]
        gradients = tape.gradient(loss, weights, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        return loss, [tf.convert_to_tensor(g) for g in gradients]

    return graph_of(step, batch)


def needed(outputs: Iterable[tf.Tensor]) -> set[tf.Operation]:
    """The operations that the outputs follow from; TensorFlow runs no others."""
    todo, seen = [t.op for t in outputs], set()
    while todo:
        op = todo.pop()
        if op not in seen:
            seen.add(op)
            todo += [t.op for t in op.inputs] + list(op.control_inputs)
    return seen


def products(graph: tf.Graph) -> int:
    """Multiplications of all convolutions and matrix products."""
    total = 0
    for op in needed(graph.outputs):
        if op.type == "Conv2D":
            total += math.prod([*op.outputs[0].shape, *op.inputs[1].shape[:3]])
        elif op.type == "Conv2DBackpropFilter":
            total += math.prod([*op.inputs[2].shape, *op.outputs[0].shape[:3]])
        elif op.type == "Conv2DBackpropInput":
            total += math.prod([*op.inputs[2].shape, *op.inputs[1].shape[:3]])
        elif op.type in ("MatMul", "BatchMatMulV2"):
            turned = op.get_attr("transpose_a" if op.type == "MatMul" else "adj_x")
            total += math.prod([*op.outputs[0].shape, op.inputs[0].shape[-2 if turned else -1]])
    return total


def kept_bytes(graph: tf.Graph) -> int:
    """Bytes of the tensors that the loss is computed with and the gradients need again."""
    forward = needed([graph.outputs[0]])
    kept = {}
    for op in needed(graph.outputs) - forward:
        for tensor in op.inputs if op.type not in SHAPES else ():
            while tensor.op.type in VIEWS:
                tensor = tensor.op.inputs[tensor.value_index if tensor.op.type == "IdentityN" else 0]
            if tensor.op in forward and tensor.op.type not in GIVEN and tensor.shape.is_fully_defined():
                kept[tensor.ref()] = math.prod(tensor.shape) * tensor.dtype.size
    return sum(kept.values())
