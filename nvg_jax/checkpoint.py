"""Checkpoints with Orbax: of a training under way, and of weights for exchange.

A training's directory holds one directory a step, a weights directory is like one such step:

    <step>/state/    the arrays of the state (in a weights directory: weights/)
    <step>/data/     where each process stands in the data
    <step>/seal      the architecture, and a CRC-32 of every file above

Orbax writes a step under a temporary name and renames it when it is whole, so a step whose saving
was killed is never taken for a checkpoint. Changed bytes in an array's data, however, it mostly
hands over as other numbers, and damaged metadata as exceptions of every kind. So the seal is
compared with the files before Orbax reads anything: what does not agree with its seal is damaged,
and an exception raised after that is never about damage.
"""

import json
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from orbax.checkpoint.checkpoint_managers import LatestN

from nvg_jax.errors import UserError

PyTree = Any

_SEAL = "seal"


class TrainCheckpointer:
    """Saves a training's state in the background, restores the newest checkpoint that is whole.

    A context manager; leaving it waits for the save under way. Every process of a multi-host run
    makes one for the same directory and makes the same calls.

    Args:
      directory: holds the checkpoints; it is made, and what a killed save left in it is removed.
      architecture: one line that tells the trained model from others.
      keep: number of checkpoints kept; at least 2, so that an older one is there to fall back on.

    Raises:
      UserError: keep is below 2.
    """

    def __init__(self, directory: epath.PathLike, architecture: str, keep: int):
        if keep < 2:
            raise UserError(
                f"cannot keep {keep} checkpoint(s): keep at least 2, so that an older one can be "
                "used should the newest be damaged"
            )
        self._directory = _absolute(directory)
        self._architecture = architecture
        self._saving: int | None = None
        for path in self._directory.glob(f"*{ocp.path.step.TMP_DIR_SUFFIX}*"):
            logging.warning(
                "%s was not written to its end and is removed; the newest complete one is used.",
                path,
            )
        self._manager = ocp.CheckpointManager(
            self._directory,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=LatestN(keep),
                cleanup_tmp_directories=True,
                # The steps' metadata is only about metrics, and a damaged one logs a traceback.
                lightweight_initialize=True,
                async_options=ocp.AsyncOptions(post_finalization_callback=self._seal_saved),
            ),
        )

    def __enter__(self) -> "TrainCheckpointer":
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def close(self) -> None:
        """Waits for the save under way; raises what made it fail."""
        self._manager.close()

    def latest_step(self) -> int | None:
        """The newest step saved, being saved or found in the directory; None without any."""
        return self._manager.latest_step()

    def save(
        self, step: int, state: PyTree, data_iterator: grain.DatasetIterator | None = None
    ) -> None:
        """Starts saving `state` and the position of `data_iterator` as the checkpoint of `step`.

        Both are taken as they are now: on return the state may be donated and the iterator
        advanced. Waits for an earlier save, and raises what made that one fail. A step that is
        there already is not written again.
        """
        self._manager.wait_until_finished()
        if step in self._manager.all_steps():
            return
        items = {"state": ocp.args.PyTreeSave(state)}
        if data_iterator is not None:
            items["data"] = grain.checkpoint.CheckpointSave(data_iterator)
        self._saving = step
        # force: a step below the latest would be passed over without a word.
        self._manager.save(step, args=ocp.args.Composite(**items), force=True)

    def restore(
        self, abstract_state: PyTree, data_iterator: grain.DatasetIterator | None = None
    ) -> tuple[PyTree, int] | None:
        """Restores the newest checkpoint that is whole.

        Damaged ones newer than it are named in a warning and renamed to `<step>.damaged`, so
        that training can write these steps again.

        Args:
          abstract_state: the state's pytree with jax.ShapeDtypeStruct leaves. A leaf is restored
            with this dtype onto this sharding; without a sharding, onto the default device.
          data_iterator: is set to the saved position.

        Returns:
          The state and its step; None if the directory holds no checkpoint.

        Raises:
          UserError: the checkpoint is of another architecture or holds other arrays, or all of
            them are damaged.
          ValueError: the checkpoint was saved without an iterator, or by another number of
            processes.
        """
        self._manager.wait_until_finished()
        step, damaged = _newest_whole_step(self._directory, self._architecture)
        if step is None:
            return None
        path = self._directory / str(step)
        state = _read_arrays(path / "state", abstract_state)
        if data_iterator is not None:
            grain.checkpoint.CheckpointHandler().restore(path / "data", item=data_iterator)
        self._set_aside(damaged)
        return state, step

    def _seal_saved(self) -> None:
        # Orbax calls this in its background thread, on the primary process, once all processes
        # have written their files and before it renames the temporary directory. (On storage
        # without renaming the directory has its final name from the start.)
        name = str(self._saving)
        temporary = name + ocp.path.step.TMP_DIR_SUFFIX
        (path,) = (
            path
            for path in self._directory.iterdir()
            if path.name == name or path.name.startswith(temporary)
        )
        _write_seal(path, self._architecture)

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
    step, _ = _newest_whole_step(directory, architecture)
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
        _write_seal(directory, architecture)
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
    if not (directory / _SEAL).exists() or not (directory / "weights").exists():
        raise UserError(
            f"{directory} is not a (completely written) weights directory: name one that "
            "--job=export or nvg_jax.interop.convert has made"
        )
    try:
        _check(directory, architecture)
    except _Damaged as damage:
        raise UserError(f"damaged weights: {damage}; make or copy {directory} anew") from None
    return _read_arrays(directory / "weights", abstract_variables)


class _Damaged(Exception):
    """The files of a checkpoint are not those that were written; says which."""


def _absolute(directory: epath.PathLike) -> epath.Path:
    directory = epath.Path(directory).expanduser()
    return directory if directory.is_absolute() else directory.resolve()


def _newest_whole_step(directory: epath.Path, architecture: str) -> tuple[int | None, list[int]]:
    """The newest undamaged step, and the damaged ones newer than it; (None, []) without steps."""
    found = ocp.path.step.standard_name_format().find_all(directory)
    damages: dict[int, _Damaged] = {}
    for step in sorted((metadata.step for metadata in found), reverse=True):
        try:
            _check(directory / str(step), architecture)
        except _Damaged as damage:
            damages[step] = damage
            continue
        for damaged_step, damage in damages.items():
            logging.warning(
                "The checkpoint of step %d is damaged (%s); using that of step %d instead.",
                damaged_step, damage, step,
            )  # fmt: skip
        return step, list(damages)
    if damages:
        raise UserError(
            f"every checkpoint in {directory} is damaged ("
            + "; ".join(map(str, damages.values()))
            + "): put a backup in its place, or remove the directory to start over"
        )
    return None, []


def _files(directory: epath.Path) -> Iterator[epath.Path]:
    for path in directory.iterdir():
        if path.is_dir():
            yield from _files(path)
        else:
            yield path


def _checksum(path: epath.Path) -> int | None:
    """CRC-32 of a file; None if there is no such file."""
    checksum = 0
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                checksum = zlib.crc32(block, checksum)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return None
    return checksum


def _checksums(paths: list[epath.Path]) -> list[int | None]:
    with ThreadPoolExecutor() as pool:  # zlib and reading leave the interpreter to other threads
        return list(pool.map(_checksum, paths))


def _write_seal(directory: epath.Path, architecture: str) -> None:
    """Seals the files in `directory`'s sub-directories: the only ones that are ever read."""
    paths = [path for item in directory.iterdir() if item.is_dir() for path in _files(item)]
    names = [path.relative_to(directory).as_posix() for path in paths]
    files = dict(zip(names, _checksums(paths), strict=True))
    content = {"architecture": architecture, "files": files}
    body = json.dumps(content, indent=1).encode()
    (directory / _SEAL).write_bytes(b"%08x\n" % zlib.crc32(body) + body)


def _check(directory: epath.Path, architecture: str) -> None:
    """Raises UserError for another architecture, _Damaged for files that are not as sealed."""
    seal = directory / _SEAL
    if not seal.is_file():
        raise _Damaged(f"{seal} is missing")
    checksum, _, body = seal.read_bytes().partition(b"\n")
    if checksum != b"%08x" % zlib.crc32(body):
        raise _Damaged(f"{seal} has changed since it was written")
    content = json.loads(body)
    if content["architecture"] != architecture:
        raise UserError(
            f"{directory} was made with {content['architecture']}, but this config is for "
            f"{architecture}: use another --workdir, or the config it was made with"
        )
    paths = [directory / name for name in content["files"]]
    for path, written, found in zip(
        paths, content["files"].values(), _checksums(paths), strict=True
    ):
        if found is None:
            raise _Damaged(f"{path} is missing")
        if found != written:
            raise _Damaged(f"{path} has changed since it was written")


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
