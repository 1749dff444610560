"""Which row is in which slot: rows are admitted as slots become free, and the cache grows as they need it.

No text here: a client reads the tokens that `admit` and `dispatch` give, says which rows have ended (`release`), and
goes on. Rows that all fit begin together, as one prefill in lock-step; else rows come and go one by one.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from qwen3_jax.infer.decode import DecodeState, StepOutput
from qwen3_jax.infer.engine import Engine
from qwen3_jax.infer.rows import Row
from qwen3_jax.network.buckets import CACHE_QUANTUM, prompt_bucket, round_up

_PREFILL_ROWS = 8  # admitted by one prefill where so many slots are free


class Made(NamedTuple):
    """Outputs of calls that were dispatched together, not read yet.

    Attributes:
      outputs: one a call.
      owners: the row of each column; None for a filler or a free slot.
    """

    outputs: list[StepOutput]
    owners: list[int | None]


class Schedule:
    """The rows of one job on an engine.

    Args:
      max_num_seqs: most rows that run at once.
    """

    def __init__(self, engine: Engine, rows: Sequence[Row], max_num_seqs: int) -> None:
        self._engine, self._rows = engine, rows
        self._queue = deque(range(len(rows)))
        self._num_slots = round_up(min(len(rows), max_num_seqs), engine.multiple)
        self._together = len(rows) <= self._num_slots
        self._state: DecodeState | None = None
        self._owners: list[int | None] = [None] * self._num_slots
        self._lengths = [0] * self._num_slots  # used of the cache, padding of the prompt included
        self._limits = [0] * self._num_slots  # what that will be at most

    def admit(self) -> list[Made]:
        """Prefills rows for the slots that are free; their first tokens."""
        if self._together:
            return [self._admit(self._num_slots)] if self._queue else []
        made = []
        while self._queue and None in self._owners:
            many = min(len(self._queue), self._owners.count(None)) >= _PREFILL_ROWS * self._engine.multiple
            made.append(self._admit((_PREFILL_ROWS if many else 1) * self._engine.multiple))
        return made

    def dispatch(self, calls: int, steps: int) -> Made:
        """The next `calls` of `steps` tokens each, which do not wait for one another."""
        assert self._state is not None
        slots = [slot for slot, owner in enumerate(self._owners) if owner is not None]
        for slot in slots:
            self._lengths[slot] = min(self._lengths[slot] + calls * steps, self._limits[slot])
        needed, capacity = max((self._lengths[slot] for slot in slots), default=0), self._state.cache.capacity
        if needed > capacity:
            most = max(self._limits[slot] for slot in slots)
            self._state = self._engine.grow(self._state, round_up(max(needed, min(2 * capacity, most)), CACHE_QUANTUM))
        outputs = []
        for _ in range(calls):
            self._state, out = self._engine.step(self._state, steps)
            outputs.append(out)
        return Made(outputs, list(self._owners))

    def release(self, rows: Iterable[int]) -> None:
        """Frees the slots of rows that have ended: on the device too, where that does not know of stop strings."""
        assert self._state is not None
        ended = set(rows)
        slots = [slot for slot, owner in enumerate(self._owners) if owner in ended]
        if slots:
            self._state = self._engine.finish(self._state, slots)
        for slot in slots:
            self._owners[slot] = None

    def _admit(self, batch: int) -> Made:
        free = [slot for slot, owner in enumerate(self._owners) if owner is None][:batch]
        chosen = [self._queue.popleft() for _ in range(min(len(free), len(self._queue)))]
        rows = [self._rows[index] for index in chosen]
        prefix, first = self._engine.prefill(rows, batch)
        if self._together:
            self._state = prefix
        else:
            state = self._engine.empty(prefix, self._num_slots) if self._state is None else self._state
            self._state = self._engine.insert(state, free[: len(rows)], prefix)
        bucket = prompt_bucket(max(len(row.tokens) for row in rows))
        for slot, index in zip(free, chosen, strict=False):
            self._owners[slot], self._lengths[slot] = index, bucket
            self._limits[slot] = bucket + self._rows[index].max_new_tokens
        return Made([first], [*chosen, *[None] * (batch - len(chosen))])
