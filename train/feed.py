"""What the loop reads: the batches of this process's streams, and held-out ones."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Protocol, runtime_checkable

import numpy as np

from sharding.processes import gather
from train.config import TrainConfig
from train.data import Cursor, Example, Source
from train.pocket import prompts
from train.pocket.source import ChatTokenizer, PocketSource, to_example
from train.settings import DataConfig
from train.streams import Share, shares


@runtime_checkable
class Data(Protocol):
    """The data of a run.

    Attributes:
      domain_names: index = the number in `Batch.domains`.
    """

    @property
    def domain_names(self) -> tuple[str, ...]: ...

    def batches(self, here: Sequence[int], places: Sequence[Any] | None) -> Iterator[tuple[Share, Mapping[int, Any]]]:
        """Shares of the streams `here`, each with the place of each stream after it, as JSON values.

        Args:
          places: where all streams go on, as `gather_places` gave it; None begins.
        """
        ...

    def held_out(self, here: Sequence[int]) -> Sequence[Share]:
        """The batches of an evaluation, the same ones whenever it is asked for."""
        ...


@dataclasses.dataclass(frozen=True)
class HeldOutTasks:
    """The pocket model's held-out problems as examples; example `index` depends on the seed and the index alone."""

    tok: ChatTokenizer
    data: DataConfig
    seed: int

    def example(self, index: int) -> Example:
        rng = np.random.default_rng((self.seed, 2, index))
        return to_example(self.tok, prompts.conversation(rng, self.data.tasks, "held_out"))


@dataclasses.dataclass(frozen=True)
class SourceData:
    """Batches packed from one random-access source."""

    config: TrainConfig
    source: Source
    held_out_source: Source | None = None
    domain_names: tuple[str, ...] = ("all",)

    def batches(self, here: Sequence[int], places: Sequence[Any] | None) -> Iterator[tuple[Share, Mapping[int, Any]]]:
        cursors = {stream: Cursor() if places is None else Cursor(**places[stream]) for stream in here}
        data = self.config.data
        for share, after in shares(self.source, cursors, data.rows, data.length, data.streams):
            yield share, {stream: dataclasses.asdict(cursor) for stream, cursor in after.items()}

    def held_out(self, here: Sequence[int]) -> Sequence[Share]:
        if self.held_out_source is None:
            raise ValueError("evaluation.every must be 0, got held-out data from nowhere: set evaluation.sources")
        data, evaluation = self.config.data, self.config.evaluation
        stream = shares(
            self.held_out_source,
            dict.fromkeys(here, Cursor()),
            evaluation.rows or data.rows,
            data.length,
            data.streams,
        )
        return [share for share, _ in islice(stream, evaluation.batches)]


def make_data(config: TrainConfig, tok: ChatTokenizer) -> Data:
    """The data that the configuration asks for."""
    return SourceData(config, PocketSource(tok, config.data, config.seed), HeldOutTasks(tok, config.data, config.seed))


def gather_places(places: Mapping[int, Any], streams: int) -> list[Any]:
    """The places of all streams in their order, from the processes that make them."""
    if len(places) == streams:
        return [places[stream] for stream in range(streams)]
    known: dict[str, Any] = {}
    for part in gather({str(stream): place for stream, place in places.items()}):
        known |= part
    return [known[str(stream)] for stream in range(streams)]
