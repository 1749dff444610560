"""A global batch from independent streams of examples, so that each process makes only the rows of its own devices.

Stream s of N has the examples s, s + N, s + 2N, ... and packs rows s * B / N to (s + 1) * B / N of every batch. N is
part of the configuration: the batches of a run are the same whatever number of processes makes them.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from sharding import Rules, named_sharding
from sharding.processes import gather
from train.data import Batch, Cursor, Example, Source, pack

FIELDS = tuple(field.name for field in dataclasses.fields(Batch))


@dataclasses.dataclass(frozen=True)
class Every:
    """Every `step`-th example of a source, from `first` on."""

    source: Source
    first: int
    step: int

    def example(self, index: int) -> Example:
        return self.source.example(self.first + index * self.step)


@dataclasses.dataclass(frozen=True)
class Share:
    """One process's part of a global batch.

    Attributes:
      rows: in the global batch.
      parts: the rows of each stream that this process makes.
    """

    rows: int
    parts: Mapping[int, Batch]

    def place(self, sharding: NamedSharding | None) -> Batch:
        """The global batch on its devices; every process passes its own share."""
        one = next(iter(self.parts.values())).tokens
        each, shape = one.shape[0], (self.rows, one.shape[1])

        def region(name: str, index: tuple[slice, ...]) -> np.ndarray:
            start, stop, _ = index[0].indices(self.rows)
            streams = range(start // each, -(-stop // each))
            whole = np.concatenate([getattr(self.parts[stream], name) for stream in streams])
            return whole[start - streams.start * each : stop - streams.start * each, index[1]]

        if sharding is None:
            return Batch(**{name: region(name, (slice(None), slice(None))) for name in FIELDS})
        make = partial(jax.make_array_from_callback, shape, sharding)
        return Batch(**{name: make(partial(region, name)) for name in FIELDS})


def batch_sharding(mesh: Mesh | None, rules: Rules) -> NamedSharding | None:
    """Where a batch lies."""
    return None if mesh is None else named_sharding(mesh, ("batch", "sequence"), rules)


def streams_here(streams: int, rows: int, length: int, sharding: NamedSharding | None) -> list[int]:
    """The streams whose rows this process's devices take.

    Raises:
      ValueError: processes would have to share a stream.
    """
    if sharding is None:
        return list(range(streams))
    regions = sharding.addressable_devices_indices_map((rows, length)).values()
    taken = {row for region in regions if region is not None for row in range(*region[0].indices(rows))}
    each = rows // streams
    here = sorted({row // each for row in taken})
    if len(here) * each != len(taken):
        edges = [row for row in range(1, rows) if (row in taken) != (row - 1 in taken)]
        needed = rows // math.gcd(rows, *edges)
        raise ValueError(
            f"data.streams must be a multiple of {needed}, the parts of a batch that different processes make, got "
            f"{streams}: set data.streams={needed} (it decides the order of the data, so keep it for the whole run)"
        )
    return here


def shares(
    source: Source, cursors: Mapping[int, Cursor], rows: int, length: int, streams: int
) -> Iterator[tuple[Share, dict[int, Cursor]]]:
    """Shares from `cursors` on (one for each stream that is made here), each with the cursors after it."""
    cursors = dict(cursors)
    while True:
        parts = {}
        for stream, cursor in cursors.items():
            parts[stream], cursors[stream] = pack(Every(source, stream, streams), cursor, rows // streams, length)
        yield Share(rows, parts), dict(cursors)


def gather_cursors(cursors: Mapping[int, Cursor], streams: int) -> list[Any]:
    """The cursors of all streams as JSON values, from the processes that make them."""
    if len(cursors) == streams:
        return [dataclasses.asdict(cursors[stream]) for stream in range(streams)]
    plain = {str(stream): dataclasses.asdict(cursor) for stream, cursor in cursors.items()}
    known: dict[str, Any] = {}
    for part in gather(plain):
        known |= part
    return [known[str(stream)] for stream in range(streams)]
