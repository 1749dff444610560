"""The pieces of a decoder layer as pure functions on arrays, in Hugging Face's order of operations and casts."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from qwen3_jax.config import ModelConfig
from qwen3_jax.network.projection import project
from qwen3_jax.network.qk_norm import qk_norm as norm_queries_and_keys
from qwen3_jax.network.remat import keep
from qwen3_jax.network.rope import apply_rope
from qwen3_jax.parameters.placement import Placement
from qwen3_jax.parameters.specs import Params


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
        q, k = norm_queries_and_keys(params, q, k, config.rms_norm_eps)
    q, k = apply_rope(q, *rope), apply_rope(k, *rope)
    if placement.kv_repeats > 1:
        k, v = (jnp.repeat(each, placement.kv_repeats, axis=2) for each in (k, v))
    q = placement.constrain(q, "batch", "sequence", "heads", "head_dim")
    k, v = (placement.constrain(heads, "batch", "sequence", "cache_heads", "head_dim") for heads in (k, v))
    return q, k, v
