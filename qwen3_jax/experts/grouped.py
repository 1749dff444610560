"""One product for many experts: rows sorted by expert, each run of rows times its own expert's matrix.

Several implementations of the same function, because XLA lowers `jax.lax.ragged_dot` densely over all experts on CPU
and GPU (64 experts are then 64 times the work):

  tiles       a loop over tiles of consecutive rows of one expert; its trip count is the number of tiles there are, so
              an expert without rows costs nothing and its weights are not read. What CPU runs.
  megablox    a Pallas kernel for TPU, `qwen3_jax.kernels.megablox`.
  triton      a Pallas kernel for GPU, `qwen3_jax.kernels.triton`.
  ragged_dot  `jax.lax.ragged_dot_general`, a kernel on TPU too (which wants [E, I, O] and transposes `w` first).

A kernel asked for on CPU runs in Pallas's interpreter: slowly, to be checked.

Dimensions: A rows (one for each token and expert chosen for it), E experts, I in, O out.
"""

from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from qwen3_jax.kernels.cpu.recompute import recomputed, zero_after
from qwen3_jax.kernels.linear import linear
from qwen3_jax.kernels.megablox import megablox
from qwen3_jax.kernels.tiles import tile_table
from qwen3_jax.kernels.triton import triton_grouped
from qwen3_jax.sharding import target_platform

Implementation = Literal["tiles", "ragged_dot", "megablox", "triton"]

_LOOP_BYTES = 16 * 1024  # XLA:CPU's limit on the row of a fused matrix-vector product, see qwen3_jax.kernels.linear

_ROWS_AND_EXPERTS = jax.lax.RaggedDotDimensionNumbers(
    dot_dimension_numbers=(((1,), (2,)), ((), ())), lhs_ragged_dimensions=[0], rhs_group_dimensions=[0]
)


def grouped_matmul(
    x: Float[Array, "A I"],
    w: Float[Array, "E O I"],
    group_sizes: Int[Array, " E"],
    implementation: Implementation,
    usual_rows: int | None = None,
) -> Float[Array, "A O"]:
    """Row r of the result is `w[e] @ x[r]`, where e is the group of row r. Differentiable in `x` and `w`.

    In:  group_sizes [2, 0, 1], x of 3 rows
    Out: [w[0] @ x[0], w[0] @ x[1], w[2] @ x[2]]

    Args:
      x: rows, sorted by group.
      w: one [out, in] matrix a group, in Hugging Face's orientation.
      group_sizes: number of rows of each group; they sum to A, or to less where `usual_rows` is given.
      implementation: see the module.
      usual_rows: rows that the groups have in most calls, where `x` has room for more (a buffer for the worst case).
        Rows past the last group give zeros and get a gradient of zeros.
    """
    interpret = target_platform() == "cpu"
    if implementation == "ragged_dot":
        y = jax.lax.ragged_dot_general(x, w, group_sizes, _ROWS_AND_EXPERTS)
    elif implementation == "megablox":
        y = megablox(x, w, group_sizes, interpret)
    elif implementation == "triton":
        y = triton_grouped(x, w, group_sizes, interpret)
    else:
        y = _tiled(x, w, group_sizes, min(tile_rows(usual_rows or x.shape[0], w.shape[0]), x.shape[0]))
    if usual_rows is None:
        return y
    # No implementation need write these rows; masked, they cannot reach anything in either direction.
    used = jnp.arange(x.shape[0], dtype=group_sizes.dtype) < jnp.sum(group_sizes)
    return jnp.where(used[:, None], y, jnp.zeros((), y.dtype))


def grouped_swiglu(
    x: Float[Array, "A D"],
    gate: Float[Array, "E F D"],
    up: Float[Array, "E F D"],
    down: Float[Array, "E D F"],
    group_sizes: Int[Array, " E"],
    implementation: Implementation,
    usual_rows: int | None = None,
    scales: Float[Array, "A 1"] | None = None,
) -> Float[Array, "A D"]:
    """Each row through its own group's expert, down(silu(gate x) * up x); the other arguments are `grouped_matmul`'s.

    Args:
      scales: factor of each row. It is applied in front of `down`, so that its gradient does not need the result.
    """

    def product(rows: Array, w: Array) -> Array:
        return grouped_matmul(rows, w, group_sizes, implementation, usual_rows)

    def combine(gated: Array, raised: Array, scales: Array | None, down: Array, group_sizes: Array) -> Array:
        inner = jax.nn.silu(gated) * raised
        inner = inner if scales is None else inner * scales
        return grouped_matmul(inner, down, group_sizes, implementation, usual_rows)

    return recomputed(combine)(product(x, gate), product(x, up), scales, down, group_sizes)


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

    Inside a loop this takes the transpose where `linear`'s own float32 spelling copies (1.6 times slower); a longer row
    than the limit does not go this way at all (20 times slower).
    """
    if x.shape[0] == 1 and x.dtype == jnp.float32 and x.nbytes < _LOOP_BYTES:
        return x @ matrix.T
    return linear(x, matrix, out_dtype=jnp.float32)


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
