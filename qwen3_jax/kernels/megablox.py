"""The grouped product on TPU: JAX's megablox kernels, forward and both gradients.

They read each expert's matrix as it is stored, [out, in], where `jax.lax.ragged_dot` wants [in, out] and transposes the
matrices of all experts at every call, and they write the gradient of the matrices as stored too.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.megablox.gmm import gmm, tgmm
from jaxtyping import Array, Float, Int

_ROWS = 512  # of a tile at most
_FEATURE_BYTES = 2048  # of a tile's side at most: two tiles read, one written and the sums fit into 16 MiB of v5e


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def megablox(
    x: Float[Array, "A I"], w: Float[Array, "E O I"], group_sizes: Int[Array, " E"], interpret: bool
) -> Float[Array, "A O"]:
    """See `qwen3_jax.experts.grouped`. Rows past the last group give zeros and get a gradient of zeros."""
    return _product(x, w, group_sizes, interpret, transpose=True)


def _forward(x: Array, w: Array, group_sizes: Array, interpret: bool) -> tuple[Array, tuple[Array, Array, Array]]:
    return _product(x, w, group_sizes, interpret, transpose=True), (x, w, group_sizes)


def _backward(interpret: bool, residuals: tuple[Array, Array, Array], dy: Array) -> tuple[Array, Array, None]:
    x, w, group_sizes = residuals
    dx = _product(dy, w, group_sizes, interpret, transpose=False)
    x, dy = _whole_tiles(x), _whole_tiles(dy)
    tiling = _tiling(x, dy.shape[1], x.shape[1], _FEATURE_BYTES // 2)
    with jax.numpy_dtype_promotion("standard"):  # JAX's own code relies on it, here and below
        dw = tgmm(dy.T, x, group_sizes, w.dtype, tiling, interpret=interpret)
    return dx, dw, None


megablox.defvjp(_forward, _backward)


def _product(x: Array, w: Array, group_sizes: Array, interpret: bool, transpose: bool) -> Array:
    """x @ w.T (or x @ w) of each row's group."""
    padded = _whole_tiles(x)
    tiling = _tiling(padded, x.shape[1], w.shape[1 if transpose else 2], _FEATURE_BYTES)
    with jax.numpy_dtype_promotion("standard"):
        y = gmm(padded, w, group_sizes, x.dtype, tiling, transpose_rhs=transpose, interpret=interpret)[: x.shape[0]]
    # Tiles without a group are never written: whatever the memory held is there.
    used = jnp.arange(x.shape[0], dtype=group_sizes.dtype) < jnp.sum(group_sizes)
    return jnp.where(used[:, None], y, jnp.zeros((), y.dtype))


def _tiling(x: Array, inner: int, outer: int, feature_bytes: int) -> tuple[int, int, int]:
    features = feature_bytes // x.dtype.itemsize
    return min(x.shape[0], _ROWS), min(inner, features), min(outer, features)


def _whole_tiles(x: Float[Array, "A I"]) -> Float[Array, "padded I"]:
    """Rows padded to a whole number of tiles (and a tile to the sublanes of a 16-bit register)."""
    tile = min(_ROWS, -(-x.shape[0] // 16) * 16)
    return jnp.pad(x, ((0, -x.shape[0] % tile), (0, 0)))
