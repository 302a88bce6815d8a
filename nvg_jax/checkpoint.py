"""Checkpoints with Orbax: of a training under way, and of weights for exchange.

A training's directory holds one directory a step, a weights directory is like one such step:

    <step>/state/    the arrays of the state (in a weights directory: weights/)
    <step>/data/     the position in the data, which is that of all processes together
    <step>/seal      the architecture, and a CRC-32 of every file above

Orbax writes a step under a temporary name and renames it when it is whole, so a step whose saving
was killed is never taken for a checkpoint. Changed bytes in an array's data, however, it mostly
hands over as other numbers, and damaged metadata as exceptions of every kind. So the seal is
compared with the files before Orbax reads anything: what does not agree with its seal is damaged,
and an exception raised after that is never about damage.

A save that fails, on a full disk or one that cannot be written, is said and cleared away, and the
checkpoints before it stay. Directories may be in a bucket (`gs://`).
"""

import contextlib
import gc
import json
import logging
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint.checkpoint_managers import LatestN

from nvg_jax import seal
from nvg_jax.errors import UserError
from nvg_jax.saving_errors import SAVING_ERRORS, reason, said_once

log = logging.getLogger(__name__)
PyTree = Any


class TrainCheckpointer:
    """Saves a training's state in the background, restores the newest checkpoint that is whole.

    A context manager; leaving it waits for the save under way. Every process of a multi-host run
    makes one for the same directory and makes the same calls.

    A save that fails changes nothing but the log: what it left is removed, so that it does not keep
    a full disk full, and earlier checkpoints stay. With several processes it fails for all if it
    fails for one; the others notice after the time that Orbax allows a save, 20 minutes.

    Args:
      directory: holds the checkpoints; it is made, and what a killed save left in it is removed.
      architecture: one line that tells the trained model from others.
      keep: number of checkpoints kept; at least 2, so that an older one is there to fall back on.

    Raises:
      UserError: keep is below 2, or the directory cannot be made.
    """

    def __init__(self, directory: epath.PathLike, architecture: str, keep: int):
        if keep < 2:
            raise UserError(
                f"cannot keep {keep} checkpoint(s): keep at least 2, so that an older one can be "
                "used should the newest be damaged"
            )
        self._directory = _absolute(directory)
        self._architecture = architecture
        self._keep = keep
        self._saving: int | None = None
        self._refused: Exception | None = None  # What made a save fail before it was under way.
        self._has_failed = False
        for path in self._directory.glob(f"*{ocp.path.step.TMP_DIR_SUFFIX}*"):
            log.warning(
                "%s was not written to its end and is removed; the newest complete one is used.",
                path,
            )
        self._quiet = contextlib.ExitStack()
        self._quiet.enter_context(said_once())
        try:
            self._manager = self._open(cleanup=True)
        except OSError as error:
            raise UserError(
                f"no checkpoint can be written to {self._directory} ({reason(error)}): name "
                "another --workdir, or make room in this one"
            ) from error

    def _open(self, cleanup: bool) -> ocp.CheckpointManager:
        return ocp.CheckpointManager(
            self._directory,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=LatestN(self._keep),
                cleanup_tmp_directories=cleanup,
                # The steps' metadata is only about metrics, and a damaged one logs a traceback.
                lightweight_initialize=True,
                async_options=ocp.AsyncOptions(
                    post_finalization_callback=self._seal_saved,
                    # Where one cannot be made, threads would wait for it and keep us from ending.
                    # Several processes have to fail alike, which they do in the background.
                    create_directories_asynchronously=jax.process_count() > 1,
                ),
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
        self._warn(self.wait())
        self._manager.close()
        self._quiet.close()

    def wait(self) -> str | None:
        """Waits for the save under way. What is to be said if it failed: why, and what is left."""
        if self._saving is None:
            return None
        problem = None
        refused, self._refused = self._refused, None
        try:
            if refused:
                raise refused
            self._manager.wait_until_finished()
        except SAVING_ERRORS as error:
            problem = reason(error)
        step, self._saving = self._saving, None
        failed = bool(np.any(multihost_utils.process_allgather(np.array(problem is not None))))
        if failed:
            self._start_over(step)
            latest = self._manager.latest_step()
            left = "nothing is saved yet" if latest is None else f"step {latest} stays usable"
            problem = problem or "another process failed"
            self._has_failed = True
            return f"saving step {step} failed ({problem}): {left} in {self._directory}"
        if self._has_failed:
            log.info("saving works again: step %d is in %s", step, self._directory)
        self._has_failed = False
        return None

    def check(self) -> None:
        """Warns if the save under way has failed, without waiting for it."""
        if self._saving is None:
            return
        finished = not self._manager.is_saving_in_progress()
        if np.all(multihost_utils.process_allgather(np.array(finished))):
            self._warn(self.wait())

    def _warn(self, problem: str | None) -> None:
        if problem:
            log.warning("%s; training goes on", problem)

    def latest_step(self) -> int | None:
        """The newest step saved, being saved or found in the directory; None without any."""
        return self._manager.latest_step()

    def save(
        self, step: int, state: PyTree, data_iterator: grain.DatasetIterator | None = None
    ) -> None:
        """Starts saving `state` and the position of `data_iterator` as the checkpoint of `step`.

        Both are taken as they are now: on return the state may be donated and the iterator
        advanced. Waits for an earlier save, and warns if it failed. A step that is there already is
        not written again.
        """
        self._warn(self.wait())
        if step in self._manager.all_steps():
            return
        items = {"state": ocp.args.PyTreeSave(state)}
        if data_iterator is not None:
            items["data"] = ocp.args.JsonSave(data_iterator.get_state())
        self._saving = step
        try:
            # force: a step below the latest would be passed over without a word.
            self._manager.save(step, args=ocp.args.Composite(**items), force=True)
        except SAVING_ERRORS as error:
            self._refused = error

    def restore(
        self, abstract_state: PyTree, data_iterator: grain.DatasetIterator | None = None
    ) -> tuple[PyTree, int] | None:
        """Restores the newest checkpoint that is whole.

        Damaged ones newer than it are named in a warning and renamed to `<step>.damaged`, so
        that training can write these steps again.

        Args:
          abstract_state: the state's pytree with jax.ShapeDtypeStruct leaves. A leaf is restored
            with this dtype onto this sharding; without a sharding, onto the default device.
          data_iterator: is set to the saved position, which any number of processes may have saved.

        Returns:
          The state and its step; None if the directory holds no checkpoint.

        Raises:
          UserError: the checkpoint is of another architecture or holds other arrays, or all of
            them are damaged.
        """
        self._warn(self.wait())
        step, damaged = seal.newest_whole_step(self._directory, self._architecture)
        if step is None:
            return None
        path = self._directory / str(step)
        state = _read_arrays(path / "state", abstract_state)
        if data_iterator is not None:
            data_iterator.set_state(_read_position(path / "data"))
        self._set_aside(damaged)
        return state, step

    def _seal_saved(self) -> None:
        # Orbax calls this in its background thread, on the primary process, once all processes
        # have written their files and before it renames the temporary directory.
        (path,) = self._unfinished(self._saving)
        seal.write(path, self._architecture)

    def _unfinished(self, step: int) -> list[epath.Path]:
        """The directory in which a step is being written, if there is one."""
        temporary = f"{step}{ocp.path.step.TMP_DIR_SUFFIX}"
        return [
            path
            for path in self._directory.iterdir()
            # On storage without renaming it has its final name from the start.
            if path.name == str(step) or path.name.startswith(temporary)
        ]

    def _start_over(self, step: int) -> None:
        """Removes what the failed save of a step left, on the disk and in Orbax."""
        with contextlib.suppress(*SAVING_ERRORS):  # One failure may raise several.
            self._manager.close()
        self._manager = self._open(cleanup=False)
        gc.collect()  # Its errors are logged when they are collected: better now than later.
        if jax.process_index() == 0 and step not in self._manager.all_steps():
            try:
                for path in self._unfinished(step):
                    path.rmtree()
            except OSError as error:
                log.warning("the rest of step %d cannot be removed (%s)", step, reason(error))
        ocp.multihost.sync_global_processes("failed save removed")

    def _set_aside(self, steps: list[int]) -> None:
        # All processes have looked before one of them changes what the others see.
        ocp.multihost.sync_global_processes("damaged checkpoints found")
        if jax.process_index() == 0:
            for step in steps:
                aside = self._directory / f"{step}.damaged"
                if aside.exists():
                    aside.rmtree()
                (self._directory / str(step)).rename(aside)
        ocp.multihost.sync_global_processes("damaged checkpoints set aside")
        self._manager.reload()


def restore_ema(
    directory: epath.PathLike, architecture: str, abstract_ema: PyTree
) -> tuple[PyTree, int]:
    """Restores only the `ema` of the newest training checkpoint that is whole.

    Changes nothing in the directory: a training may be writing to it.

    Args:
      directory: a directory of `TrainCheckpointer`, whose states have a field `ema`.
      architecture: the line given to `TrainCheckpointer`.
      abstract_ema: as `abstract_state` in `TrainCheckpointer.restore`, of `state.ema`.

    Returns:
      The averaged parameters and the step they are from.

    Raises:
      UserError: there is no checkpoint, the newest is of another architecture, or all are damaged.
    """
    directory = _absolute(directory)
    step, _ = seal.newest_whole_step(directory, architecture)
    if step is None:
        raise UserError(
            f"no checkpoint in {directory}: train first, with --job=train and this --workdir"
        )
    return _read_arrays(directory / str(step) / "state", {"ema": abstract_ema})["ema"], step


def save_weights(directory: epath.PathLike, variables: PyTree, architecture: str) -> None:
    """Writes a pytree of arrays as a weights directory, which `load_weights` reads.

    Raises:
      UserError: the directory exists and is not empty.
    """
    directory = _absolute(directory)
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise UserError(f"{directory} exists already: choose another place, or remove it first")
    directory.mkdir(parents=True, exist_ok=True)
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        checkpointer.save(directory / "weights", args=ocp.args.PyTreeSave(variables))
    if jax.process_index() == 0:
        seal.write(directory, architecture)
    ocp.multihost.sync_global_processes("weights sealed")


def load_weights(
    directory: epath.PathLike, abstract_variables: PyTree, architecture: str
) -> PyTree:
    """Reads a weights directory.

    Args:
      directory: written by `save_weights`.
      abstract_variables: as `abstract_state` in `TrainCheckpointer.restore`.
      architecture: the line given to `save_weights`.

    Raises:
      UserError: this is no weights directory, or is damaged, or of another architecture.
    """
    directory = _absolute(directory)
    if not seal.is_sealed(directory) or not (directory / "weights").exists():
        raise UserError(
            f"{directory} is not a (completely written) weights directory: name one that "
            "--job=export or nvg_jax.interop.convert has made"
        )
    try:
        seal.check(directory, architecture)
    except seal.Damaged as damage:
        raise UserError(f"damaged weights: {damage}; make or copy {directory} anew") from None
    return _read_arrays(directory / "weights", abstract_variables)


def _read_position(directory: epath.Path) -> dict[str, Any]:
    # Earlier versions wrote one file a process, with the same content.
    (path,) = (
        path
        for path in directory.iterdir()
        if path.name == "metadata" or path.name.startswith("process_0-")
    )
    return json.loads(path.read_text())


def _absolute(directory: epath.PathLike) -> epath.Path:
    directory = epath.Path(directory).expanduser()
    return directory if directory.is_absolute() else directory.resolve()


def _read_arrays(path: epath.Path, abstract: PyTree) -> PyTree:
    """Reads the sub-trees that `abstract` has, with its dtypes, onto its shardings.

    Raises UserError where the leaves or their shapes are others than those saved.
    """
    handler = ocp.PyTreeCheckpointHandler()
    wanted = _shapes(abstract)
    parts = {name.split("/")[0] for name in wanted}
    saved = _shapes(handler.metadata(path).tree)
    saved = {name: shape for name, shape in saved.items() if name.split("/")[0] in parts}
    differing = sorted(dict(wanted.items() ^ saved.items()))
    if differing:
        name = differing[0]
        raise UserError(
            f"{path} does not fit this config in {len(differing)} array(s); the first is {name}: "
            f"{saved.get(name, 'absent')} there, {wanted.get(name, 'absent')} here (use another "
            "--workdir, or the config it was made with)"
        )

    def how(leaf: jax.ShapeDtypeStruct) -> ocp.RestoreArgs:
        if leaf.sharding is None:
            # By way of NumPy: Orbax would otherwise put it where it was when it was saved.
            return ocp.RestoreArgs(restore_type=np.ndarray, dtype=leaf.dtype)
        return ocp.ArrayRestoreArgs(sharding=leaf.sharding, dtype=leaf.dtype)

    with ocp.Checkpointer(handler) as checkpointer:
        restored = checkpointer.restore(
            path,
            args=ocp.args.PyTreeRestore(
                item=abstract, restore_args=jax.tree.map(how, abstract), partial_restore=True
            ),
        )
    return jax.tree.map(lambda x: x if isinstance(x, jax.Array) else jnp.asarray(x), restored)


def _shapes(tree: PyTree) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
        for path, leaf in leaves
    }
