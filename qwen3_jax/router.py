"""The router of a mixture of experts: which experts a token goes to, and with what weights.

Dimensions: T tokens, X experts per token, E experts, D model.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from qwen3_jax.linear import linear


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


class RouterReport(NamedTuple):
    """What the router did, for the load-balancing loss and the metrics.

    Attributes:
      logits: [B, T, E] in the activations' dtype.
      load: int32[E], assignments each expert got, over all devices.
    """

    logits: Float[Array, "B T E"]
    load: Int[Array, " E"]


def expert_counts(experts: Int[Array, "*T X"], num_experts: int) -> Int[Array, " E"]:
    """How many assignments each expert got: the load whose balance training keeps.

    In:  experts [[0, 2], [2, 3]], num_experts=4
    Out: [1, 0, 2, 1]
    """
    return jnp.zeros(num_experts, jnp.int32).at[experts.reshape(-1)].add(1)
