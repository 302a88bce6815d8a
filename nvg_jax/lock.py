"""One run at a time where two would destroy each other's files."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import socket
from collections.abc import Iterator

import jax
from etils import epath

from nvg_jax import files
from nvg_jax.distributed import agreed
from nvg_jax.errors import UserError

log = logging.getLogger(__name__)


@contextlib.contextmanager
def locked(directory: epath.PathLike, what: str) -> Iterator[None]:
    """Keeps other runs that want to lock it as well out of a directory; UserError if one is there.

    All processes of a run have to call it; process 0 holds the lock. It belongs to an open file, so
    that it ends with the process, however that ends; the file `lock` stays, and only says who had
    it. Without locks, as in buckets and some file systems, nothing is locked.

    what: is done there, as in 'a training'.
    """
    with contextlib.ExitStack() as stack:
        problem = ""
        if jax.process_index() == 0 and not files.is_remote(directory):
            try:
                stack.enter_context(_locked_file(epath.Path(directory), what))
            except UserError as error:
                problem = str(error)
        if problem := agreed(problem):
            raise UserError(problem)
        yield


@contextlib.contextmanager
def _locked_file(directory: epath.Path, what: str) -> Iterator[None]:
    path = directory / "lock"
    with contextlib.ExitStack() as stack:
        with files.said_why(path):
            directory.mkdir(parents=True, exist_ok=True)
            try:
                # Over NFS a lock needs a file that is open for writing.
                file = stack.enter_context(open(path, "a+", encoding="utf-8", errors="replace"))
            except OSError as error:
                if error.errno != errno.EROFS:
                    raise
                file = None
        if file is None:  # Nobody writes there.
            yield
            return
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            who = " ".join(file.read(200).split())
            raise UserError(
                f"another run is at work in {directory} ({who}): wait for its end, or name "
                "another --workdir"
            ) from None
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK):
                raise
            log.warning(
                "%s cannot be locked (%s): see that nothing else writes there",
                directory,
                os.strerror(error.errno),
            )
        with contextlib.suppress(OSError):  # On a full disk it is locked all the same.
            file.seek(0)
            file.truncate()
            file.write(f"{what}, process {os.getpid()} on {socket.gethostname()}\n")
            file.flush()
        yield
