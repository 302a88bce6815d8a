"""A seal over the files of a directory, from which damage to any of their bytes is noticed.

The file `seal` holds the architecture of what is saved, and a CRC-32 of every file in the
directory's sub-directories: the only ones that are ever read.
"""

import json
import logging
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import orbax.checkpoint as ocp
from etils import epath

from nvg_jax.errors import UserError

log = logging.getLogger(__name__)

_SEAL = "seal"


class Damaged(Exception):
    """The files of a checkpoint are not those that were written; says which."""


def is_sealed(directory: epath.Path) -> bool:
    return (directory / _SEAL).exists()


def files(directory: epath.Path) -> Iterator[epath.Path]:
    """All files in a directory and below."""
    for path in directory.iterdir():
        if path.is_dir():
            yield from files(path)
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


def write(directory: epath.Path, architecture: str) -> None:
    """Seals what is in `directory`'s sub-directories."""
    paths = [path for item in directory.iterdir() if item.is_dir() for path in files(item)]
    names = [path.relative_to(directory).as_posix() for path in paths]
    checksums = dict(zip(names, _checksums(paths), strict=True))
    content = {"architecture": architecture, "files": checksums}
    body = json.dumps(content, indent=1).encode()
    (directory / _SEAL).write_bytes(b"%08x\n" % zlib.crc32(body) + body)


def check(directory: epath.Path, architecture: str) -> None:
    """Raises UserError for another architecture, Damaged for files that are not as sealed."""
    seal = directory / _SEAL
    if not seal.is_file():
        raise Damaged(f"{seal} is missing")
    checksum, _, body = seal.read_bytes().partition(b"\n")
    if checksum != b"%08x" % zlib.crc32(body):
        raise Damaged(f"{seal} has changed since it was written")
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
            raise Damaged(f"{path} is missing")
        if found != written:
            raise Damaged(f"{path} has changed since it was written")


def newest_whole_step(directory: epath.Path, architecture: str) -> tuple[int | None, list[int]]:
    """The newest undamaged step, and the damaged ones newer than it; (None, []) without steps."""
    found = ocp.path.step.standard_name_format().find_all(directory)
    damages: dict[int, Damaged] = {}
    for step in sorted((metadata.step for metadata in found), reverse=True):
        try:
            check(directory / str(step), architecture)
        except Damaged as damage:
            damages[step] = damage
            continue
        for damaged_step, damage in damages.items():
            log.warning(
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
