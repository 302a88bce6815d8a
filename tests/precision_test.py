import jax
import pytest

from nvg_jax import precision
from nvg_jax.errors import UserError


@pytest.mark.parametrize("name", ["bfloat16", "tensorfloat32", "float32"])
def test_names_mean_what_they_mean_to_jax(name):
    """JAX's own names for what a product without a precision is made with."""

    def product(x, of=None):
        return jax.lax.dot(x, x, precision=of)

    x = jax.ShapeDtypeStruct((8, 8), "float32")
    ours = jax.make_jaxpr(lambda x: product(x, precision.conv_precision(name)))(x)
    with jax.default_matmul_precision(name):
        jaxs = jax.make_jaxpr(product)(x)
    assert set(jaxs.eqns[0].params["precision"]) == set(ours.eqns[0].params["precision"])


def test_unknown_names():
    with pytest.raises(UserError, match="unknown precision 'float16': choose from bfloat16, "):
        precision.conv_precision("float16")
