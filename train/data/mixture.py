"""A mixture as cells of an order: which documents share a weight, and what the weight is."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import grain
import numpy as np
from grain.experimental import index_shuffle

from qwen3_jax.train.data.corpus import Corpus, Labels
from qwen3_jax.train.data.packing import ENDLESS
from qwen3_jax.train.settings import LengthShare, WeightConfig

_HELD = 1 << 16  # up to so many documents a permutation is held; Grain's index_shuffle is slow for few (2 ms for 10)


@functools.lru_cache(maxsize=512)
def _permutation(seed: tuple[int, ...], count: int) -> np.ndarray:
    return np.random.default_rng(seed).permutation(count).astype(np.int32)


@functools.lru_cache(maxsize=512)
def _word(seed: tuple[int, ...]) -> int:
    """32 bits of several integers."""
    return int(np.random.SeedSequence(seed).generate_state(1)[0])


@dataclasses.dataclass(frozen=True, eq=False)
class Epochs:
    """A Grain source without end: every member once in a random order, then every one again in another.

    Attributes:
      members: indices of documents (int64[n], or n for all from 0 on); at least one.
      seed: of the run, and of this list among others.
      passes: None, or after so many epochs it ends.
      shuffled: False leaves the members in their order.
    """

    members: np.ndarray | int
    seed: tuple[int, ...]
    passes: int | None = None
    shuffled: bool = True

    @property
    def count(self) -> int:
        """Members, so positions of an epoch."""
        return self.members if isinstance(self.members, int) else len(self.members)

    def __len__(self) -> int:
        return ENDLESS if self.passes is None else self.passes * self.count

    def __getitem__(self, position: Any) -> int:
        epoch, place = divmod(int(position), self.count)
        if not self.shuffled:
            chosen = place
        elif self.count <= _HELD:
            chosen = int(_permutation((*self.seed, epoch), self.count)[place])
        else:
            chosen = int(index_shuffle(place, max_index=self.count - 1, seed=_word((*self.seed, epoch)), rounds=4))
        return chosen if isinstance(self.members, int) else int(self.members[chosen])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell:
    """Documents that share one weight.

    Attributes:
      labels: what they have in common; {} is every document.
      weight: share of the tokens; all cells together have 1.
      members: their order.
    """

    labels: Mapping[str, str]
    weight: float
    members: Epochs

    @property
    def name(self) -> str:
        """For messages."""
        return said(self.labels) or "all"


def said(labels: Mapping[str, str]) -> str:
    """In: {"language": "de", "domain": "web"}      Out: language=de domain=web"""
    return " ".join(f"{name}={value}" for name, value in labels.items())


class MixtureIterDataset(grain.IterDataset):
    """Indices of documents in the order of a mixture, the part of one stream.

    The next document is always of the cell with the fewest tokens for its weight. With m the least of tokens / weight,
    every cell has between weight * m tokens and one document more: none is ever more than one document ahead of its
    share. A document goes to the stream that got the fewest tokens so far, which every stream finds out for itself:
    so epochs and shares hold over all streams together, and no process needs to ask another. One without tokens comes
    too: whoever packs counts it as left out.
    """

    def __init__(self, cells: Sequence[Cell], size: Callable[[int], int], stream: int, streams: int) -> None:
        """Args:
        size: tokens that a document puts into batches.
        """
        super().__init__()
        self.cells, self.size, self.stream, self.streams = tuple(cells), size, stream, streams

    def __iter__(self) -> "_MixtureIterator":
        return _MixtureIterator(self)


class _MixtureIterator(grain.DatasetIterator):
    """State: documents and tokens drawn from each cell, tokens given to each stream."""

    def __init__(self, config: MixtureIterDataset) -> None:
        super().__init__()
        self._config = config
        self._drawn, self._tokens = [0] * len(config.cells), [0] * len(config.cells)
        self._loads, self._empty = [0] * config.streams, [0] * len(config.cells)

    def __next__(self) -> int:
        config, tokens, loads = self._config, self._tokens, self._loads
        cells, number = config.cells, range(len(config.cells))
        while True:
            chosen = min(number, key=lambda cell: tokens[cell] / cells[cell].weight)
            index = cells[chosen].members[self._drawn[chosen]]
            self._drawn[chosen] += 1
            size = config.size(index)
            if not size:
                self._empty[chosen] += 1
                if self._empty[chosen] > cells[chosen].members.count:
                    raise ValueError(
                        f"data.length must hold an example of {cells[chosen].name}, got none that fits: raise it"
                    )
            else:
                self._empty[chosen] = 0
            tokens[chosen] += size
            stream = loads.index(min(loads))
            loads[stream] += size
            if stream == config.stream:
                return index

    def get_state(self) -> dict[str, Any]:
        return {"drawn": list(self._drawn), "tokens": list(self._tokens), "loads": list(self._loads)}

    def set_state(self, state: dict[str, Any]) -> None:
        if "drawn" not in state:
            raise ValueError(
                "the place in the data must be one in the order of all streams, got one that an earlier version "
                "saved for data.streams above 1: begin again in another run_dir"
            )
        self._drawn, self._tokens, self._loads = (list(state[key]) for key in ("drawn", "tokens", "loads"))


LENGTH = "length"  # the label that the length mix adds


@dataclasses.dataclass(frozen=True)
class Mixture:
    """Cells, and for reports the share of the tokens that each label combination is to get together with others.

    Attributes:
      cells: what is sampled from; one of weight 1 where nothing is weighted.
      cell_of: for each combination, the number of its cell; -1: it is not sampled.
    """

    cells: tuple[Cell, ...]
    cell_of: tuple[int, ...]


def make_mixture(
    corpus: Corpus,
    weights: Sequence[WeightConfig],
    lengths: Sequence[LengthShare],
    usable: np.ndarray,
    seed: int,
) -> Mixture:
    """The cells of a corpus; a length mix becomes one more label of it.

    Args:
      usable: bool[n], the documents that may be trained on.

    Raises:
      ValueError: a combination that no weight names or two do; a weight without documents; shares that can not be met.
    """
    if not weights and not lengths:
        members = len(corpus) if usable.all() else np.flatnonzero(usable)
        if not usable.any():
            raise ValueError("data.held_out must leave examples to train on, got none: lower it")
        every = Cell(labels={}, weight=1.0, members=Epochs(members, (seed, 2, 0)))
        return Mixture((every,), (0,) * len(corpus.labels.combinations))
    if lengths:
        corpus.relabel(_with_lengths(corpus, lengths))
    labels = corpus.labels
    rows = [_weight_of(labels, combination, weights) for combination in labels.combinations]
    columns = [_bucket_of(combination, lengths) for combination in labels.combinations]
    present = np.zeros((len(weights) or 1, len(lengths) or 1), bool)
    used = np.bincount(labels.combination[usable], minlength=len(labels.combinations)) > 0
    for row, column, there in zip(rows, columns, used, strict=True):
        present[row, column] |= there and column >= 0
    table = _joint(weights, lengths, present)
    numbers = {(int(row), int(column)): number for number, (row, column) in enumerate(np.argwhere(table > 0))}
    cell_of = tuple(numbers.get((row, column), -1) for row, column in zip(rows, columns, strict=True))
    member = np.array(cell_of)[labels.combination]
    cells = tuple(
        Cell(
            labels=_cell_labels(weights, lengths, row, column),
            weight=float(table[row, column]),
            members=Epochs(np.flatnonzero((member == number) & usable), (seed, 2, number)),
        )
        for (row, column), number in numbers.items()
    )
    return Mixture(cells, cell_of)


def _weight_of(labels: Labels, combination: Sequence[str], weights: Sequence[WeightConfig]) -> int:
    """The number of the weight that matches."""
    if not weights:
        return 0
    own = dict(zip(labels.names, combination, strict=True))
    found = [i for i, one in enumerate(weights) if all(own[name] == value for name, value in one.labels.items())]
    if len(found) == 1:
        return found[0]
    got = " and ".join(said(weights[i].labels) for i in found) or "none"
    by = {name: own[name] for one in weights for name in one.labels}
    raise ValueError(
        f"data.mixture.weights must name {said(by or own)} once, got {got}: "
        + ("make them exclude each other" if found else "add it, with weight 0 to leave it out")
    )


def bucket_name(one: LengthShare) -> str:
    return f"{one.minimum}-{one.maximum}" if one.maximum < 1 << 30 else f"{one.minimum}-"


def _bucket_of(combination: Sequence[str], lengths: Sequence[LengthShare]) -> int:
    """The number of the length share of a combination, whose last label is the bucket; -1: none."""
    if not lengths:
        return 0
    names = [bucket_name(one) for one in lengths]
    return names.index(combination[-1]) if combination[-1] in names else -1


def _with_lengths(corpus: Corpus, lengths: Sequence[LengthShare]) -> Labels:
    """The corpus's labels and the length bucket of each document; the first bucket that holds it."""
    bucket = np.full(len(corpus), len(lengths), np.int32)
    for number, one in reversed(list(enumerate(lengths))):
        bucket[(corpus.tokens >= one.minimum) & (corpus.tokens <= one.maximum)] = number
    names = [*(bucket_name(one) for one in lengths), "none"]
    old = corpus.labels
    unique, inverse = np.unique(np.stack([old.combination, bucket], 1), axis=0, return_inverse=True)
    combinations = tuple((*old.combinations[row], names[column]) for row, column in unique)
    return Labels((*old.names, LENGTH), combinations, inverse.reshape(-1).astype(np.int32))


def _joint(weights: Sequence[WeightConfig], lengths: Sequence[LengthShare], present: np.ndarray) -> np.ndarray:
    """Share of each pair of a weight and a length share: the product of both where all pairs have documents, else
    the table nearest to it with these sums (iterative proportional fitting, Deming and Stephan 1940)."""
    rows = np.array([one.weight for one in weights] or [1.0])
    columns = np.array([one.share for one in lengths] or [1.0])
    rows, columns = rows / rows.sum(), columns / columns.sum()
    for row in np.flatnonzero((rows > 0) & ~present.any(1)).tolist():
        raise ValueError(
            f"data must hold examples of {said(weights[row].labels) or 'some kind'}, got none: add some, or set its "
            "weight to 0"
        )
    for column in np.flatnonzero((columns > 0) & ~present[rows > 0].any(0)).tolist():
        raise ValueError(
            f"data must hold documents of {bucket_name(lengths[column])} tokens, got none: add some, or drop the share"
        )
    table = np.outer(rows, columns) * present
    for _ in range(2000):
        table *= _ratio(rows, table.sum(1))[:, None]
        table *= _ratio(columns, table.sum(0))[None, :]
        if np.allclose(table.sum(1), rows, rtol=0, atol=1e-9):
            return np.where(table > 1e-9, table, 0.0) if not present.all() else table
    raise ValueError(
        "data.mixture.weights and data.lengths must both be met by the documents there are, got combinations without "
        "documents of some lengths: change the shares"
    )


def _ratio(wanted: np.ndarray, got: np.ndarray) -> np.ndarray:
    return np.divide(wanted, got, out=np.zeros_like(wanted), where=got > 0)


def _cell_labels(
    weights: Sequence[WeightConfig], lengths: Sequence[LengthShare], row: int, column: int
) -> dict[str, str]:
    labels = dict(weights[row].labels) if weights else {}
    return labels | ({LENGTH: bucket_name(lengths[column])} if lengths else {})
