"""Models in a working directory: loading, exporting, and the config beside them."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

import jax
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from nvg_jax import checkpoint, sharding
from nvg_jax.frozen.weights import Frozen, load_network
from nvg_jax.generator.model import Generator, build_generator
from nvg_jax.jobs.job import job
from nvg_jax.tokenizer.model import Tokenizer, build_tokenizer

log = logging.getLogger(__name__)
Variables = Any


@dataclasses.dataclass(frozen=True)
class Model:
    """A trained tokenizer and generator: modules, what they have learned, and the mesh it is on.

    generator_variables: None if only the tokenizer was loaded.
    """

    tokenizer: Tokenizer
    tokenizer_variables: Variables
    generator: Generator
    generator_variables: Variables
    mesh: Mesh


def load_model(config: ConfigDict, workdir: str, with_generator: bool = True) -> Model:
    """The averaged weights that the config names, or else the newest of the workdir's training."""
    tokenizer, generator = build_tokenizer(config), build_generator(config)
    return Model(
        tokenizer,
        load_tokenizer(config, workdir, tokenizer),
        generator,
        load_generator(config, workdir, generator) if with_generator else None,
        sharding.create_mesh(config.mesh),
    )


def load_tokenizer(config: ConfigDict, workdir: str, tokenizer: Tokenizer) -> Variables:
    return _load(config, config.tokenizer.checkpoint, f"{workdir}/tokenizer/checkpoints", tokenizer)


def load_generator(config: ConfigDict, workdir: str, generator: Generator) -> Variables:
    return _load(config, config.generator.checkpoint, f"{workdir}/generator/checkpoints", generator)


def _load(
    config: ConfigDict, weights: str, checkpoints: str, module: Tokenizer | Generator
) -> Variables:
    """Weights from `weights` if it is given, else the average in the newest training checkpoint."""
    mesh = sharding.create_mesh(config.mesh)
    abstract = sharding.abstract(module.init_variables, mesh, jax.random.key(0))
    if weights:
        return checkpoint.load_weights(weights, abstract, module.architecture)
    variables, step = checkpoint.restore_ema(checkpoints, module.architecture, abstract)
    log.info("using step %d of %s", step, checkpoints)
    return variables


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
        checkpoint.save_weights(directory / name, variables, module.architecture)
        log.info("use them with --config.%s.checkpoint=%s", name, directory / name)


def save_config(config: ConfigDict, workdir: str) -> None:
    """Leaves the config beside what it made."""
    if jax.process_index() == 0:
        output_directory(workdir, "").joinpath("config.json").write_text(
            config.to_json_best_effort(indent=2) + "\n"
        )


def output_directory(workdir: str, name: str) -> epath.Path:
    directory = epath.Path(workdir) / name
    directory.mkdir(parents=True, exist_ok=True)
    return directory
