"""Qwen3, dense and mixture-of-experts: one linen module that declares all parameters, over pure functions.

`Qwen3.apply` has no hidden state. The layers are scanned over stacked parameters, one scan a run of identical layers,
so that compile time does not grow with depth; parameters in the unrolled layout run as a plain loop, which decodes
faster on CPU. `apply` tells the two apart by the parameters it is given.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from qwen3_jax.config import ModelConfig
from qwen3_jax.experts.router import RouterReport, RowSums
from qwen3_jax.generation_defaults import GenerationDefaults
from qwen3_jax.kernels import choose_attention
from qwen3_jax.kernels.linear import linear
from qwen3_jax.kernels.masks import cache_mask, causal_mask, document_ids, positions_from_mask, positions_from_segments
from qwen3_jax.network.cache import KVCache
from qwen3_jax.network.layer import AttentionPath, LayerInputs, LayerSettings, decoder_layer
from qwen3_jax.network.qk_norm import rms_norm
from qwen3_jax.network.remat import checkpointed
from qwen3_jax.network.rope import rope_cos_sin
from qwen3_jax.parameters.adapters import Lora, adapter_tree, has_adapters
from qwen3_jax.parameters.placement import ONE_DEVICE, Placement, cast_and_gather
from qwen3_jax.parameters.specs import Layout, Params, ParamSpec, global_specs, init_params, layout_of, spec_tree


@flax.struct.dataclass
class ModelOutput:
    """What `Qwen3.apply` returns.

    Attributes:
      logits: float32[B, T, V], or of the last `logits_to_keep` tokens.
      hidden: [B, T, D] after the final norm, in the parameters' dtype.
      cache: the cache with the T tokens added, when one was given.
      router_logits: one [n, B, T, E] array a sparse run of n layers (n = 1 for each layer of the unrolled layout);
        empty for a dense model.
      expert_load: likewise int32[n, E], how many assignments each expert got, over all devices; from real tokens alone
        with `output_router_rows`.
      router_rows: likewise [n, B, E] sums of what real tokens chose, with `output_router_rows`; else empty.
    """

    logits: Float[Array, "B kept V"]
    hidden: Float[Array, "B T D"]
    cache: KVCache | None
    router_logits: tuple[Array, ...]
    expert_load: tuple[Array, ...]
    router_rows: tuple[RowSums, ...] = ()


class Qwen3(nn.Module):
    """The causal language model.

    Attributes:
      config: the architecture.
      layout: layout of the parameters `init` makes; `apply` accepts both.
      moe_backend: how experts run, see `qwen3_jax.experts.mixture`.
      attention_backend: how whole sequences without a cache attend, see `qwen3_jax.kernels`.
      remat: what of a layer is computed again in the backward pass, see `qwen3_jax.network.remat`.
      param_dtype: dtype of the parameters `init` makes.
      dtype: dtype of the activations; None takes that of the parameters. Training keeps float32 parameters and computes
        in bfloat16.
      placement: how the model lies on a mesh, see `qwen3_jax.place`.
      lora: the low-rank adapters that stand among the parameters, see `qwen3_jax.parameters.adapters`.
      generation: the checkpoint's own sampling defaults and end tokens; the network does not use them.
      qk_norm: False leaves the norm of queries and keys out, for ablations. Its scales stay among the parameters, at
        one and without a gradient, so that layouts, optimizer and checkpoints are the same; `save_pretrained` refuses
        such a model, because no config.json can say it.
    """

    config: ModelConfig
    layout: Layout = "stacked"
    moe_backend: str = "auto"
    attention_backend: str = "auto"
    remat: str = "none"
    param_dtype: Any = jnp.float32
    dtype: Any = None
    placement: Placement = ONE_DEVICE
    lora: Lora | None = None
    generation: GenerationDefaults = GenerationDefaults()
    qk_norm: bool = True

    def activation_dtype(self, params: Params) -> Any:
        """Dtype of the activations with these parameters, and so of a cache."""
        return jnp.dtype(params["embed_tokens"].dtype if self.dtype is None else self.dtype)

    @nn.compact
    def __call__(
        self,
        tokens: Int[Array, "B T"],
        attention_mask: Array | None = None,
        positions: Int[Array, "B T"] | None = None,
        segment_ids: Int[Array, "B T"] | None = None,
        cache: KVCache | None = None,
        logits_to_keep: int = 0,
        output_router_rows: bool = False,
    ) -> ModelOutput:
        """Runs the network.

        Args:
          tokens: int32[B, T].
          attention_mask: [B, T], 1 or True for real tokens; all are real when left out.
          positions: int32[B, T] rotary positions; by default counted over the real tokens of each row (over each
            document with `segment_ids`, from the largest position in the cache on with `cache`).
          segment_ids: int32[B, T], the document of each token in a packed row; no attention across documents.
          cache: keys and values so far; the T tokens are added to it.
          logits_to_keep: only the last so many positions get logits; 0 keeps all (Hugging Face's name).
          output_router_rows: give `router_rows`, for a load-balancing loss, and leave padding out of `expert_load`.

        Raises:
          ValueError: `segment_ids` together with `cache`, a cache of another dtype or without room for the tokens
            (under `jax.jit` such a row's outputs are NaN), an unknown backend, or adapters without `lora`.
        """
        if cache is not None and segment_ids is not None:
            raise ValueError("segment_ids must be None when a cache is given, got both: packed rows do not decode")
        real = jnp.ones(tokens.shape, bool) if attention_mask is None else attention_mask.astype(bool)
        constrain, params = self.placement.constrain, self._parameters()
        tokens = constrain(tokens, "batch", "sequence")
        if positions is None:
            if segment_ids is not None:
                positions = positions_from_segments(segment_ids)
            else:
                positions = positions_from_mask(real)
                if cache is not None:
                    positions = positions + jnp.max(cache.positions, axis=1, keepdims=True) + 1
        dtype = self.activation_dtype(params)
        backend = choose_attention(self.attention_backend, tokens.shape[1], self.config.head_dim, dtype)
        path: AttentionPath = "cache" if cache is not None else "masked" if backend == "xla" else backend
        mask = documents = None
        if cache is not None:
            if cache.keys[0].dtype != dtype:
                raise ValueError(
                    f"the cache must have the dtype of the activations, {jnp.dtype(dtype)}, got {cache.keys[0].dtype}: "
                    "make it with model.activation_dtype(params)"
                )
            of_tokens = jnp.where(real, positions, jnp.int32(-1))
            cache = cache.add_tokens(of_tokens)
            mask = cache_mask(cache.positions, of_tokens)
        elif path == "masked":
            mask = causal_mask(real, segment_ids)
        else:
            documents = document_ids(None if attention_mask is None else real, segment_ids)
        cos, sin = rope_cos_sin(positions, self.config, dtype)
        inputs = LayerInputs(
            cos=constrain(cos, "batch", "sequence", None),
            sin=constrain(sin, "batch", "sequence", None),
            mask=None if mask is None else constrain(mask, "batch", "sequence", "cache_length"),
            documents=None if documents is None else constrain(documents, "batch", "sequence"),
            counted=real if output_router_rows else None,
        )

        # Looked up in the columns that each device keeps: what travels is the tokens' rows and not the table.
        # Rows stay apart over `data`, which splits no table: else every device would hold those of the whole batch.
        x = constrain(params["embed_tokens"].astype(dtype)[tokens], "lookup_batch", "sequence", "embed")
        x = constrain(x, "batch", "sequence", None)
        x, cache, routings = self._layers(self._settings(path), params, x, cache, inputs)
        hidden = rms_norm(x, params["norm"].astype(dtype), self.config.rms_norm_eps)
        if cache is not None:
            hidden = jnp.where(cache.overflowed()[:, None, None], jnp.asarray(jnp.nan, dtype), hidden)
        name = "embed_tokens" if self.config.tie_word_embeddings else "lm_head"
        head = cast_and_gather({name: params[name]}, global_specs(self.config), dtype, self.placement)[name]
        with jax.named_scope("lm_head"):
            logits = constrain(linear(hidden[:, -logits_to_keep:], head, jnp.float32), "batch", None, "vocab")
        return ModelOutput(
            logits=logits,
            hidden=hidden,
            cache=cache,
            router_logits=tuple(routing.logits for routing in routings),
            expert_load=tuple(routing.load for routing in routings),
            router_rows=tuple(routing.rows for routing in routings if routing.rows is not None),
        )

    def _parameters(self) -> Params:
        """Declares all parameters (at init) or fetches and checks them (at apply)."""
        given = {} if self.is_initializing() else self.variables["params"]
        layout = layout_of(given) if given else self.layout
        tree = spec_tree(self.config, layout)
        if self.lora is not None:
            for name, specs in adapter_tree(self.config, self.lora, layout).items():
                tree[name] |= specs
        elif any(has_adapters(leaf) for leaf in given.values() if isinstance(leaf, Mapping)):
            raise ValueError("parameters with adapters need a model with lora, got lora=None: see load_adapters")
        if not given:
            draw = partial(init_params, stddev=self.config.initializer_range, dtype=self.param_dtype)
            return {name: self.param(name, draw, specs) for name, specs in tree.items()}
        # `param` would trace the initializers only to compare shapes, which is a third of all tracing time.
        return {name: _checked(name, given.get(name), specs) for name, specs in tree.items()}

    def _settings(self, path: AttentionPath) -> LayerSettings:
        names = ("config", "moe_backend", "dtype", "placement", "qk_norm", "lora")
        return LayerSettings(attention=path, **{name: getattr(self, name) for name in names})

    def _layers(
        self, settings: LayerSettings, params: Params, x: Array, cache: KVCache | None, inputs: LayerInputs
    ) -> tuple[Array, KVCache | None, tuple[RouterReport, ...]]:
        unrolled = layout_of(params) == "unrolled"
        size = self.config.num_hidden_layers if unrolled else len(self.config.segments)
        assert cache is None or len(cache.keys) == size, "the cache was made for the other parameter layout"
        routings = []
        for number in range(size):
            name = f"layers_{number}" if unrolled else f"segments_{number}"
            with jax.named_scope(name):
                if unrolled:
                    one = partial(decoder_layer, settings, self.config.is_sparse(number), (number, None))
                    x, cache, routing = checkpointed(one, self.remat, True)(params[name], x, cache, inputs)
                    routing = jax.tree.map(lambda leaf: leaf[None], routing)
                else:
                    x, cache, routing = self._scanned(settings, number, params[name], x, cache, inputs)
            if routing is not None:
                routings.append(routing)
        return x, None if cache is None else cache.constrained(), tuple(routings)

    def _scanned(
        self, settings: LayerSettings, number: int, params: Params, x: Array, cache: KVCache | None, inputs: LayerInputs
    ) -> tuple[Array, KVCache | None, RouterReport | None]:
        """One run of identical layers. The cache stays whole in the carry, see `KVCache.update`."""
        sparse, length = self.config.segments[number]

        def one(carry: tuple[Array, KVCache | None], layer: tuple[Params, Array]) -> tuple[tuple, RouterReport | None]:
            params, index = layer
            x, cache, routing = decoder_layer(settings, sparse, (number, index), params, *carry, inputs)
            return (x, cache), routing

        body = checkpointed(one, self.remat, False)
        (x, cache), routing = jax.lax.scan(body, (x, cache), (params, jnp.arange(length, dtype=jnp.int32)))
        return x, cache, routing


def _checked(name: str, given: Any, specs: ParamSpec | dict[str, ParamSpec]) -> Any:
    """The parameters of one name, or of one layer.

    Raises:
      ValueError: one is missing, or has another shape.
    """
    if isinstance(specs, Mapping):
        return {leaf: _checked(f"{name}/{leaf}", (given or {}).get(leaf), spec) for leaf, spec in specs.items()}
    shape = getattr(given, "shape", None)
    if shape != specs.shape:
        raise ValueError(
            f"parameter {name} must have shape {specs.shape}, got {shape}: the parameters are those of another "
            "configuration"
        )
    return given
