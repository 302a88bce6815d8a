"""A latent flow on Fashion-MNIST, to compare with: data, sizes and training of `nvg_fashion`."""

from nvg_jax.configs import nvg_fashion, small


def get_config():
    config = nvg_fashion.get_config()
    small.as_baseline(config, "flow")
    return config
