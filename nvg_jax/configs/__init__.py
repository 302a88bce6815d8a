"""The configs by their names: those of the repository's `configs/`, which come with the package."""

import os
import pathlib

_HERE = pathlib.Path(__file__).parent
_INSTALLED = _HERE / "pages"  # Where setup.py has them put; not there in the repository.
FOLDER = _INSTALLED if _INSTALLED.is_dir() else _HERE.parents[1] / "configs"
__path__ = [str(_HERE), str(FOLDER)]  # So that `nvg_jax.configs.base` can be imported.


def names() -> list[str]:
    """What `--config` may be beside a file: the configs of whole models."""
    return sorted(path.stem for path in FOLDER.glob("*_*.py"))


def find(config: str) -> str:
    """The file of a config that is given by its path or its name; '' if there is none."""
    path = str(FOLDER / f"{config}.py") if config in names() else config
    return path if os.path.isfile(path) else ""
