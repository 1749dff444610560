"""Rotary position embeddings: the default form and YaRN, as Hugging Face computes them."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from qwen3_jax.config import ModelConfig
from qwen3_jax.network.yarn import yarn_attention_factor, yarn_ramp


def inverse_frequencies(config: ModelConfig) -> tuple[np.ndarray, float]:
    """Angle a position advances in each of the H/2 planes, and the factor on cos and sin.

    Returns:
      float32[H/2] radians a position, and the attention factor (1 without YaRN). Both cos and sin are multiplied by the
      factor, so attention logits scale by its square.
    """
    # float32 throughout, as Hugging Face: at position 40,000 a last-digit difference here is visible in the logits.
    exponents = np.arange(0, config.head_dim, 2, dtype=np.float32) / np.float32(config.head_dim)
    plain = (np.float32(1.0) / np.float32(config.rope_theta) ** exponents).astype(np.float32)
    if config.yarn is None:
        return plain, 1.0
    ramp = yarn_ramp(config.yarn, config.head_dim, config.rope_theta)
    stretched = plain / np.float32(config.yarn.factor)
    return (plain * (1 - ramp) + stretched * ramp).astype(np.float32), yarn_attention_factor(config.yarn)


def rope_cos_sin(
    positions: Int[Array, "B T"], config: ModelConfig, dtype: Any
) -> tuple[Float[Array, "B T H2"], Float[Array, "B T H2"]]:
    """cos and sin of every position in every plane (H2 = H/2), computed in float32, then cast to `dtype`."""
    frequencies, factor = inverse_frequencies(config)
    angles = positions[:, :, None].astype(jnp.float32) * jnp.asarray(frequencies)[None, None, :]
    scale = jnp.float32(factor)
    return (jnp.cos(angles) * scale).astype(dtype), (jnp.sin(angles) * scale).astype(dtype)


def apply_rope(
    x: Float[Array, "B T heads H"], cos: Float[Array, "B T H2"], sin: Float[Array, "B T H2"]
) -> Float[Array, "B T heads H"]:
    """Turns each head: plane i is the pair (x[i], x[i + H/2]), the half-split form of Hugging Face."""
    first, second = jnp.split(x, 2, axis=-1)
    cos, sin = cos[:, :, None, :], sin[:, :, None, :]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
