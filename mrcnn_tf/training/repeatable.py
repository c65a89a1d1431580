"""Keeps TensorFlow from summing gradients in whatever order they are ready."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tensorflow.core.protobuf import config_pb2, rewriter_config_pb2
from tensorflow.python.eager import context as tf_context


@contextmanager
def sums_in_order() -> Iterator[None]:
    """Functions first called in this context add in the same order every time, so that a run can be repeated.

    TensorFlow's memory optimizer turns a sum of three and more tensors, if they are alive where a graph needs most
    memory, into a variable to which each part is added as soon as it is there. The pyramid's gradients are such sums.
    TensorFlow has public switches for its other optimizers, but not for this one.
    """
    context = tf_context.context()
    before = context.function_call_options
    config = config_pb2.ConfigProto.FromString(before.config_proto_serialized)
    config.graph_options.rewrite_options.memory_optimization = rewriter_config_pb2.RewriterConfig.NO_MEM_OPT
    context.function_call_options = tf_context.FunctionCallOptions(before.executor_type, config)
    try:
        yield
    finally:
        context.function_call_options = before
