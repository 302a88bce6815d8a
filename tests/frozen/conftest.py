"""The reference arrays of the frozen networks, and the variables they were computed with."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Float

from nvg_jax.frozen import weights
from nvg_jax.interop.frozen_names import frozen_variables
from tests import published_networks


@pytest.fixture(scope="session")
def reference(golden_directory) -> dict[str, np.ndarray]:
    with np.load(golden_directory / "frozen_networks.npz", allow_pickle=False) as arrays:
        return dict(arrays)


@pytest.fixture(scope="session")
def reference_image(reference) -> Callable[[str], Float[Array, "B height width 3"]]:
    """An array's images, in [-1, 1]."""
    return lambda name: jnp.asarray(reference[name].transpose(0, 2, 3, 1) / 127.5 - 1, jnp.float32)


@pytest.fixture(scope="module")
def variables(request: pytest.FixtureRequest) -> Any:
    """Of the network that the module's constant NETWORK names."""
    network = weights.NETWORKS[request.module.NETWORK]
    return jax.device_put(frozen_variables(published_networks.state_dict(network), network))
