"""Reading config.json in every spelling, and refusing what the model does not have."""

import dataclasses
import json

import pytest

from qwen3_jax.config import ModelConfig, YarnConfig, read_json_object
from qwen3_jax.generation_defaults import GenerationDefaults
from tests.tiny import dense_config, moe_config


def published(**changes):
    """The published Qwen3-0.6B file's keys, at a small size."""
    base = {
        "architectures": ["Qwen3ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "head_dim": 16,
        "hidden_act": "silu",
        "hidden_size": 32,
        "initializer_range": 0.02,
        "intermediate_size": 48,
        "max_position_embeddings": 40960,
        "max_window_layers": 2,
        "model_type": "qwen3",
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 1000000,
        "sliding_window": None,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.51.0",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": 512,
    }
    return {**base, **changes}


MOE = {
    "model_type": "qwen3_moe",
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "output_router_logits": False,
    "router_aux_loss_coef": 0.001,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}


def test_both_spellings_mean_the_same():
    new = published()
    del new["rope_theta"], new["rope_scaling"]
    new["dtype"] = new.pop("torch_dtype")
    new["rope_parameters"] = {"rope_theta": 5e6, "rope_type": "default"}
    new["layer_types"] = ["full_attention"] * 2
    assert ModelConfig.from_hf(new) == ModelConfig.from_hf(published(rope_theta=5e6))

    moe = published(**MOE)
    renamed = {**moe, "num_local_experts": 8}
    del renamed["num_experts"]
    assert ModelConfig.from_hf(renamed) == ModelConfig.from_hf(moe) == moe_config(max_position_embeddings=40960)


def test_yarn_is_read_from_all_three_places():
    expected = YarnConfig(factor=4.0, original_max_position_embeddings=32768)
    legacy = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    new = published(rope_parameters={**YARN, "rope_theta": 1e6})
    del new["rope_scaling"], new["rope_theta"]
    for hf in (published(rope_scaling=YARN), published(rope_scaling=legacy), new):
        assert ModelConfig.from_hf(hf).yarn == expected
        assert ModelConfig.from_hf(hf).rope_theta == 1e6


def test_yarn_without_factor_takes_it_from_the_context():
    scaling = {"rope_type": "yarn", "original_max_position_embeddings": 32768}
    config = ModelConfig.from_hf(published(rope_scaling=scaling, max_position_embeddings=131072))
    assert config.yarn is not None
    assert config.yarn.factor == 4.0


def test_the_context_reaches_as_far_as_yarn_does():
    """The model card's block, with `max_position_embeddings` left as it is; and a file whose context is larger."""
    assert ModelConfig.from_hf(published()).context_length == 40960
    assert ModelConfig.from_hf(published(rope_scaling=YARN)).context_length == 131072
    assert ModelConfig.from_hf(published(rope_scaling={**YARN, "factor": 2.5})).context_length == 81920
    assert ModelConfig.from_hf(published(rope_scaling={**YARN, "factor": 1.0})).context_length == 40960


def test_what_is_left_out_means_what_it_means_to_transformers():
    bare = {key: value for key, value in published().items() if key not in ("rope_theta", "max_position_embeddings")}
    transformers = pytest.importorskip("transformers")
    expected = transformers.Qwen3Config(**bare)
    config = ModelConfig.from_hf(bare)
    assert config.rope_theta == expected.rope_parameters["rope_theta"] == 10_000
    assert config.max_position_embeddings == expected.max_position_embeddings == 32768


PROVENANCE = {
    "unsloth_version": "2025.6.5",
    "unsloth_fixed": True,
    "_attn_implementation_autoset": True,
    "pretraining_tp": 1,
    "use_flash_attention": True,
}


def test_unknown_keys_that_do_not_change_the_network_are_one_warning():
    with pytest.warns(UserWarning, match="no effect") as caught:
        config = ModelConfig.from_hf(published(**PROVENANCE))
    assert config == ModelConfig.from_hf(published())
    assert [str(warning.message) for warning in caught] == [
        f"config.json: unknown keys have no effect: {', '.join(sorted(PROVENANCE))}"
    ]


@pytest.mark.parametrize(
    "same",
    [
        {"qkv_bias": False, "use_qk_norm": True, "shared_expert_intermediate_size": 0, **MOE},
        {"mlp_bias": False, "num_shared_experts": 0, "hidden_activation": "silu", "sliding_window": 4096},
        {"partial_rotary_factor": 1.0, "attn_logit_softcapping": None, "first_k_dense_replace": 0, "is_causal": True},
        {"quantization_config": None, "dual_chunk_attention_config": None, "is_encoder_decoder": False},
    ],
)
def test_keys_that_say_what_every_qwen3_is_pass_silently(same):
    ModelConfig.from_hf(published(**same))  # a warning is an error


@pytest.mark.parametrize("config", [dense_config(), moe_config(mlp_only_layers=(0,)), dense_config(rope_theta=5e6)])
@pytest.mark.parametrize("yarn", [None, YarnConfig(factor=2.0, original_max_position_embeddings=64, beta_fast=16.0)])
def test_to_hf_reads_back_as_the_same(config, yarn):
    config = dataclasses.replace(config, yarn=yarn)
    assert ModelConfig.from_hf(json.loads(json.dumps(config.to_hf()))) == config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "llama"}, "model_type must be one of"),
        (
            {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
            "rope_type must be 'default' or 'yarn', got 'linear'",
        ),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "original_max_position_embeddings"),
        ({"rope_scaling": {**YARN, "long_factor": [1]}}, "long_factor"),
        ({"rope_scaling": {**YARN, "factor": 0.5}}, "factor must be at least 1"),
        ({"hidden_act": "gelu"}, "hidden_act must be 'silu'"),
        ({"attention_bias": True}, "attention_bias"),
        ({"use_sliding_window": True}, "use_sliding_window"),
        ({"num_shared_experts": 2}, "num_shared_experts must be 0 for this model, got 2: its mixtures have no shared"),
        ({"shared_expert_intermediate_size": 64, **MOE}, "shared_expert_intermediate_size must be 0"),
        ({"qkv_bias": True}, "qkv_bias must be False for this model, got True: its projections have no bias"),
        ({"use_qk_norm": False}, "use_qk_norm must be True"),
        ({"hidden_activation": "relu2"}, "hidden_activation must be 'silu'"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor must be 1"),
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping must be 0"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types .* got .'sliding_attention'"),
        ({"dual_chunk_attention_config": {"chunk_size": 262144}}, "dual_chunk_attention_config must be absent"),
        ({"vision_config": {"depth": 2}}, "vision_config must be absent"),
        (
            {"max_position_embedding": 131072},
            "unknown key max_position_embedding: did you mean max_position_embeddings",
        ),
        ({"yarn": YARN}, "yarn must be absent .* under `rope_scaling`"),
        ({"hidden_size": "32"}, "hidden_size must be an integer, got '32'"),
        ({"hidden_size": 0}, "hidden_size must be positive"),
        ({"num_key_value_heads": 3}, "multiple of num_key_value_heads"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings must be true or false"),
        ({"head_dim": None}, "must set head_dim"),
        ({"model_type": "qwen3_moe"}, "num_experts must be set"),
        ({"num_experts": 8}, "num_experts must not be set"),
        ({**MOE, "num_experts_per_tok": 9}, "num_experts_per_tok must be between 1 and"),
        ({**MOE, "mlp_only_layers": [5]}, "mlp_only_layers must name layers below 2"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"model_type": []}, "model_type must be a name"),
        ({"torch_dtype": [[]]}, "torch_dtype must be a name"),
        ({"architectures": 3}, "architectures must be a list of names"),
        ({"architectures": [[]]}, "architectures must be a list of names"),
        ({"layer_types": ["full_attention", 5]}, "layer_types must be a list of names"),
        ({"mlp_only_layers": "8"}, "mlp_only_layers must be a list of integers"),
        ({"mlp_only_layers": ["8"]}, "mlp_only_layers must be an integer, got '8'"),
        ({"eos_token_id": "8"}, "eos_token_id must be an integer, got '8'"),
        ({"bos_token_id": {}}, "bos_token_id must be an integer"),
        ({"rope_theta": 10**400}, "rope_theta must be a number in range"),
        ({"rope_theta": float("nan")}, "rope_theta must be a number in range, got nan"),
        ({"rms_norm_eps": float("inf")}, "rms_norm_eps must be a number in range, got inf"),
        ({"hidden_size": 10**400}, "hidden_size must be an integer in range"),
        ({"rope_theta": 1.0}, "rope_theta must be above 1"),
        ({"rope_scaling": 7}, "rope_scaling must be an object"),
        ({"rope_scaling": [1]}, "rope_scaling must be an object"),
        ({"rope_scaling": {"rope_type": ["yarn"]}}, "rope_type must be 'default' or 'yarn', got"),
        ({"rope_scaling": {**YARN, "attention_factor": 10**400}}, "rope_scaling.attention_factor must be a number in"),
        ({"rope_scaling": {**YARN, "factor": None, "original_max_position_embeddings": "x"}}, "must be an integer"),
        ({"rope_scaling": {**YARN, "factor": 1e300}}, "must give a context of at most"),
        ({"rope_scaling": {**YARN, "beta_slow": 0}}, "0.001 <= beta_slow <= beta_fast"),
        ({"rope_scaling": {**YARN, "beta_fast": 1e-308}}, "0.001 <= beta_slow <= beta_fast"),
    ],
)
def test_what_the_model_does_not_have_is_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        ModelConfig.from_hf(published(**changes))
    assert "\n" not in str(caught.value)


def test_segments_are_runs_of_identical_layers():
    def segments(layers, **changes):
        return moe_config(num_hidden_layers=layers, **changes).segments

    assert dense_config(num_hidden_layers=3).segments == ((False, 3),)
    assert segments(4, mlp_only_layers=(0,)) == ((False, 1), (True, 3))
    assert segments(5, decoder_sparse_step=2) == ((False, 1), (True, 1), (False, 1), (True, 1), (False, 1))


def test_generation_defaults_read_and_write():
    hf = {"do_sample": True, "eos_token_id": [5, 6], "pad_token_id": 6, "temperature": 0.6, "top_k": 20, "top_p": 0.95}
    defaults = GenerationDefaults.from_hf(hf)
    assert defaults.eos_token_ids == (5, 6)
    assert defaults.to_hf() == hf
    greedy = GenerationDefaults.from_hf({"do_sample": False, "eos_token_id": 5, "temperature": 0.6})
    assert greedy.temperature == 0.0
    assert GenerationDefaults.from_hf(greedy.to_hf()) == greedy
    with pytest.raises(ValueError, match="temperature must be a number"):
        GenerationDefaults.from_hf({"temperature": "hot"})


def test_a_checkpoint_with_another_head_is_refused():
    with pytest.raises(ValueError, match=r"architectures must hold Qwen3ForCausalLM, got \['Qwen3ForSequence"):
        ModelConfig.from_hf(published(architectures=["Qwen3ForSequenceClassification"]))


def test_a_json_file_nested_without_end_is_refused_in_one_line(tmp_path):
    path = tmp_path / "config.json"
    path.write_text("[" * 100_000 + "]" * 100_000)
    with pytest.raises(ValueError, match="must be JSON, got one too deeply nested"):
        read_json_object(path)


def test_generation_settings_that_this_project_lacks_are_said():
    with pytest.warns(UserWarning, match="no effect: num_beams, typical_p$"):
        GenerationDefaults.from_hf({"typical_p": 0.9, "num_beams": 4, "no_repeat_ngram_size": 0})
    read = GenerationDefaults.from_hf({"repetition_penalty": 1.05})
    assert read.repetition_penalty == 1.05
    assert read.to_hf()["repetition_penalty"] == 1.05
    with pytest.raises(ValueError, match=r"generation_config\.json: pad_token_id must be a number, got 'x'"):
        GenerationDefaults.from_hf({"pad_token_id": "x"})
