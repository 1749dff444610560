"""What inspection says of sound and of odd checkpoints."""

import json

import numpy as np
import pytest

from qwen3_jax.checkpoints.inspect import describe_template, inspect_checkpoint, inspect_config
from qwen3_jax.checkpoints.safetensors import INDEX
from qwen3_jax.releases import load_model_config
from qwen3_jax.text.tokenizer import load_tokenizer
from tests.qwen3_jax.checkpoints.written import BFLOAT16, edit_json, random_tensors, write_checkpoint, write_tensors
from tests.tiny import dense_config, moe_config, write_tokenizer

THINKING_ONLY = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)
INSTRUCT = THINKING_ONLY.replace("<think>\n", "")
PARTIAL = "{% if m is defined %}{{ raise_exception('no') }}{% endif %}{{ messages.missing.deeper }}"


@pytest.fixture
def sound(tmp_path):
    """A checkpoint with nothing odd about it."""
    write_tokenizer(tmp_path)
    tok = load_tokenizer(tmp_path)
    write_checkpoint(tmp_path, dense_config(vocab_size=tok.vocab_size))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": tok.eos_token_id, "top_k": 20}))
    return tmp_path


def test_a_sound_checkpoint(sound):
    info = inspect_checkpoint(sound)
    assert info["odd"] == []
    config = info["config"]
    assert config["hidden_size"] == 32
    count = sum(value.size for value in random_tensors(dense_config(vocab_size=config["vocab_size"])).values())
    assert info["parameters"] == {
        "total": count,
        "active": count,
        "non_embedding": count - config["vocab_size"] * config["hidden_size"],
    }
    assert info["memory"] == {"float32": 4 * count, "bfloat16": 2 * count, "int8": count}
    # Keys and values of 2 layers, 2 heads of 16, 1,024 tokens.
    assert info["kv_cache_per_1k_tokens"] == {"float32": 4 * 131_072, "bfloat16": 2 * 131_072}
    assert info["files"] == {
        "count": 1,
        "tensors": 24,
        "parameters": count,
        "bytes": 4 * count,
        "dtypes": {"F32": 24},
    }
    assert info["tokenizer"]["class"] == "Qwen2Tokenizer"
    assert info["tokenizer"]["added_tokens"] == 26
    assert info["template"] == {"kind": "hybrid", "enable_thinking_acts": True}
    assert json.loads(json.dumps(info)) == info


def test_a_published_size_from_its_config_alone(tmp_path):
    info = inspect_config(load_model_config("qwen3-30b-a3b-thinking-2507"))
    assert info["parameters"]["total"] == 30_532_122_624
    assert info["parameters"]["active"] == 3_353_032_704
    assert info["parameters"]["non_embedding"] == 29_909_792_768
    assert info["release"] == ["qwen3-30b-a3b-instruct-2507", "qwen3-30b-a3b-thinking-2507"]
    assert info["layers"] == {"dense": 0, "sparse": 48}
    (tmp_path / "config.json").write_text(json.dumps(info["config"]))
    found = inspect_checkpoint(tmp_path)
    assert found["files"] is None
    assert "no weights in this directory, only a config" in found["odd"]
    assert "no tokenizer in this directory" in found["odd"]


@pytest.mark.parametrize(
    ("name", "changes", "finding"),
    [
        ("qwen3-4b", {"rope_theta": 5e6}, "rope_theta is 5,000,000, but qwen3-4b has 1,000,000"),
        ("qwen3-4b-instruct-2507", {"rope_theta": 1e6}, "rope_theta is 1,000,000, but qwen3-4b-instruct-2507 has 5,0"),
        ("qwen3-30b-a3b-instruct-2507", {"rope_theta": 5e6}, "has 10,000,000"),
        ("qwen3-30b-a3b", {"norm_topk_prob": False}, "norm_topk_prob is false"),
        (
            "qwen3-8b",
            {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}},
            "max_position_embeddings is 40960, below the 131072 positions that YaRN of factor 4 gives",
        ),
    ],
)
def test_a_config_that_differs_from_its_release(name, changes, finding, tmp_path):
    config = load_model_config(name).to_hf()
    (tmp_path / "config.json").write_text(json.dumps(config))
    sound = inspect_checkpoint(tmp_path)["odd"]
    assert len(sound) == 3  # no weights, no generation_config, no tokenizer
    (tmp_path / "config.json").write_text(json.dumps(config | changes))
    (odd,) = [text for text in inspect_checkpoint(tmp_path)["odd"] if text not in sound]
    assert finding in odd


def test_the_context_is_that_of_yarn(tmp_path):
    config = load_model_config("qwen3-8b").to_hf()
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    for changes, length in [({}, 40960), ({"rope_scaling": yarn}, 131072)]:
        (tmp_path / "config.json").write_text(json.dumps(config | changes))
        rope = inspect_checkpoint(tmp_path)["rope"]
        assert (rope["max_position_embeddings"], rope["context_length"]) == (40960, length)


def odd_of(directory, finding):
    found = [text for text in inspect_checkpoint(directory)["odd"] if finding in text]
    assert len(found) == 1
    return found[0]


def test_odd_vocabularies_and_tokens(sound):
    rows = load_tokenizer(sound).vocab_size
    write_checkpoint(sound, dense_config(vocab_size=rows + 50))
    assert (
        odd_of(sound, "padding") == f"50 of {rows + 50} embedding rows have no token (padding): they are never sampled"
    )
    write_checkpoint(sound, dense_config(vocab_size=rows - 10))
    odd_of(sound, f"the tokenizer has {rows} tokens, the embedding only {rows - 10} rows")
    edit_json(sound / "config.json", bos_token_id=9999)
    odd_of(sound, "bos_token_id 9999 is no row of the embedding")
    edit_json(sound / "generation_config.json", eos_token_id=[1])
    odd_of(sound, "the checkpoint with [1]")
    (sound / "generation_config.json").unlink()
    odd_of(sound, "no generation_config.json")


def test_odd_files(sound):
    config = dense_config(vocab_size=load_tokenizer(sound).vocab_size)
    tensors = random_tensors(config)
    write_tensors(sound, tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"]})
    odd_of(sound, "lm_head.weight is stored though tied")
    write_tensors(sound, tensors | {"model.norm.weight": np.ones(32, BFLOAT16)})
    odd_of(sound, "several dtypes: bfloat16, float32")
    write_checkpoint(sound, config, BFLOAT16)
    edit_json(sound / "config.json", torch_dtype="float32")
    odd_of(sound, "config.json says float32, the tensors are bfloat16")
    (sound / "extra.safetensors").write_bytes((sound / "model.safetensors").read_bytes())
    odd_of(sound, "files that are not read: extra.safetensors")
    (sound / "pytorch_model.bin").touch()
    odd_of(sound, "pytorch_model*.bin")
    (sound / INDEX).write_text("{}")
    odd_of(sound, f"{INDEX} stands beside model.safetensors")


def test_an_index_that_disagrees_with_its_files(sound):
    config = dense_config(vocab_size=load_tokenizer(sound).vocab_size)
    (sound / "model.safetensors").unlink()
    write_checkpoint(sound, config, max_shard_size=20_000)
    assert inspect_checkpoint(sound)["odd"] == []
    index = json.loads((sound / INDEX).read_text())
    first = min(set(index["weight_map"].values()))
    (moved,) = [name for name in index["weight_map"] if name == "model.norm.weight"]
    weight_map = {**index["weight_map"], moved: first}
    del weight_map["model.embed_tokens.weight"]
    edit_json(sound / INDEX, weight_map=weight_map, metadata={"total_size": 5})
    odd_of(sound, "names another file than holds model.norm.weight")
    odd_of(sound, "does not list model.embed_tokens.weight")
    odd_of(sound, "says 5 bytes in all")


@pytest.mark.parametrize(
    ("template", "kind"),
    [(None, "hybrid"), (THINKING_ONLY, "thinking-only"), (INSTRUCT, "instruct"), (PARTIAL, "broken")],
)
def test_templates(template, kind, tmp_path):
    tok = load_tokenizer(write_tokenizer(tmp_path, template))
    found = describe_template(tok)
    assert found["kind"] == kind
    assert found["enable_thinking_acts"] == (kind == "hybrid")
    assert describe_template(None) == {"kind": "none", "enable_thinking_acts": False}


def test_the_official_templates(shared_dir, tmp_path):
    source = shared_dir / "qwen3" / "tokenizer"
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).symlink_to(source / name)
    assert describe_template(load_tokenizer(tmp_path))["kind"] == "hybrid"
    (tmp_path / "chat_template.jinja").symlink_to(source / "chat_template.instruct-2507.jinja")
    assert describe_template(load_tokenizer(tmp_path))["kind"] == "instruct"


def test_a_template_and_a_context_of_different_releases(sound):
    release = load_model_config("qwen3-0.6b").to_hf()
    for path in sound.glob("model*"):
        path.unlink()
    write_tokenizer(sound, INSTRUCT)
    (sound / "config.json").write_text(json.dumps(release))
    odd_of(sound, "the template is instruct, but the configuration is of a hybrid release")
    write_tokenizer(sound)
    (sound / "config.json").write_text(json.dumps(load_model_config("qwen3-4b-thinking-2507").to_hf()))
    odd_of(sound, "of a 2507 release, which has one mode")


def test_damage_is_refused_and_not_described(sound):
    data = (sound / "model.safetensors").read_bytes()
    (sound / "model.safetensors").write_bytes(data[:-1])
    with pytest.raises(ValueError, match="cut short"):
        inspect_checkpoint(sound)
    write_checkpoint(sound, moe_config(vocab_size=64))
    edit_json(sound / "config.json", num_hidden_layers=1)
    with pytest.raises(ValueError, match=r"model\.layers\.1\..*: expected none, the files have"):
        inspect_checkpoint(sound)
