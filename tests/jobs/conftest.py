"""A finished training that the tests of all jobs share."""

import pathlib

import pytest

from nvg_jax import jobs


def pytest_collection_modifyitems(items):
    """Keeps the tests of this folder in one process, so that there is one training to share."""
    for item in items:
        if pathlib.Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.xdist_group("jobs"))


@pytest.fixture
def trained(tiny_config, tmp_path_factory):
    """The config and workdir of a finished training, made once."""
    workdir = tmp_path_factory.getbasetemp() / "trained"
    if not workdir.exists():
        jobs.train(tiny_config, str(workdir))
    return tiny_config, str(workdir)
