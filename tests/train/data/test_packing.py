"""Packing: literal batches, nothing lost, an exact place to resume, and no leak between the documents of a row."""

import dataclasses
import json
from typing import Any

import jax
import numpy as np
import pytest

from qwen3_jax.network.model import Qwen3
from qwen3_jax.train.data import Batch, Example, batches, fill
from qwen3_jax.train.data.packing import best_fit, tighten
from tests.tiny import dense_config, random_params
from tests.train.batches import batch_loss


@dataclasses.dataclass(frozen=True)
class Numbers:
    """Example i is made of the token i + 1, in a length between 2 and 9; the first token is prompt."""

    def pieces(self, index: int) -> list[Example]:
        size = 2 + int(np.random.default_rng(index).integers(8))
        return [Example(tokens=[index + 1] * size, loss=[False] + [True] * (size - 1))]

    def name(self, index: int) -> str:
        return f"numbers:{index}"


def test_fill_is_the_documented_example() -> None:
    a, b, c, d, e = 11, 12, 13, 14, 15
    documents = [
        Example(tokens=[a, b, c], loss=[False, True, True]),
        Example(tokens=[d, e], loss=[False, True]),
    ]
    batch = fill([documents], 8)
    np.testing.assert_array_equal(batch.tokens, [[a, b, c, d, e, 0, 0, 0]])
    np.testing.assert_array_equal(batch.targets, [[b, c, 0, e, 0, 0, 0, 0]])
    np.testing.assert_array_equal(batch.loss_mask, np.array([[1, 1, 0, 1, 0, 0, 0, 0]], bool))
    np.testing.assert_array_equal(batch.segment_ids, [[1, 1, 1, 2, 2, 0, 0, 0]])


def documents_of(batch: Batch) -> list[list[int]]:
    found = []
    for tokens, segments in zip(batch.tokens, batch.segment_ids, strict=True):
        found += [tokens[segments == number].tolist() for number in range(1, segments.max() + 1)]
    return found


@pytest.mark.parametrize(("lookahead", "full"), [(1.0, 0.95), (2.0, 0.99)])
def test_every_example_is_packed_once_and_rows_are_full(lookahead: float, full: float) -> None:
    stream = batches(Numbers(), rows=4, length=32, lookahead=lookahead)
    seen, share = [], []
    for _ in range(30):
        packed = next(stream)
        documents = documents_of(packed.batch)
        assert packed.examples == tuple(f"numbers:{document[0] - 1}" for document in documents)
        seen += documents
        share.append((packed.batch.segment_ids > 0).mean())
    indices = [document[0] - 1 for document in seen]
    state = stream.get_state()
    waiting = [index for index, *_ in state["waiting"]]
    assert sorted([*indices, *waiting]) == list(range(state["order"]["next_index"]))
    assert all(document == Numbers().pieces(document[0] - 1)[0].tokens for document in seen)
    assert state["tokens"] == [sum(map(len, seen))]
    assert np.mean(share) > full
    assert max(age for *_, age in state["waiting"]) <= 4


def test_batches_go_on_exactly_from_a_state() -> None:
    whole = batches(Numbers(), rows=2, length=20)
    first = [(next(whole).batch, json.loads(json.dumps(whole.get_state()))) for _ in range(6)]
    resumed = batches(Numbers(), rows=2, length=20)
    resumed.set_state(first[2][1])
    for expected, _ in first[3:]:
        batch = next(resumed).batch
        for ours, theirs in zip(jax.tree.leaves(batch), jax.tree.leaves(expected), strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_an_example_longer_than_a_row_is_left_out_and_counted() -> None:
    stream = batches(Numbers(), rows=64, length=4)
    with pytest.warns(UserWarning, match=r"numbers:\d+ is left out: . tokens do not fit in data.length=4 \(10* ex"):
        batch = next(stream).batch
    state = stream.get_state()
    short = [index for index in range(state["order"]["next_index"]) if len(Numbers().pieces(index)[0].tokens) <= 4]
    assert state["dropped"] == state["order"]["next_index"] - len(short) > 10
    waiting = [index for index, *_ in state["waiting"]]
    assert sorted([document[0] - 1 for document in documents_of(batch)] + waiting) == short


def test_best_fit_and_tighten_are_the_documented_examples() -> None:
    assert best_fit([3, 5, 2, 4], [1, 0, 0, 0], 2, 7) == [[0, 3], [1, 2]]
    assert tighten([[0, 2]], [4, 6, 3], [0, 0, 0], 9, 1) == [[1, 2]]
    assert tighten([[0, 2]], [4, 6, 3], [1, 0, 0], 9, 1) == [[0, 2]]  # the oldest stay


def random_documents(sizes: list[int], seed: int = 0) -> list[Example]:
    rng = np.random.default_rng(seed)
    return [
        Example(tokens=rng.integers(1, 500, size).tolist(), loss=(rng.random(size) < 0.7).tolist()) for size in sizes
    ]


@pytest.fixture(scope="module")
def model_and_params() -> tuple[Qwen3, Any]:
    config = dense_config(tie_word_embeddings=False)
    return Qwen3(config), random_params(config)


def test_packed_loss_equals_unpacked_loss(model_and_params: tuple[Qwen3, Any]) -> None:
    model, params = model_and_params
    loss = jax.jit(lambda batch: batch_loss(model, params, batch, 8))
    documents = random_documents([7, 5, 9, 3])
    packed = fill([[documents[0], documents[1]], [documents[2], documents[3]]], 16)
    alone = fill([[document] for document in documents], 16)
    (together, (count, _)), (apart, (same, _)) = (loss(batch) for batch in (packed, alone))
    assert int(count) == int(same) == sum(sum(document.loss[1:]) for document in documents)
    np.testing.assert_allclose(together, apart, rtol=1e-6)


def test_no_gradient_crosses_from_one_document_to_another(model_and_params: tuple[Qwen3, Any]) -> None:
    """The loss of the second document has exactly zero gradient into the embeddings of the first."""
    model, params = model_and_params
    first, second = Example(tokens=[1, 2, 3], loss=[False] * 3), Example(tokens=[4, 5, 6, 7], loss=[True] * 4)
    grad = jax.jit(jax.grad(lambda params, batch: batch_loss(model, params, batch, 16)[0]))
    grads = grad(params, fill([[first, second]], 10))
    reached = np.flatnonzero(np.abs(np.asarray(grads["embed_tokens"])).sum(1))
    assert reached.tolist() == [4, 5, 6]  # the last token has nothing to predict; 1, 2, 3 are another document
