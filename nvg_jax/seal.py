"""A seal over the files of a directory, from which damage to any of their bytes is noticed.

The file `seal` holds the architecture of what is saved, and a CRC-32 of every file in the
directory's sub-directories, the items: the only files that are ever read.
"""

import json
import logging
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from nvg_jax.arrays import check_architecture
from nvg_jax.distributed import agreed
from nvg_jax.errors import UserError

log = logging.getLogger(__name__)

NAME = "seal"


def _files(directory: epath.Path) -> Iterator[epath.Path]:
    """All files in a directory and below."""
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


def _checksums(directory: epath.Path, names: list[str]) -> dict[str, int | None]:
    with ThreadPoolExecutor() as pool:  # zlib and reading leave the interpreter to other threads
        found = pool.map(lambda name: _checksum(directory / name), names)
        return dict(zip(names, found, strict=True))


def write(directory: epath.Path, architecture: str) -> None:
    """Seals the items of `directory`. One process has to call it, once all have written."""
    paths = [path for item in directory.iterdir() if item.is_dir() for path in _files(item)]
    names = [path.relative_to(directory).as_posix() for path in paths]
    content = {"architecture": architecture, "files": _checksums(directory, names)}
    body = json.dumps(content, indent=1).encode()
    (directory / NAME).write_bytes(b"%08x\n" % zlib.crc32(body) + body)


def damage(directory: epath.Path, architecture: str, items: tuple[str, ...]) -> str:
    """What is damaged of the items, or '' where all is as it was sealed.

    Every process has to call it. Each reads its share of the files, so that together they read them
    once, and all get the same answer. Raises UserError if the seal is of another architecture.
    """
    content, found = read(directory)
    if content and content["architecture"] == architecture:
        found = _damage_in_share(directory, content["files"], items)
    if found := agreed(found):
        return found
    check_architecture(directory, architecture, content["architecture"])
    return ""


def read(directory: epath.Path) -> tuple[dict[str, Any] | None, str]:
    """What the seal says; None, and why, if it cannot be believed."""
    path = directory / NAME
    if not path.is_file():
        return None, f"{path} is missing"
    checksum, _, body = path.read_bytes().partition(b"\n")
    if checksum != b"%08x" % zlib.crc32(body):
        return None, f"{path} has changed since it was written"
    return json.loads(body), ""


def _damage_in_share(directory: epath.Path, sealed: dict[str, int], items: tuple[str, ...]) -> str:
    names = sorted(name for name in sealed if name.startswith(tuple(f"{item}/" for item in items)))
    for item in items:
        if not any(name.startswith(f"{item}/") for name in names):
            return f"{directory / item} is missing"
    share = names[jax.process_index() :: jax.process_count()]
    for name, checksum in _checksums(directory, share).items():
        if checksum is None:
            return f"{directory / name} is missing"
        if checksum != sealed[name]:
            return f"{directory / name} has changed since it was written"
    return ""


def newest_whole_step(
    directory: epath.Path, architecture: str, items: tuple[str, ...]
) -> tuple[int | None, list[int]]:
    """The newest step whose items are undamaged, and the damaged ones newer than it.

    Every process has to call it. Without steps it is (None, []); with none that is whole it raises
    UserError.
    """
    # What one process sees counts for all: a training may be writing there.
    names = [str(step) for step in reversed(steps(directory))] if jax.process_index() == 0 else []
    damages: dict[int, str] = {}
    for step in map(int, agreed(" ".join(names[:100])).split()):
        if found := damage(directory / str(step), architecture, items):
            damages[step] = found
            continue
        for damaged_step, found in damages.items():
            log.warning(
                "The checkpoint of step %d is damaged (%s); using that of step %d instead.",
                damaged_step, found, step,
            )  # fmt: skip
        return step, list(damages)
    if damages:
        raise UserError(
            f"every checkpoint in {directory} is damaged ({'; '.join(damages.values())}): put a "
            "backup in its place, or remove the directory to start over"
        )
    return None, []


def steps(directory: epath.Path) -> list[int]:
    """The steps of which Orbax has written a checkpoint to its end."""
    found = ocp.path.step.standard_name_format().find_all(directory)
    return sorted(metadata.step for metadata in found)
