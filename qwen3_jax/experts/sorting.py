"""Assignments of tokens to experts, brought into the order of the experts and back.

Dimensions: A assignments (token t's j-th expert is number t * X + j), E experts.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped


class Sorted(NamedTuple):
    """A permutation of the assignments, both ways.

    Attributes:
      order: the assignment that comes at each place.
      places: the place of each assignment.
    """

    order: Int[Array, " A"]
    places: Int[Array, " A"]


def sort_assignments(experts: Int[Array, "*T X"]) -> Sorted:
    """In order of expert; assignments of one expert stay in the order of their tokens.

    In:  [[1, 0], [0, 2]]
    Out: order [1, 2, 0, 3], places [2, 0, 1, 3]
    """
    order = jnp.argsort(experts.reshape(-1))
    places = jnp.zeros_like(order).at[order].set(jnp.arange(order.shape[0], dtype=order.dtype), unique_indices=True)
    return Sorted(order, places)


@jax.custom_vjp
def permute(rows: Shaped[Array, "A ..."], order: Int[Array, " A"], inverse: Int[Array, " A"]) -> Shaped[Array, "A ..."]:
    """rows[order]. Its gradient is the inverse permutation: a gather, where JAX's own would be a scatter."""
    del inverse
    return rows[order]


def _forward(rows: Array, order: Array, inverse: Array) -> tuple[Array, Array]:
    return rows[order], inverse


def _backward(inverse: Array, cotangent: Array) -> tuple[Array, None, None]:
    return cotangent[inverse], None, None


permute.defvjp(_forward, _backward)


def sum_experts(rows: Float[Array, "T X D"]) -> Float[Array, "T D"]:
    """The sum over a token's experts, in float32."""
    return jnp.sum(rows.astype(jnp.float32), axis=1)
