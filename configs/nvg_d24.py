"""NVG-d24 on ImageNet at 256 x 256."""

from nvg_jax.configs import base


def get_config():
    return base.get_config(
        depth=24,
        epochs=350,
        decay_start=200 / 350,
        decay_to=0.01,
        fsdp=8,
        remat="full",  # With "dots" three images do not fit a chip of 16 GiB.
    )
