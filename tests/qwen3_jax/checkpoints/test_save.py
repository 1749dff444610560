"""Writing checkpoints: what transformers and we read back, shards, what is kept and what a failure leaves."""

import json
import os

import jax
import numpy as np
import pytest

from qwen3_jax.checkpoints import save as export
from qwen3_jax.checkpoints.load import from_pretrained
from qwen3_jax.checkpoints.names import expected_shapes
from qwen3_jax.checkpoints.safetensors import INDEX, read_header
from qwen3_jax.checkpoints.save import parse_size, save_pretrained
from qwen3_jax.generation_defaults import GenerationDefaults
from qwen3_jax.parameters.specs import restack, spec_tree
from qwen3_jax.text.tokenizer import load_tokenizer
from tests.qwen3_jax.checkpoints.written import write_checkpoint
from tests.tiny import dense_config, moe_config, write_tokenizer

TIED = dense_config(vocab_size=64)
MIXED = moe_config(vocab_size=64, num_hidden_layers=3, mlp_only_layers=(1,), tie_word_embeddings=False)


def loaded(directory, config, layout="stacked", dtype="float32", mesh=None):
    return from_pretrained(write_checkpoint(directory, config), dtype=dtype, layout=layout, mesh=mesh)


def assert_same_parameters(directory, params, dtype="float32"):
    _, again = from_pretrained(directory, dtype=dtype, layout="stacked")
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)), dict(again), dict(params))


def files(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.mark.parametrize("layout", ["stacked", "unrolled"])
@pytest.mark.parametrize("config", [TIED, MIXED], ids=["tied", "mixed"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_saved_is_what_is_loaded(config, layout, dtype, tmp_path):
    model, params = loaded(tmp_path / "a", config, layout, dtype)
    save_pretrained(tmp_path / "b", model, params)
    assert sorted(files(tmp_path / "b")) == ["config.json", "model.safetensors"]
    header = read_header(tmp_path / "b" / "model.safetensors")
    assert {name: entry.shape for name, entry in header.items()} == expected_shapes(config)
    assert {entry.dtype.name for entry in header.values()} == {dtype}
    written = json.loads((tmp_path / "b" / "config.json").read_text())
    assert written["torch_dtype"] == dtype
    assert written == written | config.to_hf()
    stacked = params if layout == "stacked" else restack(params, config)
    assert_same_parameters(tmp_path / "b", stacked, dtype)


@pytest.mark.parametrize(
    ("variant", "layout"), [("tied", "unrolled"), ("moe_mlp_only", "stacked"), ("yarn", "stacked")]
)
def test_transformers_loads_the_same_model(variant, layout, tmp_path):
    """From transformers (its spelling of config.json, sharded) to here to transformers (the published spelling)."""
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from tests.qwen3_jax.network import hf_reference as hf

    reference = hf.build(variant)
    hf.save(reference, tmp_path / "theirs", max_shard_size="30KB")
    assert (tmp_path / "theirs" / INDEX).is_file()
    model, params = from_pretrained(tmp_path / "theirs", dtype="float32", layout=layout)
    save_pretrained(tmp_path / "ours", model, params, max_shard_size="30KB")
    assert (tmp_path / "ours" / INDEX).is_file()
    tokens = np.arange(12)[None]
    again = hf.load(tmp_path / "ours")
    np.testing.assert_array_equal(hf.logits(again, tokens), hf.logits(reference, tokens))
    assert again.config.eos_token_id == reference.config.eos_token_id
    assert again.config.bos_token_id == reference.config.bos_token_id
    published = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert "rope_theta" in published
    assert not {"rope_parameters", "num_local_experts", "dtype"} & published.keys()


def test_shards_are_at_most_as_large_as_asked(tmp_path):
    model, params = loaded(tmp_path / "a", MIXED)
    save_pretrained(tmp_path / "b", model, params, max_shard_size="20KB")
    shards = sorted((tmp_path / "b").glob("*.safetensors"))
    assert len(shards) > 2
    assert [path.name for path in shards] == [
        f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))
    ]
    headers = [read_header(path) for path in shards]
    assert all(sum(entry.nbytes for entry in header.values()) <= 20_000 for header in headers)
    index = json.loads((tmp_path / "b" / INDEX).read_text())
    assert index["weight_map"] == {name: entry.path.name for header in headers for name, entry in header.items()}
    assert index["metadata"]["total_size"] == sum(entry.nbytes for header in headers for entry in header.values())
    assert_same_parameters(tmp_path / "b", params)


@pytest.mark.parametrize("layout", ["stacked", "unrolled"])
def test_parameters_on_a_mesh_are_saved_whole(layout, tmp_path):
    mesh = jax.make_mesh((2, 2), ("expert", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    model, params = loaded(tmp_path / "a", MIXED, layout, mesh=mesh)
    save_pretrained(tmp_path / "b", model, params)
    assert files(tmp_path / "b")["model.safetensors"] == files(tmp_path / "a")["model.safetensors"]


@pytest.mark.parametrize("layout", ["stacked", "unrolled"])
def test_nothing_is_copied_on_one_cpu_device(layout, tmp_path):
    model, params = loaded(tmp_path / "a", MIXED, layout)
    embedding = np.asarray(params["embed_tokens"])
    tensors = {tensor.name: tensor for tensor in export.pending_tensors(model.config, params, spec_tree)}
    (block,) = tensors["model.embed_tokens.weight"].blocks()
    assert np.shares_memory(block, embedding)
    gate = np.asarray(params["segments_0" if layout == "stacked" else "layers_0"]["experts_gate_proj"])
    (block,) = tensors["model.layers.0.mlp.experts.5.gate_proj.weight"].blocks()
    assert np.shares_memory(block, gate)


def test_generation_settings_and_tokenizer_go_along(tmp_path):
    write_tokenizer(tmp_path / "a")
    model, params = loaded(tmp_path / "a", dense_config())
    tok = load_tokenizer(tmp_path / "a")
    model = model.clone(generation=GenerationDefaults(eos_token_ids=(3, 4), bos_token_id=4, temperature=0.6, top_k=20))
    save_pretrained(tmp_path / "b", model, params, tokenizer=tok)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert files(tmp_path / "b")[name] == files(tmp_path / "a")[name]
    written = json.loads((tmp_path / "b" / "config.json").read_text())
    assert (written["eos_token_id"], written["bos_token_id"]) == (3, 4)
    assert from_pretrained(tmp_path / "b")[0].generation == model.generation
    # Without sampling settings the ids stand in config.json alone, all of them.
    model = model.clone(generation=GenerationDefaults(eos_token_ids=(3, 4)))
    save_pretrained(tmp_path / "c", model, params)
    assert not (tmp_path / "c" / "generation_config.json").exists()
    assert from_pretrained(tmp_path / "c")[0].generation == model.generation


class Unwilling:
    """A tokenizer whose files can not be written."""

    def save(self, directory):
        raise OSError(f"disk full at {directory.name}")


def test_a_failure_leaves_the_old_checkpoint(tmp_path):
    target = tmp_path / "b"
    model, params = loaded(target, TIED)
    before = files(target)
    with pytest.raises(OSError, match="disk full"):
        save_pretrained(target, model, jax.tree.map(lambda x: x + 1, params), tokenizer=Unwilling())
    assert files(target) == before
    assert [path.name for path in tmp_path.iterdir()] == ["b"]
    with pytest.raises(OSError, match="disk full"):
        save_pretrained(tmp_path / "new", model, params, tokenizer=Unwilling())
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


@pytest.mark.parametrize("failing", [1, 2, 3, 4])
def test_a_failure_while_moving_puts_the_old_files_back(failing, tmp_path, monkeypatch):
    target = tmp_path / "b"
    model, params = loaded(target, TIED)
    (target / "README.md").write_text("mine")
    before, calls, replace = files(target), [], os.replace

    def sometimes(source, destination):
        calls.append(source)
        if len(calls) == failing:
            raise PermissionError("not allowed")
        replace(source, destination)

    monkeypatch.setattr(os, "replace", sometimes)
    with pytest.raises(PermissionError, match="not allowed"):
        save_pretrained(target, model, jax.tree.map(lambda x: x + 1, params))
    assert files(target) == before
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_old_shards_go_and_other_files_stay(tmp_path):
    target = tmp_path / "b"
    write_checkpoint(target, MIXED, max_shard_size=20_000)
    (target / "README.md").write_text("mine")
    model, params = loaded(tmp_path / "a", TIED)
    save_pretrained(target, model, params)
    assert sorted(files(target)) == ["README.md", "config.json", "model.safetensors"]
    assert from_pretrained(target)[0].config == TIED
    model, params = loaded(tmp_path / "c", MIXED)
    save_pretrained(target, model, params, max_shard_size=20_000)
    assert "model.safetensors" not in files(target)
    assert from_pretrained(target)[0].config == MIXED


def test_the_directory_may_be_that_which_was_loaded_or_lie_deep(tmp_path):
    model, params = loaded(tmp_path / "a", TIED)
    save_pretrained(tmp_path / "a", model, params)
    assert_same_parameters(tmp_path / "a", params)
    save_pretrained(str(tmp_path / "x" / "y"), model, params)
    assert_same_parameters(tmp_path / "x" / "y", params)
    assert (tmp_path / "x" / "y").stat().st_mode & 0o777 == (tmp_path / "x").stat().st_mode & 0o777


def test_parameters_of_another_model_are_refused_by_name(tmp_path):
    model, params = loaded(tmp_path / "a", TIED)
    without = {name: leaf for name, leaf in params.items() if name != "norm"}
    for wrong, message in (
        (without, r"got 1 that differ: norm: expected \[32\], got none"),
        ({**params, "lm_head": params["embed_tokens"]}, r"lm_head: expected none, got \[64, 32\]"),
        ({**params, "norm": params["norm"][:8]}, r"norm: expected \[32\], got \[8\]"),
        ({"params": params}, "params must be those of the model"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            save_pretrained(tmp_path / "b", model, wrong)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "b").exists()


def test_a_file_is_no_place_for_a_checkpoint(tmp_path):
    model, params = loaded(tmp_path / "a", TIED)
    (tmp_path / "b").touch()
    with pytest.raises(ValueError, match=r"saved into a directory, got the file .*b: choose another path"):
        save_pretrained(tmp_path / "b", model, params)


def test_sizes():
    assert [parse_size(size) for size in (123, "123", "2KB", "1.5 MB", "5GB", "1GiB")] == [
        *(123, 123, 2000, 1_500_000, 5_000_000_000, 2**30)
    ]
    for wrong in ("5 apples", "", "-1", 0, "0GB"):
        with pytest.raises(ValueError, match="max_shard_size must be a number of bytes or such as '5GB', got"):
            parse_size(wrong)
