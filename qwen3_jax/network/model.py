"""Qwen3, dense and mixture-of-experts, as one thin linen module over pure functions.

`Qwen3.apply` has no hidden state. The layers are scanned over stacked parameters, one scan a run of identical layers,
so that compile time does not grow with depth; parameters in the unrolled layout run as a plain loop, which decodes
faster on CPU. `apply` tells the two apart by the parameters it is given.
"""

from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from qwen3_jax.config import ModelConfig
from qwen3_jax.experts.mixture import RouterReport, moe
from qwen3_jax.experts.router import RowSums
from qwen3_jax.generation_defaults import GenerationDefaults
from qwen3_jax.kernels import choose_attention, self_attention
from qwen3_jax.kernels.linear import linear
from qwen3_jax.kernels.masks import cache_mask, causal_mask, document_ids, positions_from_mask, positions_from_segments
from qwen3_jax.kernels.reference import attention
from qwen3_jax.network.cache import KVCache
from qwen3_jax.network.layer import project_qkv, swiglu
from qwen3_jax.network.projection import project
from qwen3_jax.network.qk_norm import rms_norm
from qwen3_jax.network.remat import keep, rematerialise
from qwen3_jax.network.rope import rope_cos_sin
from qwen3_jax.parameters.adapters import Lora, adapter_specs, has_adapters
from qwen3_jax.parameters.placement import ONE_DEVICE, Placement
from qwen3_jax.parameters.specs import Layout, Params, ParamSpec, global_specs, layer_specs


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


@flax.struct.dataclass
class Context:
    """What every layer of one forward pass shares."""

    cos: Float[Array, "B T H2"]
    sin: Float[Array, "B T H2"]
    mask: Bool[Array, "B T S"] | None  # None where a kernel does without
    documents: Int[Array, "B T"] | None  # what the kernel is told instead: whose token it is; None: one document a row
    counted: Bool[Array, "B T"] | None = None  # tokens whose routing is summed up by rows


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


def use(params: Params, specs: dict[str, ParamSpec], dtype: Any, placement: Placement) -> dict[str, Array]:
    """The parameters as they are multiplied: in the dtype of the activations (None: their own), gathered from the
    devices that keep a part of them each. Experts stay apart: `moe` gathers its own."""
    dtype = next(iter(params.values())).dtype if dtype is None else dtype
    cast = {name: value.astype(dtype) for name, value in params.items()}
    return {
        name: value if "expert" in specs[name].axes else placement.gather(value, specs[name].axes)
        for name, value in cast.items()
    }


class DecoderLayer(nn.Module):
    """Pre-norm attention and MLP (or experts), each with a residual.

    The cache is part of the carry; `number` and `index` are where this layer is in it (see `KVCache.update`).
    """

    config: ModelConfig
    sparse: bool
    number: int
    moe_backend: str = "auto"
    attention_backend: str = "auto"
    param_dtype: Any = jnp.float32
    dtype: Any = None
    placement: Placement = ONE_DEVICE
    qk_norm: bool = True
    lora: Lora | None = None

    @nn.compact
    def __call__(
        self, carry: tuple[Array, KVCache | None], index: Int[Array, ""] | None, ctx: Context
    ) -> tuple[tuple[Array, KVCache | None], RouterReport | None]:
        x, cache = carry
        specs = layer_specs(self.config, self.sparse)
        if self.lora is not None:
            specs |= adapter_specs(self.lora, specs)
        elif has_adapters(self.variables.get("params", {})):
            raise ValueError("parameters with adapters need a model with lora, got lora=None: see load_adapters")
        declared = declare(self, specs, self.config, self.param_dtype)
        params = use(declared if self.lora is None else self.lora.scaled(declared), specs, self.dtype, self.placement)
        eps, place = self.config.rms_norm_eps, self.placement.constrain

        normed = rms_norm(x, params["input_layernorm"], eps)
        q, k, v = project_qkv(params, self.config, normed, (ctx.cos, ctx.sin), self.placement, self.qk_norm)
        if ctx.mask is None:
            attended = self_attention(q, k, v, ctx.documents, self.attention_backend, self.placement.rules)
        else:
            if cache is not None:
                cache, layer_keys, layer_values = cache.update((self.number, index), k, v)
            else:
                # Each device has the queries of its part of the sequence and meets the keys of all of it.
                axes = ("batch", "cache_heads", "cache_length", "head_dim")
                layer_keys, layer_values = place(k.swapaxes(1, 2), *axes), place(v.swapaxes(1, 2), *axes)
            attended = attention(q, layer_keys, layer_values, ctx.mask)
        attended = place(attended.reshape(*x.shape[:2], -1), "batch", "sequence", "heads")
        x = place(x + keep("attention", project(params, "o_proj", attended)), "batch", "sequence", None)

        normed = rms_norm(x, params["post_attention_layernorm"], eps)
        if not self.sparse:
            mixed, routing = swiglu(params, normed, self.placement), None
        else:
            rules = self.placement.rules
            mixed, routing = moe(normed, params, self.config, self.moe_backend, rules, ctx.counted)
        return (place(x + mixed, "batch", "sequence", None), cache), routing


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
        specs, place = global_specs(self.config), self.placement.constrain
        tokens = place(tokens, "batch", "sequence")
        top = declare(self, specs, self.config, self.param_dtype)
        if positions is None:
            if segment_ids is not None:
                positions = positions_from_segments(segment_ids)
            else:
                positions = positions_from_mask(real)
                if cache is not None:
                    positions = positions + jnp.max(cache.positions, axis=1, keepdims=True) + 1
        dtype = self.activation_dtype(top)
        backend = choose_attention(self.attention_backend, tokens.shape[1], self.config.head_dim, dtype)
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
        elif backend == "xla":
            mask = causal_mask(real, segment_ids)
        else:
            documents = document_ids(None if attention_mask is None else real, segment_ids)
        cos, sin = rope_cos_sin(positions, self.config, dtype)
        ctx = Context(
            cos=place(cos, "batch", "sequence", None),
            sin=place(sin, "batch", "sequence", None),
            mask=None if mask is None else place(mask, "batch", "sequence", "cache_length"),
            documents=None if documents is None else place(documents, "batch", "sequence"),
            counted=real if output_router_rows else None,
        )

        # Looked up in the columns that each device keeps: what travels is the tokens' rows and not the table.
        # Rows stay apart over `data`, which splits no table: else every device would hold those of the whole batch.
        x = place(top["embed_tokens"].astype(dtype)[tokens], "lookup_batch", "sequence", "embed")
        x, cache, routings = self._layers(place(x, "batch", "sequence", None), cache, ctx)
        hidden = rms_norm(x, top["norm"].astype(dtype), self.config.rms_norm_eps)
        if cache is not None:
            hidden = jnp.where(cache.overflowed()[:, None, None], jnp.asarray(jnp.nan, dtype), hidden)
        name = "embed_tokens" if self.config.tie_word_embeddings else "lm_head"
        head = use({name: top[name]}, specs, dtype, self.placement)[name]
        with jax.named_scope("lm_head"):
            logits = place(linear(hidden[:, -logits_to_keep:], head, jnp.float32), "batch", None, "vocab")
        return ModelOutput(
            logits=logits,
            hidden=hidden,
            cache=cache,
            router_logits=tuple(routing.logits for routing in routings),
            expert_load=tuple(routing.load for routing in routings),
            router_rows=tuple(routing.rows for routing in routings if routing.rows is not None),
        )

    def _layers(self, x: Array, cache: KVCache | None, ctx: Context) -> tuple[Array, KVCache | None, tuple]:
        if self.is_initializing():
            unrolled = self.layout == "unrolled"
        else:
            unrolled = self.has_variable("params", "layers_0")
        run = self._unrolled if unrolled else self._stacked
        size = self.config.num_hidden_layers if unrolled else len(self.config.segments)
        assert cache is None or len(cache.keys) == size, "the cache was made for the other parameter layout"
        x, cache, routings = run(x, cache, ctx)
        return x, None if cache is None else cache.constrained(), routings

    def _unrolled(self, x: Array, cache: KVCache | None, ctx: Context) -> tuple[Array, KVCache | None, tuple]:
        layer_class = rematerialise(DecoderLayer, self.remat, prevent_cse=True)
        routings = []
        for i in range(self.config.num_hidden_layers):
            layer = layer_class(**self._of_layer(self.config.is_sparse(i)), number=i, name=f"layers_{i}")
            (x, cache), routing = layer((x, cache), None, ctx)
            if routing is not None:
                routings.append(jax.tree.map(lambda leaf: leaf[None], routing))
        return x, cache, tuple(routings)

    def _stacked(self, x: Array, cache: KVCache | None, ctx: Context) -> tuple[Array, KVCache | None, tuple]:
        layer_class = rematerialise(DecoderLayer, self.remat, prevent_cse=False)
        routings = []
        for i, (sparse, length) in enumerate(self.config.segments):
            scanned = nn.scan(
                layer_class,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                in_axes=(0, nn.broadcast),
                length=length,
            )(**self._of_layer(sparse), number=i, name=f"segments_{i}")
            (x, cache), routing = scanned((x, cache), jnp.arange(length, dtype=jnp.int32), ctx)
            if routing is not None:
                routings.append(routing)
        return x, cache, tuple(routings)

    def _of_layer(self, sparse: bool) -> dict[str, Any]:
        names = ("config", "moe_backend", "attention_backend", "param_dtype", "dtype", "placement", "qk_norm", "lora")
        return {"sparse": sparse, **{name: getattr(self, name) for name in names}}
