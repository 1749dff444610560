"""Attention of one token of one row, read out of the cache in place."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

MASKED = -1e30  # finite: a row that sees nothing (padding) must give numbers, not NaN


def attend_one_token(
    q: Float[Array, "K G H"], k: Float[Array, "K S H"], v: Float[Array, "K S H"], mask: Bool[Array, " S"]
) -> Float[Array, "K G H"]:
    """Attention of a single query without `dot_general`: XLA:CPU copies the whole cache for a product with it when the
    batch is 1, while a sum reads it in place."""
    head_dim = q.shape[-1]
    q, k, v = q.astype(jnp.float32), k.astype(jnp.float32), v.astype(jnp.float32)
    scores = jnp.sum(q[:, :, None, :] * k[:, None], axis=-1) * jnp.float32(head_dim**-0.5)
    weights = jax.nn.softmax(jnp.where(mask[None, None], scores, jnp.float32(MASKED)), axis=-1)
    return jnp.sum(weights[..., None] * v[:, None], axis=2)
