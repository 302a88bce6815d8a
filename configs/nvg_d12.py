"""NVG-d12 on ImageNet at 256 x 256."""

from nvg_jax.configs import base


def get_config():
    return base.get_config(depth=12, epochs=40, decay_start=0.8, decay_to=0.1)
