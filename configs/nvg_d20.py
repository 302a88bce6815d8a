"""NVG-d20 on ImageNet at 256 x 256."""

from nvg_jax.configs import base


def get_config():
    return base.get_config(depth=20, epochs=250, decay_start=0.8, decay_to=0.1, fsdp=8)
