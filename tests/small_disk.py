"""A disk of a few megabytes that can be filled, freed and made read-only."""

import contextlib
import pathlib
import subprocess
from collections.abc import Iterator

import pytest


class SmallDisk:
    """A tmpfs that another process has mounted where only it sees it, without being root.

    path: its root, through that process; any process of this user may use it.
    """

    def __init__(self, process: subprocess.Popen, path: pathlib.Path):
        self._process = process
        self.path = path
        self._filler = path / "filler"

    def fill(self, leave: int = 0) -> None:
        """Takes all of the disk but `leave` bytes."""
        with self._filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))
        if leave:
            with self._filler.open("r+b") as file:
                file.truncate(max(self._filler.stat().st_size - leave, 0))

    def free(self) -> None:
        self._filler.unlink()

    def make_writable(self, writable: bool) -> None:
        self._run(f"mount -o remount,{'rw' if writable else 'ro'} {self.path.name}")

    def _run(self, command: str) -> None:
        self._process.stdin.write(command + " && echo done\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline() == "done\n", command


@contextlib.contextmanager
def small_disk(directory: pathlib.Path, size: str) -> Iterator[SmallDisk]:
    """Mounts at `directory / "disk"`, e.g. with `size` '10m'; skips where that is not allowed."""
    mount_point = directory / "disk"
    mount_point.mkdir()
    try:
        process = subprocess.Popen(
            ["unshare", "--map-root-user", "--mount", "sh"],
            cwd=directory,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
    except FileNotFoundError:
        pytest.skip("there is no unshare here")
    with process:
        try:
            process.stdin.write(f"mount -t tmpfs -o size={size} tmpfs disk && echo done || exit\n")
            process.stdin.flush()
            if process.stdout.readline() != "done\n":
                pytest.skip(f"no disk can be mounted: {process.stderr.read()}")
            yield SmallDisk(process, pathlib.Path(f"/proc/{process.pid}/root{mount_point}"))
        finally:
            process.kill()
