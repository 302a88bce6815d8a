"""Sampling compiled ahead of time: each program that the sampler runs, for one device."""

from __future__ import annotations

import collections
import dataclasses
import functools
import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core
from ml_collections import ConfigDict

from nvg_jax import granularity, hardware, sharding, units
from nvg_jax.ahead_of_time import Compiled, compile_program
from nvg_jax.generator import sampler
from nvg_jax.generator.given import given_structure
from nvg_jax.generator.model import build_generator
from nvg_jax.granularity import GranularitySequence
from nvg_jax.progress import track
from nvg_jax.tokenizer import inference
from nvg_jax.tokenizer.model import build_tokenizer
from nvg_jax.training import flops

PARTS = ("content", "structure", "decoder")


@dataclasses.dataclass(frozen=True)
class Part:
    """What a part of sampling takes: arithmetic, bytes to and from memory, and time.

    seconds: at the published peaks, of each program in turn the longer of arithmetic and memory
    traffic; None for unknown devices.
    """

    flops: float
    memory_bytes: float
    seconds: float | None


@dataclasses.dataclass(frozen=True)
class Run:
    """A batch of images at once, from class ids to images.

    memory: bytes of the device, all weights among them. fits: whether that is what it has; if not,
    there are no parts.
    """

    batch_size: int
    memory: int
    fits: bool
    parts: dict[str, Part]

    @property
    def seconds(self) -> float | None:
        """Of the batch, at least."""
        seconds = [part.seconds for part in self.parts.values()]
        return None if None in seconds or not seconds else sum(seconds)


@dataclasses.dataclass(frozen=True)
class SamplingReport:
    """One device: a single image, and as many as `config.sampling.batch_size` or as fit of them."""

    task: str
    architecture: str
    topology: str
    device: str
    flow_steps: int
    weights: int
    limit: int | None
    runs: list[Run]


def sampling_report(config: ConfigDict, device: jax.Device) -> SamplingReport:
    """What sampling takes on one device, which need not be there.

    Each program that `sampler.sample` and the decoder would run is compiled once, and counts as
    often as it would run. A batch that does not fit is halved until it does.
    """
    chip, programs = hardware.chip(device), _Programs(config, device)
    runs, batch_size = [programs.run(1)], config.sampling.batch_size
    while batch_size > 1 and (len(runs) == 1 or not runs[-1].fits):
        runs.append(programs.run(batch_size))
        batch_size //= 2
    return SamplingReport(
        task="sample",
        architecture=programs.architecture,
        topology=config.compile.topology,
        device=device.device_kind,
        flow_steps=config.sampling.flow_steps,
        weights=programs.weights,
        limit=chip and chip.memory,
        runs=runs,
    )


class _Program(NamedTuple):
    """A program that is compiled once, and the bytes of weights among its arguments."""

    traced: core.ClosedJaxpr
    weights: int


class _Programs:
    """The programs of sampling with a config, compiled for one device."""

    def __init__(self, config: ConfigDict, device: jax.Device):
        self._mesh = sharding.create_mesh(devices=[device])
        self._chip = hardware.chip(device)
        self._settings = sampler.Settings.from_config(config.sampling)
        self._tokenizer, self._generator = build_tokenizer(config), build_generator(config)
        self._variables = tuple(
            sharding.abstract(model.init_variables, self._mesh, jax.random.key(0))
            for model in (self._tokenizer, self._generator)
        )
        self.weights = _bytes(jax.tree.leaves(self._variables))
        self.architecture = self._generator.architecture

    def run(self, batch_size: int) -> Run:
        """Compiles what a batch needs, from the decoder on back until something does not fit."""
        calls = self._calls(batch_size)
        programs = {program: None for part in reversed(PARTS) for program in calls[part]}
        limit = self._chip.memory if self._chip else math.inf
        memory, fits = 0, True
        what = f"compiling for {batch_size:,} image(s)"
        for program in track(programs, what, unit="program"):
            compiled = self._compiled(program)
            memory = max(memory, compiled.memory + self.weights - program.weights)
            fits = compiled.traffic is not None and memory <= limit
            if not fits:
                return Run(batch_size, memory, fits, {})
        return Run(batch_size, memory, fits, {part: self._part(calls[part]) for part in PARTS})

    def _part(self, calls: collections.Counter[_Program]) -> Part:
        total, traffic, seconds = 0.0, 0.0, 0.0
        for program, times in calls.items():
            needed, moved = flops.count(program.traced), self._compiled(program).traffic
            total += times * needed
            traffic += times * moved.memory_bytes
            if self._chip:
                seconds += times * max(
                    needed / self._chip.flops, moved.memory_bytes / self._chip.memory_bandwidth
                )
        return Part(total, traffic, seconds if self._chip else None)

    def _calls(self, batch_size: int) -> dict[str, collections.Counter[_Program]]:
        """How often each program runs for a batch, by part."""

        def array(shape: tuple[int, ...] = (), dtype: Any = jnp.int32) -> jax.ShapeDtypeStruct:
            place = sharding.replicated(self._mesh)
            return jax.ShapeDtypeStruct((batch_size, *shape), dtype, sharding=place)

        def sequence(variables: Any, class_id: Any, image_keys: Any, given: Any = None) -> Any:
            return sampler.sample(
                self._tokenizer,
                self._generator,
                self._settings,
                *variables,
                class_id,
                image_keys,
                given=given,
            )

        def with_structure(variables: Any, class_id: Any, image_keys: Any, structure: Any) -> Any:
            given = given_structure(structure, self._tokenizer.last_stage + 1)
            return sequence(variables, class_id, image_keys, given)

        def images(variables: Any, sequence: Any) -> Any:
            return inference.images_of(self._tokenizer, variables[0], sequence)

        num_tokens = granularity.num_tokens(self._tokenizer.stages)
        start = array(), array(dtype=jax.random.key(0).dtype)
        sequences = GranularitySequence(
            array((self._tokenizer.num_positions,)), array((num_tokens,))
        )
        whole = self._trace(sequence, *start)
        content = whole & self._trace(with_structure, *start, sequences.structure)
        return {
            "content": content,
            "structure": whole - content,
            "decoder": self._trace(images, sequences),
        }

    def _trace(self, function: Callable[..., Any], *args: Any) -> collections.Counter[_Program]:
        with jax.set_mesh(self._mesh):
            traced = jax.make_jaxpr(function)(self._variables, *args).jaxpr
        weights = set(traced.invars[: len(jax.tree.leaves(self._variables))])
        return collections.Counter(
            _Program(
                call.params["jaxpr"],
                _bytes(
                    each.aval
                    for each in call.invars
                    if isinstance(each, core.Var) and each in weights
                ),
            )
            for call in traced.eqns
        )

    @functools.cache  # noqa: B019  The programs live as long as one report of them.
    def _compiled(self, program: _Program) -> Compiled:
        place = sharding.replicated(self._mesh)
        args = (
            jax.ShapeDtypeStruct(each.shape, each.dtype, sharding=place)
            for each in program.traced.in_avals
        )
        return compile_program(core.jaxpr_as_fun(program.traced), self._mesh, *args)


def _bytes(arrays: Iterable[Any]) -> int:
    return sum(each.size * each.dtype.itemsize for each in arrays)


def sampling_table(report: SamplingReport) -> str:
    """A report for the terminal."""
    rows = [
        ("device", f"one {report.device} ({report.topology})"),
        ("flow steps", f"{report.flow_steps} in each run of the structure generator"),
        ("weights", units.memory(report.weights)),
    ]
    for run in report.runs:
        memory = f"memory {units.memory(run.memory)}"
        if report.limit:
            verdict = "fits" if run.fits else "DOES NOT FIT"
            memory += f" of {units.memory(report.limit)}: {verdict}"
        rows.append((f"{run.batch_size:,} image(s)", memory))
        if run.seconds:
            rate = f"{run.batch_size / run.seconds:.3g} images/s"
            rows.append(("  whole", f"at least {units.time(run.seconds)}, {rate}"))
        for name, part in run.parts.items():
            time = f"at least {units.time(part.seconds)}, " if part.seconds else ""
            moved = f"{units.flops(part.flops)}, {units.traffic(part.memory_bytes)} of traffic"
            rows.append((f"  {name}", time + moved))
    return units.table(report.task, rows)
