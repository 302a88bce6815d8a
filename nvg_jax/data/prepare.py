"""Writes a TFDS dataset to the ArrayRecord files that the pipeline reads.

    python -m nvg_jax.data.prepare digits [--data_dir=DIR]
    python -m nvg_jax.data.prepare folder PATH                   # Your own images, by class.
    python -m nvg_jax.data.prepare fashion_mnist --source=DIR    # Of IDX files, no download.

Only this command needs TensorFlow.
"""

from nvg_jax import stopping

if __name__ == "__main__":
    stopping.watch()  # Before the imports, which take a while.

import argparse
import sys
from collections.abc import Sequence

import tensorflow_datasets as tfds

from nvg_jax import cli
from nvg_jax.data import fashion
from nvg_jax.data.folder import Folder
from nvg_jax.data.pipeline import load_builder
from nvg_jax.errors import UserError

_FILE_FORMAT = "array_record"

# What TFDS raises for archives that the user has to place by hand, for failed downloads, a full
# or read-only disk, and packages that a dataset needs in addition.
_ERRORS = (AssertionError, ImportError, OSError, ValueError, tfds.download.DownloadError)


def prepare(dataset: str, data_dir: str = "", source: str = "") -> str:
    """Writes a dataset, if that is not done already, and says in a line where it is.

    What was made of a folder of images that has changed since then is replaced.

    `data_dir` is the folder of all datasets; '' for TFDS's default. `source` holds the IDX files of
    fashion_mnist; '' lets TFDS download them. UserError: no such dataset, it stands there in
    another file format, the user's files are not what they should be, or TFDS cannot prepare it
    (with TFDS's instructions).
    """
    if source and dataset != "fashion_mnist":
        raise UserError(f"--source is for fashion_mnist only, not for {dataset}: leave it out")
    builder = load_builder(dataset, data_dir)
    if builder.data_path.exists() and isinstance(builder, Folder) and builder.change():
        builder.tree.check()
        builder.data_path.rmtree()
        builder = load_builder(dataset, data_dir)
    if builder.data_path.exists():
        formats = {file_format.value for file_format in builder.info.available_file_formats()}
        if _FILE_FORMAT not in formats:
            raise UserError(
                f"{dataset} is already prepared in {builder.data_dir}, but as "
                f"{', '.join(sorted(formats))}: choose another --data_dir, or remove it"
            )
        return f"{dataset} is already prepared in {builder.data_dir}"
    if not sys.stderr.isatty() or isinstance(builder, Folder):  # Which shows its own.
        tfds.disable_progress_bar()
    if source:
        builder = fashion.FashionMNIST(source, data_dir)
    try:
        builder.download_and_prepare(file_format=_FILE_FORMAT)
    except _ERRORS as error:
        raise UserError(f"cannot prepare {dataset}: {' '.join(str(error).split())}") from error
    return f"{dataset} is prepared in {builder.data_dir}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser("python -m nvg_jax.data.prepare", description=__doc__)
    parser.add_argument("dataset", help="TFDS name, as digits or imagenet2012; or folder")
    parser.add_argument("path", nargs="?", help="of the dataset folder: where its images are")
    where = "folder of all datasets (default: $TFDS_DATA_DIR or ~/tensorflow_datasets)"
    parser.add_argument("--data_dir", default="", help=where)
    parser.add_argument("--source", default="", help="folder with fashion_mnist's four IDX files")
    options = parser.parse_args(arguments)
    dataset = options.dataset
    if options.path is not None:
        if dataset != "folder":
            parser.error(f"{dataset} takes no path: leave out {options.path}")
        dataset = f"folder:{options.path}"
    try:
        print(prepare(dataset, options.data_dir, options.source))
    except UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    cli.run(main, has_flags=False)
