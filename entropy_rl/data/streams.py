"""Endless shuffled batches of problems, one share per process, resumable; and stages of them."""

from collections.abc import Sequence
from typing import Any

import grain

from entropy_rl.data.tasks import Problem


class ProblemStream:
    """Endless shuffled problems in batches, one share per process, resumable at any element.

    Every process sees the same global order; of each batch it takes its own contiguous part, so the order of problems
    does not depend on how many processes there are. Each pass is shuffled anew.

    Args:
        problems: by random access.
        batch_size: problems of a global batch.
        seed: of the order.
        process_index, process_count: which share this process takes.
    """

    def __init__(
        self, problems: Sequence[Problem], *, batch_size: int, seed: int, process_index: int = 0, process_count: int = 1
    ):
        if not len(problems):
            raise ValueError("there are no problems to stream")
        if batch_size % process_count:
            raise ValueError(f"a batch of {batch_size} problems does not divide over {process_count} processes")
        self._size = len(problems)
        dataset = grain.MapDataset.source(problems).seed(seed).shuffle()
        self._dataset = dataset.repeat(reseed_each_epoch=True)
        self._batch, self._share = batch_size, batch_size // process_count
        self._offset = process_index * self._share
        self.position = 0

    def next_batch(self) -> list[Problem]:
        """This process's share of the next global batch; advances ``position`` by the whole of it."""
        batch = self.peek()
        self.position += self._batch
        return batch

    def peek(self) -> list[Problem]:
        """What ``next_batch`` will return, without advancing."""
        first = self.position + self._offset
        return [self._dataset[i] for i in range(first, first + self._share)]

    @property
    def epoch(self) -> int:
        """Whole passes over the problems before the next batch."""
        return self.position // self._size

    def state(self) -> dict[str, Any]:
        """What ``restore`` needs."""
        return {"position": self.position}

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on at the element where ``state`` was taken."""
        self.position = int(state["position"])


class ChosenProblems(Sequence[Problem]):
    """Some of a sequence of problems, by index."""

    def __init__(self, problems: Sequence[Problem], rows: Sequence[int]):
        self._problems, self._rows = problems, [int(row) for row in rows]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self._problems[self._rows[index]]


class StagedStream:
    """One stream after another, each for an equal share of the run's batches; resumable like a ``ProblemStream``."""

    def __init__(self, streams: Sequence[ProblemStream], *, num_batches: int):
        if not 1 <= len(streams) <= num_batches:
            raise ValueError(f"{num_batches} batches cannot be shared among {len(streams)} stages")
        self._streams, self._num_batches, self._taken = list(streams), num_batches, 0

    @property
    def stage(self) -> int:
        """Index of the stage the next batch comes from."""
        count = len(self._streams)
        return min(self._taken * count // self._num_batches, count - 1)

    @property
    def epoch(self) -> int:
        """Whole passes over the current stage's problems."""
        return self._streams[self.stage].epoch

    def next_batch(self) -> list[Problem]:
        """This process's share of the next global batch."""
        batch = self._streams[self.stage].next_batch()
        self._taken += 1
        return batch

    def state(self) -> dict[str, Any]:
        """What ``restore`` needs."""
        return {"taken": self._taken, "streams": [stream.state() for stream in self._streams]}

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on at the batch where ``state`` was taken."""
        self._taken = int(state["taken"])
        for stream, own in zip(self._streams, state["streams"], strict=True):
            stream.restore(own)
