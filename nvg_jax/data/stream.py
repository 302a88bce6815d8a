"""Endless shuffled training batches from anything with random access, and reading ahead."""

import logging
import multiprocessing
import os
import re
import signal
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

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


class Order(NamedTuple):
    """Which examples a process gets, and when.

    batch_size: of this process, one of `process_count` that read equal parts of global batches.
    seed: in [0, 2^32).
    """

    batch_size: int
    seed: int
    process_index: int = 0
    process_count: int = 1


def training_stream(
    name: str,
    num_examples: int,
    example: Callable[[int, np.random.Generator], dict[str, Any]],
    finish: Callable[[Batch], Batch],
    order: Order,
    num_workers: int = 0,
) -> "Batches":
    """Endless batches in which every example comes once an epoch, each epoch in another order.

    A batch may reach into the next epoch, so nothing is dropped. An example's place in the stream
    of all processes and its random numbers depend on the seed alone. Process i of n reads the i-th
    of n equal parts of each global batch, so that a global batch holds the same examples in the
    same rows whoever reads it.

    `name` is for messages; `example` gives an example by its index and its random numbers;
    `finish` and `num_workers` are those of `Batches`. UserError: there are fewer examples than one
    batch of all processes needs.
    """
    global_batch_size = order.batch_size * order.process_count
    if num_examples < global_batch_size:
        raise UserError(
            f"{name} has {num_examples} examples, "
            f"fewer than one batch of {global_batch_size}: lower the batch size"
        )
    examples = grain.MapDataset.range(num_examples).seed(order.seed).shuffle().repeat()
    examples = examples.random_map(example)

    def batches_from(position: int) -> grain.MapDataset:
        batches = examples[position:].batch(order.batch_size, drop_remainder=True)
        return batches[order.process_index :: order.process_count]

    return Batches(batches_from, finish, num_workers, global_batch_size)


class Batches(grain.DatasetIterator):
    """Batches that are made ahead, in a thread of this process or in worker processes.

    `get_state` gives a JSON dict, the same on every process: the position of the next batch, which
    is `stride` further each time. `set_state` goes on from it exactly, also with another number of
    workers or processes. `close` ends the worker processes. A worker that dies, for want of memory
    perhaps, is named in a warning; all are started again at the batch that is due. Once they have
    died too often it raises UserError.

    Grain's own iterators, which do not start workers again, hold the states of all their workers,
    so that a run could not be continued with another number of them. And its ElasticIterator gives
    a row of the global batch to another process when there are more of them.

    batches_from: the batches from a position on. finish: is applied to each, in the main process.
    """

    def __init__(
        self,
        batches_from: Callable[[int], grain.MapDataset],
        finish: Callable[[Batch], Batch],
        num_workers: int,
        stride: int = 1,
    ) -> None:
        super().__init__()
        self._batches_from, self._finish = batches_from, finish
        self._num_workers, self._stride = num_workers, stride
        self._position = 0
        self._ahead: grain.DatasetIterator | None = None
        self._deaths: list[float] = []

    def __next__(self) -> Batch:
        while True:
            if self._ahead is None:
                batches = self._batches_from(self._position)
                self._ahead = iter(_made_ahead(batches, self._num_workers))
            try:
                batch = next(self._ahead)
            except RuntimeError as error:
                if not (death := _DEATH.match(str(error))):
                    raise
                self._mourn(death[1])
            else:
                self._position += self._stride
                return self._finish(batch)

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
        now = time.monotonic()
        self._deaths = [*(then for then in self._deaths if now - then < _RESTARTS_WITHIN), now]
        if len(self._deaths) > _MAX_RESTARTS:
            often = f"{len(self._deaths)} times within {now - self._deaths[0]:.0f} s"
            raise UserError(
                f"data workers have died {often}, the last with {exit_code}: there may be too "
                "little memory for them; lower config.data.num_workers"
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
