"""The load-balancing losses against numpy, against transformers, and against the paper's identity."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen3_jax.experts.router import Routing, RowSums, row_sums
from qwen3_jax.train.objectives.balance import balance_loss
from qwen3_jax.train.settings import Balance

M, L, R, T, E, K = 3, 2, 2, 5, 6, 2


def logits_and_mask(seed: int = 0, padding: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Logits [M, L, R, T, E] and which tokens count, [M, R, T]; every micro-batch has another number of them."""
    rng = np.random.default_rng(seed)
    counted = np.ones((M, R, T), bool)
    if padding:
        counted[0, 1, 3:], counted[2, :, 2:] = False, False
    return rng.normal(size=(M, L, R, T, E)).astype(np.float32), counted


def sums_of(logits: jax.Array, counted: np.ndarray) -> list[RowSums]:
    """As the model gives them: a list of runs of layers, here of one layer each."""

    def of_layer(logits: jax.Array, counted: jax.Array) -> RowSums:
        flat = logits.reshape(-1, E)
        weights, experts = jax.lax.top_k(jax.nn.softmax(flat, axis=-1), K)
        return row_sums(Routing(weights, experts, flat), counted)

    mapped = jax.vmap(jax.vmap(of_layer, (0, None)), (0, 0))(logits, jnp.asarray(counted))
    return [jax.tree.map(lambda leaf, i=i: leaf[:, i : i + 1], mapped) for i in range(L)]


def frequencies(logits: np.ndarray, counted: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Chosen or not and probabilities, [M, L, R, T, E], zero where not counted, and the mask in their shape; numpy."""
    wide = logits.astype(np.float64)
    probabilities = np.exp(wide) / np.exp(wide).sum(-1, keepdims=True)
    chosen = probabilities >= np.sort(probabilities, axis=-1)[..., -K, None]
    mask = np.broadcast_to(counted[:, None, :, :, None], logits.shape)
    return chosen * mask, probabilities * mask, mask[..., 0]


def reference(form: str, logits: np.ndarray, counted: np.ndarray) -> float:
    chosen, probabilities, mask = frequencies(logits, counted)

    def product(index: tuple) -> float:
        tokens = mask[index].sum()
        f, p = (x[index].reshape(-1, E).sum(0) / tokens for x in (chosen, probabilities))
        return float(E * (f * p).sum())

    if form == "global":
        return np.mean([product((slice(None), layer)) for layer in range(L)])
    if form == "micro_batch":
        return np.mean([product((j, layer)) for j in range(M) for layer in range(L)])
    if form == "sequence":
        return np.mean([product((j, layer, r)) for j in range(M) for layer in range(L) for r in range(R)])
    return np.mean([product((j,)) for j in range(M)])


FORMS: tuple[Balance, ...] = ("global", "micro_batch", "sequence", "huggingface")


@pytest.mark.parametrize("form", FORMS)
def test_values_are_those_of_the_definition(form: Balance) -> None:
    logits, counted = logits_and_mask()
    got = balance_loss(sums_of(jnp.asarray(logits), counted), jnp.asarray(counted.sum(2)), form)
    np.testing.assert_allclose(got, reference(form, logits, counted), rtol=1e-5)


def test_micro_batch_less_global_is_the_covariance() -> None:
    """E * sum_i Cov_j(f_i^j, p_i^j), with micro-batches of equal size (the paper's equations 3 and 4)."""
    logits, counted = logits_and_mask(padding=False)
    sums, tokens = sums_of(jnp.asarray(logits), counted), jnp.asarray(counted.sum(2))
    chosen, probabilities, _ = frequencies(logits, counted)
    f, p = (x.mean(axis=(2, 3)) for x in (chosen, probabilities))  # [M, L, E]
    covariance = (f * p).mean(0) - f.mean(0) * p.mean(0)
    difference = balance_loss(sums, tokens, "micro_batch") - balance_loss(sums, tokens, "global")
    expected = np.mean(E * covariance.sum(-1))
    assert abs(expected) > 0.01  # something to see
    np.testing.assert_allclose(difference, expected, rtol=1e-4)


def test_hugging_faces_value_and_gradient() -> None:
    """One forward call of transformers is one micro-batch; layers are pooled, padding is left out."""
    logits, counted = logits_and_mask()
    logits, counted = logits[:1], counted[:1]
    torch = pytest.importorskip("torch")
    modeling = pytest.importorskip("transformers.models.qwen3_moe.modeling_qwen3_moe")
    layers = [torch.tensor(logits[0, i].reshape(R * T, E), requires_grad=True) for i in range(L)]
    expected = modeling.load_balancing_loss_func(tuple(layers), E, K, torch.tensor(counted[0].astype(np.int64)))
    expected.backward()
    wanted = np.stack([layer.grad.numpy().reshape(R, T, E) for layer in layers])[None]
    loss = lambda x: balance_loss(sums_of(x, counted), jnp.asarray(counted.sum(2)), "huggingface")  # noqa: E731
    value, gradient = jax.value_and_grad(loss)(jnp.asarray(logits))
    np.testing.assert_allclose(value, expected.item(), rtol=1e-5)
    np.testing.assert_allclose(gradient, wanted, rtol=1e-4, atol=1e-7)
    assert np.abs(gradient[:, :, ~counted[0]]).max() == 0


def test_an_even_load_gives_the_number_of_experts_a_token() -> None:
    even = RowSums(jnp.full((1, 2, 4, E), 3, jnp.int32), jnp.full((1, 2, 4, E), 1.5, jnp.float32))
    tokens = jnp.full((1, 4), 9, jnp.int32)  # 9 tokens: 18 assignments over 6 experts, probabilities sum to 9
    for form in FORMS:
        np.testing.assert_allclose(balance_loss([even], tokens, form), K, rtol=1e-6)


def test_the_gradient_is_that_of_the_probabilities_with_the_global_frequency() -> None:
    """d loss / d p_sum of any micro-batch is E * f / (tokens * layers), f being that of all of them."""
    logits, counted = logits_and_mask()
    runs, tokens = sums_of(jnp.asarray(logits), counted), jnp.asarray(counted.sum(2))

    def loss(probabilities: list[jax.Array]) -> jax.Array:
        changed = [RowSums(run.assignments, p) for run, p in zip(runs, probabilities, strict=True)]
        return balance_loss(changed, tokens, "global")

    gradient = jax.grad(loss)([run.probabilities for run in runs])
    chosen, _, _ = frequencies(logits, counted)
    f = chosen.sum(axis=(0, 2, 3)) / counted.sum()
    for layer in range(L):
        expected = np.broadcast_to(E * f[layer] / (counted.sum() * L), (M, 1, R, E))
        np.testing.assert_allclose(gradient[layer], expected, rtol=1e-5)
