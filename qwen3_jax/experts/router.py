"""The router of a mixture of experts: which experts a token goes to, and with what weights.

Dimensions: T tokens, X experts per token, E experts, D model.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from qwen3_jax.kernels.linear import linear


class Routing(NamedTuple):
    """Where each token goes.

    Attributes:
      weights: [T, X] in the activations' dtype, largest first.
      experts: int32[T, X].
      logits: [T, E] in the activations' dtype, what the load-balancing loss is made of.
    """

    weights: Float[Array, "T X"]
    experts: Int[Array, "T X"]
    logits: Float[Array, "T E"]


def route(
    x: Float[Array, "T D"], router: Float[Array, "E D"], num_experts_per_tok: int, norm_topk_prob: bool
) -> Routing:
    """Softmax over all experts in float32, then the best of them, made to sum to 1 if `norm_topk_prob` (Hugging Face's
    `Qwen3MoeTopKRouter`). Experts of equal probability are taken in order of their number."""
    with jax.named_scope("router"):
        logits = linear(x, router)
        probabilities = jax.nn.softmax(logits.astype(jnp.float32), axis=-1)
        weights, experts = jax.lax.top_k(probabilities, num_experts_per_tok)
        if norm_topk_prob:
            weights = weights / jnp.sum(weights, axis=-1, keepdims=True)
        return Routing(weights.astype(logits.dtype), experts, logits)


class RowSums(NamedTuple):
    """What a load-balancing loss has to know of each row; a few numbers, where the logits are [B, T, E].

    Attributes:
      assignments: int32[B, E], how many of the row's counted tokens chose the expert.
      probabilities: float32[B, E], sum over the same tokens of its probability among all experts; this has a gradient.
    """

    assignments: Int[Array, "B E"]
    probabilities: Float[Array, "B E"]


class RouterReport(NamedTuple):
    """What the router did, for the load-balancing loss and the metrics.

    Attributes:
      logits: [B, T, E] in the activations' dtype.
      load: int32[E], assignments each expert got, over all devices; those of the counted tokens, when it was said which
        count.
      rows: sums over the counted tokens, likewise; else None.
    """

    logits: Float[Array, "B T E"]
    load: Int[Array, " E"]
    rows: RowSums | None = None


def row_sums(routing: Routing, counted: Bool[Array, "B T"]) -> RowSums:
    """In:  experts [[0, 2], [2, 3], [0, 1]] of one row's three tokens, the last not counted; 4 experts
    Out: assignments [[1, 0, 2, 1]], and the first two tokens' probabilities summed
    """
    with jax.named_scope("router"):
        num_experts = routing.logits.shape[-1]
        probabilities = jax.nn.softmax(routing.logits.astype(jnp.float32), axis=-1)
        probabilities = probabilities.reshape(*counted.shape, num_experts)
        chosen = routing.experts.reshape(*counted.shape, -1, 1) == jnp.arange(num_experts).reshape(1, 1, 1, -1)
        return RowSums(
            jnp.sum(chosen & counted[:, :, None, None], axis=(1, 2), dtype=jnp.int32),
            jnp.sum(jnp.where(counted[:, :, None], probabilities, 0.0), axis=1),
        )


def expert_counts(experts: Int[Array, "*T X"], num_experts: int) -> Int[Array, " E"]:
    """How many assignments each expert got: the load whose balance training keeps.

    In:  experts [[0, 2], [2, 3]], num_experts=4
    Out: [1, 0, 2, 1]
    """
    return jnp.zeros(num_experts, jnp.int32).at[experts.reshape(-1)].add(1)
