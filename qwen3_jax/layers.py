"""The pieces of a decoder layer as pure functions on arrays, in Hugging Face's order of operations and casts."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from qwen3_jax.config import ModelConfig
from qwen3_jax.linear import linear
from qwen3_jax.params import Params
from qwen3_jax.rope import apply_rope

_MASKED = -1e30  # finite: a row that sees nothing (padding) must give numbers, not NaN


def rms_norm(x: Float[Array, "... D"], weight: Float[Array, " D"], eps: float) -> Float[Array, "... D"]:
    """Root-mean-square norm: in float32, cast to the input's dtype, then times the weight (Hugging Face's order)."""
    wide = x.astype(jnp.float32)
    normed = wide * jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + jnp.float32(eps))
    return normed.astype(x.dtype) * jnp.expand_dims(weight, tuple(range(x.ndim - 1)))


def swiglu(params: Params, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
    """down(silu(gate x) * up x)."""
    with jax.named_scope("mlp"):
        inner = jax.nn.silu(linear(x, params["gate_proj"])) * linear(x, params["up_proj"])
        return linear(inner, params["down_proj"])


def project_qkv(
    params: Params,
    config: ModelConfig,
    x: Float[Array, "B T D"],
    rope: tuple[Float[Array, "B T H2"], Float[Array, "B T H2"]],
) -> tuple[Float[Array, "B T N H"], Float[Array, "B T K H"], Float[Array, "B T K H"]]:
    """Queries and keys normed per head, then turned; values as they are."""
    heads = (*x.shape[:2], -1, config.head_dim)
    q = rms_norm(linear(x, params["q_proj"]).reshape(heads), params["q_norm"], config.rms_norm_eps)
    k = rms_norm(linear(x, params["k_proj"]).reshape(heads), params["k_norm"], config.rms_norm_eps)
    v = linear(x, params["v_proj"]).reshape(heads)
    return apply_rope(q, *rope), apply_rope(k, *rope), v


def attention(
    q: Float[Array, "B T N H"], k: Float[Array, "B K S H"], v: Float[Array, "B K S H"], mask: Bool[Array, "B T S"]
) -> Float[Array, "B T N H"]:
    """Grouped-query attention: query head n reads key-value head n // (N/K). Softmax in float32."""
    batch, length, num_heads, head_dim = q.shape
    grouped = q.reshape(batch, length, k.shape[1], num_heads // k.shape[1], head_dim)
    with jax.named_scope("attention"):
        scores = jnp.einsum("btkgh,bksh->bkgts", grouped, k, preferred_element_type=jnp.float32)
        scores = jnp.where(mask[:, None, None], scores * jnp.float32(head_dim**-0.5), jnp.float32(_MASKED))
        weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
        out = jnp.einsum("bkgts,bksh->btkgh", weights, v)
    return out.reshape(q.shape)
