"""Fetches the published weights of the frozen networks, once, for the trainings that need them.

    python -m nvg_jax.interop.fetch [lpips dino dinov2 inception] [--directory DIR]
        [--file vgg16=PATH]

Without names it fetches all of them. Nothing that a file names is run or imported. The weights
stay under their publishers' licences, which `--list` shows.
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
from collections.abc import Iterable, Mapping, Sequence

from etils import epath

from nvg_jax import cli
from nvg_jax.errors import UserError
from nvg_jax.frozen import weights
from nvg_jax.frozen.weights import PublishedFile
from nvg_jax.interop.frozen_names import frozen_variables
from nvg_jax.interop.torch_file import stored_tensors
from nvg_jax.interop.translate import Tensors
from nvg_jax.progress import Progress
from nvg_jax.weights import save_weights


def fetch(
    name: str, directory: epath.PathLike = "", given: Mapping[str, epath.PathLike] | None = None
) -> str:
    """Makes `directory`/`name` from the published files, if it is not there, and says so in a line.

    directory: of all frozen networks' weights; '' for the default. Downloads stay in `downloads`.
    given: paths of published files that are there already, by the files' names.

    UserError: a file cannot be downloaded, cannot be read or is another one.
    """
    network = weights.NETWORKS[name]
    folder = weights.weights_directory(directory)
    target = folder / name
    if target.exists():
        return f"{name} is already in {target}"
    state_dict: Tensors = {}
    for file in (weights.FILES[file_name] for file_name in network.files):
        path = (given or {}).get(file.name)
        state_dict |= _read_published(file, path) if path else _download_once(file, folder)
    variables = frozen_variables(state_dict, network)
    # Renamed when it is whole, so that weights whose writing was killed are never found.
    partial = folder / f"{name}.partial"
    if partial.exists():
        partial.rmtree()
    save_weights(partial, variables, network.architecture)
    partial.rename(target)
    return f"{name} is now in {target}"


def _download_once(file: PublishedFile, folder: epath.Path) -> Tensors:
    """The tensors of a published file, which is downloaded unless it is in `folder`/downloads."""
    path = folder / "downloads" / file.file_name
    if path.exists():
        return _read_published(file, path)
    print(f"downloading {file.description} ({file.licence}) from {file.address}", flush=True)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _download(file.address, path)
    except (OSError, http.client.HTTPException) as error:
        raise UserError(
            f"cannot download {file.address} ({' '.join(str(error).split())}): put the file at "
            f"{path}, or say where it is with --file {file.name}=PATH"
        ) from None
    try:
        return _read_published(file, path)
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


def _named_paths(options: Iterable[str]) -> dict[str, str]:
    """`name=path` options as a dict; UserError if one is of another form or has no such name."""
    paths = {}
    for option in options:
        name, _, path = option.partition("=")
        if name not in weights.FILES or not path:
            raise UserError(
                f"--file {option} is not NAME=PATH with one of the names {', '.join(weights.FILES)}"
            )
        paths[name] = path
    return paths


def _listing() -> str:
    """The published files by network."""
    lines = []
    for network in weights.NETWORKS.values():
        lines.append(f"{network.name}:")
        for file in (weights.FILES[name] for name in network.files):
            sha256 = f"{file.sha256_prefix}..." if file.sha256_prefix else "not published"
            lines.append(
                f"  {file.name}: {file.description}\n    {file.address}\n"
                f"    SHA-256 {sha256}, licence {file.licence}"
            )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m nvg_jax.interop.fetch",
        description="Fetch the published weights of the frozen networks that trainings look "
        "through. Files that are there already are not downloaded again.",
    )
    every = ", ".join(weights.NETWORKS)
    option = parser.add_argument
    option("networks", nargs="*", metavar="network", help=f"{every}, or all (default)")
    option("--list", action="store_true", help="show the files and their licences")
    option(
        "--directory",
        default="",
        help="folder of all networks (default: $NVG_JAX_CACHE or ~/.cache/nvg_jax)",
    )
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
        for name in options.networks:
            if name not in (*weights.NETWORKS, "all"):
                raise UserError(f"unknown network {name}: choose from {every}")
        chosen = set(weights.NETWORKS) if "all" in options.networks else set(options.networks)
        for name in weights.NETWORKS:
            if name in chosen or not chosen:
                print(fetch(name, options.directory, given), flush=True)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    cli.run(lambda: sys.exit(main()), has_flags=False)
