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
import jax.numpy as jnp
import numpy as np
from clu.parameter_overview import count_parameters
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Key
from ml_collections import ConfigDict

from nvg_jax import keys, sharding, startup
from nvg_jax.checkpoint import TrainCheckpointer
from nvg_jax.errors import Preempted, UserError
from nvg_jax.progress import Progress
from nvg_jax.training import flops, optimizer
from nvg_jax.training.report import Report
from nvg_jax.training.state import TrainState

log = logging.getLogger(__name__)
Batch = dict[str, Any]  # Arrays, or their shapes with shardings.
Metrics = dict[str, Any]

STEPS_IN_FLIGHT = 2  # How far the host may run ahead of the devices.


@runtime_checkable
class Task(Protocol):
    """What is trained.

    name: of the task, as in `config.<name>.training`. architecture: the model in one line. frozen:
    a tree of what the step reads and never changes.
    """

    name: str
    architecture: str
    frozen: Any

    def init_state(self, key: Key[Array, ""], variables: Any = None) -> TrainState:
        """The state before the first step, from random variables unless some are given."""
        ...

    def step(
        self, state: TrainState, frozen: Any, batch: Batch, key: Key[Array, ""]
    ) -> tuple[TrainState, Metrics]:
        """The state after one more step, and metrics as `Report` takes them. A pure function."""
        ...

    def without_remat(self) -> Task:
        """A task with the same step, of which nothing is computed twice."""
        ...

    def pictures(self, state: TrainState, batch: Batch) -> dict[str, np.ndarray]:
        """Pictures of how far it is, as uint8, by name."""
        ...


def make_step(task: Task, state: TrainState) -> Any:
    """The task's step, compiled for states that lie as `state` does, which may be abstract.

    The state that is given is donated, and the one that is returned lies in the same places.
    """
    places = (sharding.of(state), None)
    return jax.jit(task.step, donate_argnums=0, out_shardings=places)


def count_flops(task: Task, state: TrainState, batch: Batch, key: Any) -> float:
    """Floating-point operations of one step that the method needs; all may be abstract."""
    once = task.without_remat()
    return flops.count(make_step(once, state).trace(state, once.frozen, batch, key).jaxpr)


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


class _AgreedStop:
    """Whether any process was asked to stop, which all of them learn at the same step.

    SIGTERM reaches them at different moments, but all have to save the same step. Their answers are
    put together on the devices, in the queue of the steps, so that a host waits for them no longer
    than for the losses.
    """

    def __init__(self, stop: Callable[[], bool], mesh: Mesh):
        self._stop = stop
        self._by_device = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        self._any = jax.jit(jnp.max, out_shardings=sharding.replicated(mesh))
        self._answers: collections.deque[jax.Array] = collections.deque()

    def __call__(self) -> bool:
        """Is to be asked once a step."""
        if jax.process_count() == 1:
            return self._stop()
        mine = np.full(self._by_device.num_devices, self._stop(), np.int32)
        answers = jax.make_array_from_callback(mine.shape, self._by_device, mine.__getitem__)
        self._answers.append(self._any(answers))
        return len(self._answers) > STEPS_IN_FLIGHT and bool(self._answers.popleft())


def train(
    task: Task,
    config: ConfigDict,
    schedule: Schedule,
    iterator: Iterator[dict[str, np.ndarray]],
    directory: str,
    mesh: Mesh,
    key: Key[Array, ""],
    stop: Callable[[], bool] = lambda: False,
    initial: Callable[[], Any] | None = None,
    begin: Callable[[], None] = lambda: None,
    finish: Callable[[TrainState], TrainState] = lambda state: state,
) -> TrainState:
    """Brings a task from its last checkpoint, or from nothing, to its last step.

    config: the task's training config. iterator: a Grain iterator over this process's batches; its
    position is saved and restored with the state. directory: holds the task's checkpoints and
    summaries. stop: whether to save and leave, asked of every process; all do if one says so,
    STEPS_IN_FLIGHT steps later. initial: makes variables to start from in place of random ones,
    if there is no checkpoint. begin: called before the first step, once the directory is known to
    fit the task. finish: turns the trained state into the one that is kept.

    A step is a function of the state, the batch, and a key made from `key` and the step alone, so
    that an interrupted run ends with the same parameters as an uninterrupted one.

    A full disk, or one that cannot be written, does not end training: it is said, and what comes
    later is saved again. Only where the process would end with its work unsaved it is an error.

    Raises Preempted when asked to stop, after saving; UserError if the loss is not finite, the
    directory cannot be written at the start, or the last state cannot be saved.
    """
    init_key, steps_key = keys.named(key, "start"), keys.named(key, "steps")
    rate = optimizer.learning_rate(config, schedule.num_steps)
    checkpoints = f"{directory}/checkpoints"
    with (
        jax.set_mesh(mesh),
        TrainCheckpointer(checkpoints, task.architecture, config.keep_checkpoints) as checkpointer,
    ):
        init_state = task.init_state  # Kept: JAX forgets a trace together with its function.
        abstract = sharding.abstract(init_state, mesh, init_key)
        restored = checkpointer.restore(abstract, iterator)
        if restored is None or restored[1] < schedule.num_steps:
            begin()
        if restored is not None:
            state, start = restored
            log.info("%s: resumed at step %d of %d", task.name, start, schedule.num_steps)
        else:
            given = (initial(),) if initial else ()
            state, start = sharding.make(init_state, init_key, *given, like=abstract), 0
            del given  # Which is as large as the model.
        if start >= schedule.num_steps:
            return state

        log.info(
            "%s, %s parameters: %d steps of %d images; the first takes a minute or more to compile",
            task.name,
            f"{count_parameters(abstract.params):,}",
            schedule.num_steps - start,
            schedule.batch_size,
        )
        run_step = make_step(task, state)
        agreed_stop = _AgreedStop(stop, mesh)
        losses: collections.deque[tuple[int, jax.Array]] = collections.deque()

        def check_losses(in_flight: int = 0) -> None:
            """Waits for all steps but the last `in_flight`, and stops at the first bad loss."""
            while len(losses) > in_flight:
                step, loss = losses.popleft()
                if not math.isfinite(loss):
                    checkpointer.wait()
                    kept = checkpointer.latest_step()
                    last_good = "nothing was saved" if kept is None else f"step {kept} is kept"
                    raise UserError(
                        f"the loss of the {task.name} is {float(loss)} at step {step}: training "
                        f"stopped, {last_good} in {checkpoints}; go on from there with a lower "
                        f"--config.{task.name}.training.learning_rate"
                    )

        with (
            contextlib.closing(
                Report(task.name, directory, schedule.num_steps, schedule.batch_size, start)
            ) as report,
            contextlib.ExitStack() as first_step,
        ):
            first_step.enter_context(Progress(f"{task.name}: first step", 1, "step"))
            for step in range(start + 1, schedule.num_steps + 1):
                is_first, last = step == start + 1, step == schedule.num_steps
                with startup.part("data"):
                    batch = dict(next(iterator))
                skipped = int(np.sum(batch.pop("skipped")))
                batch = sharding.place_batch(batch, mesh)
                with startup.part("tracing"):
                    step_key = jax.random.fold_in(steps_key, step)
                    state, metrics = run_step(state, task.frozen, batch, step_key)
                    if is_first:  # While it runs, and after JAX has traced it, which it does once.
                        report.step_flops = count_flops(task, state, batch, step_key)
                if is_first:
                    with startup.part("step"):
                        jax.block_until_ready(metrics)
                    first_step.close()
                    startup.log_first_step()
                losses.append((step, metrics["loss"]))
                check_losses(STEPS_IN_FLIGHT)
                report.add(metrics, skipped)
                if last or step % config.log_every == 0:
                    check_losses()
                    report.write(step, float(rate(step - 1)))
                    checkpointer.check()
                if last or step % config.image_every == 0:
                    report.write_pictures(step, task.pictures(state, batch))
                    report.restart_clock(step)
                if last:
                    check_losses()
                    state = finish(state)
                stopping = agreed_stop()
                if last or step % config.checkpoint_every == 0 or stopping:
                    check_losses()
                    checkpointer.save(step, state, iterator)
                if (last or stopping) and (problem := checkpointer.wait()):
                    raise UserError(
                        f"{problem}; make room, and run the same command again to go on from there"
                    )
                if stopping:
                    raise Preempted(
                        f"stopped by SIGTERM: saved step {step} of {schedule.num_steps} of the "
                        f"{task.name} in {checkpoints}; run the same command again to go on"
                    )
    return state
