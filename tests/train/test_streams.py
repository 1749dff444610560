"""Batches from streams: the same whoever makes them, nothing lost or twice, an exact place to resume."""

import dataclasses
import json
from typing import Any

import numpy as np
import pytest

from qwen3_jax.sharding import DEFAULT_RULES, make_mesh
from qwen3_jax.train.config import TrainConfig
from qwen3_jax.train.data import Batch, batches, endless_data
from qwen3_jax.train.parsing import parse
from qwen3_jax.train.streams import FIELDS, batch_sharding, gather_places, streams_here
from tests.train.data.test_packing import Numbers, documents_of

ROWS, LENGTH = 8, 32


def take(streams: int, here: list[int], count: int, places: list[Any] | None = None, threads: int = 0) -> list[Any]:
    data = {"rows": ROWS, "length": LENGTH, "streams": streams, "threads": threads, "lookahead": 1.0}
    stream = endless_data(parse(TrainConfig, {"data": data}), Numbers()).batches(here, places)
    return [next(stream) for _ in range(count)]


def assert_equal(ours: Batch, theirs: Batch) -> None:
    for name in FIELDS:
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))


def test_one_stream_is_the_plain_order() -> None:
    plain = batches(Numbers(), ROWS, LENGTH)
    for share, places in take(1, [0], 4):
        assert_equal(share.place(None), (packed := next(plain)).batch)
        assert share.examples == packed.examples
        assert places == {0: plain.get_state()}


def test_every_example_is_packed_once() -> None:
    made = take(4, [0, 1, 2, 3], 20)
    seen = [document[0] - 1 for share, _ in made for document in documents_of(share.place(None))]
    assert len(seen) == len(set(seen))
    for stream, place in made[-1][1].items():
        own = [index for index in seen if index % 4 == stream]
        waiting = [index for index, *_ in place["waiting"]]
        assert sorted(own + waiting) == list(range(stream, 4 * place["order"]["next_index"], 4))


@pytest.mark.parametrize("sizes", [{"data": 8}, {"fsdp": 4, "tensor": 2}, {"data": 2, "context": 4}])
def test_the_global_batch_is_that_of_one_process(sizes: dict[str, int]) -> None:
    layout = batch_sharding(make_mesh(**sizes), DEFAULT_RULES)
    here = streams_here(4, ROWS, LENGTH, layout)
    assert here == [0, 1, 2, 3]  # one process has all rows
    for share, _ in take(4, here, 2):
        placed, whole = share.place(layout), share.place(None)
        for name in FIELDS:
            array = getattr(placed, name)
            assert array.sharding == layout
            np.testing.assert_array_equal(array, getattr(whole, name))


def test_a_part_of_the_streams_makes_its_own_rows_only() -> None:
    whole, part = take(4, [0, 1, 2, 3], 3), take(4, [1, 2], 3)
    for (all_rows, _), (share, places) in zip(whole, part, strict=True):
        assert sorted(share.parts) == sorted(places) == [1, 2]
        for stream, rows in share.parts.items():
            assert_equal(rows, all_rows.parts[stream])


@pytest.mark.parametrize("threads", [0, 2])  # with threads that read ahead too
def test_streams_go_on_exactly_from_their_places(threads: int) -> None:
    whole = take(2, [0, 1], 6, threads=threads)
    places = json.loads(json.dumps(gather_places(whole[2][1], 2)))
    again = take(2, [0, 1], 3, places, threads)
    for (ours, _), (theirs, _) in zip(again, whole[3:], strict=True):
        assert_equal(ours.place(None), theirs.place(None))


@dataclasses.dataclass(frozen=True)
class Rows:
    """A layout in which this process has the devices of some rows only."""

    regions: tuple[slice, ...]

    def addressable_devices_indices_map(self, shape: tuple[int, int]) -> dict[int, tuple[slice, slice]]:
        del shape
        return {device: (rows, slice(None)) for device, rows in enumerate(self.regions)}


def test_which_streams_a_process_makes() -> None:
    here: Any = streams_here.__wrapped__ if hasattr(streams_here, "__wrapped__") else streams_here
    assert here(4, 8, LENGTH, Rows((slice(2, 4), slice(2, 4)))) == [1]
    assert here(8, 8, LENGTH, Rows((slice(0, 2), slice(4, 6)))) == [0, 1, 4, 5]
    with pytest.raises(ValueError, match=r"data.streams must be a multiple of 4, .* got 2: set data.streams=4"):
        here(2, 8, LENGTH, Rows((slice(2, 4),)))
    with pytest.raises(ValueError, match=r"data.streams must be a multiple of 2, .* got 1"):
        here(1, 8, LENGTH, Rows((slice(4, 8),)))


def test_rows_must_divide_over_the_streams() -> None:
    with pytest.raises(
        ValueError, match=r"data.rows must be a multiple of data.streams=3 times micro_batches=1, got 8"
    ):
        parse(TrainConfig, {"data": {"rows": 8, "streams": 3}})
