"""A function of a model whose weights are constants, with everything computed that follows from them alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import keras
import numpy as np
import tensorflow as tf
from tensorflow.core.framework.node_def_pb2 import NodeDef
from tensorflow.core.protobuf import config_pb2, meta_graph_pb2, rewriter_config_pb2

# TensorFlow has no public names for these; its own LiteRT converter takes the same way.
from tensorflow.python.eager.wrap_function import function_from_graph_def
from tensorflow.python.grappler import tf_optimizer
from tensorflow.python.training.saver import export_meta_graph


def folded(
    function: Callable[..., list[tf.Tensor]], model: keras.Model, signature: list[tf.TensorSpec]
) -> tf.types.experimental.ConcreteFunction:
    """A graph without variables.

    Batch norms are part of the kernels before them for good, and kernels have the type that they are used in.

    Args:
        function: of tensors, calls the model and returns a list.
        model: built.
        signature: of the function's arguments.

    Returns:
        The same function of positional arguments.
    """
    values = [(weight, weight.numpy()) for weight in model.variables]

    def with_constants(*inputs: tf.Tensor) -> list[tf.Tensor]:
        with keras.StatelessScope([(weight, tf.constant(value)) for weight, value in values]):
            return function(*inputs)

    traced = tf.function(with_constants, input_signature=signature, autograph=False).get_concrete_function()
    inputs, outputs = ([t.name for t in tensors] for tensors in (traced.inputs, traced.outputs))
    meta_graph = export_meta_graph(graph_def=traced.graph.as_graph_def(), graph=traced.graph)
    ends = meta_graph_pb2.CollectionDef()
    ends.node_list.value.extend(inputs + outputs)
    meta_graph.collection_def["train_op"].CopyFrom(ends)
    config = config_pb2.ConfigProto()
    rewrite = config.graph_options.rewrite_options
    rewrite.optimizers.extend(["constfold", "dependency"])
    rewrite.meta_optimizer_iterations = rewriter_config_pb2.RewriterConfig.ONE
    # Every graph here holds all weights: a large model should not be in memory a dozen times.
    values.clear()
    del traced
    graph = tf_optimizer.OptimizeGraph(config, meta_graph)
    del meta_graph
    # TensorFlow knows functions by name, and these bodies have changed.
    own = {f.signature.name for f in graph.library.function}
    rename(graph.node, own)
    for body in graph.library.function:
        body.signature.name += "_folded"
        rename(body.node_def, own)
        pack(body.node_def)
    pack(graph.node)
    return function_from_graph_def(graph, inputs, outputs)


def pack(nodes: Iterable[NodeDef]) -> None:
    """Stores 16-bit constants as their bytes: grappler writes a number of two or three bytes for each value."""
    for node in nodes:
        if node.op != "Const":
            continue
        tensor = node.attr["value"].tensor
        # Equal values at the end may have been left out.
        if len(tensor.half_val) == np.prod([dim.size for dim in tensor.tensor_shape.dim]):
            tensor.tensor_content = np.asarray(tensor.half_val, np.uint16).tobytes()
            tensor.ClearField("half_val")


def rename(nodes: Iterable[NodeDef], names: set[str]) -> None:
    """Lets the nodes call the functions of these names under their new ones."""
    for node in nodes:
        for value in node.attr.values():
            for called in (value.func, *value.list.func):
                if called.name in names:
                    called.name += "_folded"
