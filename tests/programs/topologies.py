"""Meshes of TPUs that are not there: prints whether each kind of chip's figures are known."""

from nvg_jax import hardware, sharding
from nvg_jax.ahead_of_time import topology_devices

if __name__ == "__main__":
    for name in ("v4:2x2x4", "v5e:4x4", "v5p:2x2x4", "v6e:4x4"):
        mesh = sharding.create_mesh(devices=topology_devices(name))
        assert mesh.size == 16, mesh
        print(hardware.chip(mesh.devices.flat[0]) is not None)
