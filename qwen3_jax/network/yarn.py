"""YaRN (arXiv 2309.00071): which planes of the rotary embedding are stretched, and the factor on attention."""

import math

import numpy as np

from qwen3_jax.config import YarnConfig


def yarn_attention_factor(yarn: YarnConfig) -> float:
    """Temperature of YaRN (arXiv 2309.00071, eq. 22): 0.1 ln(s) + 1 unless the file gives its own."""

    def mscale(scale: float, weight: float = 1.0) -> float:
        return 1.0 if scale <= 1 else 0.1 * weight * math.log(scale) + 1.0

    if yarn.attention_factor is not None:
        return yarn.attention_factor
    if yarn.mscale and yarn.mscale_all_dim:
        return mscale(yarn.factor, yarn.mscale) / mscale(yarn.factor, yarn.mscale_all_dim)
    return mscale(yarn.factor)


def yarn_ramp(yarn: YarnConfig, head_dim: int, theta: float) -> np.ndarray:
    """float32[H/2]: 0 where a plane turns fast enough to be kept, 1 where it is stretched by the factor."""

    def plane_of(rotations: float) -> float:
        """Which plane makes this many turns over the original context."""
        turns = yarn.original_max_position_embeddings / (rotations * 2 * math.pi)
        return head_dim * math.log(turns) / (2 * math.log(theta))

    low, high = plane_of(yarn.beta_fast), plane_of(yarn.beta_slow)
    if yarn.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    if low == high:
        high += 0.001
    planes = np.arange(head_dim // 2, dtype=np.float32)
    return np.clip((planes - low) / (high - low), 0, 1).astype(np.float32)
