"""The pocket model's world: small problems with one checkable answer, made from a seed, graded from 1 to 12 steps.

Each family states a chain of operations on a small state. `thinking` writes one tiny step a line, so a model that
updates a state one line at a time is right; answering directly means running the whole chain in one forward pass.

    arithmetic  "7+5*3-2", left to right, modulo 10         cups  a ball under one of four cups, cups swapped in pairs
                7+5=2                                             start B, swaps AB CD AC
                2*3=6                                             AB>A
                6-2=4                                             CD>A
                -> 4                                              AC>C      -> C
"""

import dataclasses
import hashlib
from collections.abc import Callable
from typing import Literal

import numpy as np

MAX_STEPS = 12
CUPS = "ABCD"
Split = Literal["train", "held_out"]
HELD_OUT_SHARE = 10  # one problem in this many, by hash, is never trained on


@dataclasses.dataclass(frozen=True, kw_only=True)
class Problem:
    """One problem.

    Attributes:
      family: name in `FAMILIES`.
      start: first state ("7", "B").
      steps: one operation a step ("+5", "AB").
      states: the state after each step.
    """

    family: str
    start: str
    steps: tuple[str, ...]
    states: tuple[str, ...]

    @property
    def difficulty(self) -> int:
        return len(self.steps)

    @property
    def answer(self) -> str:
        return self.states[-1]

    @property
    def thinking(self) -> str:
        """One line a step, without a final newline."""
        if self.family == "cups":
            return "\n".join(f"{step}>{state}" for step, state in zip(self.steps, self.states, strict=True))
        before = (self.start, *self.states)
        return "\n".join(f"{a}{step}={b}" for a, step, b in zip(before, self.steps, self.states, strict=False))

    @property
    def key(self) -> str:
        """What makes two problems the same, however they are worded."""
        return f"{self.family} {self.start} {' '.join(self.steps)}"

    @property
    def split(self) -> Split:
        digest = hashlib.sha256(self.key.encode()).digest()
        return "held_out" if int.from_bytes(digest[:8], "big") % HELD_OUT_SHARE == 0 else "train"


def arithmetic(rng: np.random.Generator, steps: int) -> Problem:
    """Digits joined by + - *, evaluated from left to right modulo 10."""
    state = int(rng.integers(10))
    start, operations, states = str(state), [], []
    for _ in range(steps):
        symbol = "++--*"[rng.integers(5)]
        operand = int(rng.integers(2 if symbol == "*" else 1, 10))
        state = {"+": state + operand, "-": state - operand, "*": state * operand}[symbol] % 10
        operations.append(f"{symbol}{operand}")
        states.append(str(state))
    return Problem(family="arithmetic", start=start, steps=tuple(operations), states=tuple(states))


def cups(rng: np.random.Generator, steps: int) -> Problem:
    """A ball under one of four cups; each step swaps two cups, half of the time the ball's own."""
    state = CUPS[rng.integers(len(CUPS))]
    start, swaps, states = state, [], []
    for _ in range(steps):
        pair = "".join(sorted(CUPS[i] for i in rng.choice(len(CUPS), 2, replace=False)))
        if state in pair:
            state = pair.replace(state, "")
        swaps.append(pair)
        states.append(state)
    return Problem(family="cups", start=start, steps=tuple(swaps), states=tuple(states))


FAMILIES: dict[str, Callable[[np.random.Generator, int], Problem]] = {"arithmetic": arithmetic, "cups": cups}


def sample(rng: np.random.Generator, family: str, steps: int, split: Split) -> Problem:
    """A problem of one family, one difficulty and one side of the split.

    Raises:
      ValueError: unknown family, or a difficulty outside 1..MAX_STEPS.
    """
    if family not in FAMILIES:
        raise ValueError(f"a task family must be one of {sorted(FAMILIES)}, got {family!r}: correct the name")
    if not 1 <= steps <= MAX_STEPS:
        raise ValueError(f"a problem must have 1 to {MAX_STEPS} steps, got {steps}: correct the difficulty")
    while True:
        problem = FAMILIES[family](rng, steps)
        if problem.split == split:
            return problem


def is_right(problem: Problem, content: str) -> bool:
    """Whether the answer in `content` is the problem's: its last digit, or its last lone letter of the cups'.

    In:  "The answer is 4."   "答案是C。"
    Out: "4"                  "C"
    """
    return extract_answer(problem.family, content) == problem.answer


def extract_answer(family: str, content: str) -> str | None:
    """The last state named in `content`, or None."""
    if family == "arithmetic":
        found = [c for c in content if c in "0123456789"]
    else:
        letter = [c.isascii() and c.isalpha() for c in content] + [False]
        found = [c for i, c in enumerate(content) if c in CUPS and not letter[i - 1] and not letter[i + 1]]
    return found[-1] if found else None
