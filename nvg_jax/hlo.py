"""What a compiled program moves, read from XLA's text of it: memory traffic and collectives.

XLA's own cost analysis takes the body of a loop once; here it counts as often as it runs.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import re

_HEADER = re.compile(r"(ENTRY )?%?([\w.\-]+) .*\{$")
_NAME = re.compile(r"\s+(ROOT )?%?([\w.\-]+) = ")
_SHAPE = re.compile(r"([a-z]+\d*\w*)\[([\d,<=]*)\](\{[^}]*\})?")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CALLED = re.compile(r"(?:calls|to_apply|body)=%?([\w.\-]+)")
_CONDITION = re.compile(r"condition=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}|(?:true|false)_computation=%?([\w.\-]+)")
_CHANNEL = re.compile(r"channel_id=(\d+)")
_BITS = re.compile(r"\d+")
_ON_CHIP = re.compile(r"S\([1-9]")

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")

_MOVES_NOTHING = {
    "after-all",
    "bitcast",
    "constant",
    "get-tuple-element",
    "optimization-barrier",
    "parameter",
    "partition-id",
    "replica-id",
    "tuple",
}


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


@dataclasses.dataclass(frozen=True)
class _Instruction:
    name: str
    shape: str
    opcode: str
    operands: list[str]
    text: str
    is_root: bool

    def is_parameter(self, index: int) -> bool:
        return self.opcode == "parameter" and self.text.startswith(f"parameter({index})")


class _Computation:
    def __init__(self, instructions: list[_Instruction]):
        self.instructions = instructions
        self.by_name = {each.name: each for each in instructions}

    @functools.cached_property
    def users(self) -> dict[str, list[_Instruction]]:
        users = collections.defaultdict(list)
        for each in self.instructions:
            for operand in each.operands:
                users[operand].append(each)
        return users


def traffic(text: str) -> Traffic:
    """Reads the text of a compiled program (`jax.stages.Compiled.as_text`).

    Memory: what each fusion or operation reads and writes, but not what stays on the chip; of an
    array that is sliced or updated in place, the slice. A loop counts as often as it runs, or once
    if that depends on the data; of the branches of a conditional the one that moves most counts.
    Collectives: an all-reduce counts twice, as a device sends parts and receives sums.
    """
    return _Program(text).traffic()


class _Program:
    def __init__(self, text: str):
        self._computations: dict[str, _Computation] = {}
        entry = None
        lines: list[_Instruction] = []
        for line in text.splitlines():
            if not line.startswith(" "):
                if header := _HEADER.match(line):
                    name, lines = header[2], []
                    entry = name if header[1] else entry
                elif line == "}":
                    self._computations[name] = _Computation(lines)
            elif match := _NAME.match(line):
                lines.append(_parse(match, line))
        self._entry = entry

    def traffic(self) -> Traffic:
        memory, moved = self._of(self._entry)
        return Traffic(memory, {kind: Collective(*moved[kind]) for kind in sorted(moved)})

    @functools.cache  # noqa: B019  The program lives as long as one reading of it.
    def _of(self, name: str) -> tuple[float, dict[str, tuple[int, float]]]:
        memory, moved = 0.0, {}
        # By channel: a collective that runs beside other work stands in several fusions.
        collectives: dict[str, tuple[str, float]] = {}
        for each in self._computations[name].instructions:
            inner = []
            if each.opcode == "while":
                (body,) = _CALLED.findall(each.text)
                inner = [(self._of(body), self._trips(each))]
            elif each.opcode == "conditional":
                inner = [(max(map(self._of, self._branches(each)), key=lambda of: of[0]), 1)]
            elif each.opcode == "call":
                inner = [(self._of(called), 1) for called in _CALLED.findall(each.text)]
            else:
                memory += self._memory(each, self._computations[name])
                collectives |= self._collectives(each, self._computations[name])
            for (bytes_inside, moved_inside), times in inner:
                memory += times * bytes_inside
                moved = _sum(moved, moved_inside, times)
        for kind, received in collectives.values():
            moved = _sum(moved, {kind: (1, received)})
        return memory, moved

    def _trips(self, loop: _Instruction) -> int:
        if known := _TRIPS.search(loop.text):
            return int(known[1])
        condition = self._computations[_CONDITION.search(loop.text)[1]]
        bounds = [
            int(number)
            for each in condition.instructions
            if each.opcode == "constant" and each.shape.startswith("s32[]")
            for number in re.findall(r"constant\((\d+)\)", each.text)
        ]
        return bounds[0] if len(bounds) == 1 else 1

    def _branches(self, each: _Instruction) -> list[str]:
        return [
            name.strip().lstrip("%")
            for several, one in _BRANCHES.findall(each.text)
            for name in (several or one).split(",")
        ]

    def _collectives(
        self, each: _Instruction, computation: _Computation
    ) -> dict[str, tuple[str, float]]:
        """Kind and received bytes by channel."""
        if each.opcode in ("fusion", "async-start"):
            (called,) = _CALLED.findall(each.text)
            inside = self._computations[called]
            found: dict[str, tuple[str, float]] = {}
            for one in inside.instructions:
                found |= self._collectives(one, inside)
            if "all-reduce-scatter" in called:
                found = {key: ("reduce-scatter", size / 2) for key, (_, size) in found.items()}
            return found
        kind = each.opcode.removesuffix("-start")
        if kind not in COLLECTIVES:
            return {}
        operands = sum(_bytes(computation.by_name[name].shape) for name in each.operands)
        results = _bytes(each.shape)
        if each.opcode.endswith("-start"):
            results = max(results - operands, operands)  # Of a tuple of operands and results.
        received = {"all-reduce": 2 * operands, "reduce-scatter": operands}.get(kind, results)
        channel = _CHANNEL.search(each.text)
        return {channel[1] if channel else each.name: (kind, received)}

    def _memory(self, each: _Instruction, computation: _Computation) -> float:
        if each.opcode in _MOVES_NOTHING or each.opcode.endswith(("-done", "-update")):
            return 0.0
        operands = [computation.by_name[name] for name in each.operands]
        if each.opcode == "fusion":
            read = sum(
                min(_in_memory(operand.shape), self._read_by(each, index))
                for index, operand in enumerate(operands)
            )
            return read + min(_in_memory(each.shape), self._written_by(each))
        if each.opcode in ("dynamic-slice", "slice", "gather"):
            return 2 * _in_memory(each.shape)
        if each.opcode == "dynamic-update-slice":
            return 2 * _in_memory(operands[1].shape)
        if each.opcode.endswith("-start"):
            shape = _SHAPE.search(each.shape)[0]
            return sum(_in_memory(one.shape) for one in operands) + _in_memory(shape)
        return sum(_in_memory(one.shape) for one in operands) + _in_memory(each.shape)

    def _read_by(self, fusion: _Instruction, index: int) -> float:
        """The bytes of its operand `index` that a fusion reads."""
        (called,) = _CALLED.findall(fusion.text)
        inside = self._computations[called]
        (parameter,) = (one for one in inside.instructions if one.is_parameter(index))
        return self._read(parameter, inside)

    def _read(self, value: _Instruction, inside: _Computation) -> float:
        read = 0.0
        for user in inside.users[value.name]:
            if user.opcode in ("bitcast", "reshape"):
                read += self._read(user, inside)
            elif user.opcode == "fusion":
                read += self._read_by(user, user.operands.index(value.name))
            elif user.opcode in ("dynamic-slice", "slice", "gather"):
                read += _bytes(user.shape)
            elif user.opcode != "dynamic-update-slice" or user.operands[0] != value.name:
                return _bytes(value.shape)
        return min(read, _bytes(value.shape))

    def _written_by(self, fusion: _Instruction) -> float:
        (called,) = _CALLED.findall(fusion.text)
        inside = self._computations[called]
        (root,) = (one for one in inside.instructions if one.is_root)
        return self._written(root, inside)

    def _written(self, value: _Instruction, inside: _Computation) -> float:
        """The bytes that a fusion with this result writes."""
        operands = [inside.by_name[name] for name in value.operands]
        if value.opcode == "tuple":
            return sum((self._written(operand, inside) for operand in operands), 0.0)
        if value.opcode == "bitcast":
            return self._written(operands[0], inside)
        if value.opcode == "fusion":
            return self._written_by(value)
        if value.opcode == "dynamic-update-slice":
            return _bytes(operands[1].shape)
        return _bytes(value.shape)


def _parse(match: re.Match, line: str) -> _Instruction:
    rest = line[match.end() :]
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    shape, rest = rest[:end], rest[end:].lstrip()
    start = rest.index("(")
    stop = _closing(rest, start)
    operands = re.findall(r"%([\w.\-]+)", rest[start:stop])
    return _Instruction(match[2], shape, rest[:start], operands, rest, bool(match[1]))


def _closing(text: str, start: int) -> int:
    depth = 0
    for index in range(start, len(text)):
        depth += (text[index] == "(") - (text[index] == ")")
        if depth == 0:
            return index
    raise ValueError(f"unbalanced: {text}")


def _shape_bytes(match: re.Match) -> float:
    bits = _BITS.search(match[1])
    count = 1
    for length in match[2].split(","):
        count *= int(length.lstrip("<=")) if length else 1
    return count * (int(bits[0]) / 8 if bits else 1.0)


def _bytes(shape: str) -> float:
    return sum((_shape_bytes(match) for match in _SHAPE.finditer(shape)), 0.0)


def _in_memory(shape: str) -> float:
    """The bytes of those arrays that are not kept on the chip."""
    return sum(
        (
            _shape_bytes(match)
            for match in _SHAPE.finditer(shape)
            if not (match[3] and _ON_CHIP.search(match[3]))
        ),
        0.0,
    )


def _sum(
    one: dict[str, tuple[int, float]], other: dict[str, tuple[int, float]], times: int = 1
) -> dict[str, tuple[int, float]]:
    total = dict(one)
    for kind, (count, size) in other.items():
        before = total.get(kind, (0, 0.0))
        total[kind] = (before[0] + times * count, before[1] + times * size)
    return total
