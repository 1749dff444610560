"""Root-mean-square norms: of activations, and of each head's queries and keys (QK-Norm, which Qwen3 adds to Qwen2)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from qwen3_jax.parameters.specs import Params


def rms_norm(x: Float[Array, "... D"], weight: Float[Array, " D"], eps: float) -> Float[Array, "... D"]:
    """Root-mean-square norm: in float32, cast to the input's dtype, then times the weight (Hugging Face's order)."""
    wide = x.astype(jnp.float32)
    normed = wide * jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + jnp.float32(eps))
    return normed.astype(x.dtype) * jnp.expand_dims(weight, tuple(range(x.ndim - 1)))


def qk_norm(
    params: Params, q: Float[Array, "B T N H"], k: Float[Array, "B T K H"], eps: float
) -> tuple[Float[Array, "B T N H"], Float[Array, "B T K H"]]:
    """Queries and keys normed over each head, before they are rotated; one scale of length H for all heads."""
    return rms_norm(q, params["q_norm"], eps), rms_norm(k, params["k_norm"], eps)
