"""Writes a TFDS dataset to the ArrayRecord files that the pipeline reads.

    python -m nvg_jax.data.prepare digits [--data_dir=DIR]
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
from nvg_jax.data.pipeline import load_builder
from nvg_jax.errors import UserError

_FILE_FORMAT = "array_record"

# What TFDS raises for archives that the user has to place by hand, for failed downloads, a full
# or read-only disk, and packages that a dataset needs in addition.
_ERRORS = (AssertionError, ImportError, OSError, ValueError, tfds.download.DownloadError)


def prepare(dataset: str, data_dir: str = "", source: str = "") -> str:
    """Writes a dataset, if that is not done already, and says in a line where it is.

    `data_dir` is the folder of all datasets; '' for TFDS's default. `source` holds the IDX files of
    fashion_mnist; '' lets TFDS download them. UserError: no such dataset, it stands there in
    another file format, its files in `source` are not what they should be, or TFDS cannot prepare
    it (with TFDS's instructions).
    """
    if source and dataset != "fashion_mnist":
        raise UserError(f"--source is for fashion_mnist only, not for {dataset}: leave it out")
    builder = load_builder(dataset, data_dir)
    if builder.data_path.exists():
        formats = {file_format.value for file_format in builder.info.available_file_formats()}
        if _FILE_FORMAT not in formats:
            raise UserError(
                f"{dataset} is already prepared in {builder.data_dir}, but as "
                f"{', '.join(sorted(formats))}: choose another --data_dir, or remove it"
            )
        return f"{dataset} is already prepared in {builder.data_dir}"
    if not sys.stderr.isatty():
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
    parser.add_argument("dataset", help="TFDS name, for instance digits or imagenet2012")
    where = "folder of all datasets (default: $TFDS_DATA_DIR or ~/tensorflow_datasets)"
    parser.add_argument("--data_dir", default="", help=where)
    parser.add_argument("--source", default="", help="folder with fashion_mnist's four IDX files")
    options = parser.parse_args(arguments)
    try:
        print(prepare(options.dataset, options.data_dir, options.source))
    except UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    cli.run(main, has_flags=False)
