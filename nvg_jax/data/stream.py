"""Endless shuffled training batches from anything with random access, and reading ahead."""

import collections
import logging
import multiprocessing
import os
import re
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import grain
import numpy as np
from absl import flags

from nvg_jax.errors import UserError

log = logging.getLogger(__name__)
Batch = dict[str, np.ndarray]

# Arrays from here on come from a worker through shared memory, smaller ones faster through its
# pipe. What waits there has to fit the pipe, or a worker that is told to stop could not.
_MIN_SHARED_MEMORY_BYTES = 2**13

# How often workers are started again within how many seconds, should one die.
_MAX_RESTARTS, _RESTARTS_WITHIN = 3, 600
_DEATH = re.compile(r"Worker process was terminated unexpectedly with (exit code -?\d+)")


def training_stream(
    name: str,
    num_examples: int,
    example: Callable[[int, np.random.Generator], dict[str, Any]],
    finish: Callable[[Batch], Batch],
    *,
    batch_size: int,
    seed: int,
    process_index: int,
    process_count: int,
    num_workers: int = 0,
) -> grain.DatasetIterator:
    """Endless batches in which every example comes once an epoch, each epoch in another order.

    A batch may reach into the next epoch, so nothing is dropped. An example's place in the stream
    of all processes and its random numbers depend on the seed alone. Process i of n reads the i-th
    of n equal parts of each global batch, so that a global batch holds the same examples in the
    same rows whoever reads it. `get_state` gives a JSON dict, the same on every process;
    `set_state` goes on from it exactly, also with another number of workers or processes. `close`
    ends the worker processes.

    Args:
      name: of what is read, for messages.
      num_examples: how many there are.
      example: an example by its index and its random numbers, in a worker.
      finish: is applied to every batch, in the main process.
      batch_size: examples per batch of this process.
      seed: in [0, 2^32).
      process_index: this process, of `process_count` that each read their share.
      process_count: number of processes.
      num_workers: as for `read_ahead`.

    Raises:
      UserError: there are fewer examples than one batch of all processes needs.
    """
    global_batch_size = batch_size * process_count
    if num_examples < global_batch_size:
        raise UserError(
            f"{name} has {num_examples} examples, "
            f"fewer than one batch of {global_batch_size}: lower the batch size"
        )
    examples = grain.MapDataset.range(num_examples).seed(seed).shuffle().repeat()
    examples = examples.random_map(example)

    def batches_from(position: int) -> grain.MapDataset:
        batches = examples[position:].batch(batch_size, drop_remainder=True)
        return batches[process_index::process_count]

    return iter(_Batches(batches_from, global_batch_size, num_workers).map(finish))


def read_ahead(batches: grain.MapDataset, num_workers: int) -> grain.IterDataset:
    """Makes a few batches ahead, in a thread of this process or in worker processes.

    A worker that dies, for want of memory perhaps, is named in a warning; all are started again at
    the batch that is due. Once they have died too often the iterator raises UserError.
    """
    return _Batches(lambda position: batches[position:], 1, num_workers)


class _Batches(grain.IterDataset):
    """Batches that are made ahead, from any position on.

    Grain's own iterators, which do not start workers again, hold the states of all their workers,
    so that a run could not be continued with another number of them. And its ElasticIterator gives
    a row of the global batch to another process when there are more of them.
    """

    def __init__(
        self, batches_from: Callable[[int], grain.MapDataset], stride: int, num_workers: int
    ) -> None:
        super().__init__()
        self._arguments = (batches_from, stride, num_workers)

    def __iter__(self) -> grain.DatasetIterator:
        return _BatchesIterator(*self._arguments)


class _BatchesIterator(grain.DatasetIterator):
    """Its state is the position of the next batch, which is `stride` further each time."""

    def __init__(
        self, batches_from: Callable[[int], grain.MapDataset], stride: int, num_workers: int
    ) -> None:
        super().__init__()
        self._batches_from = batches_from
        self._stride = stride
        self._num_workers = num_workers
        self._position = 0
        self._ahead: grain.DatasetIterator | None = None
        self._deaths: collections.deque[float] = collections.deque(maxlen=_MAX_RESTARTS + 1)

    def __next__(self) -> Batch:
        while True:
            if self._ahead is None:
                batches = self._batches_from(self._position)
                self._ahead = iter(_made_ahead(batches, self._num_workers))
            try:
                batch = next(self._ahead)
            except RuntimeError as error:
                death = _DEATH.match(str(error))
                if not death:
                    raise
                self._mourn(death[1])
            else:
                self._position += self._stride
                return batch

    def get_state(self) -> dict[str, int]:
        return {"position": self._position}

    def set_state(self, state: dict[str, int]) -> None:
        self.close()
        self._position = state["position"]

    def close(self) -> None:
        if self._ahead is not None:
            self._ahead.close()
            self._ahead = None

    def _mourn(self, exit_code: str) -> None:
        self.close()
        self._deaths.append(time.monotonic())
        if len(self._deaths) > _MAX_RESTARTS:
            seconds = self._deaths[-1] - self._deaths[0]
            if seconds < _RESTARTS_WITHIN:
                raise UserError(
                    f"data workers have died {len(self._deaths)} times within {seconds:.0f} s, the "
                    f"last with {exit_code}: there may be too little memory for them; lower "
                    "config.data.num_workers"
                )
        log.warning("a data worker has died (%s): all are started again where it was", exit_code)


def _made_ahead(batches: grain.MapDataset, num_workers: int) -> grain.IterDataset:
    if not num_workers:
        # More threads would only contend for the interpreter's lock.
        return batches.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=4))
    if not flags.FLAGS.is_parsed():
        # Grain's workers read absl flags, which nobody parses in a notebook or a test.
        flags.FLAGS.mark_as_parsed()
    options = grain.experimental.DatasetOptions(min_shm_size=_MIN_SHARED_MEMORY_BYTES)
    return grain.experimental.WithOptionsIterDataset(
        batches.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)), options
    ).mp_prefetch(
        grain.MultiprocessingOptions(num_workers=num_workers, per_worker_buffer_size=2),
        worker_init_fn=_begin_worker,
    )


def _begin_worker(worker_index: int, worker_count: int) -> None:
    # A signal to the whole process group is for the main process, which may still have to save.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # Grain's workers would outlive a main process that is killed.
    threading.Thread(target=_end_with_main_process, daemon=True).start()


def _end_with_main_process() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)
