"""Where Orbax writes, and reading a pytree of arrays that has to be what is expected."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from nvg_jax.errors import UserError

PyTree = Any
Shapes = dict[str, tuple[int, ...]]  # Of arrays by their names.


def absolute(directory: epath.PathLike) -> epath.Path:
    """As Orbax needs it, with `~` for the home; a bucket's is absolute already."""
    directory = epath.Path(directory).expanduser()
    return directory if directory.is_absolute() else directory.resolve()


def read_arrays(path: epath.Path, abstract: PyTree) -> PyTree:
    """Reads the arrays that `abstract` has, with its dtypes, onto its shardings.

    Raises UserError where the leaves or their shapes are others than those saved.
    """
    handler = ocp.PyTreeCheckpointHandler()
    check_shapes(path, shapes(abstract), shapes(handler.metadata(path).tree))

    def how(leaf: jax.ShapeDtypeStruct) -> ocp.RestoreArgs:
        if leaf.sharding is None:
            # By way of NumPy: Orbax would otherwise put it where it was when it was saved.
            return ocp.RestoreArgs(restore_type=np.ndarray, dtype=leaf.dtype)
        return ocp.ArrayRestoreArgs(sharding=leaf.sharding, dtype=leaf.dtype)

    with ocp.Checkpointer(handler) as checkpointer:
        args = ocp.args.PyTreeRestore(item=abstract, restore_args=jax.tree.map(how, abstract))
        restored = checkpointer.restore(path, args=args)
    return jax.tree.map(lambda x: x if isinstance(x, jax.Array) else jnp.asarray(x), restored)


def check_architecture(path: epath.PathLike, wanted: str, saved: str) -> None:
    """Raises UserError where weights are not of the wanted line."""
    if saved != wanted:
        raise UserError(
            f"{path} was made with {saved}, but this config is for {wanted}: use another "
            "--workdir or checkpoint, or the config it was made with"
        )


def check_shapes(path: epath.PathLike, wanted: Shapes, saved: Shapes) -> None:
    """Raises UserError where arrays or their shapes are others than those in a file, `saved`."""
    differing = sorted(dict(wanted.items() ^ saved.items()))
    if differing:
        name = differing[0]
        raise UserError(
            f"{path} does not fit this config in {len(differing)} array(s); the first is {name}: "
            f"{saved.get(name, 'absent')} there, {wanted.get(name, 'absent')} here (use another "
            "--workdir or checkpoint, or the config it was made with)"
        )


def named(tree: PyTree) -> dict[str, Any]:
    """The leaves of a tree by their paths, as `params/encoder/kernel`, in its order."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def shapes(tree: PyTree) -> Shapes:
    return {name: tuple(leaf.shape) for name, leaf in named(tree).items()}
