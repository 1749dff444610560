"""Qwen3, dense and mixture-of-experts, as one thin linen module over pure functions.

`Qwen3.apply` has no hidden state. The layers are scanned over stacked parameters, one scan a run of identical layers,
so that compile time does not grow with depth; parameters in the unrolled layout run as a plain loop, which decodes
faster on CPU. `apply` tells the two apart by the parameters it is given.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from qwen3_jax.cache import KVCache, mark_filled, write_layer, write_stacked
from qwen3_jax.config import ModelConfig
from qwen3_jax.generation_defaults import GenerationDefaults
from qwen3_jax.layers import attention, project_qkv, rms_norm, swiglu
from qwen3_jax.linear import linear
from qwen3_jax.masks import cache_mask, causal_mask, positions_from_mask, positions_from_segments
from qwen3_jax.moe import moe
from qwen3_jax.params import Layout, ParamSpec, global_specs, layer_specs
from qwen3_jax.rope import rope_cos_sin


@flax.struct.dataclass
class ModelOutput:
    """What `Qwen3.apply` returns.

    Attributes:
      logits: float32[B, T, V], or of the last `logits_to_keep` tokens.
      hidden: [B, T, D] after the final norm, in the parameters' dtype.
      cache: the cache with the T tokens added, when one was given.
      router_logits: one [n, B*T, E] array a sparse run of n layers (n = 1 for each layer of the unrolled layout);
        empty for a dense model.
    """

    logits: Float[Array, "B kept V"]
    hidden: Float[Array, "B T D"]
    cache: KVCache | None
    router_logits: tuple[Array, ...]


@flax.struct.dataclass
class Context:
    """What every layer of one forward pass shares."""

    cos: Float[Array, "B T H2"]
    sin: Float[Array, "B T H2"]
    mask: Bool[Array, "B T S"]
    slot: Int[Array, ""] | None  # first cache slot to write; None without a cache


def declare(module: nn.Module, specs: dict[str, ParamSpec], config: ModelConfig, dtype: Any) -> dict[str, Array]:
    """Declares (at init) or fetches (at apply) the parameters of `specs` in `module`'s scope."""

    def fetch(name: str, spec: ParamSpec) -> Array:
        if not module.has_variable("params", name):
            return module.param(name, spec.initializer(config.initializer_range), spec.shape, dtype)
        # `param` would trace the initializer only to compare shapes, which is a third of all tracing time.
        value: Array = module.get_variable("params", name)
        if value.shape != spec.shape:
            raise ValueError(
                f"parameter {'/'.join((*module.path, name))} must have shape {spec.shape}, got {value.shape}: the "
                "parameters are those of another configuration"
            )
        return value

    return {name: fetch(name, spec) for name, spec in specs.items()}


class DecoderLayer(nn.Module):
    """Pre-norm attention and MLP (or experts), each with a residual.

    The cache is part of the carry: this layer's own arrays, or, under `scan`, those of the whole run of layers, of
    which `index` is this layer's (None without a scan).
    """

    config: ModelConfig
    sparse: bool
    moe_backend: str = "auto"
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, carry: tuple[Array, Array | None, Array | None], index: Int[Array, ""] | None, ctx: Context
    ) -> tuple[tuple[Array, Array | None, Array | None], Array | None]:
        x, keys, values = carry
        params = declare(self, layer_specs(self.config, self.sparse), self.config, self.param_dtype)
        eps = self.config.rms_norm_eps

        normed = rms_norm(x, params["input_layernorm"], eps)
        q, k, v = project_qkv(params, self.config, normed, (ctx.cos, ctx.sin))
        if ctx.slot is None or keys is None or values is None:
            layer_keys, layer_values = k.swapaxes(1, 2), v.swapaxes(1, 2)
        elif index is not None:
            keys, values = write_stacked(keys, k, index, ctx.slot), write_stacked(values, v, index, ctx.slot)
            layer_keys = jax.lax.dynamic_index_in_dim(keys, index, 0, keepdims=False)
            layer_values = jax.lax.dynamic_index_in_dim(values, index, 0, keepdims=False)
        else:
            keys, values = write_layer(keys, k, ctx.slot), write_layer(values, v, ctx.slot)
            layer_keys, layer_values = keys, values
        attended = attention(q, layer_keys, layer_values, ctx.mask)
        x = x + linear(attended.reshape(*x.shape[:2], -1), params["o_proj"])

        normed = rms_norm(x, params["post_attention_layernorm"], eps)
        if not self.sparse:
            return (x + swiglu(params, normed), keys, values), None
        mixed, routing = moe(normed.reshape(-1, x.shape[-1]), params, self.config, self.moe_backend)
        return (x + mixed.reshape(x.shape), keys, values), routing.logits


class Qwen3(nn.Module):
    """The causal language model.

    Attributes:
      config: the architecture.
      layout: layout of the parameters `init` makes; `apply` accepts both.
      moe_backend: how experts run, see `qwen3_jax.moe`.
      remat: rematerialise each layer in the backward pass.
      param_dtype: dtype of the parameters `init` makes.
      generation: the checkpoint's own sampling defaults and end tokens; the network does not use them.
    """

    config: ModelConfig
    layout: Layout = "stacked"
    moe_backend: str = "auto"
    remat: bool = False
    param_dtype: Any = jnp.float32
    generation: GenerationDefaults = GenerationDefaults()

    @nn.compact
    def __call__(
        self,
        tokens: Int[Array, "B T"],
        attention_mask: Array | None = None,
        positions: Int[Array, "B T"] | None = None,
        segment_ids: Int[Array, "B T"] | None = None,
        cache: KVCache | None = None,
        logits_to_keep: int = 0,
    ) -> ModelOutput:
        """Runs the network.

        Args:
          tokens: int32[B, T].
          attention_mask: [B, T], 1 or True for real tokens; all are real when left out.
          positions: int32[B, T] rotary positions; by default counted over the real tokens of each row (over each
            document with `segment_ids`, from the cache's filled slots with `cache`).
          segment_ids: int32[B, T], the document of each token in a packed row; no attention across documents.
          cache: keys and values so far; the T tokens are added to it.
          logits_to_keep: only the last so many positions get logits; 0 keeps all (Hugging Face's name).

        Raises:
          ValueError: `segment_ids` together with `cache`.
        """
        if cache is not None and segment_ids is not None:
            raise ValueError("segment_ids must be None when a cache is given, got both: packed rows do not decode")
        real = jnp.ones(tokens.shape, bool) if attention_mask is None else attention_mask.astype(bool)
        top = declare(self, global_specs(self.config), self.config, self.param_dtype)
        if positions is None:
            if segment_ids is not None:
                positions = positions_from_segments(segment_ids)
            else:
                positions = positions_from_mask(real)
                if cache is not None:
                    positions = positions + jnp.sum(cache.filled, axis=1, dtype=jnp.int32)[:, None]
        if cache is None:
            mask, slot = causal_mask(real, segment_ids), None
        else:
            slot, cache = cache.length, mark_filled(cache, real)
            mask = cache_mask(cache.filled, slot, tokens.shape[1])
        dtype = top["embed_tokens"].dtype
        cos, sin = rope_cos_sin(positions, self.config, dtype)
        ctx = Context(cos=cos, sin=sin, mask=mask, slot=slot)

        x = top["embed_tokens"][tokens]
        x, cache, router_logits = self._layers(x, cache, ctx)
        hidden = rms_norm(x, top["norm"], self.config.rms_norm_eps)
        head = top["embed_tokens" if self.config.tie_word_embeddings else "lm_head"]
        with jax.named_scope("lm_head"):
            logits = linear(hidden[:, -logits_to_keep:], head, jnp.float32)
        return ModelOutput(logits=logits, hidden=hidden, cache=cache, router_logits=router_logits)

    def _layers(self, x: Array, cache: KVCache | None, ctx: Context) -> tuple[Array, KVCache | None, tuple[Array, ...]]:
        if self.is_initializing():
            unrolled = self.layout == "unrolled"
        else:
            unrolled = self.has_variable("params", "layers_0")
        run = self._unrolled if unrolled else self._stacked
        size = self.config.num_hidden_layers if unrolled else len(self.config.segments)
        if cache is None:
            x, _, _, router_logits = run(x, (None,) * size, (None,) * size, ctx)
            return x, None, router_logits
        assert len(cache.keys) == size, "the cache was made for the other parameter layout"
        x, keys, values, router_logits = run(x, cache.keys, cache.values, ctx)
        length = cache.length + ctx.mask.shape[1]
        cache = dataclasses.replace(cache, keys=keys, values=values, length=length)
        return x, cache, router_logits

    def _unrolled(self, x: Array, keys: tuple, values: tuple, ctx: Context) -> tuple[Array, tuple, tuple, tuple]:
        layer_class = nn.remat(DecoderLayer, prevent_cse=True) if self.remat else DecoderLayer
        new_keys, new_values, router_logits = [], [], []
        for i in range(self.config.num_hidden_layers):
            layer = layer_class(
                self.config, self.config.is_sparse(i), self.moe_backend, self.param_dtype, name=f"layers_{i}"
            )
            (x, layer_keys, layer_values), logits = layer((x, keys[i], values[i]), None, ctx)
            new_keys.append(layer_keys)
            new_values.append(layer_values)
            if logits is not None:
                router_logits.append(logits[None])
        return x, tuple(new_keys), tuple(new_values), tuple(router_logits)

    def _stacked(self, x: Array, keys: tuple, values: tuple, ctx: Context) -> tuple[Array, tuple, tuple, tuple]:
        layer_class = nn.remat(DecoderLayer, prevent_cse=False) if self.remat else DecoderLayer
        new_keys, new_values, router_logits = [], [], []
        for i, (sparse, length) in enumerate(self.config.segments):
            scanned = nn.scan(
                layer_class,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                in_axes=(0, nn.broadcast),
                length=length,
            )(self.config, sparse, self.moe_backend, self.param_dtype, name=f"segments_{i}")
            carry = (x, keys[i], values[i])
            (x, segment_keys, segment_values), logits = scanned(carry, jnp.arange(length, dtype=jnp.int32), ctx)
            new_keys.append(segment_keys)
            new_values.append(segment_values)
            if logits is not None:
                router_logits.append(logits)
        return x, tuple(new_keys), tuple(new_values), tuple(router_logits)
