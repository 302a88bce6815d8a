"""What a compiled program moves, read from XLA's text of it: memory traffic and collectives.

XLA's own cost analysis takes the body of a loop once; here it counts as often as it runs.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import math
import re
from typing import NamedTuple

_HEADER = re.compile(r"(ENTRY )?%?([\w.\-]+) .*\{$")
# Name, shape, opcode, operands (which may have shapes, with tiles in brackets) and attributes.
_INSTRUCTION = re.compile(
    r"\s+(?P<root>ROOT )?%?(?P<name>[\w.\-]+) = (?P<shape>.*?) (?P<opcode>[a-z][\w\-]*)"
    r"\((?P<inputs>(?:[^()]|\((?:[^()]|\([^()]*\))*\))*)\)(?P<attributes>.*)"
)
_ARRAY = re.compile(r"([a-z]+)(\d*)\w*\[([\d,<=]*)\](\{[^}]*\})?")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CALLED = re.compile(r"(?:calls|to_apply|body)=%?([\w.\-]+)")
_CONDITION = re.compile(r"condition=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}|(?:true|false)_computation=%?([\w.\-]+)")
_CHANNEL = re.compile(r"channel_id=(\d+)")
_ON_CHIP = re.compile(r"S\([1-9]")

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_SLICES = ("dynamic-slice", "slice", "gather")
_MOVES_NOTHING = (
    *("after-all", "bitcast", "constant", "get-tuple-element", "optimization-barrier"),
    *("parameter", "partition-id", "replica-id", "tuple"),
)


@dataclasses.dataclass(frozen=True)
class Collective:
    """Collectives of one kind: how often they run, and the bytes that a device receives in them."""

    count: int
    bytes: float


@dataclasses.dataclass(frozen=True)
class Traffic:
    """What one device moves in one run: bytes to and from its memory, and collectives by kind."""

    memory_bytes: float
    collectives: dict[str, Collective]

    @property
    def collective_bytes(self) -> float:
        return sum((each.bytes for each in self.collectives.values()), 0.0)


def traffic(text: str) -> Traffic:
    """Reads the text of a compiled program (`jax.stages.Compiled.as_text`).

    Memory: what each fusion or operation reads and writes, but not what stays on the chip; of an
    array that is sliced or updated in place, the slice. A loop counts as often as it runs, or once
    if that depends on the data; of the branches of a conditional the one that moves most counts.
    Collectives: an all-reduce counts twice, as a device sends parts and receives sums.
    """
    program = _Program(text)
    total = program.total(program.entry)
    kinds = [kind for kind in sorted(COLLECTIVES) if total[kind, "count"]]
    collectives = {kind: Collective(total[kind, "count"], total[kind, "bytes"]) for kind in kinds}
    return Traffic(float(total["memory"]), collectives)


class _Instruction(NamedTuple):
    name: str
    shape: str
    opcode: str
    inputs: str
    attributes: str
    root: str | None

    @property
    def operands(self) -> list[str]:
        return re.findall(r"%([\w.\-]+)", self.inputs)

    def places(self, name: str) -> list[int]:
        return [place for place, operand in enumerate(self.operands) if operand == name]


_Computation = dict[str, _Instruction]


class _Program:
    def __init__(self, text: str):
        self._computations: dict[str, _Computation] = {}
        for line in text.splitlines():
            if header := _HEADER.match(line):
                computation = self._computations[header[2]] = {}
                if header[1]:
                    self.entry = header[2]
            elif found := _INSTRUCTION.match(line):
                computation[found["name"]] = _Instruction(**found.groupdict())

    @functools.cache  # noqa: B019  The program lives as long as one reading of it.
    def total(self, name: str) -> collections.Counter:
        """Bytes of `memory`, and of each kind of collective "count" and "bytes"."""
        total = collections.Counter()
        computation = self._computations[name]
        # By channel: a collective that runs beside other work stands in several fusions.
        collectives: dict[str, tuple[str, float]] = {}
        for each in computation.values():
            inner, times = [], 1
            if each.opcode == "while":
                inner, times = [self.total(_called(each))], self._trips(each)
            elif each.opcode == "conditional":
                names = " ".join(map("".join, _BRANCHES.findall(each.attributes)))
                branches = map(self.total, re.findall(r"[\w.\-]+", names))
                inner = [max(branches, key=lambda branch: branch["memory"])]
            elif each.opcode == "call":
                inner = [self.total(_called(each))]
            else:
                total["memory"] += self._memory(each, computation)
                collectives |= self._collectives(each, computation)
            for key, moved in ((key, moved) for one in inner for key, moved in one.items()):
                total[key] += times * moved
        for kind, received in collectives.values():
            total[kind, "count"] += 1
            total[kind, "bytes"] += received
        return total

    def _inside(self, fusion: _Instruction) -> _Computation:
        return self._computations[_called(fusion)]

    def _trips(self, loop: _Instruction) -> int:
        if known := _TRIPS.search(loop.attributes):
            return int(known[1])
        condition = self._computations[_CONDITION.search(loop.attributes)[1]]
        bounds = [
            int(each.inputs)
            for each in condition.values()
            if each.opcode == "constant" and each.shape.startswith("s32[]")
        ]
        return bounds[0] if len(bounds) == 1 else 1

    def _collectives(
        self, each: _Instruction, computation: _Computation
    ) -> dict[str, tuple[str, float]]:
        """Kind and received bytes by channel."""
        if each.opcode in ("fusion", "async-start"):
            found: dict[str, tuple[str, float]] = {}
            for one in self._inside(each).values():
                found |= self._collectives(one, self._inside(each))
            if "all-reduce-scatter" in _called(each):
                found = {key: ("reduce-scatter", size / 2) for key, (_, size) in found.items()}
            return found
        kind = each.opcode.removesuffix("-start")
        if kind not in COLLECTIVES:
            return {}
        operands = sum(_bytes(computation[name].shape) for name in each.operands)
        results = _bytes(each.shape)
        if each.opcode.endswith("-start"):
            results = max(results - operands, operands)  # Of a tuple of operands and results.
        received = {"all-reduce": 2 * operands, "reduce-scatter": operands}.get(kind, results)
        channel = _CHANNEL.search(each.attributes)
        return {channel[1] if channel else each.name: (kind, received)}

    def _memory(self, each: _Instruction, computation: _Computation) -> float:
        if each.opcode in _MOVES_NOTHING or each.opcode.endswith(("-done", "-update")):
            return 0.0
        if 'custom_call_target="AllocateBuffer"' in each.attributes:
            return 0.0
        operands = [_bytes(computation[name].shape, on_chip=False) for name in each.operands]
        result = _bytes(each.shape, on_chip=False)
        if each.opcode == "fusion":
            read = (min(size, self._read(each, index)) for index, size in enumerate(operands))
            return sum(read) + min(result, self._written(each))
        if each.opcode in _SLICES:
            return 2 * result
        if each.opcode == "dynamic-update-slice":
            return 2 * operands[1]
        if each.opcode == "slice-start":  # Its shape: the operand, the slice, a flag.
            part = _arrays(each.shape)[1]
            return min(operands[0], _bytes(part)) + _bytes(part, on_chip=False)
        if each.opcode.endswith("-start"):
            result = _bytes(_arrays(each.shape)[0], on_chip=False)
        return sum(operands) + result

    def _read(self, fusion: _Instruction, index: int) -> float:
        """The bytes of its operand `index` that a fusion reads."""
        inside = self._inside(fusion)

        def read(value: _Instruction) -> float:
            total, whole = 0.0, _bytes(value.shape)
            uses = ((user, place) for user in inside.values() for place in user.places(value.name))
            for user, place in uses:
                if user.opcode in ("bitcast", "reshape"):
                    total += read(user)
                elif user.opcode == "fusion":
                    total += self._read(user, place)
                elif user.opcode in _SLICES:
                    total += _bytes(user.shape)
                elif user.opcode != "dynamic-update-slice" or place:
                    return whole
            return min(total, whole)

        (parameter,) = (
            one for one in inside.values() if (one.opcode, one.inputs) == ("parameter", str(index))
        )
        return read(parameter)

    def _written(self, fusion: _Instruction) -> float:
        """The bytes of its result that a fusion writes."""
        inside = self._inside(fusion)

        def written(value: _Instruction) -> float:
            operands = [inside[name] for name in value.operands]
            if value.opcode in ("tuple", "bitcast"):
                return sum(map(written, operands))
            if value.opcode == "fusion":
                return self._written(value)
            return _bytes((operands[1] if value.opcode == "dynamic-update-slice" else value).shape)

        (root,) = (one for one in inside.values() if one.root)
        return written(root)


def _called(each: _Instruction) -> str:
    (name,) = _CALLED.findall(each.attributes)
    return name


def _arrays(shape: str) -> list[str]:
    """The shapes of the arrays of a shape, one by one."""
    return [found[0] for found in _ARRAY.finditer(shape)]


def _bytes(shape: str, on_chip: bool = True) -> float:
    """The size of all arrays of a shape; without those kept `on_chip` if that is False."""
    total = 0.0
    for _, bits, lengths, layout in _ARRAY.findall(shape):
        if on_chip or not _ON_CHIP.search(layout):
            lengths = [int(length.lstrip("<=")) for length in lengths.split(",") if length]
            total += math.prod(lengths) * int(bits or 8) / 8
    return total
