"""Sums that TensorFlow would make in any order."""

import contextlib

import pytest
import tensorflow as tf
from tensorflow.python.eager import context as tf_context

from mrcnn_tf.training.repeatable import sums_in_order

LARGE = 30_000_000  # floats; a few of them are more than what makes TensorFlow save memory


@pytest.mark.parametrize("kept, context", [(True, sums_in_order), (False, contextlib.nullcontext)])
def test_a_large_sum_stays_one_op(kept, context):
    @tf.function(autograph=False)
    def add(x: tf.Tensor) -> tf.Tensor:
        parts = [tf.sin(x * float(i + 1)) for i in range(4)]
        return tf.add_n(parts)[0]

    with context():
        tf_context.enable_run_metadata()
        assert float(add(tf.zeros([LARGE]))) == 0.0
        ran = tf_context.export_run_metadata().partition_graphs
        tf_context.disable_run_metadata()
    ops = [
        n.op
        for graph in ran
        for nodes in (graph.node, *(f.node_def for f in graph.library.function))
        for n in nodes
    ]
    assert ops.count("AddN") == kept
    # Were this to fail, TensorFlow would have changed, and `sums_in_order` could go.
    assert ("AssignAdd" in ops) == (not kept)


def test_what_was_set_before_is_set_again():
    before = tf_context.context().function_call_options
    with pytest.raises(KeyError), sums_in_order():
        raise KeyError
    assert tf_context.context().function_call_options is before
