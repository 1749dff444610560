"""Generation on a mesh gives what it gives on one device: greedy tokens, budgets, modes, streaming."""

import dataclasses

import jax
import numpy as np
import pytest

from qwen3_jax.checkpoints.load import from_pretrained, save_pretrained
from qwen3_jax.infer import GenerationConfig, generate, stream
from qwen3_jax.infer.decode import TRACES
from qwen3_jax.sharding import make_mesh
from tests.infer.conftest import Ready

PROMPTS = ["What is 3", "user hi assistant <think>\n", "The answer is 7. 你好 " * 4]
GREEDY = GenerationConfig(temperature=0.0, max_new_tokens=64)
CONFIGS = [
    GREEDY,
    dataclasses.replace(GREEDY, thinking_budget=5, stop_thinking_text="Stop.\n</think>\n\n"),
    GenerationConfig(temperature=0.8, top_k=20, top_p=0.9, seed=3, max_new_tokens=40),
]
MESHES = {
    "tensor": {"tensor": 2, "data": 4},
    "experts": {"expert": 4, "tensor": 2},
    "data": {"data": 8},
    "copied heads": {"tensor": 4, "fsdp": 2},
}


@pytest.fixture(scope="module", params=["dense", "moe"])
def saved(request, tmp_path_factory):
    """A checkpoint and what one device makes of it."""
    ready = request.getfixturevalue(request.param)
    directory = tmp_path_factory.mktemp(request.param)
    save_pretrained(directory, ready.model, ready.params, tokenizer=ready.tok)
    model, params = from_pretrained(directory, dtype="float32")
    return directory, Ready(model, params, ready.tok), generate(model, params, ready.tok, PROMPTS, CONFIGS)


@pytest.mark.parametrize("name", MESHES)
def test_the_same_tokens_as_one_device(saved, name):
    directory, ready, expected = saved
    sizes, layout = MESHES[name], "unrolled" if name == "tensor" else "stacked"
    model, params = from_pretrained(directory, dtype="float32", mesh=make_mesh(**sizes), layout=layout)
    assert {len(leaf.sharding.device_set) for leaf in jax.tree.leaves(params)} == {8}
    results = generate(model, params, ready.tok, PROMPTS, CONFIGS)
    for result, one in zip(results, expected, strict=True):
        assert result == one
    assert results[1].thinking_tokens == 5
    assert results[1].budget_exhausted


@pytest.mark.parametrize("name", ["tensor", "data"])
def test_rows_in_slots_are_those_of_one_device(saved, name):
    """More inputs than slots: each row has a length of its own in the cache, and is written where its devices are."""
    directory, ready, _ = saved
    inputs, lengths = (
        ["What is 3", "user hi assistant <think>\n", "7", "hello", "The answer is 7. 你好 "] * 3,
        (9, 30, 3),
    )
    configs = [
        dataclasses.replace(GREEDY, max_new_tokens=lengths[index % 3], log_probs=True) for index in range(len(inputs))
    ]
    expected = generate(ready.model, ready.params, ready.tok, inputs, configs)
    model, params = from_pretrained(directory, dtype="float32", mesh=make_mesh(**MESHES[name]))
    results = generate(model, params, ready.tok, inputs, configs, max_num_seqs=5)
    assert [result.tokens for result in results] == [result.tokens for result in expected]
    for result, one in zip(results, expected, strict=True):
        np.testing.assert_allclose(result.log_probs, one.log_probs, rtol=1e-3, atol=1e-3)


def test_pieces_come_without_a_mesh_set_and_nothing_recompiles(saved):
    directory, ready, expected = saved
    model, params = from_pretrained(directory, dtype="float32", mesh=make_mesh(tensor=2, data=4))
    generate(model, params, ready.tok, PROMPTS, CONFIGS)
    before = dict(TRACES)
    pieces = []
    for piece in stream(model, params, ready.tok, PROMPTS, CONFIGS):
        assert jax.sharding.get_abstract_mesh().empty  # the caller's own code runs as if nothing were set
        pieces.append(piece)
    assert dict(TRACES) == before
    results = {piece.index: piece.result for piece in pieces if piece.result is not None}
    assert [results[index] for index in range(3)] == expected


def test_sharded_parameters_save_to_hugging_face_form(saved, tmp_path):
    directory, ready, _ = saved
    model, params = from_pretrained(directory, dtype="float32", mesh=make_mesh(expert=2, tensor=2, fsdp=2))
    save_pretrained(tmp_path / "again", model, params, tokenizer=ready.tok)
    original, again = (from_pretrained(path, dtype="float32")[1] for path in (directory, tmp_path / "again"))
    jax.tree.map(np.testing.assert_array_equal, original, again)
