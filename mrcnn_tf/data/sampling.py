"""Which image comes when: a pure function of seed and step, so that any step can be returned to."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike, NDArray


def epoch_order(num_images: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The order of an epoch: a permutation that depends on nothing but the arguments."""
    return np.random.default_rng([seed, epoch]).permutation(num_images)


def index_batches(
    groups: ArrayLike, batch_size: int, *, seed: int, start_step: int = 0
) -> Iterator[list[tuple[int, int]]]:
    """Endless batches in which all images are of one group, each image once an epoch.

    Images queue up in their group in the epoch's order, and a batch leaves as soon as a queue is full; what is
    left of an epoch waits for the next, so nothing is dropped or repeated to fill a batch.

    Args:
        groups: int `[num_images]`, the group of every image; all equal for no grouping.
        batch_size: images a batch.
        seed: of the order.
        start_step: number of batches to skip. Costs no more than two epochs' indices, however large it is.

    Yields:
        `batch_size` pairs of image index and epoch.
    """
    groups = np.asarray(groups)
    count = len(groups)
    sizes = {int(g): int((groups == g).sum()) for g in np.unique(groups)}

    def batches_before(epoch: int) -> int:
        return sum(epoch * size // batch_size for size in sizes.values())

    epoch = start_step * batch_size // count
    while batches_before(epoch) > start_step:
        epoch -= 1
    # What waits in each queue when the epoch begins came in during the epochs before.
    queues: dict[int, list[tuple[int, int]]] = {}
    for group, size in sizes.items():
        waiting = epoch * size % batch_size
        queue: list[tuple[int, int]] = []
        earlier = epoch
        while len(queue) < waiting:
            earlier -= 1
            order = epoch_order(count, seed, earlier)
            queue = [(int(i), earlier) for i in order[groups[order] == group]] + queue
        queues[group] = queue[len(queue) - waiting :]
    skip = start_step - batches_before(epoch)
    while True:
        for i in epoch_order(count, seed, epoch):
            queue = queues[int(groups[i])]
            queue.append((int(i), epoch))
            if len(queue) == batch_size:
                if skip:
                    skip -= 1
                else:
                    yield list(queue)
                queue.clear()
        epoch += 1
