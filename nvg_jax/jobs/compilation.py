"""The job `compile`: training steps and sampling compiled for devices that need not be there."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from nvg_jax import files, granularity, hardware, hlo, sharding, units
from nvg_jax.ahead_of_time import Compiled, compile_step, largest_that_fits, topology_devices
from nvg_jax.data import pipeline
from nvg_jax.frozen import weights
from nvg_jax.frozen.weights import NETWORKS, Frozen
from nvg_jax.generator.sampler import Settings
from nvg_jax.hardware import Chip
from nvg_jax.jobs.compiled_sampling import SamplingReport, sampling_report, sampling_table
from nvg_jax.jobs.job import job
from nvg_jax.jobs.method import METHODS
from nvg_jax.jobs.tokenization import refuse_repa_with
from nvg_jax.jobs.training import checked_schedule
from nvg_jax.tokenizer.training import TokenizerTask
from nvg_jax.training import flops
from nvg_jax.training.loop import Schedule, Task, count_flops, make_step

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Report:
    """What a step takes. All but the FLOPs, which are those of all devices, is of one device.

    architecture: of the model that is trained, in one line.
    num_steps: of the whole training; None where the size of the dataset is not known.
    Bytes: memory, of which the state and other arguments are `state`; what the chip has, `limit`.
    Seconds at the published peak: compute, memory traffic, collectives; None for unknown devices.
    """

    task: str
    architecture: str
    topology: str
    device: str
    mesh: dict[str, int]
    batch_size: int
    microbatches: int
    largest_batch_size: int | None
    memory: int
    state: int
    limit: int | None
    needed_flops: float
    executed_flops: float
    traffic: hlo.Traffic | None
    seconds: dict[str, float] | None
    num_steps: int | None

    @property
    def fits(self) -> bool:
        return self.traffic is not None and (self.limit is None or self.memory <= self.limit)

    @property
    def step_seconds(self) -> float | None:
        """The longest of the three: what a step takes at least."""
        return max(self.seconds.values()) if self.seconds else None


@job
def compile(config: ConfigDict, workdir: str) -> list[Report | SamplingReport]:
    """Reports what training steps and sampling take on the devices of `config.compile.topology`.

    Compiles the step that `train` would run, or what `sample` would run on one of the devices, for
    each of `config.compile.tasks`, for a topology as 'v5e:16x16' (which needs libtpu, but no TPU)
    or for the devices of this machine, 'local'. Prints a table and writes `compile.json`.

    Raises:
      UserError: an unknown topology, no libtpu, or sizes that do not go together.
    """
    devices = topology_devices(config.compile.topology)
    if config.compile.topology != "local":
        # What is compiled for devices that are not there could not be read back.
        jax.config.update("jax_enable_compilation_cache", False)
    mesh = sharding.create_mesh(config.mesh, devices)
    reports = []
    refuse_repa_with(config.token_cache.directory, config)
    for name in config.compile.tasks:
        if name == "sample":
            reports.append(sampling_report(config, mesh.devices.flat[0]))
            print(sampling_table(reports[-1]), flush=True)
        else:
            reports.append(_report(config, name, mesh))
            print(table(reports[-1]), flush=True)
    if jax.process_index() == 0:
        path = f"{workdir}/compile.json"
        found = [dataclasses.asdict(each) for each in reports]
        files.write_text(path, json.dumps(found, indent=2) + "\n")
        log.info("wrote %s", path)
    return reports


def _report(config: ConfigDict, name: str, mesh: Mesh) -> Report:
    training = config[name].training
    num_images = pipeline.published_num_examples(config.data, config.data.train_split)
    schedule = checked_schedule(config, name, mesh, num_images or training.batch_size)
    device = mesh.devices.flat[0]
    chip = hardware.chip(device)
    task = abstract_task(config, name, mesh, schedule)
    log.info("compiling the step of the %s with a batch of %d", name, training.batch_size)
    state, batch, key = abstract_arguments(config, task, mesh, training.batch_size)
    with jax.set_mesh(mesh):
        step = make_step(task, state)
        executed = flops.count(step.trace(state, task.frozen, batch, key).jaxpr)
        needed = count_flops(task, state, batch, key)
    compiled = compile_step(step, mesh, state, task.frozen, batch, key)
    largest = None
    if chip and config.compile.largest_batch:
        largest = _largest_batch_size(config, name, mesh, schedule, chip, compiled)
    return Report(
        task=name,
        architecture=task.architecture,
        topology=config.compile.topology,
        device=f"{mesh.size} x {device.device_kind}",
        mesh=dict(mesh.shape),
        batch_size=training.batch_size,
        microbatches=training.microbatches,
        largest_batch_size=largest,
        memory=compiled.memory,
        state=compiled.state,
        limit=chip and chip.memory,
        needed_flops=needed,
        executed_flops=executed,
        traffic=compiled.traffic,
        seconds=_seconds(executed / mesh.size, compiled.traffic, chip),
        num_steps=schedule.num_steps if num_images else None,
    )


def abstract_task(config: ConfigDict, name: str, mesh: Mesh, schedule: Schedule) -> Task:
    """The task that `train` would run, with shapes in place of weights."""
    training, method = config[name].training, METHODS[config.method]
    tokenizer = method.build_tokenizer(config)

    def network(name: str, needed: float) -> Frozen | None:
        if not needed:
            return None
        module = NETWORKS[name].module
        return Frozen(module, sharding.abstract(lambda: weights.abstract(name), mesh))

    if name == "tokenizer":
        return TokenizerTask(
            tokenizer,
            training,
            schedule,
            network("lpips", training.lpips_weight),
            network("dino", training.adversarial_weight),
        )
    variables = sharding.abstract(tokenizer.init_variables, mesh, jax.random.key(0))
    return method.task(
        method.build_generator(config),
        tokenizer,
        variables,
        training,
        schedule,
        Settings.from_config(config.sampling),
        network("dinov2", training.repa.weight),
    )


def abstract_arguments(
    config: ConfigDict, task: Task, mesh: Mesh, batch_size: int
) -> tuple[Any, Any, Any]:
    """The state before the first step, a batch and a key, as shapes in their places.

    A generator's batch has images or, where the config names a token cache, tokens.
    """
    split, whole = sharding.batch_sharding(mesh), sharding.replicated(mesh)

    def array(*shape: int, dtype: Any = jnp.int32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((batch_size, *shape), dtype, sharding=split)

    side, tokenizer = config.data.image_size, task.tokenizer
    batch = {"label": array()}
    if task.name == "generator" and config.token_cache.directory:
        num_tokens = granularity.num_tokens(tokenizer.stages)
        batch |= {"structure": array(tokenizer.num_positions), "tokens": array(num_tokens)}
    else:
        batch |= {"image": array(side, side, 3, dtype=jnp.float32)}
    key = jax.ShapeDtypeStruct((), jax.random.key(0).dtype, sharding=whole)
    return sharding.abstract(task.init_state, mesh, jax.random.key(0)), batch, key


def _largest_batch_size(
    config: ConfigDict,
    name: str,
    mesh: Mesh,
    schedule: Schedule,
    chip: Chip,
    compiled: Compiled,
) -> int:
    """The largest batch that fits at once, see `largest_that_fits`."""
    shards = sharding.num_batch_shards(mesh)
    of_one = config.copy_and_resolve_references()
    of_one[name].training.microbatches = 1
    task = abstract_task(of_one, name, mesh, schedule)
    few = config[name].training.batch_size // config[name].training.microbatches // shards

    def compile_for(images: int) -> Compiled:
        if images == few and config[name].training.microbatches == 1:
            return compiled
        log.info("compiling the step of the %s with %d image(s) a device", name, images)
        state, batch, key = abstract_arguments(of_one, task, mesh, images * shards)
        return compile_step(make_step(task, state), mesh, state, task.frozen, batch, key)

    return largest_that_fits(compile_for, few, chip.memory) * shards


def _seconds(
    executed_flops: float, traffic: hlo.Traffic | None, chip: Chip | None
) -> dict[str, float] | None:
    if not (traffic and chip):
        return None
    return {
        "compute": executed_flops / chip.flops,
        "memory": traffic.memory_bytes / chip.memory_bandwidth,
        "collectives": traffic.collective_bytes / chip.link_bandwidth,
    }


def table(report: Report) -> str:
    """A report for the terminal."""
    shards = math.prod(report.mesh[axis] for axis in ("data", "fsdp"))
    parts = report.microbatches
    images = report.batch_size // shards // parts
    mesh = ", ".join(f"{axis} {size}" for axis, size in report.mesh.items())
    limit = ""
    if report.limit:
        limit = f" of {units.memory(report.limit)}: {'fits' if report.fits else 'DOES NOT FIT'}"
    rows = [
        ("devices", f"{report.device} ({report.topology})"),
        ("mesh", mesh),
        ("batch", f"{report.batch_size:,}: {images} image(s) a device at once, {parts} part(s)"),
        ("memory of a device", units.memory(report.memory) + limit),
        ("  parameters, optimizer, average", units.memory(report.state)),
    ]
    if report.largest_batch_size is not None:
        largest = f"{report.largest_batch_size:,}, {report.largest_batch_size // shards} a device"
        rows.append(("largest batch at once", largest))
    needed, executed = units.flops(report.needed_flops), units.flops(report.executed_flops)
    flops_row = f"{needed} a step, {executed} with what is recomputed"
    rows.append(("floating-point operations", flops_row))
    if report.traffic:
        rows.append(("memory traffic of a device", units.traffic(report.traffic.memory_bytes)))
        for kind, each in report.traffic.collectives.items():
            rows.append((kind, f"{each.count:.0f} times, {units.traffic(each.bytes)} received"))
    if report.seconds:
        shown = (f"{name} {units.time(value)}" for name, value in report.seconds.items())
        step = report.step_seconds
        peak = report.executed_flops / report.seconds["compute"]
        rows += [
            ("at published peaks", ", ".join(shown)),
            ("a step", f"at least {units.time(step)}, {report.batch_size / step:,.0f} images/s"),
            ("utilisation", f"at most {report.needed_flops / step / peak:.0%}"),
        ]
        if report.num_steps:
            whole = units.time(report.num_steps * step)
            rows.append(("training", f"{report.num_steps:,} steps, at least {whole}"))
    return units.table(report.task, rows)
