"""Cross-entropy by chunks against the whole logits, in numpy; and that the whole logits never exist."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen3_jax.kernels.cross_entropy import token_losses

B, T, D, V = 3, 7, 8, 33


def arrays(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=(B, T, D)).astype(np.float32)
    head = rng.normal(size=(V, D)).astype(np.float32)
    return hidden, head, rng.integers(0, V, (B, T)).astype(np.int32), rng.random((B, T)) < 0.6


def reference(hidden: np.ndarray, head: np.ndarray, targets: np.ndarray, mask: np.ndarray) -> float:
    logits = hidden.astype(np.float64) @ head.astype(np.float64).T
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return float(-np.take_along_axis(log_probs, targets[..., None], -1)[..., 0][mask].sum())


def total_loss(hidden: jax.Array, head: jax.Array, targets: jax.Array, mask: jax.Array, chunk: int) -> jax.Array:
    return token_losses(hidden, head, targets, mask.astype(jnp.float32), chunk).objective


@pytest.mark.parametrize("chunk", [1, 4, 21, 64])
def test_chunks_equal_the_whole(chunk: int) -> None:
    hidden, head, targets, mask = arrays()
    arguments = [jnp.asarray(x) for x in (hidden, head, targets, mask)]
    total = jax.jit(total_loss, static_argnums=4)(*arguments, chunk)
    np.testing.assert_allclose(total, reference(hidden, head, targets, mask), rtol=1e-5)


def test_gradients_equal_those_of_the_whole_logits() -> None:
    hidden, head, targets, mask = (jnp.asarray(x) for x in arrays())

    def whole(hidden: jax.Array, head: jax.Array) -> jax.Array:
        log_probs = jax.nn.log_softmax(jnp.einsum("btd,vd->btv", hidden, head))
        return -jnp.sum(jnp.where(mask, jnp.take_along_axis(log_probs, targets[..., None], -1)[..., 0], 0.0))

    ours = jax.jit(jax.grad(lambda h, w: total_loss(h, w, targets, mask, 4), argnums=(0, 1)))(hidden, head)
    theirs = jax.jit(jax.grad(whole, argnums=(0, 1)))(hidden, head)
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_bfloat16_inputs_give_float32_losses() -> None:
    hidden, head, targets, mask = arrays()
    narrow = [jnp.asarray(x, jnp.bfloat16) for x in (hidden, head)]
    total = jax.jit(total_loss, static_argnums=4)(*narrow, jnp.asarray(targets), jnp.asarray(mask), 8)
    assert total.dtype == jnp.float32
    np.testing.assert_allclose(total, reference(hidden, head, targets, mask), rtol=2e-2)


def test_the_whole_logits_are_never_made() -> None:
    hidden, head, targets, mask = (jnp.asarray(x) for x in arrays())
    step = jax.jit(jax.grad(lambda h, w: total_loss(h, w, targets, mask, 4), argnums=(0, 1)))
    text = step.lower(hidden, head).as_text()
    sizes = [int(np.prod([int(n) for n in shape.split("x")])) for shape in re.findall(r"tensor<([\dx]+)xf32>", text)]
    assert max(sizes) == V * D  # the head's gradient; logits are at most 4 * V at once, never B * T * V
    assert 4 * V in sizes


def test_z_loss_is_the_square_of_log_z_with_its_gradient() -> None:
    """Weights that differ, and chunks that end inside a row, against the whole logits."""
    hidden, head, targets, mask = (jnp.asarray(x) for x in arrays(1))
    weights = jnp.where(mask, jnp.linspace(0.1, 2.0, B * T, dtype=jnp.float32).reshape(B, T), 0.0)

    def whole(hidden: jax.Array, head: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits = jnp.einsum("btd,vd->btv", hidden, head)
        log_z = jax.nn.logsumexp(logits, axis=-1)
        losses = log_z - jnp.take_along_axis(logits, targets[..., None], -1)[..., 0]
        return jnp.sum(weights * (losses + 0.03 * jnp.square(log_z))), (losses, log_z)

    def chunked(hidden: jax.Array, head: jax.Array) -> tuple[jax.Array, jax.Array]:
        taken = token_losses(hidden, head, targets, weights, 4, z_loss=0.03)
        return 3 * taken.objective, (taken.losses, taken.log_z)  # times 3: the backward pass scales

    (value, ours), gradients = jax.jit(jax.value_and_grad(chunked, (0, 1), has_aux=True))(hidden, head)
    (expected, theirs), wanted = jax.jit(jax.value_and_grad(whole, (0, 1), has_aux=True))(hidden, head)
    np.testing.assert_allclose(value, 3 * expected, rtol=1e-5)
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
    for one, other in zip(gradients, wanted, strict=True):
        np.testing.assert_allclose(one, 3 * other, rtol=1e-4, atol=2e-5)


def test_the_heads_gradient_is_summed_in_float32() -> None:
    """Many chunks of one token each in bfloat16: a sum kept in bfloat16 stops growing after 256 of them."""
    tokens, chunk = 1024, 1
    hidden, head = jnp.ones((1, tokens, 4), jnp.bfloat16), jnp.zeros((2, 4), jnp.float32)
    targets, weights = jnp.zeros((1, tokens), jnp.int32), jnp.ones((1, tokens), jnp.float32)
    gradient = jax.jit(jax.grad(lambda w: token_losses(hidden, w, targets, weights, chunk).objective))(head)
    np.testing.assert_array_equal(gradient, np.array([[-0.5 * tokens] * 4, [0.5 * tokens] * 4], np.float32))
