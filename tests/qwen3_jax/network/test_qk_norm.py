"""The ablation switch `Qwen3.qk_norm`: without the norm the network is Llama's, and it is not exported."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from qwen3_jax.checkpoints.load import from_pretrained  # noqa: E402
from qwen3_jax.checkpoints.save import save_pretrained  # noqa: E402
from qwen3_jax.parameters.specs import restack, unstack  # noqa: E402
from tests.qwen3_jax.network import hf_reference as hf  # noqa: E402

TOLERANCE = 2e-5  # of the largest logit, as in test_parity.py


@pytest.fixture(scope="module")
def without(tmp_path_factory):
    """A random Qwen3 with norms unlike one, its parameters here, and the Llama that has its other weights."""
    reference = hf.build("untied")
    directory = hf.save(reference, tmp_path_factory.mktemp("qwen3"))
    model, params = from_pretrained(directory, dtype="float32")
    names = (
        "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads head_dim "
        "hidden_act rms_norm_eps max_position_embeddings tie_word_embeddings attention_bias rope_parameters"
    )
    config = transformers.LlamaConfig(**{name: hf.BASE[name] for name in names.split()}, mlp_bias=False)
    config._attn_implementation = "eager"
    llama = transformers.LlamaForCausalLM(config).eval()
    absent = llama.load_state_dict(reference.state_dict(), strict=False)
    assert absent.missing_keys == []
    assert all(name.endswith(("q_norm.weight", "k_norm.weight")) for name in absent.unexpected_keys)
    return model.clone(qk_norm=False), params, llama, reference


@pytest.mark.parametrize("layout", ["stacked", "unrolled"])
def test_without_the_norm_it_is_a_llama(without, layout):
    model, params, llama, reference = without
    params = restack(params, model.config) if layout == "stacked" and "layers_0" in params else params
    params = unstack(params, model.config) if layout == "unrolled" and "layers_0" not in params else params
    tokens = np.random.default_rng(0).integers(0, hf.BASE["vocab_size"], (2, 40)).astype(np.int32)
    got = np.asarray(jax.jit(model.apply)({"params": params}, tokens).logits)
    expected = hf.logits(llama, tokens)
    assert np.abs(got - expected).max() <= TOLERANCE * np.abs(expected).max()
    assert np.abs(got - hf.logits(reference, tokens)).max() > 100 * TOLERANCE * np.abs(expected).max()


def test_the_scales_get_no_gradient(without):
    model, params, _, _ = without
    tokens = jnp.arange(12, dtype=jnp.int32)[None]
    grads = jax.jit(jax.grad(lambda p: model.apply({"params": p}, tokens).logits[:, :, 3].mean()))(params)
    for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
        assert bool(np.any(leaf)) == (path[-1].key not in ("q_norm", "k_norm"))


def test_it_is_not_exported(without, tmp_path):
    model, params, _, _ = without
    with pytest.raises(ValueError, match="qk_norm must be True to export, got False"):
        save_pretrained(tmp_path / "out", model, params)
    assert not (tmp_path / "out").exists()
