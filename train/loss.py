"""Masked next-token cross-entropy in float32 that never holds the logits of the whole batch."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def cross_entropy(
    hidden: Float[Array, "B T D"],
    head: Float[Array, "V D"],
    targets: Int[Array, "B T"],
    mask: Bool[Array, "B T"],
    chunk: int,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Sum of the losses of the tokens in `mask`, and their number.

    Logits exist for `chunk` tokens at a time, forward and backward: each chunk is rematerialised, so [B, T, V] is
    never whole.

    Args:
      hidden: after the final norm.
      head: the output matrix, [out, in] (the embedding when tied).
    """
    tokens = hidden.shape[0] * hidden.shape[1]
    count = -(-tokens // chunk)
    pad = count * chunk - tokens

    def chunks(x: Array) -> Array:
        flat = x.reshape(tokens, *x.shape[2:])
        flat = jnp.pad(flat, [(0, pad)] + [(0, 0)] * (flat.ndim - 1))
        return flat.reshape(count, chunk, *flat.shape[1:])

    @jax.checkpoint
    def one(total: Array, part: tuple[Array, Array, Array]) -> tuple[Array, None]:
        states, labels, counted = part
        logits = jnp.einsum("td,vd->tv", states, head, preferred_element_type=jnp.float32)
        chosen = jnp.take_along_axis(logits, labels[:, None], axis=1)[:, 0]
        losses = jax.nn.logsumexp(logits, axis=1) - chosen
        return total + jnp.sum(jnp.where(counted, losses, 0.0)), None

    total, _ = jax.lax.scan(one, jnp.zeros((), jnp.float32), (chunks(hidden), chunks(targets), chunks(mask)))
    return total, jnp.sum(mask, dtype=jnp.float32)
