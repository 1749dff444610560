"""From documents to batches: documents with a loss mask, packed several to a row, in an order that resumes exactly."""

import bisect
import dataclasses
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import flax.struct
import grain
import numpy as np
from jaxtyping import Bool, Int


def best_fit(sizes: Sequence[int], ages: Sequence[int], rows: int, length: int) -> list[list[int]]:
    """Which of the pool's pieces go into which row: older ones before younger, then longest first, each into the
    fullest row that has room for it.

    In:  sizes [3, 5, 2, 4], ages [1, 0, 0, 0], 2 rows of 7
    Out: [[0, 3], [1, 2]]

    Args:
      sizes: tokens of each piece of the pool, in order of arrival; at most `length`.
      ages: batches that each has waited.
    """
    packed: list[list[int]] = [[] for _ in range(rows)]
    room = np.full(rows, length)
    smallest = min(sizes, default=0)
    for place in sorted(range(len(sizes)), key=lambda i: (-ages[i], -sizes[i])):
        if sizes[place] > (most := int(room.max())):
            continue
        if most < smallest:
            break
        row = int(np.where(room >= sizes[place], room, length + 1).argmin())
        packed[row].append(place)
        room[row] -= sizes[place]
    return packed


def tighten(
    packed: list[list[int]], sizes: Sequence[int], ages: Sequence[int], length: int, oldest: int
) -> list[list[int]]:
    """Swaps pieces for longer ones that found no room, where a row then has less left; not those of age `oldest`.

    In:  rows [[0, 2]] of 9, sizes [4, 6, 3], ages [0, 0, 0]: 2 tokens are left
    Out: [[1, 2]]
    """
    placed = {place for row in packed for place in row}
    spare = sorted((size, place) for place, size in enumerate(sizes) if place not in placed)
    tight = []
    for row in packed:
        left = length - sum(sizes[place] for place in row)
        row = list(row)
        for at in range(len(row) - 1, -1, -1):  # the shortest first: most of the spare ones are longer
            size = sizes[row[at]]
            found = bisect.bisect_right(spare, (size + left, len(sizes))) - 1
            if left and ages[row[at]] < oldest and found >= 0 and spare[found][0] > size:
                longer, place = spare.pop(found)
                bisect.insort(spare, (size, row[at]))
                row[at], left = place, left - (longer - size)
        tight.append(row)
    return tight


_OLDEST = 4  # batches after which a piece is not made to wait for a better row
_USELESS = 10_000  # documents in a row of which nothing is packed: more are taken for a mistake


@dataclasses.dataclass(frozen=True, kw_only=True)
class Example:
    """One document, or one piece of a document that is longer than a row.

    Attributes:
      tokens: prompt and completion.
      loss: for each token, whether the model is to learn to write it.
      domain: its number among the domains of the data.
      combination: number of its label combination, by which tokens are counted.
    """

    tokens: Sequence[int] | np.ndarray
    loss: Sequence[bool] | np.ndarray
    domain: int = 0
    combination: int = 0


class NoPieces(tuple[Example, ...]):
    """Of a document that is left out, and was warned of already."""


@runtime_checkable
class Documents(Protocol):
    """Random access: document `index` gives the same examples whenever it is asked for."""

    def pieces(self, index: int) -> Sequence[Example]: ...

    def name(self, index: int) -> str: ...


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
class Packed:
    """A batch and what stands in it.

    Attributes:
      batch: [B, T].
      documents: index of the document of each segment, row after row.
      name: of a document.
    """

    batch: Batch
    documents: tuple[int, ...]
    name: Callable[[int], str]

    @property
    def examples(self) -> tuple[str, ...]:
        """The names of the documents, made when asked for."""
        return tuple(map(self.name, self.documents))


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


class PackIterDataset(grain.IterDataset):
    """Packs the documents of a Grain dataset into batches.

    Takes documents until the pool holds `lookahead` batches of tokens and packs them best-fit, the oldest first. What
    finds no room waits and is placed before anything newer: a few batches at most, so none is lost and long ones are
    not rarer in batches than in the data. With a lookahead above 1, pieces that may still wait are swapped for ones
    that fill their row better. A finite dataset ends with rows that are not full.

    An example longer than a row can not be packed, nor a document without examples: it is left out and counted in the
    state, with a warning.
    """

    def __init__(
        self, parent: grain.IterDataset, documents: Documents, rows: int, length: int, lookahead: float = 1.0
    ) -> None:
        """Args:
        parent: yields (index of a document, its pieces).
        documents: reads again what waited, when a state is restored.
        """
        super().__init__(parent)
        self.documents, self.rows, self.length = documents, rows, length
        self.lookahead = lookahead

    def __iter__(self) -> "_PackIterator":
        return _PackIterator(self._parent.__iter__(), self)


class _PackIterator(grain.DatasetIterator):
    """State: the order's own, the pieces that wait, tokens packed by label combination, examples left out."""

    def __init__(self, parent: grain.DatasetIterator, config: PackIterDataset) -> None:
        super().__init__(parent)
        self._config = config
        # What waits: document, piece, batches it has waited, content.
        self._pool: list[tuple[int, int, int, Example]] = []
        self._tokens: list[int] = []
        self._dropped, self._useless, self._ended = 0, 0, False

    def __next__(self) -> Packed:
        config, pool = self._config, self._pool
        total = sum(len(example.tokens) for *_, example in pool)
        while total < config.rows * config.length * config.lookahead and not self._ended:
            try:
                index, pieces = next(self._parent)
            except StopIteration:
                self._ended = True
                break
            before = len(pool)
            for number, example in enumerate(pieces):
                if len(example.tokens) > config.length:
                    self._drop(index, f"{len(example.tokens)} tokens do not fit in data.length={config.length}")
                elif len(example.tokens):
                    pool.append((index, number, 0, example))
                    total += len(example.tokens)
            if not pieces and not isinstance(pieces, NoPieces):
                self._drop(index, "there is nothing to learn in it")
            self._useless = self._useless + 1 if len(pool) == before else 0
            if self._useless == _USELESS:
                raise ValueError(
                    f"data.sources must hold examples that fit in data.length={config.length}, got none in "
                    f"{_USELESS} documents in a row, {config.documents.name(index)} the last: correct one"
                )
        if not pool:
            raise StopIteration
        sizes = [len(example.tokens) for *_, example in pool]
        oldest = _OLDEST if config.lookahead > 1 else 1
        ages = [min(age, oldest) for _, _, age, _ in pool]
        placed = best_fit(sizes, ages, config.rows, config.length)
        if config.lookahead > 1:
            placed = tighten(placed, sizes, ages, config.length, oldest)
        batch = fill([[pool[place][3] for place in row] for row in placed], config.length)
        taken = {place for row in placed for place in row}
        for place in taken:
            combination = pool[place][3].combination
            self._tokens += [0] * (combination + 1 - len(self._tokens))
            self._tokens[combination] += sizes[place]
        documents = tuple(pool[place][0] for row in placed for place in row)
        self._pool = [
            (index, number, age + 1, example)
            for place, (index, number, age, example) in enumerate(pool)
            if place not in taken
        ]
        return Packed(batch, documents, config.documents.name)

    def _drop(self, index: int, why: str) -> None:
        self._dropped += 1
        if set(str(self._dropped)[1:]) <= {"0"} and str(self._dropped)[0] == "1":  # the 1st, 10th, 100th ...
            warnings.warn(
                f"{self._config.documents.name(index)} is left out: {why} ({self._dropped} examples left out so far)",
                stacklevel=2,
            )

    def get_state(self) -> dict[str, Any]:
        return {
            "order": self._parent.get_state(),
            "waiting": [[index, number, age] for index, number, age, _ in self._pool],
            "tokens": list(self._tokens),
            "dropped": self._dropped,
        }

    def set_state(self, state: dict[str, Any]) -> None:
        self._parent.set_state(state["order"])
        pieces = self._config.documents.pieces
        self._pool = [(index, number, age, pieces(index)[number]) for index, number, age in state["waiting"]]
        self._tokens, self._dropped, self._ended = list(state["tokens"]), state["dropped"], False


def batches(documents: Documents, rows: int, length: int, first: int = 0, lookahead: float = 1.0) -> Iterator[Packed]:
    """Batches of the documents `first`, `first` + 1, ... in this order."""
    order = grain.MapDataset.source(Counting(first)).map(lambda index: (index, documents.pieces(index)))
    plain = order.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
    return iter(PackIterDataset(plain, documents, rows, length, lookahead))


@dataclasses.dataclass(frozen=True)
class Counting:
    """`first`, `first` + 1, ... as a Grain source without end."""

    first: int = 0

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, index: Any) -> int:
        return self.first + int(index)


ENDLESS = 1 << 62
