"""The training loop: one for every task, resumable at any step."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import logging
import math
import signal
from collections.abc import Callable, Iterator
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from nvg_jax import sharding
from nvg_jax.checkpoint import TrainCheckpointer
from nvg_jax.errors import UserError
from nvg_jax.training import optimizer
from nvg_jax.training.report import Report
from nvg_jax.training.state import TrainState

log = logging.getLogger(__name__)
Batch = dict[str, jax.Array]

STEPS_IN_FLIGHT = 2  # How far the host may run ahead of the devices.


@runtime_checkable
class Task(Protocol):
    """What is trained. `architecture` describes the model in one line."""

    name: str
    architecture: str

    def init_variables(self, key: jax.Array) -> Any:
        """Random variables to start from."""
        ...

    def init_state(self, variables: Any, key: jax.Array) -> TrainState:
        """The state before the first step; what is trained beside `variables` is random."""
        ...

    def step(
        self, state: TrainState, batch: Batch, key: jax.Array, step: int
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        """The state after `step + 1` steps, and metrics as `Report` takes them."""
        ...

    def count_flops(self, state: TrainState, batch: Batch, key: jax.Array) -> float:
        """Floating-point operations of one step that the method needs."""
        ...

    def pictures(self, state: TrainState, batch: Batch) -> dict[str, np.ndarray]:
        """Pictures of how far it is, as uint8, by name."""
        ...


class Preempted(Exception):
    """Training was asked to stop and has saved its state; the message says how to go on."""


@dataclasses.dataclass(frozen=True)
class Schedule:
    """How long training takes: `num_steps` of `batch_size`, `epoch_steps` an epoch."""

    batch_size: int
    num_steps: int
    epoch_steps: int

    @classmethod
    def create(cls, config: ConfigDict, num_examples: int) -> Schedule:
        """From a training config and the size of the training split."""
        epoch_steps = max(num_examples // config.batch_size, 1)
        return cls(config.batch_size, max(round(config.epochs * epoch_steps), 1), epoch_steps)


@contextlib.contextmanager
def stop_signal() -> Iterator[Callable[[], bool]]:
    """Turns SIGTERM into a question that the loop asks between steps."""
    received: list[int] = []
    previous = signal.signal(signal.SIGTERM, lambda number, _: received.append(number))
    try:
        yield lambda: bool(received)
    finally:
        signal.signal(signal.SIGTERM, previous)


def train(
    task: Task,
    config: ConfigDict,
    schedule: Schedule,
    iterator: Iterator[dict[str, np.ndarray]],
    directory: str,
    mesh: Mesh,
    seed: int,
    stop: Callable[[], bool] = lambda: False,
    initial: Any | None = None,
    begin: Callable[[], None] = lambda: None,
    finish: Callable[[TrainState], TrainState] = lambda state: state,
) -> TrainState:
    """Brings a task from its last checkpoint, or from nothing, to its last step.

    config: the task's training config. iterator: a Grain iterator over this process's batches; its
    position is saved and restored with the state. directory: holds the task's checkpoints and
    summaries. stop: whether to save and leave. initial: variables to start from in place of random
    ones. begin: called once the directory is known to fit the task. finish: turns the trained state
    into the one that is kept.

    A step is a function of the state, the batch, and a key made from `seed` and the step alone, so
    that an interrupted run ends with the same parameters as an uninterrupted one.

    Raises Preempted when asked to stop, after saving; UserError if the loss is not finite.
    """
    key = jax.random.key(seed)
    placement = sharding.replicated(mesh)
    rate = optimizer.learning_rate(config, schedule.num_steps)
    checkpoints = f"{directory}/checkpoints"
    with TrainCheckpointer(checkpoints, task.architecture, config.keep_checkpoints) as checkpointer:

        def random_state(key: jax.Array) -> TrainState:
            return task.init_state(task.init_variables(key), key)

        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=placement),
            jax.eval_shape(random_state, key),
        )
        restored = checkpointer.restore(abstract, iterator)
        begin()
        if restored is not None:
            state, start = restored
            log.info("%s: resumed at step %d of %d", task.name, start, schedule.num_steps)
        elif initial is not None:
            state, start = jax.jit(task.init_state, out_shardings=placement)(initial, key), 0
        else:
            state, start = jax.jit(random_state, out_shardings=placement)(key), 0
        if start >= schedule.num_steps:
            return state

        losses: collections.deque[tuple[int, jax.Array]] = collections.deque()

        def check_losses(in_flight: int = 0) -> None:
            """Waits for all steps but the last `in_flight`, and stops at the first bad loss."""
            while len(losses) > in_flight:
                step, loss = losses.popleft()
                if not math.isfinite(loss):
                    kept = checkpointer.latest_step()
                    last_good = "nothing was saved" if kept is None else f"step {kept} is kept"
                    raise UserError(
                        f"the loss of the {task.name} is {float(loss)} at step {step}: training "
                        f"stopped, {last_good} in {checkpoints}; go on from there with a lower "
                        f"--config.{task.name}.training.learning_rate"
                    )

        with contextlib.closing(
            Report(task.name, directory, schedule.num_steps, schedule.batch_size, start)
        ) as report:
            for step in range(start + 1, schedule.num_steps + 1):
                batch = dict(next(iterator))
                skipped = int(np.sum(batch.pop("skipped")))
                batch = sharding.place_batch(batch, mesh)
                if step == start + 1:
                    report.step_flops = task.count_flops(state, batch, key)
                state, metrics = task.step(state, batch, jax.random.fold_in(key, step), step - 1)
                losses.append((step, metrics["loss"]))
                check_losses(STEPS_IN_FLIGHT)
                report.add(metrics, skipped)
                last = step == schedule.num_steps
                if last or step % config.log_every == 0:
                    check_losses()
                    report.write(step, float(rate(step - 1)))
                if last or step % config.image_every == 0:
                    report.write_pictures(step, task.pictures(state, batch))
                    report.restart_clock(step)
                if last:
                    check_losses()
                    state = finish(state)
                stopping = stop()
                if last or step % config.checkpoint_every == 0 or stopping:
                    check_losses()
                    checkpointer.save(step, state, iterator)
                if stopping:
                    checkpointer.close()
                    raise Preempted(
                        f"stopped by SIGTERM: saved step {step} of {schedule.num_steps} of the "
                        f"{task.name} in {checkpoints}; run the same command again to go on"
                    )
    return state
