"""The pieces of a decoder layer as pure functions on arrays, in Hugging Face's order of operations and casts."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from qwen3_jax.config import ModelConfig
from qwen3_jax.network.remat import keep, recomputed
from qwen3_jax.network.rope import apply_rope
from qwen3_jax.parameters.adapters import project
from qwen3_jax.parameters.placement import Placement
from qwen3_jax.parameters.specs import Params
from qwen3_jax.sharding import target_platform

_MASKED = -1e30  # finite: a row that sees nothing (padding) must give numbers, not NaN


def rms_norm(x: Float[Array, "... D"], weight: Float[Array, " D"], eps: float) -> Float[Array, "... D"]:
    """Root-mean-square norm: in float32, cast to the input's dtype, then times the weight (Hugging Face's order)."""
    wide = x.astype(jnp.float32)
    normed = wide * jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + jnp.float32(eps))
    return normed.astype(x.dtype) * jnp.expand_dims(weight, tuple(range(x.ndim - 1)))


def swiglu(params: Params, x: Float[Array, "B T D"], placement: Placement) -> Float[Array, "B T D"]:
    """down(silu(gate x) * up x)."""
    with jax.named_scope("mlp"):
        inner = jax.nn.silu(project(params, "gate_proj", x)) * project(params, "up_proj", x)
        return project(params, "down_proj", placement.constrain(inner, "batch", "sequence", "mlp"))


def project_qkv(
    params: Params,
    config: ModelConfig,
    x: Float[Array, "B T D"],
    rope: tuple[Float[Array, "B T H2"], Float[Array, "B T H2"]],
    placement: Placement,
    qk_norm: bool = True,
) -> tuple[Float[Array, "B T N H"], Float[Array, "B T K H"], Float[Array, "B T K H"]]:
    """Queries and keys normed per head, then turned; values as they are. Keys and values are copied where fewer heads
    than devices share them (K is then `num_key_value_heads * placement.kv_repeats`).

    Args:
      qk_norm: False leaves the norm of queries and keys out, which no Qwen3 does: for ablations.
    """

    def heads(name: str) -> Array:
        return keep("attention", project(params, name, x)).reshape(*x.shape[:2], -1, config.head_dim)

    q, k, v = heads("q_proj"), heads("k_proj"), heads("v_proj")
    if qk_norm:
        q = rms_norm(q, params["q_norm"], config.rms_norm_eps)
        k = rms_norm(k, params["k_norm"], config.rms_norm_eps)
    q, k = apply_rope(q, *rope), apply_rope(k, *rope)
    if placement.kv_repeats > 1:
        k, v = (jnp.repeat(each, placement.kv_repeats, axis=2) for each in (k, v))
    q = placement.constrain(q, "batch", "sequence", "heads", "head_dim")
    k, v = (placement.constrain(heads, "batch", "sequence", "cache_heads", "head_dim") for heads in (k, v))
    return q, k, v


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
            out = _attend_one_token(q[0, :, :, 0], k[0], v[0], mask[0, 0])
        else:
            out = recomputed(_attend)(q, k, v, mask)
        out = out.reshape(q.shape).transpose(0, 3, 1, 2, 4).astype(v.dtype)
    return out.reshape(batch, length, num_heads, head_dim)


def _attend(
    q: Float[Array, "B K G T H"], k: Float[Array, "B K S H"], v: Float[Array, "B K S H"], mask: Bool[Array, "B T S"]
) -> Float[Array, "B K GT H"]:
    rows = q.reshape(*q.shape[:2], -1, q.shape[-1])
    scores = _batched(rows, k, 3).reshape(*q.shape[:-1], -1) * jnp.float32(q.shape[-1] ** -0.5)
    weights = jax.nn.softmax(jnp.where(mask[:, None, None], scores, jnp.float32(_MASKED)), axis=-1)
    return _batched(weights.astype(v.dtype).reshape(*rows.shape[:-1], -1), v, 2)


def _batched(x: Float[Array, "B K M I"], y: Float[Array, "B K J L"], axis: int) -> Float[Array, "B K M O"]:
    """Product of each matrix of `x` with that of `y` over the given axis of `y`, in float32."""
    return jax.lax.dot_general(x, y, (((3,), (axis,)), ((0, 1), (0, 1))), preferred_element_type=jnp.float32)


def _attend_one_token(
    q: Float[Array, "K G H"], k: Float[Array, "K S H"], v: Float[Array, "K S H"], mask: Bool[Array, " S"]
) -> Float[Array, "K G H"]:
    """Attention of a single query without `dot_general`: XLA:CPU copies the whole cache for a product with it when the
    batch is 1, while a sum reads it in place."""
    head_dim = q.shape[-1]
    q, k, v = q.astype(jnp.float32), k.astype(jnp.float32), v.astype(jnp.float32)
    scores = jnp.sum(q[:, :, None, :] * k[:, None], axis=-1) * jnp.float32(head_dim**-0.5)
    weights = jax.nn.softmax(jnp.where(mask[None, None], scores, jnp.float32(_MASKED)), axis=-1)
    return jnp.sum(weights[..., None] * v[:, None], axis=2)
