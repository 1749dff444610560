"""The mixture of experts: Hugging Face's routing and numbers, and executions that agree for any load."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen3_jax.config import ModelConfig
from qwen3_jax.experts.execution import BACKENDS, choose_execution
from qwen3_jax.experts.mixture import moe
from qwen3_jax.experts.router import expert_counts, route

CONFIG = ModelConfig(
    vocab_size=8,
    hidden_size=32,
    intermediate_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=16,
    num_experts=8,
    num_experts_per_tok=2,
    moe_intermediate_size=16,
)


def one_row(x, params, config, backend="auto"):
    """`moe` of tokens [T, D], as a batch of one row: the mixture, [T, D], and the router's report."""
    mixed, report = moe(x[None], params, config, backend)
    return mixed[0], report


MOE = jax.jit(one_row, static_argnums=(2, 3))
EXECUTIONS = ("reference", "gather", "tiles", "ragged_dot")


def make_params(config=CONFIG, dtype=jnp.float32, seed=0):
    experts, inner, hidden = config.num_experts, config.moe_intermediate_size, config.hidden_size
    shapes = {
        "router": (experts, hidden),
        "experts_gate_proj": (experts, inner, hidden),
        "experts_up_proj": (experts, inner, hidden),
        "experts_down_proj": (experts, hidden, inner),
    }
    rng = np.random.default_rng(seed)
    return {name: jnp.asarray(rng.normal(size=s) * s[-1] ** -0.5, dtype) for name, s in shapes.items()}


def make_x(num_tokens, dtype=jnp.float32, seed=1):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(num_tokens, CONFIG.hidden_size)), dtype)


def skewed(params, x, favoured):
    """Makes every token choose the experts `favoured`, in that order."""
    x = x.at[:, 0].set(10.0)
    router = np.array(params["router"])
    router[:, 0] = 0.0
    router[favoured, 0] = np.arange(len(favoured), 0, -1)
    return params | {"router": jnp.asarray(router)}, x


def hugging_face_block(params, norm_topk_prob):
    torch = pytest.importorskip("torch")
    modeling = pytest.importorskip("transformers.models.qwen3_moe.modeling_qwen3_moe")
    config = modeling.Qwen3MoeConfig(
        hidden_size=CONFIG.hidden_size,
        moe_intermediate_size=CONFIG.moe_intermediate_size,
        num_experts=CONFIG.num_experts,
        num_experts_per_tok=CONFIG.num_experts_per_tok,
        norm_topk_prob=norm_topk_prob,
    )
    config._experts_implementation = "eager"
    block = modeling.Qwen3MoeSparseMoeBlock(config).eval().requires_grad_(False)
    gate_up = np.concatenate([params["experts_gate_proj"], params["experts_up_proj"]], axis=1)
    block.gate.weight.copy_(torch.from_numpy(np.array(params["router"])))
    block.experts.gate_up_proj.copy_(torch.from_numpy(gate_up))
    block.experts.down_proj.copy_(torch.from_numpy(np.array(params["experts_down_proj"])))
    return block, lambda x: torch.from_numpy(np.array(x))


def test_route_takes_the_best_experts_of_a_softmax_over_all():
    router = jnp.log(jnp.asarray([[1.0], [4.0], [2.0], [1.0]]))
    plain = route(jnp.ones((1, 1)), router, 2, norm_topk_prob=False)
    assert plain.experts.tolist() == [[1, 2]]
    np.testing.assert_allclose(plain.weights, [[0.5, 0.25]], rtol=1e-6)
    normed = route(jnp.ones((1, 1)), router, 2, norm_topk_prob=True)
    np.testing.assert_allclose(normed.weights, [[2 / 3, 1 / 3]], rtol=1e-6)
    np.testing.assert_array_equal(normed.logits, plain.logits)


def test_route_in_bfloat16_works_in_float32_between_the_logits_and_the_weights():
    x, router = make_x(64, jnp.bfloat16), make_params(dtype=jnp.bfloat16)["router"]
    got = route(x, router, 2, norm_topk_prob=True)
    assert got.weights.dtype == jnp.bfloat16
    probabilities = jax.nn.softmax(got.logits.astype(jnp.float32), axis=-1)
    best = jnp.sort(probabilities, axis=-1)[:, :-3:-1]
    np.testing.assert_array_equal(got.weights, (best / best.sum(-1, keepdims=True)).astype(jnp.bfloat16))


@pytest.mark.parametrize("norm_topk_prob", [True, False])
def test_routing_is_hugging_faces(norm_topk_prob):
    params, x = make_params(), make_x(200)
    block, to_torch = hugging_face_block(params, norm_topk_prob)
    logits, weights, experts = block.gate(to_torch(x))
    got = route(x, params["router"], CONFIG.num_experts_per_tok, norm_topk_prob)
    np.testing.assert_array_equal(got.experts, experts)
    np.testing.assert_allclose(got.logits, logits, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(got.weights, weights, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("norm_topk_prob", [True, False])
@pytest.mark.parametrize("num_tokens", [1, 150])
def test_every_execution_gives_hugging_faces_numbers(norm_topk_prob, num_tokens):
    params, x = make_params(), make_x(num_tokens)
    block, to_torch = hugging_face_block(params, norm_topk_prob)
    want = block(to_torch(x)[None])[0].numpy()
    config = dataclasses.replace(CONFIG, norm_topk_prob=norm_topk_prob)
    for execution in EXECUTIONS:
        got, _ = MOE(x, params, config, execution)
        np.testing.assert_allclose(got, want, atol=1e-6 * np.abs(want).max() + 1e-7, err_msg=execution)


@partial(jax.jit, static_argnums=3)
def value_and_gradients(params, x, cotangent, execution):
    y, pull_back = jax.vjp(lambda params, x: one_row(x, params, CONFIG, execution)[0], params, x)
    return y, pull_back(cotangent)


@pytest.mark.parametrize("favoured", [None, [3, 1], [7, 0]], ids=["spread", "experts 3 and 1", "last and first"])
@pytest.mark.parametrize("num_tokens", [1, 90])
def test_executions_agree_in_values_and_all_gradients(favoured, num_tokens):
    params, x = make_params(), make_x(num_tokens)
    if favoured:
        params, x = skewed(params, x, favoured)
        counts = MOE(x, params, CONFIG)[1].load
        assert sorted(counts.tolist(), reverse=True) == [num_tokens, num_tokens, 0, 0, 0, 0, 0, 0]
    cotangent = make_x(num_tokens, seed=2)
    want = value_and_gradients(params, x, cotangent, "reference")
    assert all(np.any(np.asarray(leaf)) for leaf in jax.tree.leaves(want))
    for execution in EXECUTIONS[1:]:
        got = value_and_gradients(params, x, cotangent, execution)
        jax.tree.map(partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-5), got, want)


def test_executions_agree_in_bfloat16_to_its_rounding():
    params, x = make_params(dtype=jnp.bfloat16), make_x(40, jnp.bfloat16)
    exact, _ = MOE(x.astype(jnp.float32), jax.tree.map(lambda p: p.astype(jnp.float32), params), CONFIG, "reference")
    for execution in EXECUTIONS:
        y, report = MOE(x, params, CONFIG, execution)
        assert y.dtype == report.logits.dtype == jnp.bfloat16
        error = np.linalg.norm(np.asarray(y, np.float32) - exact) / np.linalg.norm(exact)
        assert error < 2e-2, execution


def test_a_tokens_result_does_not_depend_on_its_neighbours():
    """No capacity: a token keeps its experts however many others want them."""
    params, x = make_params(), make_x(64)
    together, _ = MOE(x, params, CONFIG, "tiles")
    crowded, _ = MOE(jnp.concatenate([x[:1], jnp.tile(x[1:2], (63, 1))]), params, CONFIG, "tiles")
    alone, _ = MOE(x[:1], params, CONFIG, "tiles")
    np.testing.assert_allclose(together[0], alone[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(crowded[0], alone[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("execution", ["gather", "tiles"])
@pytest.mark.parametrize("num_tokens", [1, 60])
def test_only_the_chosen_experts_weights_are_read(execution, num_tokens):
    params, x = skewed(make_params(), make_x(num_tokens), [5, 2])
    want, _ = MOE(x, params, CONFIG, "reference")
    others = jnp.asarray([0, 1, 3, 4, 6, 7])
    spoiled = {name: w.at[others].set(jnp.nan) if name != "router" else w for name, w in params.items()}
    got, _ = MOE(x, spoiled, CONFIG, execution)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("num_tokens", [1, 8])
def test_decoding_makes_no_copy_of_the_experts(num_tokens, dtype):
    config = dataclasses.replace(CONFIG, hidden_size=128, moe_intermediate_size=128, num_experts=64)
    params, x = make_params(config, dtype), jnp.ones((num_tokens, 128), dtype)
    compiled = jax.jit(lambda x, p: one_row(x, p, config)[0]).lower(x, params).compile()
    one_expert = 3 * 128 * 128 * dtype.dtype.itemsize
    assert compiled.memory_analysis().temp_size_in_bytes < one_expert


def test_one_trace_a_shape_whatever_the_routing():
    traces = []

    @jax.jit
    def run(x, params):
        traces.append(x.shape)
        return one_row(x, params, CONFIG)[0]

    params = make_params()
    for num_tokens in (4, 50):
        run(make_x(num_tokens), params)
        run(make_x(num_tokens, seed=3), params)
        crowded, x = skewed(params, make_x(num_tokens), [6, 4])
        run(x, crowded)
    assert traces == [(4, 32), (50, 32)]


def test_expert_counts():
    assert expert_counts(jnp.asarray([[0, 2], [2, 3]]), 4).tolist() == [1, 0, 2, 1]
    report = MOE(make_x(77), make_params(), CONFIG)[1]
    assert report.load.sum() == 77 * CONFIG.num_experts_per_tok
    best = jnp.argsort(report.logits[0], axis=-1)[:, -CONFIG.num_experts_per_tok :]
    np.testing.assert_array_equal(report.load, expert_counts(best, CONFIG.num_experts))
    counted = np.arange(77) % 3 > 0  # padding does not count where it is said what is
    run = jax.jit(lambda x, params, counted: moe(x, params, CONFIG, counted=counted)[1])
    of_counted = run(make_x(77)[None], make_params(), jnp.asarray(counted)[None])
    np.testing.assert_array_equal(of_counted.load, expert_counts(best[counted], CONFIG.num_experts))
    np.testing.assert_array_equal(of_counted.load, of_counted.rows.assignments[0])


@pytest.mark.parametrize(
    ("backend", "platform", "execution"),
    [
        ("auto", "cpu", "tiles"),
        ("auto", "gpu", "triton"),
        ("auto", "tpu", "megablox"),
        ("grouped", "tpu", "megablox"),
        ("ragged_dot", "tpu", "ragged_dot"),
        ("reference", "tpu", "reference"),
    ],
)
def test_the_execution_follows_from_backend_and_platform(backend, platform, execution):
    assert choose_execution(backend, platform) == execution


def test_a_kernel_of_another_platform_is_refused():
    with pytest.raises(ValueError, match="moe_backend='triton' runs on gpu or cpu, got tpu: use 'auto'"):
        choose_execution("triton", "tpu")


def test_an_unknown_backend_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"one of auto, grouped, reference.*'dense'") as error:
        MOE(make_x(1), make_params(), CONFIG, "dense")
    assert "\n" not in str(error.value)
    assert all(name in str(error.value) for name in BACKENDS)
