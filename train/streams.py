"""A global batch from independent streams of examples, so that each process makes only the rows of its own devices.

Stream s of N packs rows s * B / N to (s + 1) * B / N of every batch, from its own part of one order of documents (see
`train.data.mixture`). N is part of the configuration: the batches of a run are the same whatever number of processes
makes them. They are made ahead, in a thread.
"""

import dataclasses
import math
import queue
import threading
from collections.abc import Generator, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import grain
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from qwen3_jax.sharding import Rules, named_sharding
from qwen3_jax.sharding.launch.processes import gather
from qwen3_jax.train.data.packing import Batch, Packed

T = TypeVar("T")
FIELDS = tuple(field.name for field in dataclasses.fields(Batch))


@dataclasses.dataclass(frozen=True)
class Share:
    """One process's part of a global batch.

    Attributes:
      rows: in the global batch.
      parts: the rows of each stream that this process makes.
      packed: the same with the documents they came from.
    """

    rows: int
    packed: Mapping[int, Packed]

    @property
    def parts(self) -> Mapping[int, Batch]:
        return {stream: packed.batch for stream, packed in self.packed.items()}

    @property
    def examples(self) -> tuple[str, ...]:
        """Names ("source:index") of the documents in the rows that this process makes."""
        return tuple(name for packed in self.packed.values() for name in packed.examples)

    def place(self, sharding: NamedSharding | None) -> Batch:
        """The global batch on its devices; every process passes its own share."""
        parts = self.parts
        one = next(iter(parts.values())).tokens
        each, shape = one.shape[0], (self.rows, one.shape[1])

        def region(name: str, index: tuple[slice, ...]) -> np.ndarray:
            start, stop, _ = index[0].indices(self.rows)
            streams = range(start // each, -(-stop // each))
            whole = np.concatenate([getattr(parts[stream], name) for stream in streams])
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
    packers: Mapping[int, grain.IterDataset], rows: int, places: Mapping[int, Any] | Sequence[Any] | None = None
) -> Iterator[tuple[Share, dict[int, Any]]]:
    """Shares, each with the places (JSON values) of the streams after it.

    Args:
      packers: the packed rows of each stream that is made here.
      rows: in the global batch.
      places: where to go on, by stream; None: at the beginning.
    """
    iterators = {stream: iter(packer) for stream, packer in packers.items()}
    if places is not None:
        for stream, iterator in iterators.items():
            iterator.set_state(places[stream])
    while True:
        packed = {stream: next(iterator) for stream, iterator in iterators.items()}
        yield Share(rows, packed), {stream: iterator.get_state() for stream, iterator in iterators.items()}


def gather_places(places: Mapping[int, Any], streams: int) -> list[Any]:
    """The places of all streams, from the processes that make them."""
    if len(places) == streams:
        return [places[stream] for stream in range(streams)]
    known: dict[str, Any] = {}
    for part in gather({str(stream): place for stream, place in places.items()}):
        known |= part
    return [known[str(stream)] for stream in range(streams)]


def prefetch(stream: Iterator[T], ahead: int = 2) -> Generator[T, None, None]:
    """Makes the next batches in a thread while the devices work; an error in it is raised at `next`."""
    made: queue.Queue[Any] = queue.Queue(maxsize=ahead)
    done = threading.Event()

    def work() -> None:
        item: Any
        while not done.is_set():
            try:
                item = next(stream)
            except Exception as error:  # handed to the consumer, which raises it
                item = error
            while not done.is_set():
                try:
                    made.put(item, timeout=0.1)
                    break
                except queue.Full:
                    continue
            if isinstance(item, Exception):
                return

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while True:
            item = made.get()
            if isinstance(item, Exception):
                raise item
            yield item
    finally:
        done.set()
        thread.join()
