"""A model on a mesh: what must divide, and that the network there is the network on one device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen3_jax.network.model import Qwen3
from qwen3_jax.parameters.placement import place
from qwen3_jax.parameters.specs import ParamSpec, spec_tree
from qwen3_jax.releases import load_model_config
from qwen3_jax.sharding import MESH_AXES, make_mesh, named_sharding
from tests.tiny import dense_config, moe_config, random_params

MESHES = {
    "fsdp": {"fsdp": 8},
    "tensor": {"data": 2, "tensor": 4},
    "context": {"fsdp": 2, "context": 4},
    "all": {"fsdp": 2, "context": 2, "tensor": 2},
    "experts": {"fsdp": 2, "expert": 2, "tensor": 2},
    "experts only": {"expert": 8},
}
CONFIGS = {
    "tied": dense_config(),
    "untied": dense_config(tie_word_embeddings=False, num_attention_heads=8, num_key_value_heads=4),
    "moe": moe_config(num_hidden_layers=3, mlp_only_layers=(0,)),
}


def put(params, model, mesh):
    layout = "unrolled" if "layers_0" in params else "stacked"
    shardings = jax.tree.map(
        lambda spec: named_sharding(mesh, spec.axes, model.placement.rules),
        spec_tree(model.config, layout),
        is_leaf=lambda leaf: isinstance(leaf, ParamSpec),
    )
    return jax.device_put(params, shardings)


# Every mesh and every model; gradients on the same meshes are in tests/train/test_sharded.py.
CASES = [("tied", "fsdp"), ("tied", "context"), ("tied", "experts only"), ("untied", "tensor"), ("untied", "all")]
CASES += [("moe", "tensor"), ("moe", "experts"), ("moe", "experts only")]


@pytest.mark.parametrize(("name", "mesh_name"), CASES)
def test_logits_are_those_of_one_device(name, mesh_name):
    config, sizes = CONFIGS[name], MESHES[mesh_name]
    layout = "unrolled" if mesh_name in ("all", "experts") else "stacked"  # what is laid out does not depend on it
    params = random_params(config, layout)
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, config.vocab_size, (8, 16)).astype(np.int32)
    segments = np.repeat([[1] * 5 + [2] * 8 + [0] * 3], 8, axis=0).astype(np.int32)
    arguments = {"attention_mask": segments > 0, "segment_ids": segments}
    expected = jax.jit(Qwen3(config).apply)({"params": params}, tokens, **arguments)

    mesh = make_mesh(**sizes)
    model = Qwen3(config, placement=place(config, mesh))
    with jax.set_mesh(mesh):
        got = jax.jit(model.apply)({"params": put(params, model, mesh)}, tokens, **arguments)
    np.testing.assert_allclose(got.logits, expected.logits, atol=1e-5 * np.abs(expected.logits).max())
    for load, expected_load in zip(got.expert_load, expected.expert_load, strict=True):
        np.testing.assert_array_equal(load, expected_load)
        assert load.sum() == load.shape[0] * tokens.size * config.num_experts_per_tok


def test_fewer_key_value_heads_than_devices_are_copied():
    config = dense_config(num_attention_heads=8, num_key_value_heads=4, tie_word_embeddings=False)
    mesh = make_mesh(tensor=8)
    placement = place(config, mesh)
    assert placement.kv_repeats == 2
    params = random_params(config)
    tokens = np.arange(24, dtype=np.int32).reshape(2, 12)
    expected = jax.jit(Qwen3(config).apply)({"params": params}, tokens).logits
    model = Qwen3(config, placement=placement)
    with jax.set_mesh(mesh):
        placed = put(params, model, mesh)
        got = jax.jit(model.apply)({"params": placed}, tokens).logits
    np.testing.assert_allclose(got, expected, atol=1e-5 * np.abs(expected).max())
    k_proj = placed["segments_0"]["k_proj"]
    assert k_proj.sharding.shard_shape(k_proj.shape) == k_proj.shape


@pytest.mark.parametrize(
    ("changes", "sizes", "message"),
    [
        ({"num_attention_heads": 6, "num_key_value_heads": 2}, {"tensor": 4, "data": 2}, r"got 6"),
        ({"num_key_value_heads": 3, "num_attention_heads": 12}, {"tensor": 4, "data": 2}, r"got 3 heads on 4 devices"),
        ({"vocab_size": 510}, {"tensor": 4, "data": 2}, r"vocab_size must divide over 4 devices \(tensor=4\), got 510"),
        ({"hidden_size": 36}, {"fsdp": 8}, r"hidden_size must divide over 8 devices \(fsdp=8 x expert=1\), got 36"),
        ({"intermediate_size": 50}, {"tensor": 4, "data": 2}, r"intermediate_size must divide .* got 50"),
    ],
)
def test_what_does_not_divide_is_refused_with_both_numbers(changes, sizes, message):
    with pytest.raises(ValueError, match=message):
        place(dense_config(**changes), make_mesh(**sizes))


def test_experts_must_divide():
    with pytest.raises(ValueError, match=r"num_experts must divide over 8 devices \(expert=8\), got 12"):
        place(moe_config(num_experts=12), make_mesh(expert=8))


def test_four_heads_on_eight_devices_of_the_largest_release():
    """Qwen3-235B-A22B on tensor=8: 4 key-value heads, 64 query heads."""
    placement = place(load_model_config("qwen3-235b-a22b"), make_mesh(tensor=8))
    assert placement.kv_repeats == 2
    assert placement.rules["kv_heads"] is None
    assert placement.rules["cache_heads"] == "tensor"


def test_a_mesh_of_another_kind_is_refused_in_one_line():
    config = dense_config()
    model = Qwen3(config)
    for mesh, message in (
        (jax.make_mesh((1, 8, 1, 1, 1), MESH_AXES), "must have Auto axes"),
        (jax.make_mesh((8,), ("fsdp",)), r"must have the axes .* got \('fsdp',\)"),
    ):
        with jax.set_mesh(mesh), pytest.raises(ValueError, match=message):
            jax.eval_shape(model.apply, {"params": random_params(config)}, jnp.zeros((8, 4), jnp.int32))
