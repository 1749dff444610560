"""Several streams share one order: every document comes once before any comes twice, with a mixture or without."""

import collections
import itertools
from pathlib import Path
from typing import Any

import pytest

from qwen3_jax.train.data import Data, make_data
from qwen3_jax.train.data.mixture import MixtureIterDataset
from tests.train.data.corpora import config, records, write_jsonl
from tests.train.pocket_fixtures import pocket_tokenizer

STREAMS, DOCUMENTS = 4, 60


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    path = tmp_path_factory.mktemp("corpus")
    write_jsonl(path / "a.jsonl", records(DOCUMENTS))
    return make_data(config(path, path / "a.jsonl", streams=STREAMS), pocket_tokenizer())


def test_over_many_epochs_no_document_comes_more_often_than_another(data: Data) -> None:
    """Within an epoch, and one more while streams are in different ones; with what waits in the packing buffers."""
    packed: collections.Counter[int] = collections.Counter()
    for share, places in data.batches(range(STREAMS)):
        for part in share.packed.values():
            packed.update(part.documents)
        waiting = collections.Counter(index for place in places.values() for index, _, _ in place["waiting"])
        times = [packed[index] + waiting[index] for index in range(DOCUMENTS)]
        assert max(times) - min(times) <= 2
        if min(times) == 100:
            break
    report = data.report(places)
    assert report.dropped == 0


def test_the_order_is_that_of_one_stream_dealt_out(data: Data) -> None:
    """Put together again from what each stream takes, it is the order that one stream has, epoch by epoch."""
    (cell,), size = data.mixture.cells, data.documents.size  # type: ignore[attr-defined]
    streams = [iter(MixtureIterDataset((cell,), size, stream, STREAMS)) for stream in range(STREAMS)]
    loads, order = [0] * STREAMS, []
    for _ in range(5 * DOCUMENTS):
        stream = loads.index(min(loads))
        order.append(next(streams[stream]))
        loads[stream] += size(order[-1])
    assert order == [cell.members[place] for place in range(5 * DOCUMENTS)]
    taken: list[list[int]] = [[] for _ in range(STREAMS)]
    for share, _ in itertools.islice(data.batches(range(STREAMS)), 12):
        for stream, part in share.packed.items():
            taken[stream] += part.documents
    dealt: list[list[int]] = [[] for _ in range(STREAMS)]
    loads = [0] * STREAMS
    for index in order:
        dealt[stream := loads.index(min(loads))].append(index)
        loads[stream] += size(index)
    for ours, theirs in zip(taken, dealt, strict=True):  # packing changes the order, not the documents
        counts = collections.Counter(theirs)
        assert len(ours) > 30
        assert all(counts[index] >= times for index, times in collections.Counter(ours).items())


def test_a_place_of_the_order_before_is_refused(data: Data) -> None:
    """Streams once took every N-th document each at a pace of its own."""
    (_, places) = next(data.batches(range(STREAMS)))
    old = {stream: place | {"order": {"next_index": 7}} for stream, place in places.items()}
    with pytest.raises(ValueError, match=r"that an earlier version saved for data\.streams above 1: begin again"):
        next(data.batches(range(STREAMS), old))


@pytest.mark.parametrize("by", [(), ("domain",)])
def test_what_no_row_holds_is_left_out_and_counted_by_one_stream(tmp_path: Path, by: tuple[str, ...]) -> None:
    def messages(words: int) -> list[dict[str, Any]]:
        return [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "the ball " * words}]

    rows = [{"messages": messages(90 if number == 7 else 1 + number % 5), "domain": "chat"} for number in range(20)]
    sources = [{"path": str(write_jsonl(tmp_path / "chat.jsonl", rows)), "kind": "chat"}]
    weights = {"by": list(by), "weights": [{"labels": {name: "chat"}} for name in by]}
    made = make_data(config(tmp_path, sources=sources, streams=2, mixture=weights), pocket_tokenizer())
    with pytest.warns(UserWarning, match=r"chat\.jsonl:7 is left out: \d+ tokens do not fit in data\.length=128"):
        *_, (_, places) = itertools.islice(made.batches([0, 1]), 12)
    drawn = max(place["order"]["drawn"][0] for place in places.values())
    assert made.report(places).dropped in (drawn // 20, drawn // 20 + 1)
