"""Low-rank adapters (LoRA, Hu et al., arXiv 2106.09685): y = W x + scale * B (A x), W + scale * B A never being made.

A model with adapters is a `Qwen3` whose `lora` says which projections have one. Each adapter is declared as any
parameter is, in both layouts: of `q_proj` [O, I] in a layer, `q_proj_lora_A` [r, I] and `q_proj_lora_B` [O, r].
Adapters are a tree of their own while they are trained and stored, and join the base's where the model is applied:
`model.apply({"params": with_adapters(params, adapters)}, tokens)`. Names, initialization and scale are PEFT's.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from qwen3_jax.config import ModelConfig
from qwen3_jax.parameters.specs import Layout, Params, ParamSpec, layer_specs, layers_tree

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
ALL_LINEAR = "all-linear"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lora:
    """Static part of a model with adapters: compiled functions depend on it. Field names are PEFT's.

    Attributes:
      r: rank.
      lora_alpha: the update is scaled by lora_alpha / r.
      target_modules: the projections that have an adapter, in every layer.
      use_rslora: scale by lora_alpha / sqrt(r) instead (arXiv 2312.03732).
    """

    r: int = 8
    lora_alpha: float = 8
    target_modules: tuple[str, ...] = ATTENTION
    use_rslora: bool = False

    @property
    def scale(self) -> float:
        return self.lora_alpha / (self.r**0.5 if self.use_rslora else self.r)

    def scaled(self, params: Mapping[str, Array]) -> dict[str, Array]:
        """The parameters of one layer with the scale taken into each B: fewer products than with the activations."""
        return {
            name: value * jnp.asarray(self.scale, value.dtype) if name.endswith("_lora_B") else value
            for name, value in params.items()
        }


def make_lora(
    config: ModelConfig, r: int, lora_alpha: float, target_modules: str | Sequence[str], use_rslora: bool = False
) -> Lora:
    """Checks a choice of adapters against an architecture.

    Args:
      target_modules: names of projections, or "all-linear" (alone or in a list) for all seven.

    Raises:
      ValueError: a rank that is not positive, no or unknown projections, or projections of experts.
    """
    if r <= 0:
        raise ValueError(f"r must be a positive rank, got {r}: correct it")
    if not lora_alpha > 0:
        raise ValueError(f"lora_alpha must be positive, got {lora_alpha}: correct it")
    names = {target_modules} if isinstance(target_modules, str) else set(target_modules)
    unknown = sorted(names - {*ATTENTION, *MLP, ALL_LINEAR})
    if unknown or not names:
        raise ValueError(
            f"target_modules must be {ALL_LINEAR!r} or some of {', '.join(ATTENTION + MLP)}, got "
            f"{', '.join(unknown) or 'none'}: correct it"
        )
    if ALL_LINEAR in names:
        names = {*ATTENTION, *MLP}
    of_experts = sorted(names & {*MLP})
    if of_experts and any(sparse for sparse, _ in config.segments):
        raise ValueError(
            f"target_modules of a mixture of experts must be of {', '.join(ATTENTION)}, got {', '.join(of_experts)}: "
            "experts have no adapters, leave them out"
        )
    targets = tuple(name for name in ATTENTION + MLP if name in names)
    return Lora(r=r, lora_alpha=lora_alpha, target_modules=targets, use_rslora=use_rslora)


def with_adapters(params: Params, adapters: Params | None) -> Params:
    """The base's parameters with the adapters among them, no array being copied; `params` itself without any."""
    if adapters is None:
        return params
    return {**params, **{layer: {**params[layer], **own} for layer, own in adapters.items()}}


def has_adapters(layer: Mapping[str, Any]) -> bool:
    """Whether there are adapters among the parameters of a layer."""
    return any("_lora_" in name for name in layer)


def adapter_specs(lora: Lora, specs: Mapping[str, ParamSpec]) -> dict[str, ParamSpec]:
    """The adapters of one layer, from the declaration of its projections; tensor names are those of PEFT's files."""
    out = {}
    for name in lora.target_modules:
        (outer, inner), (outer_axis, inner_axis) = specs[name].shape, specs[name].axes
        prefix = "base_model.model." + specs[name].hf_name.removesuffix("weight")
        out[f"{name}_lora_A"] = ParamSpec(
            shape=(lora.r, inner), axes=("rank", inner_axis), init="kaiming", hf_name=f"{prefix}lora_A.weight"
        )
        out[f"{name}_lora_B"] = ParamSpec(
            shape=(outer, lora.r), axes=(outer_axis, "rank"), init="zeros", hf_name=f"{prefix}lora_B.weight"
        )
    return out


def adapter_tree(config: ModelConfig, lora: Lora, layout: Layout) -> dict[str, Any]:
    """The declaration of all adapters in the shape of their tree."""
    return layers_tree(config, layout, lambda sparse: adapter_specs(lora, layer_specs(config, sparse)))


def init_adapters(config: ModelConfig, lora: Lora, layout: Layout, key: Array) -> dict[str, Any]:
    """float32 adapters as PEFT draws them: A uniform, B zero, so that the model is at first the base."""
    specs, structure = jax.tree.flatten(adapter_tree(config, lora, layout), is_leaf=_is_spec)
    keys = jax.random.split(key, len(specs))
    drawn = [spec.initializer(0.0)(k, spec.shape, jnp.float32) for spec, k in zip(specs, keys, strict=True)]
    return jax.tree.unflatten(structure, drawn)


def _is_spec(leaf: Any) -> bool:
    return isinstance(leaf, ParamSpec)
