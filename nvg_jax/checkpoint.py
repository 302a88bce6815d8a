"""Checkpoints of a training under way, with Orbax. Weights for exchange: `weights`.

A training's directory holds one directory a step:

    <step>/ema/      all that inference needs
    <step>/state/    the other fields of the state
    <step>/data/     the position in the data, which is that of all processes together
    <step>/seal      the architecture, and a CRC-32 of every file above

Orbax writes a step under a temporary name and renames it when it is whole, so a step whose saving
was killed is never taken for a checkpoint. Changed bytes in an array's data, however, it mostly
hands over as other numbers, and damaged metadata as exceptions of every kind. So the seal is
compared with the files before Orbax reads anything: what does not agree with its seal is damaged,
and an exception raised after that is never about it. Directories may be in a bucket (`gs://`).
"""

import dataclasses
import json
import logging
import threading
import time
from typing import Any

import grain
import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from nvg_jax import seal
from nvg_jax.arrays import absolute, read_arrays
from nvg_jax.distributed import agreed
from nvg_jax.errors import UserError
from nvg_jax.saving_errors import SAVING_ERRORS, reason

log = logging.getLogger(__name__)
PyTree = Any


class TrainCheckpointer:
    """Saves a training's state in the background, restores the newest checkpoint that is whole.

    A context manager; leaving it waits for the save under way. Every process of a multi-host run
    makes one for the same directory and makes the same calls.

    A save that fails, on a full disk for one, changes nothing but the log: what it left is removed,
    so that it does not keep the disk full, and earlier checkpoints stay. With several processes it
    fails for all if it fails for one; the others notice after the time that Orbax allows a save.

    directory: holds the checkpoints; it is made, and what a killed save left in it is removed.
    architecture: one line that tells the trained model from others. keep: how many are kept, at
    least 2. Raises UserError if it is less, or the directory cannot be made.
    """

    def __init__(self, directory: epath.PathLike, architecture: str, keep: int):
        if keep < 2:
            raise UserError(f"cannot keep {keep} checkpoint(s): at least 2, should one be damaged")
        self._directory = absolute(directory)
        self._architecture = architecture
        self._keep = keep
        self._saving: int | None = None
        self._problem = ""  # Why the save under way has failed, if that is known.
        self._has_failed = False
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"no checkpoint can be written to {self._directory} ({reason(error)}): name "
                "another --workdir, or make room in this one"
            ) from error
        unfinished = self._unfinished()
        for path in unfinished:
            log.warning(
                "%s was not written to its end and is removed; the newest complete one is used.",
                path,
            )
        ocp.multihost.sync_global_processes("all have looked before one removes them")
        self._remove(unfinished)
        self._orbax = ocp.AsyncCheckpointer(
            ocp.CompositeCheckpointHandler(),
            async_options=ocp.AsyncOptions(
                post_finalization_callback=self._seal_saved,
                # Where one cannot be made, threads would wait for it and keep us from ending.
                # Several processes have to fail alike, which they do in the background.
                create_directories_asynchronously=jax.process_count() > 1,
            ),
            # Written by a thread, it would raise the same failure again, and later.
            checkpoint_metadata_store=ocp.metadata.metadata_store(
                enable_write=True, blocking_write=True
            ),
        )

    def __enter__(self) -> "TrainCheckpointer":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        # Other processes may know nothing of the exception, and would not answer.
        if kind is None or jax.process_count() == 1:
            self.close()

    def close(self) -> None:
        """Waits for the save under way; warns if it failed."""
        self._wait_and_warn()
        self._orbax.close()

    def wait(self) -> str | None:
        """Waits for the save under way. What is to be said if it failed: why, and what is left."""
        if self._saving is None:
            return None
        try:
            self._orbax.wait_until_finished()
        except SAVING_ERRORS as error:
            self._problem = self._problem or reason(error)
        if self._problem:
            _wait_for_writers()
        step, self._saving = self._saving, None
        # All look before they agree, and only then one removes something.
        steps, unfinished = seal.steps(self._directory), self._unfinished()
        problem, self._problem = agreed(self._problem), ""
        if problem:
            self._remove(unfinished)
            for _ in range(4):  # TensorStore's own threads make it again with what was under way.
                time.sleep(0.25)
                self._remove(self._unfinished() if jax.process_index() == 0 else [])
            left = f"step {steps[-1]} stays usable" if steps else "nothing is saved yet"
            self._has_failed = True
            return f"saving step {step} failed ({problem}): {left} in {self._directory}"
        self._remove([self._directory / str(old) for old in steps[: -self._keep]])
        if self._has_failed:
            log.info("saving works again: step %d is in %s", step, self._directory)
        self._has_failed = False
        return None

    def _wait_and_warn(self) -> None:
        if problem := self.wait():
            log.warning("%s; training goes on", problem)

    def check(self) -> None:
        """Warns if the save under way has failed, without waiting for it."""
        if self._saving is None:
            return
        try:
            self._orbax.check_for_errors()
        except SAVING_ERRORS as error:
            self._problem = reason(error)
        # One that failed alone would have to wait for the others.
        if np.all(multihost_utils.process_allgather(np.array(bool(self._problem)))):
            self._wait_and_warn()

    def latest_step(self) -> int | None:
        """The newest step in the directory that was saved to its end; None without any."""
        return max(seal.steps(self._directory), default=None)

    def save(
        self, step: int, state: PyTree, data_iterator: grain.DatasetIterator | None = None
    ) -> None:
        """Starts saving `state` and the position of `data_iterator` as the checkpoint of `step`.

        Both are taken as they are now: on return the state may be donated and the iterator
        advanced. Waits for an earlier save, and warns if it failed. `state` is a dataclass with a
        field `ema`.
        """
        self._wait_and_warn()
        items = {name: ocp.args.PyTreeSave(item) for name, item in _items(state).items()}
        if data_iterator is not None:
            items["data"] = ocp.args.JsonSave(data_iterator.get_state())
        self._saving = step
        try:
            self._orbax.save(self._directory / str(step), args=ocp.args.Composite(**items))
        except SAVING_ERRORS as error:
            self._problem = reason(error)

    def restore(
        self, abstract_state: PyTree, data_iterator: grain.DatasetIterator | None = None
    ) -> tuple[PyTree, int] | None:
        """Restores the newest checkpoint that is whole.

        Damaged ones newer than it are named in a warning and renamed to `<step>.damaged`, so
        that training can write these steps again.

        abstract_state: the state's dataclass with jax.ShapeDtypeStruct leaves. A leaf is restored
        with this dtype onto this sharding; without a sharding, onto the default device.
        data_iterator: is set to the saved position, which any number of processes may have saved.

        Returns the state and its step; None if the directory holds no checkpoint. Raises UserError
        if it is of another architecture or holds other arrays, or all of them are damaged.
        """
        self._wait_and_warn()
        abstract = _items(abstract_state)
        names = (*abstract, "data") if data_iterator is not None else tuple(abstract)
        step, damaged = seal.newest_whole_step(self._directory, self._architecture, names)
        if step is None:
            return None
        path = self._directory / str(step)
        items = {name: read_arrays(path / name, item) for name, item in abstract.items()}
        if data_iterator is not None:
            data_iterator.set_state(json.loads((path / "data" / "metadata").read_text()))
        ocp.multihost.sync_global_processes("all have read before one renames damaged steps")
        if jax.process_index() == 0:
            for source in (self._directory / str(old) for old in damaged):
                aside = source.with_name(f"{source.name}.damaged")
                if aside.exists():
                    aside.rmtree()
                source.rename(aside)
        return dataclasses.replace(abstract_state, ema=items["ema"], **items["state"]), step

    def _seal_saved(self) -> None:
        # Orbax calls this in its background thread, on the primary process, once all processes
        # have written their files and before it renames the temporary directory.
        (path,) = self._unfinished()
        seal.write(path, self._architecture)

    def _unfinished(self) -> list[epath.Path]:
        """The directories of steps that were not written to their end."""
        whole = set(map(str, seal.steps(self._directory)))
        return [
            path
            for path in self._directory.iterdir()
            # On storage without renaming it has its final name from the start.
            if ocp.path.step.TMP_DIR_SUFFIX in path.name
            or (path.name.isdigit() and path.name not in whole)
        ]

    def _remove(self, paths: list[epath.Path]) -> None:
        if jax.process_index() == 0:
            for path in paths:
                try:
                    path.rmtree()
                except OSError as error:
                    log.warning("%s cannot be removed (%s)", path, reason(error))
        ocp.multihost.sync_global_processes("checkpoints removed")


def _wait_for_writers() -> None:
    """Waits until the threads of a failed save have ended.

    Orbax waits for the first one that fails. The others go on, and would make the directory again
    that has been removed. One that waits for what another process should have done writes nothing.
    """
    end = time.monotonic() + 30
    for thread in threading.enumerate():
        if type(thread).__module__.startswith("orbax."):
            # Their own method would raise what they failed of.
            threading.Thread.join(thread, max(end - time.monotonic(), 0))


def _items(state: PyTree) -> dict[str, PyTree]:
    """What is saved by itself, so that it can be read by itself: the average, and the rest."""
    fields = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    return {"ema": fields.pop("ema"), "state": fields}


def restore_ema(
    directory: epath.PathLike, architecture: str, abstract_ema: PyTree
) -> tuple[PyTree, int]:
    """Restores only the `ema` of the newest training checkpoint in which it is undamaged.

    Reads nothing else, and changes nothing in the directory: a training may be writing to it.
    Every process of a multi-host run has to call it. `abstract_ema` is the field `ema` of an
    `abstract_state` as `TrainCheckpointer.restore` takes it.

    Returns the averaged parameters and the step they are from. Raises UserError if there is no
    checkpoint, the newest is of another architecture, or all are damaged.
    """
    directory = absolute(directory)
    step, _ = seal.newest_whole_step(directory, architecture, ("ema",))
    if step is None:
        raise UserError(
            f"no checkpoint in {directory}: train first, with --job=train and this --workdir"
        )
    return read_arrays(directory / str(step) / "ema", abstract_ema), step
