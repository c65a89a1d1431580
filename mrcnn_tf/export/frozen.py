"""A traced function whose variables are constants, and everything that follows from constants alone computed."""

from __future__ import annotations

from collections.abc import Iterable

import tensorflow as tf
from tensorflow.core.framework.node_def_pb2 import NodeDef
from tensorflow.core.protobuf import config_pb2, meta_graph_pb2, rewriter_config_pb2

# TensorFlow has no public names for these; its own LiteRT converter takes the same way.
from tensorflow.python.eager.wrap_function import function_from_graph_def
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2
from tensorflow.python.grappler import tf_optimizer
from tensorflow.python.training.saver import export_meta_graph


def frozen(function: tf.types.experimental.ConcreteFunction) -> tf.types.experimental.ConcreteFunction:
    """The same function without variables.

    Batch norms are folded into the kernels before them for good, and kernels have the type that they are used in.

    Args:
        function: with flat inputs and outputs.

    Returns:
        A function of the same inputs, as positional arguments, that returns a list of the same outputs.
    """
    constant = convert_variables_to_constants_v2(function, lower_control_flow=False)
    inputs, outputs = ([t.name for t in tensors] for tensors in (constant.inputs, constant.outputs))
    meta_graph = export_meta_graph(graph_def=constant.graph.as_graph_def(), graph=constant.graph)
    ends = meta_graph_pb2.CollectionDef()
    ends.node_list.value.extend(inputs + outputs)
    meta_graph.collection_def["train_op"].CopyFrom(ends)
    config = config_pb2.ConfigProto()
    rewrite = config.graph_options.rewrite_options
    rewrite.optimizers.extend(["constfold", "dependency"])
    rewrite.meta_optimizer_iterations = rewriter_config_pb2.RewriterConfig.ONE
    graph = tf_optimizer.OptimizeGraph(config, meta_graph)
    # TensorFlow knows functions by name, and these bodies have changed.
    own = {f.signature.name for f in graph.library.function}
    rename(graph.node, own)
    for body in graph.library.function:
        body.signature.name += "_frozen"
        rename(body.node_def, own)
    return function_from_graph_def(graph, inputs, outputs)


def rename(nodes: Iterable[NodeDef], names: set[str]) -> None:
    """Lets the nodes call the functions of these names under their new ones."""
    for node in nodes:
        for value in node.attr.values():
            for called in (value.func, *value.list.func):
                if called.name in names:
                    called.name += "_frozen"
