"""Grouped-query attention as products and a softmax: the definition, and what runs where no kernel does."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from qwen3_jax.kernels.cpu.one_token import MASKED, attend_one_token
from qwen3_jax.kernels.cpu.recompute import recomputed
from qwen3_jax.sharding import target_platform


def attention(
    q: Float[Array, "B T N H"], k: Float[Array, "B K S H"], v: Float[Array, "B K S H"], mask: Bool[Array, "B T S"]
) -> Float[Array, "B T N H"]:
    """Grouped-query attention: query head n reads key-value head n // (N/K). Softmax in float32."""
    batch, length, num_heads, head_dim = q.shape
    heads = k.shape[1]
    with jax.named_scope("attention"):
        # [B, K, G, T, H]: a key-value head's queries as one matrix, [G*T, H], so that both products are plain batched
        # matrix products. XLA:CPU fails on bfloat16 products that it would have to transpose.
        q = q.reshape(batch, length, heads, num_heads // heads, head_dim).transpose(0, 2, 3, 1, 4)
        if batch == length == 1 and target_platform() == "cpu":
            out = attend_one_token(q[0, :, :, 0], k[0], v[0], mask[0, 0])
        else:
            out = recomputed(_attend)(q, k, v, mask)
        out = out.reshape(q.shape).transpose(0, 3, 1, 2, 4).astype(v.dtype)
    return out.reshape(batch, length, num_heads, head_dim)


def _attend(
    q: Float[Array, "B K G T H"], k: Float[Array, "B K S H"], v: Float[Array, "B K S H"], mask: Bool[Array, "B T S"]
) -> Float[Array, "B K GT H"]:
    rows = q.reshape(*q.shape[:2], -1, q.shape[-1])
    scores = _batched(rows, k, 3).reshape(*q.shape[:-1], -1) * jnp.float32(q.shape[-1] ** -0.5)
    weights = jax.nn.softmax(jnp.where(mask[:, None, None], scores, jnp.float32(MASKED)), axis=-1)
    return _batched(weights.astype(v.dtype).reshape(*rows.shape[:-1], -1), v, 2)


def _batched(x: Float[Array, "B K M I"], y: Float[Array, "B K J L"], axis: int) -> Float[Array, "B K M O"]:
    """Product of each matrix of `x` with that of `y` over the given axis of `y`, in float32."""
    return jax.lax.dot_general(x, y, (((3,), (axis,)), ((0, 1), (0, 1))), preferred_element_type=jnp.float32)
