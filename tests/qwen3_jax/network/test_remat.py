"""What is computed again in the backward pass: the same gradients from less memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen3_jax.kernels.cpu.recompute import recomputed, zero_after


def sharpened(x: jax.Array, scale: jax.Array | None, mask: jax.Array) -> jax.Array:
    """Some function of which automatic differentiation keeps more than the arguments, not all of them floats."""
    y = jnp.where(mask, jnp.tanh(jnp.sin(x) * jnp.exp(x)), 0.0)
    return y if scale is None else y * scale


@pytest.mark.parametrize("scale", [None, 3.0])
def test_gradients_are_those_of_the_function(scale):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 5)), jnp.float32)
    scale = None if scale is None else jnp.float32(scale)

    def gradients(function):
        return jax.grad(lambda x, scale: jnp.sum(jnp.square(function(x, scale, x > -1))), (0, 1))(x, scale)

    jax.tree.map(
        lambda got, want: np.testing.assert_allclose(got, want, rtol=1e-6),
        gradients(recomputed(sharpened)),
        gradients(sharpened),
    )


def test_only_the_arguments_are_kept_on_cpu():
    def temporary_bytes(function):
        def loss(x):
            for _ in range(8):
                x = function(x, None, mask) + x
            return jnp.sum(x)

        return jax.jit(jax.grad(loss)).lower(x).compile().memory_analysis().temp_size_in_bytes

    x, mask = jnp.zeros((256, 256), jnp.float32), jnp.ones((256, 256), bool)
    assert temporary_bytes(recomputed(sharpened)) <= 12 * x.nbytes  # eight arguments, and what one layer needs
    assert temporary_bytes(sharpened) > 16 * x.nbytes


@pytest.mark.parametrize("value", [0.0, -0.0, 1.5, -np.inf, np.nan])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_zero_is_zero_whatever_it_is_made_of(value, dtype):
    assert jax.jit(zero_after)(jnp.full((2, 3), value, dtype)) == 0.0
