"""Reads a compiled program's text (HLO): which computations there are and how often each one runs.

The text has one computation after another, each a list of instructions:
    %body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
      %x = f32[8]{0} get-tuple-element(%p), index=1
      ROOT %t = (s32[], f32[8]{0}) tuple(%i, %x)
    }
A program's own cost analysis counts the body of a loop once; here it counts as often as it runs.
"""

import dataclasses
import functools
import math
import re
from collections import Counter
from collections.abc import Mapping

_BYTES = {
    "pred": 1, "s4": 0.5, "u4": 0.5, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "s32": 4, "u32": 4, "s64": 8, "u64": 8,
    "f16": 2, "bf16": 2, "f32": 4, "f64": 8, "c64": 8, "c128": 16, "token": 0, "opaque": 0,
}  # fmt: skip
_SHAPE = re.compile(r"\b([a-z]+[0-9]*[a-z0-9]*)\[([0-9,<= ]*)\]")
_INSTRUCTION = re.compile(r"\s*(ROOT )?%?([\w.\-]+) = (.*)")
_HEADER = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line.

    Attributes:
      shape: text of the result's shape, such as "bf16[8,128]{1,0}" or "(s32[], f32[8])".
      operands: names of the operands.
      attributes: text after them.
    """

    name: str
    opcode: str
    shape: str
    operands: tuple[str, ...]
    attributes: str
    root: bool

    def attribute(self, key: str) -> str:
        """Value of a plain attribute, "" without it. In: "body"     Out: "wide.region_0.1" """
        found = re.search(rf"\b{key}=%?([\w.\-]+)", self.attributes)
        return found[1] if found else ""


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled program: its computations by name, each with its instructions by name, in order."""

    computations: Mapping[str, Mapping[str, Instruction]]
    entry: str

    @functools.cached_property
    def runs(self) -> dict[str, int]:
        """How often each computation that the program calls runs (both branches of a conditional count; a loop whose
        length is not known when compiling counts once, see `unknown_loops`)."""
        runs: Counter[str] = Counter()

        def visit(name: str, times: int) -> None:
            runs[name] += times
            for instruction in self.computations[name].values():
                for callee, count in self._calls(name, instruction):
                    visit(callee, times * count)

        visit(self.entry, 1)
        return dict(runs)

    @functools.cached_property
    def callers(self) -> dict[str, str]:
        """The computation that calls each one that is called by a fusion."""
        return {
            callee: name
            for name in self.computations
            for instruction in self.computations[name].values()
            if instruction.opcode == "fusion" and (callee := instruction.attribute("calls")) in self.computations
        }

    @property
    def unknown_loops(self) -> list[str]:
        """Loops whose number of turns the text does not tell."""
        return [
            instruction.name
            for name in self.runs
            for instruction in self.computations[name].values()
            if instruction.opcode == "while" and self.trip_count(name, instruction) is None
        ]

    def _calls(self, computation: str, instruction: Instruction) -> list[tuple[str, int]]:
        if instruction.opcode == "while":
            body = instruction.attribute("body")
            return [(body, self.trip_count(computation, instruction) or 1)] if body in self.computations else []
        if instruction.opcode == "conditional":
            found = re.search(r"branch_computations=\{([^}]*)\}", instruction.attributes)
            names = re.findall(r"[\w.\-]+", found[1]) if found else []
            names += [name for key in ("true_computation", "false_computation") if (name := instruction.attribute(key))]
            return [(name, 1) for name in names if name in self.computations]
        key = {"fusion": "calls", "async-start": "calls", "call": "to_apply", "call-start": "to_apply"}
        callee = instruction.attribute(key[instruction.opcode]) if instruction.opcode in key else ""
        return [(callee, 1)] if callee in self.computations else []

    def trip_count(self, computation: str, loop: Instruction) -> int | None:
        """Turns of a `while`: what the compiler has noted, or what a condition `counter < constant` says."""
        noted = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes)
        if noted:
            return int(noted[1])
        condition = loop.attribute("condition")
        if condition not in self.computations:
            return None
        if (compare := self._comparison(condition)) is None:
            return None
        index, limit = compare
        start = self._start(computation, loop.operands[0], index)
        step = self._step(loop.attribute("body"), index)
        return max(-(-(limit - start) // step), 0)

    def _comparison(self, condition: str) -> tuple[int, int] | None:
        """(index of the counter in the loop's tuple, limit) of a condition `counter < limit`."""
        body = self.computations[condition]
        root = next(instruction for instruction in body.values() if instruction.root)
        operands: tuple[str, ...] = root.operands
        direction = root
        if root.opcode == "fusion" and (inner := self.computations.get(root.attribute("calls"))):
            direction = next(instruction for instruction in inner.values() if instruction.root)
            order = [inner[name].opcode == "parameter" and _number(inner[name]) for name in direction.operands]
            if any(index is False or index is None for index in order):
                return None
            operands = tuple(root.operands[int(index)] for index in order if index is not False and index is not None)
        if direction.opcode != "compare" or "direction=LT" not in direction.attributes or len(operands) != 2:
            return None
        counter, limit = (_through_copies(body, name) for name in operands)
        if counter is None or limit is None or limit.opcode != "constant" or counter.opcode != "get-tuple-element":
            return None
        value, index = _number(limit), re.search(r"index=(\d+)", counter.attributes)
        return None if value is None or index is None else (int(index[1]), value)

    def _start(self, computation: str, operand: str, index: int) -> int:
        """The counter's first value; loops that JAX makes begin at 0."""
        body = self.computations[computation]
        made = _through_copies(body, operand)
        if made is None or made.opcode != "tuple" or index >= len(made.operands):
            return 0
        value = _through_copies(body, made.operands[index])
        return (_number(value) or 0) if value is not None and value.opcode == "constant" else 0

    def _step(self, body: str, index: int) -> int:
        """What the body adds to the counter: 1, or more where the compiler has unrolled it."""
        instructions = self.computations.get(body, {})
        root = next((instruction for instruction in instructions.values() if instruction.root), None)
        if root is None or root.opcode != "tuple":
            return 1
        step = 0
        value = _through_copies(instructions, root.operands[index])
        while value is not None and value.opcode == "add":
            parts = [_through_copies(instructions, name) for name in value.operands]
            step += sum(_number(part) or 0 for part in parts if part is not None and part.opcode == "constant")
            value = next((part for part in parts if part is not None and part.opcode != "constant"), None)
        return step if step > 0 and value is not None and value.opcode == "get-tuple-element" else 1


def parse_program(text: str) -> Program:
    """From `compiled.as_text()`."""
    computations: dict[str, dict[str, Instruction]] = {}
    entry, current = "", None
    for line in text.split("\n"):
        if line.endswith("{") and (header := _HEADER.match(line)):
            current = computations.setdefault(header[2], {})
            entry = header[2] if header[1] else entry
        elif line == "}":  # a kernel's settings may go over several lines, of which some begin with it
            current = None
        elif current is not None and (found := _INSTRUCTION.match(line)):
            instruction = _parse_instruction(found[2], found[3], bool(found[1]))
            current[instruction.name] = instruction
    if not entry:
        raise ValueError("the text of a compiled program must have an ENTRY computation, got none: pass as_text()")
    return Program(computations, entry)


def shape_bytes(shape: str) -> int:
    """Bytes of a shape's arrays, without padding. In: "(bf16[8,128]{1,0}, f32[])"     Out: 2052"""
    return int(sum(_BYTES.get(dtype, 1) * math.prod(dims) for dtype, dims in shape_dims(shape)))


def shape_dims(shape: str) -> list[tuple[str, tuple[int, ...]]]:
    """Arrays of a shape. In: "(bf16[8,128]{1,0}, f32[])"     Out: [("bf16", (8, 128)), ("f32", ())]"""
    return [
        (dtype, tuple(int(size.removeprefix("<=")) for size in dims.replace(" ", "").split(",") if size))
        for dtype, dims in _SHAPE.findall(shape)
        if dtype in _BYTES or dtype.startswith("f8")
    ]


def _parse_instruction(name: str, rest: str, root: bool) -> Instruction:
    end = _closing(rest, 0) if rest.startswith("(") else rest.index(" ")
    shape, rest = rest[:end], rest[end:].lstrip()
    opcode, _, rest = rest.partition("(")
    end = _closing("(" + rest, 0) - 1
    operands = tuple(re.findall(r"%([\w.\-]+)", rest[:end])) or tuple(re.findall(r"[\w.\-]+", rest[:end]))
    return Instruction(name, opcode, shape, operands, rest[end:], root)


def _closing(text: str, start: int) -> int:
    """Index after the parenthesis that closes the one at `start`."""
    depth = 0
    for index in range(start, len(text)):
        depth += (text[index] == "(") - (text[index] == ")")
        if depth == 0:
            return index + 1
    return len(text)


def _through_copies(body: Mapping[str, Instruction], name: str) -> Instruction | None:
    instruction = body.get(name)
    while instruction is not None and instruction.opcode in ("copy", "bitcast", "copy-done", "copy-start"):
        instruction = body.get(instruction.operands[0])
    return instruction


def _number(instruction: Instruction) -> int | None:
    """The number in `constant(6)` or `parameter(1)`."""
    text = instruction.operands[0] if instruction.operands else ""
    return int(text) if re.fullmatch(r"-?\d+", text) else None
