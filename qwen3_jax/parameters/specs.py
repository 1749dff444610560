"""Every parameter of the model, declared once: shape, logical axes, initializer and Hugging Face name.

Initialization, sharding, checkpoint import and checkpoint export all read this declaration. Matrices keep Hugging
Face's [out, in] orientation: loading is then a copy without a transpose, and one row times such a matrix runs at
memory bandwidth on CPU (docs/decisions.md).

Two layouts hold the same parameters:
  stacked   {"embed_tokens", "segments_0": {"q_proj": [n, N*H, D], ...}, ..., "norm"}: one dict a run of identical
            layers, each leaf with a leading axis of the run's length; what `scan` takes.
  unrolled  {"embed_tokens", "layers_0": {"q_proj": [N*H, D], ...}, "layers_1": ..., "norm"}: one dict a layer.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array

from qwen3_jax.config import ModelConfig

Layout = Literal["stacked", "unrolled"]
Init = Literal["normal", "ones", "zeros", "kaiming"]
Params = Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ParamSpec:
    """One parameter.

    Attributes:
      shape: of one layer's tensor (no layer axis).
      axes: logical axis of each dimension, mapped to mesh axes by `sharding`.
      init: "normal" (mean 0, standard deviation `initializer_range`), "ones", "zeros", or "kaiming" (uniform within
        1 / sqrt(in), as PEFT draws A).
      hf_name: tensor name in a Hugging Face checkpoint; `{layer}` is the layer's number, `{expert}` the expert's:
        a parameter with `{expert}` gathers one tensor an expert along its first axis.
    """

    shape: tuple[int, ...]
    axes: tuple[str, ...]
    init: Init
    hf_name: str

    def initializer(self, stddev: float) -> Callable[..., Array]:
        initializers = jax.nn.initializers
        made = {"ones": initializers.ones, "zeros": initializers.zeros, "kaiming": _kaiming}
        return made.get(self.init, initializers.normal(stddev))


def global_specs(config: ModelConfig) -> dict[str, ParamSpec]:
    """Parameters outside the layers."""
    vocab, hidden = config.vocab_size, config.hidden_size
    specs = {
        "embed_tokens": _matrix("model.embed_tokens.weight", (vocab, hidden), ("vocab", "embed")),
        "norm": _scale("model.norm.weight", hidden, "norm"),
    }
    if not config.tie_word_embeddings:
        specs["lm_head"] = _matrix("lm_head.weight", (vocab, hidden), ("vocab", "embed"))
    return specs


def layer_specs(config: ModelConfig, sparse: bool) -> dict[str, ParamSpec]:
    """Parameters of one decoder layer, dense or a mixture of experts."""
    hidden, head_dim = config.hidden_size, config.head_dim
    queries, keys = config.num_attention_heads * head_dim, config.num_key_value_heads * head_dim
    pre = "model.layers.{layer}."
    attn = pre + "self_attn."
    specs = {
        "input_layernorm": _scale(pre + "input_layernorm.weight", hidden, "norm"),
        "q_proj": _matrix(attn + "q_proj.weight", (queries, hidden), ("heads", "embed")),
        "k_proj": _matrix(attn + "k_proj.weight", (keys, hidden), ("kv_heads", "embed")),
        "v_proj": _matrix(attn + "v_proj.weight", (keys, hidden), ("kv_heads", "embed")),
        "o_proj": _matrix(attn + "o_proj.weight", (hidden, queries), ("embed", "heads")),
        "q_norm": _scale(attn + "q_norm.weight", head_dim, "head_dim"),
        "k_norm": _scale(attn + "k_norm.weight", head_dim, "head_dim"),
        "post_attention_layernorm": _scale(pre + "post_attention_layernorm.weight", hidden, "norm"),
    }
    if not sparse:
        inner = config.intermediate_size
        return specs | {
            "gate_proj": _matrix(pre + "mlp.gate_proj.weight", (inner, hidden), ("mlp", "embed")),
            "up_proj": _matrix(pre + "mlp.up_proj.weight", (inner, hidden), ("mlp", "embed")),
            "down_proj": _matrix(pre + "mlp.down_proj.weight", (hidden, inner), ("embed", "mlp")),
        }
    experts, inner = config.num_experts, config.moe_intermediate_size
    expert = pre + "mlp.experts.{expert}."
    up_axes, down_axes = ("expert", "expert_mlp", "expert_embed"), ("expert", "expert_embed", "expert_mlp")
    return specs | {
        "router": _matrix(pre + "mlp.gate.weight", (experts, hidden), ("router", "router_embed")),
        "experts_gate_proj": _matrix(expert + "gate_proj.weight", (experts, inner, hidden), up_axes),
        "experts_up_proj": _matrix(expert + "up_proj.weight", (experts, inner, hidden), up_axes),
        "experts_down_proj": _matrix(expert + "down_proj.weight", (experts, hidden, inner), down_axes),
    }


def spec_tree(config: ModelConfig, layout: Layout) -> dict[str, Any]:
    """The declaration in the shape of the parameters; stacked leaves get a leading axis "layers"."""
    return global_specs(config) | layers_tree(config, layout, lambda sparse: layer_specs(config, sparse))


def init_params(key: Array, specs: ParamSpec | Mapping[str, ParamSpec], stddev: float, dtype: Any) -> Any:
    """Draws one parameter, or all those of a layer (or run of layers), each from a key of its own.

    Args:
      stddev: of what is drawn from a normal distribution.
    """
    if isinstance(specs, ParamSpec):
        return specs.initializer(stddev)(key, specs.shape, dtype)
    keys = jax.random.split(key, len(specs))
    return {name: init_params(own, spec, stddev, dtype) for own, (name, spec) in zip(keys, specs.items(), strict=True)}


def layers_tree(
    config: ModelConfig, layout: Layout, specs_of: Callable[[bool], Mapping[str, ParamSpec]]
) -> dict[str, Any]:
    """What `specs_of` declares for a layer, dense or sparse, in the shape of the parameters of all layers."""
    if layout == "unrolled":
        return {f"layers_{i}": dict(specs_of(config.is_sparse(i))) for i in range(config.num_hidden_layers)}
    return {
        f"segments_{index}": {
            name: dataclasses.replace(spec, shape=(length, *spec.shape), axes=("layers", *spec.axes))
            for name, spec in specs_of(sparse).items()
        }
        for index, (sparse, length) in enumerate(config.segments)
    }


def num_parameters(config: ModelConfig, *, active: bool = False, embedding: bool = True) -> int:
    """Number of parameters; tied embeddings count once.

    Args:
      active: count only the experts one token uses.
      embedding: count the token embedding and the head.
    """
    total = 0
    for name, spec in global_specs(config).items():
        if embedding or name == "norm":
            total += _size(spec.shape)
    for sparse, length in config.segments:
        for spec in layer_specs(config, sparse).values():
            size = _size(spec.shape)
            if active and spec.axes[0] == "expert":
                size = size // config.num_experts * config.num_experts_per_tok
            total += size * length
    return total


def layout_of(params: Params) -> Layout:
    """Which of the two layouts `params` is in."""
    return "unrolled" if "layers_0" in params else "stacked"


def layer_index(config: ModelConfig, segment: int, offset: int) -> int:
    """Number of the layer at `offset` within run `segment`."""
    return sum(length for _, length in config.segments[:segment]) + offset


def unstack(params: Params, config: ModelConfig) -> dict[str, Any]:
    """Stacked to unrolled. Both are alive until the caller drops `params`."""
    assert layout_of(params) == "stacked"
    out = {name: params[name] for name in global_specs(config)}
    for segment, (_, length) in enumerate(config.segments):
        for offset in range(length):
            layer = {name: leaf[offset] for name, leaf in params[f"segments_{segment}"].items()}
            out[f"layers_{layer_index(config, segment, offset)}"] = layer
    return out


def restack(params: Params, config: ModelConfig) -> dict[str, Any]:
    """Unrolled to stacked. Both are alive until the caller drops `params`."""
    assert layout_of(params) == "unrolled"
    out = {name: params[name] for name in global_specs(config)}
    for segment, (_, length) in enumerate(config.segments):
        layers = [params[f"layers_{layer_index(config, segment, offset)}"] for offset in range(length)]
        out[f"segments_{segment}"] = jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)
    return out


def _kaiming(key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
    bound = shape[-1] ** -0.5  # torch: kaiming_uniform_(a=sqrt(5))
    return jax.random.uniform(key, shape, dtype, -bound, bound)


def _matrix(hf_name: str, shape: tuple[int, ...], axes: tuple[str, ...]) -> ParamSpec:
    return ParamSpec(shape=shape, axes=axes, init="normal", hf_name=hf_name)


def _scale(hf_name: str, size: int, axis: str) -> ParamSpec:
    return ParamSpec(shape=(size,), axes=(axis,), init="ones", hf_name=hf_name)


def _size(shape: tuple[int, ...]) -> int:
    out = 1
    for dim in shape:
        out *= dim
    return out
