"""What accelerators can do at most, as their makers publish it."""

from __future__ import annotations

import dataclasses

import jax


@dataclasses.dataclass(frozen=True)
class Chip:
    """The published peak figures of one device.

    flops: dense bfloat16 operations per second. memory: bytes. memory_bandwidth: bytes per second
    to and from it. link_bandwidth: bytes per second that it receives from its neighbours over all
    links together (half of the bidirectional figures).
    """

    flops: float
    memory: int
    memory_bandwidth: float
    link_bandwidth: float


# By the name that JAX gives a device. Sources: docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e}
# ("Key specifications"); for GPUs, NVIDIA's data sheets of A100, H100 and H200 (SXM, no sparsity;
# NVLink).
CHIPS = {
    "TPU v4": Chip(275e12, 32 * 2**30, 1200e9, 300e9),
    "TPU v5 lite": Chip(197e12, 16 * 2**30, 819e9, 200e9),
    "TPU v5": Chip(459e12, 95 * 2**30, 2765e9, 600e9),
    "TPU v6 lite": Chip(918e12, 32 * 2**30, 1638e9, 400e9),
    "NVIDIA A100-SXM4-40GB": Chip(312e12, 40 * 10**9, 1555e9, 300e9),
    "NVIDIA A100-SXM4-80GB": Chip(312e12, 80 * 10**9, 2039e9, 300e9),
    "NVIDIA H100 80GB HBM3": Chip(989e12, 80 * 10**9, 3350e9, 450e9),
    "NVIDIA H200": Chip(989e12, 141 * 10**9, 4800e9, 450e9),
}


def chip(device: jax.Device) -> Chip | None:
    """The figures of a device; None where they are not published, as for CPUs."""
    return CHIPS.get(device.device_kind)


def peak_flops() -> float | None:
    """What all devices together can do in a second; None where that is not published."""
    figures = chip(jax.devices()[0])
    return figures and figures.flops * jax.device_count()
