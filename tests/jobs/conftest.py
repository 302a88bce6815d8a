"""A finished training that the tests of all jobs share."""

import pytest

from nvg_jax import jobs


@pytest.fixture
def trained(tiny_config, tmp_path_factory):
    """The config and workdir of a finished training, made once."""
    workdir = tmp_path_factory.getbasetemp() / "trained"
    if not workdir.exists():
        jobs.train(tiny_config, str(workdir))
    return tiny_config, str(workdir)
