"""From examples to batches: documents with a loss mask, packed several to a row, in an order that resumes exactly."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import flax.struct
import numpy as np
from jaxtyping import Bool, Int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Example:
    """One document.

    Attributes:
      tokens: prompt and completion.
      loss: for each token, whether the model is to learn to write it.
      domain: its number among the domains of the data.
    """

    tokens: list[int]
    loss: list[bool]
    domain: int = 0


@runtime_checkable
class Source(Protocol):
    """An endless, random-access stream: example `index` is the same whenever it is asked for."""

    def example(self, index: int) -> Example: ...


@flax.struct.dataclass
class Batch:
    """Packed rows.

    Attributes:
      tokens: int32[B, T].
      targets: int32[B, T], the next token of the same document.
      loss_mask: bool[B, T], whether `targets` counts: it is of the same document and of the part to learn.
      segment_ids: int32[B, T], 1, 2, ... for the documents of a row, 0 for the rest of the row.
      domains: int32[B, T], the domain of each token's document (`DataConfig.domain`), by which losses are reported.
    """

    tokens: Int[Any, "B T"]
    targets: Int[Any, "B T"]
    loss_mask: Bool[Any, "B T"]
    segment_ids: Int[Any, "B T"]
    domains: Int[Any, "B T"]


@dataclasses.dataclass(frozen=True)
class Cursor:
    """Where a stream of batches stands: the next example, and earlier ones that did not fit yet."""

    next: int = 0
    waiting: Sequence[int] = ()


def fill(rows: list[list[Example]], length: int) -> Batch:
    """Lays documents side by side.

    In:  one row of 8, documents a b c (loss on b c) and d e (loss on e)
    Out: tokens       a b c d e 0 0 0
         targets      b c 0 e 0 0 0 0
         loss_mask    1 1 0 1 0 0 0 0
         segment_ids  1 1 1 2 2 0 0 0
    """
    shape = (len(rows), length)
    tokens, targets, segment_ids, domains = (np.zeros(shape, np.int32) for _ in range(4))
    loss_mask = np.zeros(shape, bool)
    for row, examples in enumerate(rows):
        at = 0
        for number, example in enumerate(examples, start=1):
            size = len(example.tokens)
            tokens[row, at : at + size] = example.tokens
            targets[row, at : at + size - 1] = example.tokens[1:]
            loss_mask[row, at : at + size - 1] = example.loss[1:]
            segment_ids[row, at : at + size] = number
            domains[row, at : at + size] = example.domain
            at += size
    return Batch(tokens=tokens, targets=targets, loss_mask=loss_mask, segment_ids=segment_ids, domains=domains)


def pack(source: Source, cursor: Cursor, rows: int, length: int) -> tuple[Batch, Cursor]:
    """Takes examples until they would fill the batch and packs them best-fit, longest first.

    Examples that find no room wait for the next batch and are placed before any newer one, so none is lost and long
    ones are not rarer in batches than in the source.

    Raises:
      ValueError: an example is longer than a row.
    """
    pool = {index: source.example(index) for index in cursor.waiting}
    following = cursor.next
    total = sum(len(example.tokens) for example in pool.values())
    while total < rows * length:
        example = source.example(following)
        if len(example.tokens) > length:
            raise ValueError(
                f"data.length must hold every example, got {length} for one of {len(example.tokens)} tokens: raise it"
            )
        pool[following] = example
        total += len(example.tokens)
        following += 1
    packed: list[list[Example]] = [[] for _ in range(rows)]
    room = np.full(rows, length)
    waiting = []
    # Those that waited go first; the others longest first, which packs tightest.
    waited = set(cursor.waiting)
    for index in sorted(pool, key=lambda i: (i not in waited, -len(pool[i].tokens), i)):
        size = len(pool[index].tokens)
        fits = np.flatnonzero(room >= size)
        if not fits.size:
            waiting.append(index)
            continue
        row = fits[np.argmin(room[fits])]
        packed[row].append(pool[index])
        room[row] -= size
    return fill(packed, length), Cursor(following, tuple(sorted(waiting)))


def batches(source: Source, cursor: Cursor, rows: int, length: int) -> Iterator[tuple[Batch, Cursor]]:
    """Batches from `cursor` on, each with the cursor after it."""
    while True:
        batch, cursor = pack(source, cursor, rows, length)
        yield batch, cursor
