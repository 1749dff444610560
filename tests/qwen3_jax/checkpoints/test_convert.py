"""A checkpoint in another dtype: every tensor, the same names, the other files as they were."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen3_jax.checkpoints.convert import convert
from qwen3_jax.checkpoints.load import from_pretrained
from qwen3_jax.checkpoints.safetensors import INDEX, read_header
from tests.qwen3_jax.checkpoints.written import BFLOAT16, edit_json, random_tensors, write_checkpoint, write_tensors
from tests.tiny import dense_config, moe_config, write_tokenizer

MIXED = moe_config(vocab_size=64, num_hidden_layers=3, mlp_only_layers=(1,))
TIED = dense_config(vocab_size=64)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float16"])
def test_every_tensor_is_cast_as_loading_casts_it(dtype, tmp_path):
    write_checkpoint(tmp_path / "a", MIXED)
    report = convert(tmp_path / "a", tmp_path / "b", dtype)
    _, expected = from_pretrained(tmp_path / "a", dtype=dtype)
    _, got = from_pretrained(tmp_path / "b", dtype=dtype)
    jax.tree.map(np.testing.assert_array_equal, dict(got), dict(expected))
    header = read_header(tmp_path / "b" / "model.safetensors")
    assert {entry.dtype.name for entry in header.values()} == {dtype}
    assert report == {
        "path": str(tmp_path / "b"),
        "dtype": dtype,
        "files": ["model.safetensors"],
        "tensors": len(header),
        "bytes": sum(entry.nbytes for entry in header.values()),
    }


def test_without_a_dtype_only_the_shards_change(tmp_path):
    write_checkpoint(tmp_path / "a", MIXED, BFLOAT16)
    convert(tmp_path / "a", tmp_path / "b", max_shard_size="20KB")
    assert (tmp_path / "b" / INDEX).is_file()
    assert len(list((tmp_path / "b").glob("*.safetensors"))) > 1
    convert(tmp_path / "b", tmp_path / "c")
    assert (tmp_path / "c" / "model.safetensors").read_bytes() == (tmp_path / "a" / "model.safetensors").read_bytes()
    assert not (tmp_path / "c" / INDEX).exists()


def test_the_other_files_go_along_as_they_are(tmp_path):
    source, target = tmp_path / "a", tmp_path / "b"
    write_tokenizer(source)
    write_checkpoint(source, dense_config())
    (source / "generation_config.json").write_text('{"top_k": 20}')
    (source / "chat_template.jinja").write_text("{{ messages }}")
    (source / "pytorch_model.bin").write_text("a pickle")
    edit_json(source / "config.json", transformers_version="4.51.0")
    convert(source, target, "bfloat16")
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja"):
        assert (target / name).read_bytes() == (source / name).read_bytes()
    assert not (target / "pytorch_model.bin").exists()
    before, after = (json.loads((directory / "config.json").read_text()) for directory in (source, target))
    assert after == {**before, "torch_dtype": "bfloat16"}


def test_transformers_spelling_of_config_stays(tmp_path):
    write_checkpoint(tmp_path / "a", TIED)
    edit_json(tmp_path / "a" / "config.json", torch_dtype=None, dtype="float32")
    convert(tmp_path / "a", tmp_path / "b", "bfloat16")
    config = json.loads((tmp_path / "b" / "config.json").read_text())
    assert config["dtype"] == "bfloat16"
    assert "torch_dtype" not in config


def test_a_repeated_tied_head_is_left_out(tmp_path):
    write_checkpoint(tmp_path / "a", TIED)
    tensors = random_tensors(TIED)
    write_tensors(tmp_path / "a", tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"]})
    convert(tmp_path / "a", tmp_path / "b")
    assert "lm_head.weight" not in read_header(tmp_path / "b" / "model.safetensors")
    write_tensors(tmp_path / "a", tensors | {"lm_head.weight": -tensors["model.embed_tokens.weight"]})
    with pytest.raises(ValueError, match=r"lm_head\.weight must equal"):
        convert(tmp_path / "a", tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_the_source_is_no_target(tmp_path):
    write_checkpoint(tmp_path / "a", TIED)
    with pytest.raises(ValueError, match="must be converted into another directory"):
        convert(tmp_path / "a", tmp_path / "x" / ".." / "a", jnp.bfloat16)
    with pytest.raises(ValueError, match="dtype must be one of"):
        convert(tmp_path / "a", tmp_path / "b", "int4")
