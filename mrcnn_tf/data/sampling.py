"""Which image comes when: a pure function of seed and step, so that any step can be returned to."""

from __future__ import annotations

from threading import Lock

import numpy as np
from numpy.typing import ArrayLike, NDArray


def epoch_order(num_images: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The order of an epoch: a permutation that depends on nothing but the arguments."""
    return np.random.default_rng([seed, epoch]).permutation(num_images)


class BatchOrder:
    """Endless batches of image indices in which all images are of one group, each image once an epoch.

    Images queue up in their group in the epoch's order, and a batch leaves as soon as a queue is full; what
    is left of an epoch waits for the next, so nothing is dropped, or repeated to fill a batch.

    Args:
        groups: int or bool `[num_images]`, the group of every image; all equal for no grouping.
        batch_size: images a batch.
        seed: of the order.
    """

    def __init__(self, groups: ArrayLike, batch_size: int, seed: int):
        self._groups = np.asarray(groups)
        self._sizes = {g: int(n) for g, n in zip(*np.unique(self._groups, return_counts=True), strict=True)}
        self._batch_size, self._seed = batch_size, seed
        self._epoch = -1  # the one that was asked for last
        self._batches: list[list[tuple[int, int]]] = []
        self._lock = Lock()

    def batch(self, step: int) -> list[tuple[int, int]]:
        """`batch_size` pairs of image index and epoch, as quickly for a late step as for an early one."""
        epoch = step * self._batch_size // len(self._groups)
        while self._before(epoch) > step:
            epoch -= 1
        while self._before(epoch + 1) <= step:
            epoch += 1
        with self._lock:
            if epoch != self._epoch:
                self._epoch, self._batches = epoch, self._completed_in(epoch)
            return self._batches[step - self._before(epoch)]

    def _before(self, epoch: int) -> int:
        """Number of batches that are complete when an epoch begins."""
        return sum(epoch * size // self._batch_size for size in self._sizes.values())

    def _completed_in(self, epoch: int) -> list[list[tuple[int, int]]]:
        """The batches whose last image comes in an epoch."""
        queues = {group: self._waiting(group, epoch) for group in self._sizes}
        batches = []
        for i in epoch_order(len(self._groups), self._seed, epoch):
            queue = queues[self._groups[i]]
            queue.append((int(i), epoch))
            if len(queue) == self._batch_size:
                batches.append(list(queue))
                queue.clear()
        return batches

    def _waiting(self, group: int, epoch: int) -> list[tuple[int, int]]:
        """What is in a group's queue when an epoch begins: the last images of the epochs before."""
        count = epoch * self._sizes[group] % self._batch_size
        queue: list[tuple[int, int]] = []
        while len(queue) < count:
            epoch -= 1
            order = epoch_order(len(self._groups), self._seed, epoch)
            queue = [(int(i), epoch) for i in order[self._groups[order] == group]] + queue
        return queue[len(queue) - count :]
