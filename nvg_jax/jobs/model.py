"""Models in a working directory: loading, exporting, and the config beside them."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh
from jaxtyping import Array, Bool
from ml_collections import ConfigDict

from nvg_jax import checkpoint, files, keys, pretrained, seal, sharding
from nvg_jax.arrays import absolute, check_architecture
from nvg_jax.distributed import agreed
from nvg_jax.errors import UserError
from nvg_jax.frozen.weights import Frozen, load_network
from nvg_jax.jobs.job import job
from nvg_jax.jobs.method import METHODS, AnyGenerator
from nvg_jax.tokenizer.model import Tokenizer
from nvg_jax.weights import load_weights, save_weights, saved_architecture

log = logging.getLogger(__name__)
Variables = Any


@dataclasses.dataclass(frozen=True)
class Model:
    """A trained tokenizer and generator: modules, what they have learned, and the mesh it is on.

    generator_variables: None if only the tokenizer was loaded. sources: where the tokenizer's and
    the generator's weights are from, as 'step 900' of the workdir's training, or a directory.
    method: a name in `method.METHODS`.
    """

    tokenizer: Tokenizer
    tokenizer_variables: Variables
    generator: AnyGenerator
    generator_variables: Variables
    mesh: Mesh
    sources: dict[str, str] = dataclasses.field(default_factory=dict)
    method: str = "nvg"


def load_model(config: ConfigDict, workdir: str, with_generator: bool = True) -> Model:
    """The averaged weights that the config names, or else the newest of the workdir's training."""
    method = METHODS[config.method]
    modules = {
        "tokenizer": method.build_tokenizer(config),
        "generator": method.build_generator(config),
    }
    names = ("tokenizer", "generator") if with_generator else ("tokenizer",)
    loaded = {name: _load(config, workdir, name, modules[name]) for name in names}
    variables, sources = ({name: pair[i] for name, pair in loaded.items()} for i in (0, 1))
    return Model(
        modules["tokenizer"],
        variables["tokenizer"],
        modules["generator"],
        variables.get("generator"),
        sharding.create_mesh(config.mesh),
        sources,
        config.method,
    )


def load_tokenizer(config: ConfigDict, workdir: str, tokenizer: Tokenizer) -> Variables:
    return _load(config, workdir, "tokenizer", tokenizer)[0]


def given_weights(config: ConfigDict, name: str) -> str:
    """The weights that the config names for 'tokenizer' or 'generator'; '' if it names none.

    Raises UserError for pretrained weights that are not there.
    """
    if config[name].checkpoint or not config.pretrained:
        return config[name].checkpoint
    return pretrained.weights(config.pretrained, name, config.frozen.directory)


def _load(
    config: ConfigDict, workdir: str, name: str, module: Tokenizer | AnyGenerator
) -> tuple[Variables, str]:
    """The weights that the config names, or else the average in the newest checkpoint of the
    training in the workdir; and which of them it was."""
    weights, checkpoints = given_weights(config, name), f"{workdir}/{name}/checkpoints"
    abstract = _abstract(config, module)
    if weights:
        return load_weights(weights, abstract, module.architecture), weights
    variables, step = checkpoint.restore_ema(checkpoints, module.architecture, abstract)
    log.info("using step %d of %s", step, checkpoints)
    return variables, f"step {step}"


def _abstract(config: ConfigDict, module: Tokenizer | AnyGenerator) -> Variables:
    mesh = sharding.create_mesh(config.mesh)
    return sharding.abstract(module.init_variables, mesh, jax.random.key(0))


def initial_generator(
    config: ConfigDict, generator: AnyGenerator
) -> Callable[[], Variables] | None:
    """What loads the weights that training is to start at; None if the config names none.

    They may be those of another number of classes, of a flow for a mean flow, or of a clean canvas
    for a noised one: what they lack, or have in another shape, is then made anew. Raises UserError,
    before anything is loaded, if they differ in anything else.
    """
    path = given_weights(config, "generator")
    if not path:
        return None
    architecture = saved_architecture(path)
    saved = generator.begun_as(architecture)
    if saved.architecture != architecture:
        check_architecture(path, generator.architecture, architecture)

    def load() -> Variables:
        old, wanted = (flatten_dict(_abstract(config, module)) for module in (saved, generator))
        variables = load_weights(path, unflatten_dict(old), architecture)
        fits = {name for name in wanted if name in old and old[name].shape == wanted[name].shape}
        if len(fits) == len(wanted):
            return variables

        def missing(variables: dict[tuple[str, ...], Any]) -> Variables:
            return {name: x for name, x in variables.items() if name not in fits}

        log.info(
            "%s is a %s; for a %s made anew are %s",
            path,
            architecture,
            generator.architecture,
            ", ".join(sorted({"/".join(name[1:-1]) for name in missing(wanted)})),
        )
        new = sharding.make(
            lambda key: missing(flatten_dict(generator.init_variables(key))),
            keys.named(config.seed, "made anew"),
            like=missing(wanted),
        )
        loaded = flatten_dict(variables)
        return unflatten_dict({name: loaded[name] for name in fits} | new)

    return load


def frozen_network(config: ConfigDict, name: str) -> Frozen:
    """A frozen network with the weights that `config.frozen` describes, on all devices."""
    network = load_network(name, config.frozen.directory, config.frozen.random)
    placement = sharding.replicated(sharding.create_mesh(config.mesh))
    return network._replace(variables=sharding.place_copies(network.variables, placement))


@job
def export(config: ConfigDict, workdir: str) -> None:
    """Writes the averaged weights to `export/`, for any job: `tokenizer` and `generator`.

    They are directories or, with `config.export.format` 'safetensors', files of that suffix.
    A tokenizer whose generator has not been trained, nor is named, is exported alone. Parameters
    are rounded to `config.export.dtype`; what was measured, as the canvas scales, is
    float32. UserError: a parameter is too large for the dtype, or something is there already.
    """
    steps = seal.steps(absolute(f"{workdir}/generator/checkpoints"))
    generator = agreed(given_weights(config, "generator") or " ".join(map(str, steps)))
    if not generator:
        log.info("no generator in %s yet: only the tokenizer is exported", workdir)
    model = load_model(config, workdir, with_generator=bool(generator))
    suffix = {"orbax": "", "safetensors": ".safetensors"}[config.export.format]
    for name in model.sources:
        module, variables = getattr(model, name), getattr(model, f"{name}_variables")
        path = epath.Path(workdir) / "export" / f"{name}{suffix}"
        params, are_finite = _rounded(variables["params"], config.export.dtype)
        if not are_finite:
            raise UserError(
                f"some parameters of the {name} are too large for config.export.dtype="
                f"{config.export.dtype}: choose bfloat16"
            )
        save_weights(path, variables | {"params": params}, module.architecture)
        log.info("use them with --config.%s.checkpoint=%s", name, path)


@functools.partial(jax.jit, static_argnums=1)
def _rounded(params: Variables, dtype: str) -> tuple[Variables, Bool[Array, ""]]:
    """Parameters in a dtype, and whether it can hold them all."""
    rounded = jax.tree.map(lambda x: x.astype(dtype), params)
    are_finite = [jnp.isfinite(x).all() for x in jax.tree.leaves(rounded)]
    return rounded, jnp.stack(are_finite).all()


def save_config(config: ConfigDict, workdir: str) -> None:
    """Leaves the config beside what it made."""
    if jax.process_index() == 0:
        path = epath.Path(workdir) / "config.json"
        files.write_text(path, config.to_json_best_effort(indent=2) + "\n")
