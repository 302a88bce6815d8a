"""Endless shuffled training batches from anything with random access, and reading ahead."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from typing import Any

import grain
import numpy as np
from absl import flags

from nvg_jax.errors import UserError

Batch = dict[str, np.ndarray]

# Arrays from here on come from a worker through shared memory, smaller ones faster through its
# pipe. What waits there has to fit the pipe, or a worker that is told to stop could not.
_MIN_SHARED_MEMORY_BYTES = 2**13


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
    of all processes and its random numbers depend on the seed alone. `get_state` gives a JSON dict,
    the same on every process; `set_state` goes on from it exactly, also with another number of
    workers or processes. `close` ends the worker processes.

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

    def batches_from(position: int) -> grain.IterDataset:
        share = examples[position + process_index :: process_count]
        return read_ahead(share.batch(batch_size, drop_remainder=True), num_workers).map(finish)

    return _TrainingIterator(batches_from, global_batch_size)


class _TrainingIterator(grain.DatasetIterator):
    """Its state is the position in the stream of all processes, whoever reads it.

    The states of Grain's own iterators hold that of every worker, so that a run could not be
    continued with another number of them.
    """

    def __init__(
        self, batches_from: Callable[[int], grain.IterDataset], global_batch_size: int
    ) -> None:
        super().__init__()
        self._batches_from = batches_from
        self._global_batch_size = global_batch_size
        self._position = 0
        self._batches: grain.DatasetIterator | None = None

    def __next__(self) -> Batch:
        if self._batches is None:
            self._batches = iter(self._batches_from(self._position))
        batch = next(self._batches)
        self._position += self._global_batch_size
        return batch

    def get_state(self) -> dict[str, int]:
        return {"position": self._position}

    def set_state(self, state: dict[str, int]) -> None:
        self.close()
        self._position = state["position"]

    def close(self) -> None:
        if self._batches is not None:
            self._batches.close()
            self._batches = None


def read_ahead(batches: grain.MapDataset, num_workers: int) -> grain.IterDataset:
    """Makes a few batches ahead, in a thread of this process or in worker processes."""
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
        worker_init_fn=_start_worker,
    )


def _start_worker(worker_index: int, worker_count: int) -> None:
    # A signal to the whole process group is for the main process, which may still have to save.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # Grain's workers would outlive a main process that is killed.
    threading.Thread(target=_end_with_main_process, daemon=True).start()


def _end_with_main_process() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)
