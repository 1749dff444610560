"""One product for many experts: rows sorted by expert, each run of rows times its own expert's matrix.

Several implementations of the same function, because XLA lowers `jax.lax.ragged_dot` densely over all experts on CPU
and GPU (64 experts are then 64 times the work):

  tiles       a loop over tiles of consecutive rows of one expert, `qwen3_jax.kernels.cpu.tiled_matmul`.
  megablox    a Pallas kernel for TPU, `qwen3_jax.kernels.megablox`.
  triton      a Pallas kernel for GPU, `qwen3_jax.kernels.triton`.
  ragged_dot  `jax.lax.ragged_dot_general`, a kernel on TPU too (which wants [E, I, O] and transposes `w` first).

A kernel asked for on CPU runs in Pallas's interpreter: slowly, to be checked.

Dimensions: A rows (one for each token and expert chosen for it), E experts, I in, O out.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from qwen3_jax.kernels.cpu.recompute import recomputed
from qwen3_jax.kernels.cpu.tiled_matmul import tiled_matmul
from qwen3_jax.kernels.megablox import megablox
from qwen3_jax.kernels.triton import triton_grouped
from qwen3_jax.sharding import target_platform

GroupedBackend = Literal["tiles", "ragged_dot", "megablox", "triton"]

_ROWS_AND_EXPERTS = jax.lax.RaggedDotDimensionNumbers(
    dot_dimension_numbers=(((1,), (2,)), ((), ())), lhs_ragged_dimensions=[0], rhs_group_dimensions=[0]
)


def grouped_matmul(
    x: Float[Array, "A I"],
    w: Float[Array, "E O I"],
    group_sizes: Int[Array, " E"],
    implementation: GroupedBackend,
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
        y = tiled_matmul(x, w, group_sizes, usual_rows or x.shape[0])
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
    weights: Float[Array, "A 1"],
    group_sizes: Int[Array, " E"],
    implementation: GroupedBackend,
    usual_rows: int | None = None,
) -> Float[Array, "A D"]:
    """Each row through its own group's expert, times its weight; the other arguments are `grouped_matmul`'s."""

    def product(rows: Array, w: Array) -> Array:
        return grouped_matmul(rows, w, group_sizes, implementation, usual_rows)

    def combine(gated: Array, raised: Array, weights: Array, down: Array, group_sizes: Array) -> Array:
        inner = weighted_swiglu(gated, raised, weights)
        return grouped_matmul(inner, down, group_sizes, implementation, usual_rows)

    return recomputed(combine)(product(x, gate), product(x, up), weights, down, group_sizes)


def weighted_swiglu(
    gated: Float[Array, "... F"], raised: Float[Array, "... F"], weights: Float[Array, "... 1"]
) -> Float[Array, "... F"]:
    """What goes into an expert's `down`: silu(gate x) * up x, times the weight that the router gave the expert.

    The weight is applied here and nowhere else, in every execution, so that all of them round alike in bfloat16. In
    front of `down` its gradient does not need the expert's result.
    """
    return jax.nn.silu(gated) * raised * weights
