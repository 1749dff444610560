"""linear(x, w) is x @ w.T in every spelling it chooses, forwards and backwards, without a copy of w."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen3_jax.kernels.linear import linear

# One spelling each on CPU: single rows (bfloat16), w on the left (float32), plain.
ROWS = [1, 2, 8, 65]


def _operands(rows: tuple[int, ...], inner: int, outer: int, dtype: jnp.dtype) -> tuple[jax.Array, jax.Array]:
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((*rows, inner)), dtype)
    w = jnp.asarray(rng.standard_normal((outer, inner)), dtype)
    return x, w


def _exact(x: jax.Array, w: jax.Array) -> np.ndarray:
    return np.asarray(x, np.float64) @ np.asarray(w, np.float64).T


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("rows", ROWS)
def test_equals_numpy(rows: int, dtype: jnp.dtype) -> None:
    x, w = _operands((rows,), 96, 40, dtype)
    for got in (linear(x, w), jax.jit(linear)(x, w)):
        assert got.dtype == dtype
        assert got.shape == (rows, 40)
        tolerance = 1e-5 if dtype == jnp.float32 else 2.0**-7  # bfloat16: of the result's own rounding
        np.testing.assert_allclose(np.asarray(got, np.float64), _exact(x, w), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("rows", ROWS)
def test_float32_result_of_bfloat16_operands_is_not_rounded(rows: int) -> None:
    x, w = _operands((rows,), 96, 40, jnp.bfloat16)
    got = jax.jit(linear, static_argnums=2)(x, w, jnp.float32)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(np.asarray(got, np.float64), _exact(x, w), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("rows", [(), (0, 3), (1, 1), (2, 1), (3, 7, 2)])
def test_leading_axes_are_kept(rows: tuple[int, ...]) -> None:
    x, w = _operands(rows, 16, 24, jnp.float32)
    np.testing.assert_allclose(np.asarray(linear(x, w)), _exact(x, w), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_long_rows(rows: int) -> None:
    """From 4,096 inputs on, one bfloat16 row is spelled otherwise."""
    x, w = _operands((rows,), 4096, 8, jnp.bfloat16)
    np.testing.assert_allclose(np.asarray(linear(x, w, jnp.float32), np.float64), _exact(x, w), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("rows", [1, 2, 8, 65])
def test_gradients(rows: int, dtype: jnp.dtype) -> None:
    x, w = _operands((rows,), 12, 20, dtype)
    target = jnp.asarray(np.random.default_rng(1).standard_normal((rows, 20)), dtype)

    def loss(x: jax.Array, w: jax.Array) -> jax.Array:
        return jnp.sum((linear(x, w) * target).astype(jnp.float32))

    of_x, of_w = jax.jit(jax.grad(loss, (0, 1)))(x, w)
    assert of_x.dtype == of_w.dtype == dtype
    tolerance = 1e-5 if dtype == jnp.float32 else 2.0**-6
    exact_x = np.asarray(target, np.float64) @ np.asarray(w, np.float64)
    exact_w = np.asarray(target, np.float64).T @ np.asarray(x, np.float64)
    np.testing.assert_allclose(np.asarray(of_x, np.float64), exact_x, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(np.asarray(of_w, np.float64), exact_w, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("inner", [2048, 4096])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("rows", [1, 8])
def test_no_copy_of_the_weight_is_made(rows: int, dtype: jnp.dtype, inner: int) -> None:
    """What ruins decoding on CPU: a float32 (or transposed) copy of w at every call."""
    w = jax.ShapeDtypeStruct((1024, inner), dtype)
    # The reshape stands for the one in front of o_proj: it must not find its way into the product.
    x = jax.ShapeDtypeStruct((rows, inner // 128, 128), dtype)
    compiled = jax.jit(lambda x, w: linear(x.reshape(rows, -1), w)).lower(x, w).compile()
    memory = compiled.memory_analysis()
    assert memory is not None
    assert memory.temp_size_in_bytes < 0.1 * w.size * w.dtype.itemsize
