"""The order of the images."""

import numpy as np
import pytest

from mrcnn_tf.data.sampling import BatchOrder, epoch_order


def batches(groups, size, seed, steps):
    order = BatchOrder(groups, size, seed)
    return [order.batch(step) for step in steps]


@pytest.mark.parametrize("groups", [np.zeros(7, bool), np.arange(7) < 2, np.arange(11) % 3])
@pytest.mark.parametrize("size", [1, 2, 4, 9])
def test_every_image_once_an_epoch_and_no_batch_of_two_groups(groups, size):
    seen = [pair for batch in batches(groups, size, 0, range(60)) for pair in batch]
    assert len(set(seen)) == len(seen) == 60 * size
    complete = min(epoch for _, epoch in seen[-4 * size :]) - size  # well before what may still wait
    for epoch in range(max(complete, 0)):
        assert sorted(i for i, e in seen if e == epoch) == list(range(len(groups)))
    for batch in batches(groups, size, 0, range(60)):
        assert len({int(groups[i]) for i, _ in batch}) == 1


def test_any_step_can_be_gone_to():
    groups = np.array([0, 0, 1, 0, 0, 0, 1, 0])
    straight = batches(groups, 3, 5, range(50))
    assert batches(groups, 3, 5, [49, 0, 20, 21, 3]) == [straight[i] for i in (49, 0, 20, 21, 3)]
    assert batches(groups, 3, 5, [10**9]) == batches(groups, 3, 5, [10**9])


def test_seed_and_epoch_change_the_order():
    assert epoch_order(50, 0, 0).tolist() == epoch_order(50, 0, 0).tolist()
    assert epoch_order(50, 0, 0).tolist() != epoch_order(50, 0, 1).tolist()
    assert epoch_order(50, 0, 0).tolist() != epoch_order(50, 1, 0).tolist()
    assert sorted(epoch_order(50, 3, 9)) == list(range(50))


def test_one_image_fills_batches():
    assert batches([0], 3, 0, [0, 1]) == [[(0, 0), (0, 1), (0, 2)], [(0, 3), (0, 4), (0, 5)]]
