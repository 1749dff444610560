"""One decoder layer as a pure function of arrays, in Hugging Face's order of operations and casts."""

import dataclasses
from typing import Any, Literal

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from qwen3_jax.config import ModelConfig
from qwen3_jax.experts.mixture import RouterReport, moe
from qwen3_jax.kernels import self_attention
from qwen3_jax.kernels.reference import attention
from qwen3_jax.network.cache import KVCache, Layer
from qwen3_jax.network.projection import project
from qwen3_jax.network.qk_norm import qk_norm as norm_queries_and_keys
from qwen3_jax.network.qk_norm import rms_norm
from qwen3_jax.network.remat import keep
from qwen3_jax.network.rope import apply_rope
from qwen3_jax.parameters.adapters import Lora, adapter_specs
from qwen3_jax.parameters.placement import Placement, cast_and_gather
from qwen3_jax.parameters.specs import Params, ParamSpec, layer_specs

# Whom queries meet: the keys in the cache; those of the same call, by a mask; the same in a kernel that needs none.
AttentionPath = Literal["cache", "masked", "splash", "cudnn"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerSettings:
    """The static part of a forward pass: what `Qwen3` says of its layers, and the attention it has chosen."""

    config: ModelConfig
    attention: AttentionPath
    moe_backend: str
    dtype: Any
    placement: Placement
    qk_norm: bool
    lora: Lora | None

    def specs(self, sparse: bool) -> dict[str, ParamSpec]:
        """The parameters of a layer, its adapters among them."""
        specs = layer_specs(self.config, sparse)
        return specs if self.lora is None else specs | adapter_specs(self.lora, specs)


@flax.struct.dataclass
class LayerInputs:
    """What every layer of one forward pass shares.

    Attributes:
      cos, sin: [B, T, H/2], the rotation of each token.
      mask: bool[B, T, S], for the attention paths "cache" and "masked".
      documents: int32[B, T], whose token it is, for a kernel; None: one document a row.
      counted: bool[B, T], tokens whose routing is summed up by rows.
    """

    cos: Float[Array, "B T H2"]
    sin: Float[Array, "B T H2"]
    mask: Bool[Array, "B T S"] | None
    documents: Int[Array, "B T"] | None
    counted: Bool[Array, "B T"] | None = None


def decoder_layer(
    settings: LayerSettings,
    sparse: bool,
    layer: Layer,
    params: Params,
    x: Float[Array, "B T D"],
    cache: KVCache | None,
    inputs: LayerInputs,
) -> tuple[Float[Array, "B T D"], KVCache | None, RouterReport | None]:
    """Pre-norm attention and MLP (or experts), each with a residual.

    Args:
      layer: where this layer is in the cache, see `KVCache.update`.
      params: of this layer, as they are stored.

    Returns:
      the activations, the cache with this layer's keys and values, and what the router did.
    """
    if settings.lora is not None:
        params = settings.lora.scaled(params)
    params = cast_and_gather(params, settings.specs(sparse), settings.dtype, settings.placement)
    constrain, eps = settings.placement.constrain, settings.config.rms_norm_eps

    normed = rms_norm(x, params["input_layernorm"], eps)
    q, k, v = project_qkv(
        params, settings.config, normed, (inputs.cos, inputs.sin), settings.placement, settings.qk_norm
    )
    attended, cache = attend(settings, layer, q, k, v, cache, inputs)
    attended = constrain(attended.reshape(*x.shape[:2], -1), "batch", "sequence", "heads")
    x = constrain(x + keep("attention", project(params, "o_proj", attended)), "batch", "sequence", None)

    normed = rms_norm(x, params["post_attention_layernorm"], eps)
    if sparse:
        rules = settings.placement.rules
        mixed, routing = moe(normed, params, settings.config, settings.moe_backend, rules, inputs.counted)
    else:
        mixed, routing = swiglu(params, normed, settings.placement), None
    return constrain(x + mixed, "batch", "sequence", None), cache, routing


def attend(
    settings: LayerSettings,
    layer: Layer,
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    cache: KVCache | None,
    inputs: LayerInputs,
) -> tuple[Float[Array, "B T N H"], KVCache | None]:
    """Attention along the path that was chosen for this forward pass, and the cache with the new keys and values."""
    if settings.attention not in ("cache", "masked"):
        return self_attention(q, k, v, inputs.documents, settings.attention, settings.placement.rules), cache
    if settings.attention == "cache":
        assert cache is not None
        cache, keys, values = cache.update(layer, k, v)
    else:
        # Each device has the queries of its part of the sequence and meets the keys of all of it.
        axes = ("batch", "cache_heads", "cache_length", "head_dim")
        keys, values = (settings.placement.constrain(each.swapaxes(1, 2), *axes) for each in (k, v))
    assert inputs.mask is not None
    return attention(q, keys, values, inputs.mask), cache


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
