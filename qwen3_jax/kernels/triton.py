"""The grouped product on GPU: a Pallas kernel in Triton's lowering, forward and both gradients.

XLA lowers `jax.lax.ragged_dot` densely over all groups there. Here a program takes one tile: rows of one group, some
features of the result, and a loop over what is summed. Groups without rows cost nothing.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Float, Int

from qwen3_jax.kernels.tiles import tile_table

_OUT = 128  # features of the result in a tile
_SUMMED_BYTES = 64  # of a row, in one turn of the loop: with 4 turns in flight a tile takes 64 KiB of shared memory


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def triton_grouped(
    x: Float[Array, "A I"], w: Float[Array, "E O I"], group_sizes: Int[Array, " E"], interpret: bool
) -> Float[Array, "A O"]:
    """See `qwen3_jax.experts.grouped`. Rows past the last group give zeros and get a gradient of zeros."""
    return _product(x, w, group_sizes, interpret, transpose=True)


def _forward(x: Array, w: Array, group_sizes: Array, interpret: bool) -> tuple[Array, tuple[Array, Array, Array]]:
    return _product(x, w, group_sizes, interpret, transpose=True), (x, w, group_sizes)


def _backward(interpret: bool, residuals: tuple[Array, Array, Array], dy: Array) -> tuple[Array, Array, None]:
    x, w, group_sizes = residuals
    dx = _product(dy, w, group_sizes, interpret, transpose=False)
    return dx, _outer(dy, x, group_sizes, w, interpret), None


triton_grouped.defvjp(_forward, _backward)


def tile_rows(rows: int, groups: int) -> int:
    """Rows of a tile: about those that a group has on average, at least what a tensor core takes.

    In:  8192 rows of 128 groups     Out: 64
    """
    height = 16
    while height < min(rows / groups, 128):
        height *= 2
    return height


def _product(x: Array, w: Array, group_sizes: Array, interpret: bool, transpose: bool) -> Array:
    """x @ w.T (or x @ w) of each row's group."""
    (rows, summed), groups = x.shape, w.shape[0]
    features = w.shape[1 if transpose else 2]
    tile, step = tile_rows(rows, groups), max(16, _SUMMED_BYTES // x.dtype.itemsize)
    # The rows past the last group are one more group, of which nothing is summed.
    sizes = jnp.concatenate([group_sizes, rows - jnp.sum(group_sizes, keepdims=True, dtype=group_sizes.dtype)])
    tables = tile_table(sizes, rows, tile)[:3]
    steps = pl.cdiv(summed, step)

    def kernel(groups_ref, starts_ref, ends_ref, x_ref, w_ref, y_ref) -> None:  # type: ignore[no-untyped-def]
        i, first = pl.program_id(0), pl.program_id(1) * _OUT
        group, start = groups_ref[i], starts_ref[i]
        own = (start + jnp.arange(tile) < ends_ref[i])[:, None]
        wanted = first + jnp.arange(_OUT) < features
        of_rows, of_features = pl.ds(start, tile), pl.ds(first, _OUT)

        def add(k: Array, total: Array) -> Array:
            part = pl.ds(k * step, step)
            inside = k * step + jnp.arange(step) < summed
            left = plgpu.load(x_ref.at[of_rows, part], mask=own & inside[None, :], other=0.0)
            if transpose:
                right = plgpu.load(
                    w_ref.at[group, of_features, part], mask=wanted[:, None] & inside[None, :], other=0.0
                ).T
            else:
                right = plgpu.load(
                    w_ref.at[group, part, of_features], mask=inside[:, None] & wanted[None, :], other=0.0
                )
            return total + plgpu.dot(left, right)

        count = jnp.where(group < groups, jnp.int32(steps), jnp.int32(0))
        total = jax.lax.fori_loop(jnp.int32(0), count, add, jnp.zeros((tile, _OUT), jnp.float32))
        plgpu.store(y_ref.at[of_rows, of_features], total.astype(y_ref.dtype), mask=own & wanted[None, :])

    return pl.pallas_call(
        kernel,
        grid=(tables[0].shape[0], pl.cdiv(features, _OUT)),
        out_shape=jax.ShapeDtypeStruct((rows, features), x.dtype),
        compiler_params=_compiler_params(tile),
        interpret=interpret,
        name="grouped_product",
    )(*tables, x, w)


def _outer(dy: Array, x: Array, group_sizes: Array, w: Array, interpret: bool) -> Array:
    """dy.T @ x over each group's rows, zero for a group without any."""
    groups, features, inner = w.shape
    tile, size = max(16, _SUMMED_BYTES // x.dtype.itemsize), _OUT
    ends = jnp.cumsum(group_sizes)

    def kernel(starts_ref, ends_ref, dy_ref, x_ref, dw_ref) -> None:  # type: ignore[no-untyped-def]
        group = pl.program_id(0)
        first_out, first_in = pl.program_id(1) * size, pl.program_id(2) * size
        start, end = starts_ref[group], ends_ref[group]
        wanted_out, wanted_in = (
            first + jnp.arange(size) < limit for first, limit in ((first_out, features), (first_in, inner))
        )

        def add(t: Array, total: Array) -> Array:
            row = start + t * tile
            own = (row + jnp.arange(tile) < end)[:, None]
            left = plgpu.load(
                dy_ref.at[pl.ds(row, tile), pl.ds(first_out, size)], mask=own & wanted_out[None, :], other=0.0
            )
            right = plgpu.load(
                x_ref.at[pl.ds(row, tile), pl.ds(first_in, size)], mask=own & wanted_in[None, :], other=0.0
            )
            return total + plgpu.dot(left.T, right)

        total = jax.lax.fori_loop(0, pl.cdiv(end - start, tile), add, jnp.zeros((size, size), jnp.float32))
        plgpu.store(
            dw_ref.at[group, pl.ds(first_out, size), pl.ds(first_in, size)],
            total.astype(dw_ref.dtype),
            mask=wanted_out[:, None] & wanted_in[None, :],
        )

    return pl.pallas_call(
        kernel,
        grid=(groups, pl.cdiv(features, size), pl.cdiv(inner, size)),
        out_shape=jax.ShapeDtypeStruct(w.shape, w.dtype),
        compiler_params=_compiler_params(size),
        interpret=interpret,
        name="grouped_outer_product",
    )(ends - group_sizes, ends, dy, x)


def _compiler_params(height: int) -> plgpu.CompilerParams:
    return plgpu.CompilerParams(num_warps=8 if height >= 128 else 4, num_stages=4)
