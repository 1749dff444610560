"""The grouped product on CPU: a loop over tiles of consecutive rows of one group.

Its trip count is the number of tiles there are, so a group without rows costs nothing and its matrix is not read.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from qwen3_jax.kernels.cpu.linear import LOOP_BYTES, cpu_linear
from qwen3_jax.kernels.cpu.recompute import zero_after
from qwen3_jax.kernels.tiles import tile_table


def tiled_matmul(
    x: Float[Array, "A I"], w: Float[Array, "E O I"], group_sizes: Int[Array, " E"], usual_rows: int
) -> Float[Array, "A O"]:
    """See `qwen3_jax.experts.grouped.grouped_matmul`; `usual_rows` decides the height of a tile."""
    return _tiled(x, w, group_sizes, min(tile_rows(usual_rows, w.shape[0]), x.shape[0]))


def tile_rows(rows: int, groups: int) -> int:
    """Rows of a tile, from what a group has on average (measured on CPU, docs/decisions.md).

    A tile of one row is a matrix-vector product, which XLA reads straight out of `w`; for a taller tile it copies the
    expert's matrix first. So one-row tiles win up to about four rows a group (decoding). From there on the best tile is
    about as tall as a group: not below 16 rows, which do not pay for the copy, and not above 128, where nothing is left
    to gain and the rows past the group's end cost more.
    """
    average = rows / groups
    if average <= 4:
        return 1
    height = 16
    while height < min(average, 128):
        height *= 2
    return min(height, rows)


class _Tile(NamedTuple):
    """A run of rows of one group, moved up where it would end behind the last row (no array needs room for one more).

    Attributes:
      group: whose rows they are.
      start: the first of them.
      own: [R, 1], which are the group's own; the others are a neighbour's, or were another tile's.
    """

    group: Int[Array, ""]
    start: Int[Array, ""]
    own: Bool[Array, "R 1"]


def _each_tile(group_sizes: Array, rows: int, tile: int, body: Callable[[_Tile, Array], Array], start: Array) -> Array:
    """`body` for one tile after the other, from `start` on."""
    groups, starts, ends, count = tile_table(group_sizes, rows, tile)

    def one(i: Array, so_far: Array) -> Array:
        first = jnp.minimum(starts[i], rows - tile)
        index = first + jnp.arange(tile, dtype=first.dtype)
        own = (index >= starts[i]) & (index < ends[i])
        return body(_Tile(groups[i], first, own[:, None]), so_far)

    return jax.lax.fori_loop(jnp.zeros_like(count), count, one, start)


def _map_tiles(x: Array, w: Array, group_sizes: Array, tile: int, transpose: bool) -> Array:
    """x @ w.T (or x @ w) tile by tile. Rows are kept in float32 meanwhile: XLA:CPU slices narrower types by converting
    the whole array."""
    wide = x.astype(jnp.float32)

    def body(at: _Tile, out: Array) -> Array:
        matrix = _matrix(w, at.group)
        part = jax.lax.dynamic_slice_in_dim(wide, at.start, tile).astype(x.dtype)
        part = _times(part, matrix) if transpose else jnp.matmul(part, matrix, preferred_element_type=jnp.float32)
        if tile > 1:
            part = jnp.where(at.own, part, jax.lax.dynamic_slice_in_dim(out, at.start, tile))
        return jax.lax.dynamic_update_slice_in_dim(out, part, at.start, 0)

    out = _zeros_after(wide, (x.shape[0], w.shape[1 if transpose else 2]))
    return _each_tile(group_sizes, x.shape[0], tile, body, out).astype(x.dtype)


def _zeros_after(x: Float[Array, "..."], shape: tuple[int, ...]) -> Float[Array, "..."]:
    """Zeros that are made when `x` is there. What a loop starts from XLA:CPU makes at the program's begin, if it can: a
    training step held the zeros of all layers' backward passes while it ran forward."""
    return jnp.broadcast_to(zero_after(x), shape)


def _matrix(w: Float[Array, "E O I"], group: Int[Array, ""]) -> Float[Array, "O I"]:
    """w[group], read where it is.

    XLA:CPU slices bfloat16 by way of float32, and finds that the conversion of all of `w` can be moved out of the loop:
    75 times slower at one token. As 16-bit integers there is nothing to convert, and the barrier ties `w` to the loop.
    """
    if w.dtype.itemsize != 2:
        return jax.lax.dynamic_index_in_dim(w, group, 0, keepdims=False)
    w, group = jax.lax.optimization_barrier((w, group))
    bits = jax.lax.dynamic_index_in_dim(jax.lax.bitcast_convert_type(w, jnp.uint16), group, 0, keepdims=False)
    return jax.lax.bitcast_convert_type(bits, w.dtype)


def _times(x: Float[Array, "R I"], matrix: Float[Array, "O I"]) -> Float[Array, "R O"]:
    """x @ matrix.T in float32, spelled so that one row reads the matrix out of `w` without a copy.

    Inside a loop this takes the transpose where `cpu_linear`'s own float32 spelling copies (1.6 times slower); a longer
    row than the limit does not go this way at all (20 times slower).
    """
    if x.shape[0] == 1 and x.dtype == jnp.float32 and x.nbytes < LOOP_BYTES:
        return x @ matrix.T
    return cpu_linear(x, matrix, jnp.float32)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _tiled(x: Array, w: Array, group_sizes: Array, tile: int) -> Array:
    return _map_tiles(x, w, group_sizes, tile, transpose=True)


def _tiled_forward(x: Array, w: Array, group_sizes: Array, tile: int) -> tuple[Array, tuple[Array, Array, Array]]:
    return _tiled(x, w, group_sizes, tile), (x, w, group_sizes)


def _tiled_backward(tile: int, residuals: tuple[Array, Array, Array], dy: Array) -> tuple[Array, Array, None]:
    """A loop of unknown length has no derivative of its own; automatic differentiation of one of known length would add
    a whole [E, O, I] array at every tile."""
    x, w, group_sizes = residuals
    dx = _map_tiles(dy, w, group_sizes, tile, transpose=False)
    wide_x, wide_dy = x.astype(jnp.float32), dy.astype(jnp.float32)

    def body(at: _Tile, dw: Array) -> Array:
        part_x = jax.lax.dynamic_slice_in_dim(wide_x, at.start, tile)
        part_dy = jax.lax.dynamic_slice_in_dim(wide_dy, at.start, tile)
        part = jnp.where(at.own, part_dy, jnp.float32(0)).T @ part_x
        so_far = jax.lax.dynamic_index_in_dim(dw, at.group, 0, keepdims=False)
        return jax.lax.dynamic_update_index_in_dim(dw, so_far + part, at.group, 0)

    dw = _each_tile(group_sizes, x.shape[0], tile, body, _zeros_after(wide_dy, w.shape))
    return dx, dw.astype(w.dtype), None


_tiled.defvjp(_tiled_forward, _tiled_backward)
