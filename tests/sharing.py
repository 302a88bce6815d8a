"""A program of several processes that save to a disk that fills up, and verify what was saved.

Run as `python -m tests.sharing CHECKPOINTS FLAGS`: it waits for files in the folder FLAGS, and says
by files there how far it is.
"""

import pathlib
import sys
import time
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from nvg_jax import checkpoint, cli, distributed, seal
from nvg_jax.errors import UserError
from nvg_jax.weights import load_weights, save_weights


def make_state(seed: int, mesh: Mesh) -> Any:
    """1.6 MB of noise, shared out among all devices."""
    from tests.states import State  # Its import uses devices, which come after the processes.

    noise = np.random.default_rng(seed).standard_normal(400_000).astype(np.float32)
    sharding = NamedSharding(mesh, PartitionSpec("x"))
    array = jax.make_array_from_callback(noise.shape, sharding, noise.__getitem__)
    return State({}, {}, {}, array)


def main(index: int, directory: epath.Path, flags: pathlib.Path) -> None:
    def say(name: str) -> None:
        (flags / f"{name}{index}").touch()

    def wait_for(name: str) -> None:
        while not (flags / name).exists():
            time.sleep(0.05)

    mesh = jax.make_mesh((jax.device_count(),), ("x",))
    with checkpoint.TrainCheckpointer(directory, "line", keep=2) as checkpointer:
        for step in (1, 2):
            checkpointer.save(step, make_state(step, mesh))
        assert checkpointer.wait() is None
        say("saved")
        wait_for("full")
        checkpointer.save(3, make_state(3, mesh))
        assert "step 3 failed (No space left on device): step 2 stays" in checkpointer.wait()
        say("failed")
        wait_for("free")
        for step in (4, 5):
            checkpointer.save(step, make_state(step, mesh))

    read: list[str] = []
    checksum = seal._checksum
    seal._checksum = lambda path: [read.append(str(path)), checksum(path)][1]
    wanted = make_state(0, mesh)
    wanted = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), wanted
    )
    ema, step = checkpoint.restore_ema(directory, "line", wanted.ema)
    assert step == 5
    np.testing.assert_array_equal(
        ema.addressable_shards[0].data, make_state(5, mesh).ema.addressable_shards[0].data
    )
    (flags / f"read{index}").write_text("\n".join(read))

    for name in ("weights", "weights.safetensors"):
        weights = directory.parent / name
        save_weights(weights, {"ema": ema}, "line")
        loaded = load_weights(weights, {"ema": wanted.ema}, "line")["ema"]
        assert loaded.sharding == ema.sharding
        np.testing.assert_array_equal(
            loaded.addressable_shards[0].data, ema.addressable_shards[0].data
        )
        try:
            save_weights(weights, {"ema": ema}, "line")
        except UserError:
            say(f"refused_{name}_")

    if index == 0:  # Damage in what one process alone reads.
        (*_, path) = sorted(pathlib.Path(directory, "5", "ema").rglob("d/*"))
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        (flags / "damaged").touch()
    wait_for("damaged")
    with checkpoint.TrainCheckpointer(directory, "line", keep=2) as checkpointer:
        assert checkpointer.restore(wanted)[1] == 4
        assert checkpointer.latest_step() == 4


if __name__ == "__main__":
    cli._show_messages()
    with distributed.processes() as index:
        main(index, epath.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))
