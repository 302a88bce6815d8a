"""Where Orbax writes, and reading a pytree of arrays that has to be what is expected."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from nvg_jax.errors import UserError

PyTree = Any


def absolute(directory: epath.PathLike) -> epath.Path:
    """As Orbax needs it, with `~` for the home; a bucket's is absolute already."""
    directory = epath.Path(directory).expanduser()
    return directory if directory.is_absolute() else directory.resolve()


def read_arrays(path: epath.Path, abstract: PyTree) -> PyTree:
    """Reads the arrays that `abstract` has, with its dtypes, onto its shardings.

    Raises UserError where the leaves or their shapes are others than those saved.
    """
    handler = ocp.PyTreeCheckpointHandler()
    wanted, saved = _shapes(abstract), _shapes(handler.metadata(path).tree)
    differing = sorted(dict(wanted.items() ^ saved.items()))
    if differing:
        name = differing[0]
        raise UserError(
            f"{path} does not fit this config in {len(differing)} array(s); the first is {name}: "
            f"{saved.get(name, 'absent')} there, {wanted.get(name, 'absent')} here (use another "
            "--workdir, or the config it was made with)"
        )

    def how(leaf: jax.ShapeDtypeStruct) -> ocp.RestoreArgs:
        if leaf.sharding is None:
            # By way of NumPy: Orbax would otherwise put it where it was when it was saved.
            return ocp.RestoreArgs(restore_type=np.ndarray, dtype=leaf.dtype)
        return ocp.ArrayRestoreArgs(sharding=leaf.sharding, dtype=leaf.dtype)

    with ocp.Checkpointer(handler) as checkpointer:
        args = ocp.args.PyTreeRestore(item=abstract, restore_args=jax.tree.map(how, abstract))
        restored = checkpointer.restore(path, args=args)
    return jax.tree.map(lambda x: x if isinstance(x, jax.Array) else jnp.asarray(x), restored)


def _shapes(tree: PyTree) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
        for path, leaf in leaves
    }
