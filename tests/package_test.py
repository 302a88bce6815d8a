"""The package as others install it: what is in its wheel, and its command."""

import email
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import zipfile

import pytest

import nvg_jax
from nvg_jax import configs

ROOT = pathlib.Path(__file__).parents[1]


def pip(*arguments, **options) -> None:
    command = [sys.executable, "-m", "pip", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built of a copy: building leaves files behind."""
    source = tmp_path_factory.mktemp("source")
    for name in ("nvg_jax", "configs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for pattern in ("pyproject.toml", "setup.py", "requirements*.txt", "LICENSE", "README.md"):
        for path in ROOT.glob(pattern):
            shutil.copy(path, source)
    pip("wheel", "--no-deps", "--no-build-isolation", ".", cwd=source)
    (path,) = source.glob("*.whl")
    return path


def test_the_wheel_has_all_of_the_package_and_one_folder(wheel):
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    wanted = {path.relative_to(ROOT) for path in (ROOT / "nvg_jax").rglob("*") if path.is_file()}
    wanted = {path.as_posix() for path in wanted if "__pycache__" not in path.parts}
    pages = {f"nvg_jax/configs/pages/{path.name}" for path in (ROOT / "configs").glob("*.py")}
    assert inside == wanted | pages


def test_the_wheel_says_its_version_and_what_it_needs(wheel):
    archive = zipfile.ZipFile(wheel)
    (name,) = (name for name in archive.namelist() if name.endswith("/METADATA"))
    metadata = email.message_from_bytes(archive.read(name))
    assert metadata["Version"] == nvg_jax.__version__
    files = {path.stem.removeprefix("requirements-") for path in ROOT.glob("requirements-*.txt")}
    assert set(metadata.get_all("Provides-Extra")) == files
    needed = metadata.get_all("Requires-Dist")
    assert any(x.startswith("jax<") for x in needed)  # With or without an extra.
    assert any(x.startswith("google-cloud-storage<") and 'extra == "gcs"' in x for x in needed)
    commands = archive.read(name.replace("METADATA", "entry_points.txt")).decode()
    assert re.findall(r"^(\S+) = (\S+):", commands, re.MULTILINE) == [
        ("nvg-jax", "nvg_jax.__main__"),
        ("nvg-jax-demo", "nvg_jax.demo.__main__"),
    ]


@pytest.mark.slow
def test_the_installed_command_samples_from_any_directory(wheel, tmp_path):
    installed, elsewhere = tmp_path / "installed", tmp_path / "elsewhere"
    elsewhere.mkdir()
    pip("install", "--no-deps", f"--target={installed}", str(wheel))
    environment = os.environ | {"PYTHONPATH": str(installed)}

    def run(*command) -> subprocess.CompletedProcess:
        return subprocess.run(
            command, cwd=elsewhere, env=environment, capture_output=True, text=True, check=False
        )

    command = installed / "bin" / "nvg-jax"
    small = ("--job=sample", "--config.pretrained=digits", "--config.sampling.num_samples=4")
    done = run(command, "--config=nvg_digits", "--workdir=try", *small)
    assert done.returncode == 0, done.stderr
    assert (elsewhere / "try" / "samples" / "grid.png").stat().st_size
    wrong = run(command, "--config=nvg_digit", "--workdir=try", *small)
    assert wrong.returncode == 1
    known = ", ".join(configs.names())
    assert wrong.stderr == f"error: no config nvg_digit: name a file or {known}\n"

    every = "import importlib, json, nvg_jax; from nvg_jax import configs; print(json.dumps(["
    every += "nvg_jax.__file__, [importlib.import_module(f'nvg_jax.configs.{name}').get_config()"
    every += ".data.dataset for name in configs.names()]]))"
    done = run(sys.executable, "-c", every)
    assert done.returncode == 0, done.stderr
    file, datasets = json.loads(done.stdout)
    assert file == str(installed / "nvg_jax" / "__init__.py")
    assert len(datasets) == len(configs.names()) == 13
