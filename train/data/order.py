"""The order of documents: epochs that are exact, and mixtures whose shares are, over all streams together.

One order is common to all streams of a run; each takes its own part of it. Nothing in it is drawn at random but the
permutation of an epoch, so where it stands is a few integers.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import grain
import numpy as np
from grain.experimental import index_shuffle

from qwen3_jax.train.data.packing import ENDLESS

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
