"""The load-balancing loss of a mixture of experts (Qiu et al., "Demons in the Detail", 2501.11873).

Of a layer: E * sum_i f_i * p_i, where f_i is the share of the counted tokens that chose expert i (f sums to the number
of experts per token, K) and p_i the mean of its probability among all experts. It is K when the load is even. f is a
count and has no gradient. What differs is over which tokens f and p are taken:

  global       all tokens of the global batch: every data shard and every micro-batch. Exact, as one gradient is
               taken of all micro-batches after f is known.
  micro_batch  those of a micro-batch; then the mean over micro-batches. Without accumulation the same as global.
  sequence     those of a packed row; then the mean over rows. The strictest.
  huggingface  those of a micro-batch and of all sparse layers together: layers are pooled before the product, so that
               one layer's excess can make up for another's (`load_balancing_loss_func` of transformers). The others
               are means over layers.

With micro-batches j of equal size, micro_batch - global = E * sum_i Cov_j(f_i^j, p_i^j): the local forms also ask each
micro-batch to be even, which keeps experts from specialising.

Dimensions: M micro-batches, L sparse layers, R rows of a micro-batch, E experts.
"""

from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from qwen3_jax.experts.router import RowSums
from qwen3_jax.train.settings import Balance


def balance_loss(rows: Sequence[RowSums], counted: Int[Array, "M R"], form: Balance) -> Float[Array, ""]:
    """The loss before its coefficient; differentiable in the probabilities.

    Args:
      rows: of each run of sparse layers, leaves [M, n, R, E].
      counted: tokens that count in each row.
      form: see the module; not "none".
    """
    assignments = jnp.concatenate([run.assignments for run in rows], axis=1).astype(jnp.float32)
    probabilities = jnp.concatenate([run.probabilities for run in rows], axis=1)
    tokens = counted.astype(jnp.float32)[:, None, :]
    if form == "global":
        return jnp.mean(_product(assignments.sum((0, 2)), probabilities.sum((0, 2)), tokens.sum((0, 2))))
    if form == "sequence":
        of_row = jnp.mean(_product(assignments, probabilities, tokens), axis=1)
        return jnp.sum(of_row) / jnp.maximum(jnp.sum(counted > 0).astype(jnp.float32), 1.0)
    if form == "micro_batch":
        return jnp.mean(_product(assignments.sum(2), probabilities.sum(2), tokens.sum(2)))
    assert form == "huggingface", f"no balance loss {form!r}"
    layers = jnp.float32(assignments.shape[1])
    return jnp.mean(_product(assignments.sum((1, 2)), probabilities.sum((1, 2)), tokens.sum((1, 2)) * layers))


def _product(
    assignments: Float[Array, "*n E"], probabilities: Float[Array, "*n E"], tokens: Float[Array, "*#n"]
) -> Float[Array, "*n"]:
    """E * sum_i f_i p_i; 0 where there is no token."""
    per_token = 1.0 / jnp.maximum(tokens, 1.0)
    num_experts = jnp.float32(assignments.shape[-1])
    return num_experts * jnp.sum(assignments * probabilities, axis=-1) * jnp.square(per_token)
