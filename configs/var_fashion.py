"""VAR on Fashion-MNIST, to compare with: data, sizes, training and sampling of `nvg_fashion`."""

from nvg_jax.configs import nvg_fashion, small


def get_config():
    config = nvg_fashion.get_config()
    small.as_baseline(config, "var")
    config.tokenizer.model.scales = (1, 2, 3, 4, 6, 8)
    return config
