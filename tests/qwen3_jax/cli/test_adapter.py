"""`--adapter`: merged by `generate` as it loads and by `convert` on disk, to the same model."""

import json

import jax
import numpy as np
import pytest

import qwen3_jax
from qwen3_jax.parameters.adapters import ALL_LINEAR, adapter_tree, make_lora
from qwen3_jax.parameters.specs import ParamSpec


@pytest.fixture(scope="module")
def adapter(checkpoint, tmp_path_factory):
    model, _ = qwen3_jax.from_pretrained(checkpoint, "float32")
    lora, rng = make_lora(model.config, 4, 16, ALL_LINEAR), np.random.default_rng(1)
    adapters = jax.tree.map(
        lambda spec: jax.numpy.asarray(rng.normal(size=spec.shape) * 0.3, "float32"),
        adapter_tree(model.config, lora, "unrolled"),
        is_leaf=lambda leaf: isinstance(leaf, ParamSpec),
    )
    directory = tmp_path_factory.mktemp("adapter")
    qwen3_jax.save_adapters(directory, model.clone(lora=lora), adapters)
    return directory


def test_convert_writes_what_merging_computes(run, checkpoint, adapter, tmp_path) -> None:
    result = run("convert", checkpoint, tmp_path / "merged", "--adapter", adapter)
    assert result.status == 0, result.err
    _, got = qwen3_jax.from_pretrained(tmp_path / "merged", "float32")
    model, params = qwen3_jax.from_pretrained(checkpoint, "float32")
    _, expected = qwen3_jax.merge_adapters(*_loaded(adapter, model, params), donate=True)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), got, dict(expected))


def _loaded(adapter, model, params):
    model, adapters = qwen3_jax.load_adapters(adapter, model, params)
    return model, params, adapters


def test_generate_answers_with_the_adapter(run, checkpoint, adapter, tmp_path) -> None:
    run("convert", checkpoint, tmp_path / "merged", "--adapter", adapter)
    words = ["--raw", "What is 3 plus 4?", "--max-new-tokens", 8, "--temperature", 0, "--dtype", "float32", "--json"]
    asked = [["--model", checkpoint, "--adapter", adapter], ["--model", tmp_path / "merged"], ["--model", checkpoint]]
    tokens = []
    for model in asked:
        result = run("generate", *model, *words)
        assert result.status == 0, result.err
        tokens.append(json.loads(result.out)["tokens"])
    assert tokens[0] == tokens[1] != tokens[2]


def test_a_directory_without_an_adapter_is_refused(run, checkpoint, tmp_path) -> None:
    result = run("generate", "--model", checkpoint, "--adapter", tmp_path, "--raw", "x")
    assert result.status == 2
    assert result.err.startswith("error: ")
    assert "must hold adapter_config.json" in result.err
    assert result.err.count("\n") == 1
