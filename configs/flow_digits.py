"""A latent flow on scikit-learn's handwritten digits, to compare with: as `nvg_digits`."""

from nvg_jax.configs import nvg_digits, small


def get_config():
    config = nvg_digits.get_config()
    small.as_baseline(config, "flow")
    return config
