"""x @ w.T on CPU, where the same product differs twentyfold in speed with its spelling.

Measured with jax 0.10 on 2 cores, weights of Qwen3-0.6B, in GB/s of weights where memory gives 30:

    rows   bfloat16 here / plain `x @ w.T`    float32 here / plain
       1      30 / 30, or 1 as explained          25 / 25
       2      18 / 1                              38 / 20
       8      10-18 / 1                           16 / 9
     512      410 GFLOP/s / 150                  216 GFLOP/s / 216

The reasons, in XLA:CPU's terms: a product of one row is emitted as a loop over `w` as stored, if the row takes less
than 16 KiB as float32 and is an array of its own; a reshape in front of the product is otherwise fused into that loop
and makes it ten times slower. More rows go to a library that multiplies bfloat16 directly when the result is asked for
in float32; in any other spelling a float32 copy of all of `w` is made at every call.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

LOOP_BYTES = 16 * 1024  # XLA:CPU fuses a matrix-vector product only if the vector, as float32, is smaller
_FEW_ROWS = 64  # below, float32 products are bound by reading w


def cpu_linear(x: Float[Array, "... I"], w: Float[Array, "O I"], out_dtype: Any) -> Float[Array, "... O"]:
    """See `qwen3_jax.kernels.linear`; `x` has at least one row."""
    rows = math.prod(x.shape[:-1])
    if w.dtype == jnp.bfloat16:
        if rows <= 2 and 4 * w.shape[1] < LOOP_BYTES:
            y = jnp.concatenate([_one_row(row, w, out_dtype) for row in jnp.split(x.reshape(rows, -1), rows)])
            return y.reshape(*x.shape[:-1], -1)
        if rows == 1:  # too long for the loop, and a single row does not go to the library
            padded = jnp.pad(x.reshape(1, -1), ((0, 1), (0, 0)))
            return _product(padded, w, jnp.float32)[:1].astype(out_dtype).reshape(*x.shape[:-1], -1)
        return _product(x, w, jnp.float32).astype(out_dtype)
    if 1 < rows <= _FEW_ROWS:
        # With w on the left it is read as stored. The barrier keeps XLA from swapping the two back.
        y = jax.lax.optimization_barrier(_product(w, x.reshape(rows, -1), out_dtype))
        return y.T.reshape(*x.shape[:-1], -1)
    return _product(x, w, out_dtype)


def _product(x: Float[Array, "... I"], w: Float[Array, "O I"], out_dtype: Any) -> Float[Array, "... O"]:
    return jax.lax.dot_general(x, w, (((x.ndim - 1,), (1,)), ((), ())), preferred_element_type=out_dtype)


def _one_row(x: Float[Array, "1 I"], w: Float[Array, "O I"], out_dtype: Any) -> Float[Array, "1 O"]:
    """A matrix-vector product on CPU.

    The barrier keeps reshapes and slices in front of the product apart from it, and the cast after the barrier gives
    it an array of its own: a bare barrier leaves no trace once XLA has removed it.
    """
    x = jax.lax.optimization_barrier(x.astype(jnp.float32)).astype(w.dtype)
    return jnp.matmul(x, w.T, preferred_element_type=out_dtype)
