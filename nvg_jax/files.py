"""Writing files so that there is always a whole one: in folders, and in buckets (gs://...).

What is being written has a name of its own until it is whole, and is removed if it never will be.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from typing import IO

from etils import epath

from nvg_jax.errors import UserError

_unfinished: set[epath.Path] = set()  # Files and folders of this process.


@contextlib.contextmanager
def replacing(path: epath.PathLike) -> Iterator[IO[bytes]]:
    """A file to write to; on leaving it takes the place of `path`, and not at all on an exception.

    Makes the folder where there is none. Raises UserError if it cannot be written.
    """
    path = epath.Path(path)
    with said_why(path):
        if is_remote(path):  # An object in a bucket appears when it is whole.
            with tempfile.TemporaryFile() as file:
                yield file
                file.seek(0)
                with path.open("wb") as opened:
                    shutil.copyfileobj(file, opened)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{uuid.uuid4().hex}.part")
        with _removed_on_failure(part):
            with part.open("wb") as file:
                yield file
            part.replace(path)


def write_text(path: epath.PathLike, text: str) -> None:
    with replacing(path) as file:
        file.write(text.encode())


@contextlib.contextmanager
def new_folder(path: epath.PathLike) -> Iterator[epath.Path]:
    """A folder that was not there before: `path`, or else `path-2`, `path-3`, ...

    It is removed again on an exception. Raises UserError if it cannot be made.
    """
    for candidate in _numbered(epath.Path(path)):
        with said_why(candidate):
            try:
                candidate.mkdir(parents=True)
                break
            except FileExistsError:
                continue
    with _removed_on_failure(candidate):
        yield candidate


@contextlib.contextmanager
def temporary_folder(prefix: str) -> Iterator[epath.Path]:
    """A folder that is removed on leaving, also where the process is stopped."""
    path = epath.Path(tempfile.mkdtemp(prefix=prefix))
    _unfinished.add(path)
    try:
        yield path
    finally:
        _remove(path)
        _unfinished.discard(path)


def free_name(path: epath.PathLike) -> epath.Path:
    """`path`, or else `path-2`, ..., before its suffix: the first of which there is none."""
    return next(_numbered(epath.Path(path)))


def _numbered(path: epath.Path) -> Iterator[epath.Path]:
    names = (f"{path.stem}-{number}{path.suffix}" for number in itertools.count(2))
    for candidate in itertools.chain([path], map(path.with_name, names)):
        if not candidate.exists():
            yield candidate


def usable_workdir(workdir: epath.PathLike) -> str:
    """The path with `~` for the home; UserError unless one can write there, or make it.

    Leaves nothing there.
    """
    path = readable_workdir(workdir)
    if is_remote(path):
        return path
    there, missing = os.path.abspath(path), ""
    with said_why(path):
        while not os.path.lexists(there):
            there, name = os.path.split(there)
            missing = os.path.join(name, missing)
        # Under a name of its own: other processes may do the same at this time.
        with tempfile.TemporaryDirectory(prefix=".nvg_jax_", dir=there) as directory:
            place = os.path.join(directory, missing)
            os.makedirs(place, exist_ok=True)
            with open(os.path.join(place, "file"), "wb") as file:
                file.write(bytes(4096))
    return path


def readable_workdir(workdir: epath.PathLike) -> str:
    """The path with `~` for the home; UserError for what is none."""
    workdir = os.fspath(workdir)
    try:
        workdir.encode()
        path = os.fspath(epath.Path(workdir).expanduser())
    except (ValueError, KeyError, RuntimeError):  # No text, unknown place, unknown home.
        path = ""
    if not path or not workdir.strip() or "\0" in path or workdir in ("gs://", "s3://"):
        raise UserError(f"--workdir={workdir!a} is no directory: name one")
    return path


def is_remote(path: epath.PathLike) -> bool:
    """Whether it is in a bucket, which knows no locks and no half-written files."""
    return "://" in os.fspath(path)


@contextlib.contextmanager
def said_why(path: epath.PathLike) -> Iterator[None]:
    """Makes one line, a UserError, of what the operating system says of writing to `path`."""
    try:
        yield
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        cause: BaseException | None = error
        # zipfile says that it cannot end a file in which it could not write.
        while cause and not (isinstance(cause, OSError) and cause.strerror):
            cause = cause.__context__
        if cause is None:
            raise
        raise UserError(
            f"{path} cannot be written ({cause.strerror}): make room, or name another place"
        ) from error


@contextlib.contextmanager
def _removed_on_failure(path: epath.Path) -> Iterator[None]:
    _unfinished.add(path)
    try:
        yield
    except BaseException:
        _remove(path)
        raise
    finally:
        _unfinished.discard(path)


def remove_unfinished() -> None:
    """Removes what is being written, for a process that ends at once."""
    for path in list(_unfinished):
        _remove(path)


def _remove(path: epath.Path) -> None:
    with contextlib.suppress(OSError):
        if path.is_dir():
            path.rmtree()
        else:
            path.unlink(missing_ok=True)
