"""Fetches what others have published, once: frozen networks, the authors' models, a reference.

    python -m nvg_jax.interop.fetch [lpips dino dinov2 inception] [nvg_d16 nvg_d20 nvg_d24
        nvg_tokenizer] [adm_imagenet256] [--directory DIR] [--file vgg16=PATH]

Without names it fetches all of the frozen networks. Nothing that a file names is run or imported.
All of it stays under its publishers' licences, which `--list` shows.
"""

from nvg_jax import stopping

if __name__ == "__main__":
    stopping.watch()  # Before the imports, which take a while.

import argparse
import hashlib
import http.client
import math
import sys
import urllib.request
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

from etils import epath

from nvg_jax import cli
from nvg_jax.errors import UserError
from nvg_jax.evaluation import reference
from nvg_jax.frozen import weights
from nvg_jax.frozen.weights import Network, PublishedFile
from nvg_jax.interop import fetch_released
from nvg_jax.interop.frozen_names import frozen_variables
from nvg_jax.interop.torch_file import stored_tensors
from nvg_jax.interop.translate import Tensors
from nvg_jax.pretrained import RELEASED
from nvg_jax.progress import Progress
from nvg_jax.weights import save_weights

R = TypeVar("R")
NAMES = (*weights.NETWORKS, *RELEASED, reference.PUBLISHED.name)
_GIVEN = (*weights.FILES, *RELEASED)  # What `--file` may name.


def fetch(
    name: str, directory: epath.PathLike = "", given: Mapping[str, epath.PathLike] | None = None
) -> str:
    """Makes `directory`/`name` from the published files, if it is not there, and says so in a line.

    directory: of all that is fetched; '' for the default. Downloads stay in `downloads`, those of
    the hub in the cache of its client.
    given: paths of published files that are there already, by the files' names.

    UserError: a file cannot be downloaded, cannot be read or is another one.
    """
    folder, is_reference = weights.weights_directory(directory), name == reference.PUBLISHED.name
    target = reference.published(directory) if is_reference else folder / name
    if target.exists():
        return f"{name} is already in {target}"
    if is_reference:
        _download_once(reference.PUBLISHED, target, _check_archive)
        return f"{name} is now in {target}"
    # Renamed when it is whole, so that weights whose writing was killed are never found.
    partial = folder / f"{name}.partial"
    if partial.exists():
        partial.rmtree()
    if name in RELEASED:
        fetch_released.write(name, partial, given or {})
    else:
        _write_network(weights.NETWORKS[name], partial, weights.downloads(directory), given or {})
    partial.rename(target)
    return f"{name} is now in {target}"


def _write_network(
    network: Network, target: epath.Path, downloads: epath.Path, given: Mapping[str, epath.PathLike]
) -> None:
    state_dict: Tensors = {}
    for file in (weights.FILES[name] for name in network.files):
        if file.name in given:
            state_dict |= _read_published(file, given[file.name])
        else:
            state_dict |= _download_once(file, downloads / file.file_name, _read_published)
    save_weights(target, frozen_variables(state_dict, network), network.architecture)


def _download_once(
    file: PublishedFile, path: epath.Path, read: Callable[[PublishedFile, epath.Path], R]
) -> R:
    """What is read of a published file, which is downloaded unless it is there."""
    if path.exists():
        return read(file, path)
    print(f"downloading {file.description} ({file.licence}) from {file.address}", flush=True)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _download(file.address, path)
    except (OSError, http.client.HTTPException) as error:
        option = f", or say where it is with --file {file.name}=PATH"
        raise UserError(
            f"cannot download {file.address} ({' '.join(str(error).split())}): put the file at "
            f"{path}{option if file.name in weights.FILES else ''}"
        ) from None
    try:
        return read(file, path)
    except UserError:
        path.unlink()  # A server can answer with something else.
        raise


def _download(address: str, path: epath.Path) -> None:
    """Writes what is at the address to a file, which is there only once it is whole."""
    partial = path.with_name(f"{path.name}.partial")
    try:
        with urllib.request.urlopen(address, timeout=60) as response, partial.open("wb") as file:
            size = response.length  # None if the server does not say.
            megabytes = size and math.ceil(size / 1e6)
            with Progress(f"downloading {path.name}", megabytes, "megabyte") as progress:
                while block := response.read(10**6):
                    file.write(block)
                    progress.update()
        if size and partial.stat().length != size:
            raise OSError(f"the connection ended after {partial.stat().length} of {size} bytes")
        partial.rename(path)
    finally:
        partial.unlink(missing_ok=True)


def _read_published(file: PublishedFile, path: epath.PathLike) -> Tensors:
    try:
        with open(path, "rb") as opened:
            found = hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    if not found.startswith(file.sha256_prefix):
        raise UserError(
            f"{path} is not {file.file_name}: its SHA-256 begins with "
            f"{found[: len(file.sha256_prefix)]}, not {file.sha256_prefix}. Put "
            "the right one in its place"
        )
    return stored_tensors(str(path))


def _check_archive(file: PublishedFile, path: epath.Path) -> None:
    if not zipfile.is_zipfile(path):
        raise UserError(f"what {file.address} gives is no .npz file: get {path} in another way")


def _named_paths(options: Iterable[str]) -> dict[str, str]:
    """`name=path` options as a dict; UserError if one is of another form or has no such name."""
    paths = {}
    for option in options:
        name, _, path = option.partition("=")
        if name not in _GIVEN or not path:
            raise UserError(
                f"--file {option} is not NAME=PATH with one of the names {', '.join(_GIVEN)}"
            )
        paths[name] = path
    return paths


def _listing() -> str:
    """The published files by what is made of them."""
    parts = {
        network.name: [weights.FILES[name] for name in network.files]
        for network in weights.NETWORKS.values()
    }
    parts[reference.PUBLISHED.name] = [reference.PUBLISHED]
    lines = []
    for name, published in parts.items():
        lines.append(f"{name}:")
        for file in published:
            sha256 = f"{file.sha256_prefix}..." if file.sha256_prefix else "not published"
            lines.append(
                f"  {file.name}: {file.description}\n    {file.address}\n"
                f"    SHA-256 {sha256}, licence {file.licence}"
            )
    for name in RELEASED:
        lines.append(
            f"{name}:\n    {fetch_released.address(name)}, gated\n"
            f"    SHA-256 as the hub says, licence {fetch_released.LICENCE}"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m nvg_jax.interop.fetch",
        description="Fetch published weights: of the frozen networks that trainings and metrics "
        "look through, and of the authors' models, to be named by config.pretrained; and a "
        "reference to measure against. What is there already is not downloaded again.",
    )
    every = ", ".join(NAMES)
    option = parser.add_argument
    option("names", nargs="*", metavar="name", help=f"{every}, or all (networks; default)")
    option("--list", action="store_true", help="show the files and their licences")
    option("--directory", default="", help="default: $NVG_JAX_CACHE or ~/.cache/nvg_jax")
    option(
        "--file",
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="use this file, which was downloaded by hand; can be repeated",
    )
    options = parser.parse_args(arguments)
    if options.list:
        print(_listing())
        return 0
    try:
        given = _named_paths(options.file)
        for name in options.names:
            if name not in (*NAMES, "all"):
                raise UserError(f"unknown name {name}: choose from {every}")
        chosen = set(options.names or ["all"])
        if "all" in chosen:
            chosen |= set(weights.NETWORKS)
        for name in NAMES:
            if name in chosen:
                print(fetch(name, options.directory, given), flush=True)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    cli.run(lambda: sys.exit(main()), has_flags=False)
