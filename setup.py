"""What pyproject.toml cannot say: the configs lie in the package, and extras have files."""

import pathlib

from setuptools import find_packages, setup

ROOT = pathlib.Path(__file__).parent
CONFIGS = "nvg_jax.configs.pages"


def extra(path: pathlib.Path) -> list[str]:
    """What a file names on top of `requirements.txt`, which the package needs anyway."""
    lines = (line.split("#")[0].strip() for line in path.read_text().splitlines())
    return [line for line in lines if line and line != "-r requirements.txt"]


setup(
    packages=[*find_packages(include=["nvg_jax*"]), CONFIGS],
    package_dir={CONFIGS: "configs"},
    extras_require={
        path.stem.removeprefix("requirements-"): extra(path)
        for path in ROOT.glob("requirements-*.txt")
    },
)
