"""Facts about the network a reader would care about; parity with transformers is in test_parity.py."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen3_jax.network.cache import grow_cache, init_cache
from qwen3_jax.network.model import Qwen3
from qwen3_jax.parameters.specs import layout_of, restack, spec_tree, unstack
from tests.tiny import dense_config, moe_config, random_params

MIXED = moe_config(num_hidden_layers=3, mlp_only_layers=(1,))
CONFIGS = {"dense": dense_config(tie_word_embeddings=False), "moe": moe_config(), "mixed": MIXED}


def build(name, layout="stacked", **changes):
    return Qwen3(CONFIGS[name], layout=layout, **changes), random_params(CONFIGS[name], layout)


@functools.partial(jax.jit, static_argnames=("model", "logits_to_keep"))
def run(model, params, tokens, logits_to_keep=0, **inputs):
    """`model.apply`, compiled: op by op it takes several times as long."""
    return model.apply({"params": params}, tokens, logits_to_keep=logits_to_keep, **inputs)


def tokens_of(batch, length, seed=1):
    return jnp.asarray(np.random.default_rng(seed).integers(0, 512, (batch, length)), jnp.int32)


@pytest.mark.parametrize("name", CONFIGS)
def test_both_layouts_hold_the_same_model(name):
    model, stacked = build(name)
    unrolled = unstack(stacked, model.config)
    tokens = tokens_of(2, 9)
    expected = run(model, stacked, tokens)
    got = run(model, unrolled, tokens)
    np.testing.assert_allclose(got.logits, expected.logits, atol=1e-5)
    np.testing.assert_allclose(
        np.concatenate(got.router_logits or [np.zeros(1)]),
        np.concatenate(expected.router_logits or [np.zeros(1)]),
        atol=1e-5,
    )
    assert layout_of(stacked) == "stacked"
    assert layout_of(unrolled) == "unrolled"
    back = restack(unrolled, model.config)
    jax.tree.map(np.testing.assert_array_equal, back, dict(stacked))


@pytest.mark.parametrize("layout", ["stacked", "unrolled"])
@pytest.mark.parametrize("name", CONFIGS)
def test_init_makes_what_the_declaration_says(name, layout):
    model = Qwen3(CONFIGS[name], layout=layout)
    params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"]
    specs = spec_tree(model.config, layout)
    assert jax.tree.map(lambda x: x.shape, dict(params)) == jax.tree.map(lambda s: s.shape, specs)
    assert all(len(spec.axes) == len(spec.shape) for spec in jax.tree.leaves(specs))


def test_init_draws_matrices_and_leaves_norms_at_one():
    model = Qwen3(dense_config(hidden_size=256, intermediate_size=256))
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    layer = params["segments_0"]
    np.testing.assert_array_equal(layer["q_norm"], 1)
    assert float(jnp.std(layer["up_proj"])) == pytest.approx(0.02, rel=0.05)
    assert not np.allclose(layer["up_proj"][0], layer["up_proj"][1])  # each layer its own numbers


@pytest.mark.parametrize("name", ["dense", "moe"])
def test_a_token_depends_on_no_later_token(name):
    """Causality by gradient: the logits at t have exactly no gradient into embeddings after t."""
    model, params = build(name)
    tokens = tokens_of(1, 8)

    def logit_at_3(table):
        # One embedding row a position, so that a gradient row is a position.
        out = model.apply({"params": {**params, "embed_tokens": table}}, jnp.arange(8)[None])
        return jnp.sum(out.logits[0, 3] * out.logits[0, 3])

    table = params["embed_tokens"][tokens[0]]
    model = Qwen3(model.config.__class__(**{**model.config.__dict__, "vocab_size": 8, "tie_word_embeddings": False}))
    params = {**params, "lm_head": params["embed_tokens"][:8]}
    gradient = jax.jit(jax.grad(logit_at_3))(table)
    np.testing.assert_array_equal(gradient[4:], 0)
    assert np.all(np.any(np.asarray(gradient[:4]) != 0, axis=1))


@pytest.mark.parametrize(
    ("name", "layout"), [("dense", "stacked"), ("dense", "unrolled"), ("moe", "stacked"), ("mixed", "unrolled")]
)
def test_cached_decode_equals_the_full_forward(name, layout):
    model, params = build(name, layout)
    tokens = tokens_of(2, 12)
    expected = run(model, params, tokens).logits
    cache = init_cache(model.config, 2, 16, layout, jnp.float32)
    got = []
    for begin, end in ((0, 5), (5, 6), (6, 11), (11, 12)):  # a prompt, a token, a longer prompt, a token
        if begin == 11:
            cache = grow_cache(cache, 24)
        out = run(model, params, tokens[:, begin:end], cache=cache)
        cache = out.cache
        got.append(out.logits)
    np.testing.assert_allclose(jnp.concatenate(got, axis=1), expected, atol=2e-5)
    np.testing.assert_array_equal(cache.length, [12, 12])
    np.testing.assert_array_equal(cache.positions, [[*range(12)] + [-1] * 12] * 2)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_no_real_logit(side):
    model, params = build("mixed")
    tokens = tokens_of(2, 10)
    real = np.ones((2, 10), bool)
    real[1, slice(0, 4) if side == "left" else slice(6, 10)] = False
    padded = run(model, params, tokens, attention_mask=jnp.asarray(real)).logits
    alone = run(model, params, tokens[1:][:, real[1]]).logits
    np.testing.assert_allclose(padded[1][real[1]], alone[0], atol=2e-5)
    np.testing.assert_allclose(padded[0], run(model, params, tokens[:1]).logits[0], atol=2e-5)


def test_left_padded_prefill_equals_the_row_alone():
    model, params = build("dense", "unrolled")
    tokens = tokens_of(1, 6)
    padded = jnp.concatenate([jnp.zeros((1, 10), jnp.int32), tokens], axis=1)
    real = jnp.arange(16)[None] >= 10
    cache = init_cache(model.config, 1, 32, "unrolled", jnp.float32)
    for begin in (0, 8):  # the first chunk holds no real token at all
        part = slice(begin, begin + 8)
        out = run(model, params, padded[:, part], attention_mask=real[:, part], cache=cache)
        cache = out.cache
    np.testing.assert_allclose(out.logits[0, 2:], run(model, params, tokens).logits[0], atol=2e-5)


def test_packed_documents_do_not_see_each_other():
    model, params = build("dense")
    tokens = tokens_of(1, 9)
    segments = jnp.array([[1, 1, 1, 1, 2, 2, 2, 2, 2]])
    packed = run(model, params, tokens, segment_ids=segments).logits
    first = run(model, params, tokens[:, :4]).logits
    second = run(model, params, tokens[:, 4:]).logits
    np.testing.assert_allclose(packed, jnp.concatenate([first, second], axis=1), atol=2e-5)


@pytest.mark.parametrize(("layout", "remat"), [("stacked", "full"), ("unrolled", "dots"), ("stacked", "attention")])
def test_remat_changes_no_gradient(layout, remat):
    plain, params = build("mixed", layout)
    tokens = tokens_of(1, 8)

    @functools.partial(jax.jit, static_argnums=1)
    def gradient(params, model):
        return jax.grad(lambda p: jnp.mean(jnp.square(model.apply({"params": p}, tokens).logits)))(params)

    expected, got = gradient(params, plain), gradient(params, Qwen3(plain.config, remat=remat))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), dict(got), dict(expected))


def test_the_last_logits_alone():
    model, params = build("dense")
    tokens = tokens_of(2, 7)
    full = run(model, params, tokens).logits
    last = run(model, params, tokens, logits_to_keep=2).logits
    assert last.shape == (2, 2, 512)
    np.testing.assert_allclose(last, full[:, -2:], atol=1e-6)


def test_bfloat16_parameters_give_float32_logits():
    model, params = build("moe")
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    out = run(model, half, tokens_of(1, 5))
    assert out.logits.dtype == jnp.float32
    assert out.hidden.dtype == jnp.bfloat16


def test_packed_rows_do_not_decode():
    model, params = build("dense")
    cache = init_cache(model.config, 1, 8, "stacked", jnp.float32)
    with pytest.raises(ValueError, match="segment_ids must be None when a cache is given"):
        run(model, params, tokens_of(1, 4), segment_ids=jnp.ones((1, 4), jnp.int32), cache=cache)
