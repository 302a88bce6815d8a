"""Models in a working directory: loading, exporting, and the config beside them."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

import jax
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from nvg_jax import checkpoint, files, sharding
from nvg_jax.frozen.weights import Frozen, load_network
from nvg_jax.generator.model import Generator, build_generator
from nvg_jax.jobs.job import job
from nvg_jax.tokenizer.model import Tokenizer, build_tokenizer
from nvg_jax.weights import load_weights, save_weights

log = logging.getLogger(__name__)
Variables = Any


@dataclasses.dataclass(frozen=True)
class Model:
    """A trained tokenizer and generator: modules, what they have learned, and the mesh it is on.

    generator_variables: None if only the tokenizer was loaded. sources: where the tokenizer's and
    the generator's weights are from, as 'step 900' of the workdir's training, or a directory.
    """

    tokenizer: Tokenizer
    tokenizer_variables: Variables
    generator: Generator
    generator_variables: Variables
    mesh: Mesh
    sources: dict[str, str] = dataclasses.field(default_factory=dict)


def load_model(config: ConfigDict, workdir: str, with_generator: bool = True) -> Model:
    """The averaged weights that the config names, or else the newest of the workdir's training."""
    modules = {"tokenizer": build_tokenizer(config), "generator": build_generator(config)}
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
    )


def load_tokenizer(config: ConfigDict, workdir: str, tokenizer: Tokenizer) -> Variables:
    return _load(config, workdir, "tokenizer", tokenizer)[0]


def load_generator(config: ConfigDict, workdir: str, generator: Generator) -> Variables:
    return _load(config, workdir, "generator", generator)[0]


def _load(
    config: ConfigDict, workdir: str, name: str, module: Tokenizer | Generator
) -> tuple[Variables, str]:
    """The weights that the config names, or else the average in the newest checkpoint of the
    training in the workdir; and which of them it was."""
    weights, checkpoints = config[name].checkpoint, f"{workdir}/{name}/checkpoints"
    mesh = sharding.create_mesh(config.mesh)
    abstract = sharding.abstract(module.init_variables, mesh, jax.random.key(0))
    if weights:
        return load_weights(weights, abstract, module.architecture), weights
    variables, step = checkpoint.restore_ema(checkpoints, module.architecture, abstract)
    log.info("using step %d of %s", step, checkpoints)
    return variables, f"step {step}"


def frozen_network(config: ConfigDict, name: str) -> Frozen:
    """A frozen network with the weights that `config.frozen` describes, on all devices."""
    network = load_network(name, config.frozen.directory, config.frozen.random)
    placement = sharding.replicated(sharding.create_mesh(config.mesh))
    return network._replace(variables=sharding.place_copies(network.variables, placement))


@job
def export(config: ConfigDict, workdir: str) -> None:
    """Writes the averaged weights as `export/tokenizer` and `export/generator`, for any job."""
    model = load_model(config, workdir)
    directory = epath.Path(workdir) / "export"
    for name in ("tokenizer", "generator"):
        module, variables = getattr(model, name), getattr(model, f"{name}_variables")
        save_weights(directory / name, variables, module.architecture)
        log.info("use them with --config.%s.checkpoint=%s", name, directory / name)


def save_config(config: ConfigDict, workdir: str) -> None:
    """Leaves the config beside what it made."""
    if jax.process_index() == 0:
        path = epath.Path(workdir) / "config.json"
        files.write_text(path, config.to_json_best_effort(indent=2) + "\n")
