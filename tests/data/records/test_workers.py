"""Work in several processes."""

import os

import pytest

from mrcnn_tf.data.records.workers import in_processes


@pytest.mark.parametrize("workers", [1, 2])
def test_results_have_the_numbers_of_their_tasks(workers):
    assert sorted(in_processes(abs, [-3, 5, -7], workers)) == [(0, 3), (1, 5), (2, 7)]


def test_errors_arrive():
    with pytest.raises(ValueError, match="invalid literal for int"):
        list(in_processes(int, ["1", "one"], 2))


def test_a_process_that_is_killed():
    with pytest.raises(RuntimeError, match="a process ended before its work was done.* goes on from here"):
        list(in_processes(os._exit, [9, 9], 2))
