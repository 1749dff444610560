"""FLOPs against hand counts, and the analytic model against the parameters it is made of."""

import pytest

from qwen3_jax.parameters.specs import num_parameters
from qwen3_jax.plans.estimate import estimate
from qwen3_jax.plans.flops import (
    attention_pairs,
    experts_met,
    forward_flops,
    head_parameters,
    layer_matrix_parameters,
    step_flops,
)
from qwen3_jax.plans.search import legal_meshes
from qwen3_jax.releases import load_model_config
from qwen3_jax.sharding import DEFAULT_RULES
from tests import tiny

HYBRID = ["0.6b", "1.7b", "4b", "8b", "14b", "32b", "30b-a3b", "235b-a22b"]
ONE = {"data": 1, "fsdp": 1, "expert": 1, "context": 1, "tensor": 1}


def test_a_layer_of_0_6b_by_hand():
    config = load_model_config("qwen3-0.6b")
    attention = 1024 * 2048 + 2 * 1024 * 1024 + 2048 * 1024
    assert layer_matrix_parameters(config) == 28 * (attention + 3 * 1024 * 3072)
    assert head_parameters(config) == 151936 * 1024


def test_an_active_layer_of_30b_a3b_by_hand():
    config = load_model_config("qwen3-30b-a3b")
    attention = 2 * 2048 * 4096 + 2 * 2048 * 512
    assert layer_matrix_parameters(config) == 48 * (attention + 128 * 2048 + 8 * 3 * 2048 * 768)


@pytest.mark.parametrize("name", HYBRID)
def test_products_are_two_operations_an_active_parameter(name):
    """Everything active but the norms and the embedding's lookup is multiplied with each token once."""
    config = load_model_config(f"qwen3-{name}")
    norms = config.num_hidden_layers * (2 * config.hidden_size + 2 * config.head_dim) + config.hidden_size
    embedding = 0 if config.tie_word_embeddings else config.vocab_size * config.hidden_size
    multiplied = num_parameters(config, active=True) - norms - embedding
    assert layer_matrix_parameters(config) + head_parameters(config) == multiplied


def test_attention_is_causal():
    assert attention_pairs(4) == 4 + 3 + 2 + 1
    assert attention_pairs(1, 9) == 10
    config = tiny.dense_config()
    per_pair = 4 * config.num_hidden_layers * config.num_attention_heads * config.head_dim
    products = 2 * (4 * layer_matrix_parameters(config) + 4 * head_parameters(config))
    assert forward_flops(config, 4) == products + 10 * per_pair


def test_a_training_step_is_three_forward_passes_and_the_hardware_does_a_fourth():
    config = load_model_config("qwen3-8b")
    flops = step_flops(config, "train", 4096, 8)
    forward = 8 * forward_flops(config, 4096)
    assert flops.model == 3 * forward
    assert 4 * forward < flops.hardware < 4.1 * forward


def test_235b_on_a_million_tokens():
    """6 operations an active parameter and token, the embedding apart, plus attention."""
    config = load_model_config("qwen3-235b-a22b")
    tokens = 256 * 4096
    active = num_parameters(config, active=True) - 151936 * 4096
    attention = 6 * 94 * 64 * 128 * 4097 * tokens
    assert step_flops(config, "train", 4096, 256).model == pytest.approx(6 * active * tokens + attention, rel=1e-4)


def test_prefill_and_decoding_have_no_backward_pass():
    config = load_model_config("qwen3-0.6b")
    prefill, decode = step_flops(config, "prefill", 512, 2), step_flops(config, "decode", 513, 2)
    assert prefill.model == prefill.hardware == 2 * forward_flops(config, 512, logits=1)
    whole = 2 * forward_flops(config, 513, logits=1)
    assert prefill.model + decode.model == pytest.approx(whole + 2 * 2 * head_parameters(config))


def test_experts_met():
    config = load_model_config("qwen3-30b-a3b")
    assert experts_met(config, 1) == pytest.approx(8)
    assert 127 < experts_met(config, 128) < 128


@pytest.mark.parametrize("name", HYBRID)
def test_a_device_alone_holds_everything_and_sends_nothing(name):
    config = load_model_config(f"qwen3-{name}")
    found = estimate(config, ONE, "train", 1024, 1)
    norm = config.hidden_size
    assert found.parameters == 4 * (num_parameters(config) - norm)
    assert found.optimizer == 2 * found.parameters
    assert found.communication == {}


def test_meshes_keep_the_parameters_and_split_the_batch():
    config = load_model_config("qwen3-235b-a22b")
    found = estimate(config, ONE | {"fsdp": 32, "expert": 8}, "train", 4096, 256)
    assert found.parameters == pytest.approx(4 * num_parameters(config) / 256, rel=1e-6)
    # There and back; in the backward pass rows and gradients there, gradients back. 8 rows a token, 7 of 8 leave.
    sent = 5 * 94 * 4096 * 8 * 4096 * 2 * 7 / 8
    assert found.communication["all-to-all", ("expert",)] == sent
    experts = 94 * 3 * 128 * 1536 * 4096 / 8 * 2 * 31 / 32
    assert found.communication["all-gather", ("fsdp",)] == pytest.approx(2 * experts)
    assert found.communication["reduce-scatter", ("fsdp",)] == pytest.approx(experts)


def test_the_cache_of_a_decoding_step():
    config = load_model_config("qwen3-32b")
    found = estimate(config, ONE | {"tensor": 8}, "decode", 131072, 8)
    assert found.cache == 2 * 64 * 8 * 131072 * 128 * 2  # one of the 8 heads, 8 rows
    spread = estimate(load_model_config("qwen3-235b-a22b"), ONE | {"tensor": 8}, "decode", 1024, 8)
    assert spread.cache == 2 * 94 * 8 * 1024 * 128 * 2  # each of the 4 heads on two devices


def test_whole_dense_weights_are_held_and_not_gathered():
    config, sizes = load_model_config("qwen3-235b-a22b"), ONE | {"expert": 8, "tensor": 8}
    split = estimate(config, sizes, "decode", 1024, 8)
    whole = estimate(config, sizes, "decode", 1024, 8, DEFAULT_RULES.override({"embed": None}))
    dense = num_parameters(config) - 94 * 3 * 128 * 1536 * 4096 - config.hidden_size
    assert whole.parameters - split.parameters == pytest.approx(2 * dense / 8 * 7 / 8, rel=1e-6)
    gathered = {key: size for key, size in split.communication.items() if key not in whole.communication}
    assert list(gathered) == [("all-gather", ("fsdp", "expert"))]
    table = 151936 * 4096  # the embedding is looked up where it lies, the head is gathered
    assert sum(gathered.values()) == pytest.approx(2 * (dense - table) / 8 * 7 / 8, rel=1e-6)


def test_legal_meshes_divide_model_and_batch():
    config = load_model_config("qwen3-30b-a3b")
    meshes = list(legal_meshes(config, 16, "train", 4096, 8))
    assert ONE | {"fsdp": 2, "expert": 4, "tensor": 2} in meshes
    for sizes in meshes:
        assert 8 % (sizes["data"] * sizes["fsdp"] * sizes["expert"]) == 0
    assert all(sizes["context"] == 1 for sizes in legal_meshes(config, 16, "decode", 4096, 16))
    dense = load_model_config("qwen3-0.6b")
    assert all(sizes["expert"] == 1 for sizes in legal_meshes(dense, 8, "train", 4096, 8))
