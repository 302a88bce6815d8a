"""A finished training that the tests of all jobs share."""

import pathlib
import shutil

import pytest

from nvg_jax import jobs, pretrained


@pytest.fixture
def trained(tiny_config, tmp_path_factory):
    """The config and workdir of a finished training, made once."""
    workdir = tmp_path_factory.getbasetemp() / "trained"
    if not workdir.exists():
        jobs.train(tiny_config, str(workdir))
    return tiny_config, str(workdir)


@pytest.fixture
def exported(trained):
    """What the finished training exports: directories `tokenizer` and `generator`, and files."""
    config, workdir = trained
    folder = pathlib.Path(workdir) / "export"
    if not folder.exists():
        for config.export.format in ("safetensors", "orbax"):
            jobs.export(config, workdir)
    return folder


@pytest.fixture
def pretrained_config(trained, exported, tmp_path, monkeypatch):
    """A config that names pretrained weights, in a folder of its own for them."""
    monkeypatch.setattr(pretrained, "FOLDER", tmp_path / "pretrained")
    for name in ("tiny", "other"):
        (tmp_path / "pretrained" / name).mkdir(parents=True)
        for path in exported.glob("*.safetensors"):
            shutil.copy(path, tmp_path / "pretrained" / name)
    (tmp_path / "pretrained" / "__pycache__").mkdir()
    config, _ = trained
    config.pretrained = "tiny"
    return config
