"""How one model lies on one mesh: the rules that hold for it, and what has to divide."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh
from jaxtyping import Array

from qwen3_jax.config import ModelConfig
from qwen3_jax.parameters.specs import Params, ParamSpec
from qwen3_jax.sharding import DEFAULT_RULES, Rules, axes_of, constrain, gather_weight


@dataclasses.dataclass(frozen=True)
class Placement:
    """Static part of a model: compiled functions depend on it.

    Attributes:
      rules: from logical to mesh axes.
      kv_repeats: copies of each key-value head, so that there are as many as the devices that share them.
    """

    rules: Rules = DEFAULT_RULES
    kv_repeats: int = 1

    def constrain(self, x: Array, *axes: str | None) -> Array:
        """`x` laid out by its logical axes; the identity without a mesh."""
        return constrain(x, axes, self.rules)

    def gather(self, w: Array, axes: tuple[str, ...]) -> Array:
        """A weight as it is multiplied, see `sharding.gather_weight`."""
        return gather_weight(w, axes, self.rules)


ONE_DEVICE = Placement()


def cast_and_gather(
    params: Params, specs: Mapping[str, ParamSpec], dtype: Any, placement: Placement
) -> dict[str, Array]:
    """The parameters as they are multiplied: in the dtype of the activations (None: their own), gathered from the
    devices that keep a part of them each. Experts stay apart: `moe` gathers its own."""
    dtype = next(iter(params.values())).dtype if dtype is None else dtype
    cast = {name: value.astype(dtype) for name, value in params.items()}
    return {
        name: value if "expert" in specs[name].axes else placement.gather(value, specs[name].axes)
        for name, value in cast.items()
    }


def place(config: ModelConfig, mesh: Mesh | jax.sharding.AbstractMesh, rules: Rules = DEFAULT_RULES) -> Placement:
    """The placement of a model on a mesh.

    A key-value head belongs to one device of the `tensor` axis. Where there are fewer heads than devices, each head is
    copied onto as many neighbours as share its queries: 4 heads on tensor=8 give kv_repeats=2. Its projection is small
    and stays whole on every device then ("kv_heads" is split no more, "cache_heads" is).

    Raises:
      ValueError: a dimension of the model that does not divide over its mesh axes, with both numbers.
    """

    def ways(logical: str) -> int:
        size = 1
        for axis in axes_of(logical, rules):
            size *= mesh.shape.get(axis, 1)
        return size

    def divide(what: str, size: int, logical: str) -> None:
        if size % ways(logical):
            axes = " x ".join(f"{axis}={mesh.shape.get(axis, 1)}" for axis in axes_of(logical, rules))
            raise ValueError(
                f"{what} must divide over {ways(logical)} devices ({axes}), got {size}: choose another mesh"
            )

    divide("num_attention_heads", config.num_attention_heads, "heads")
    divide("vocab_size", config.vocab_size, "vocab")
    divide("hidden_size", config.hidden_size, "embed")
    kinds = {sparse for sparse, _ in config.segments}
    if False in kinds:
        divide("intermediate_size", config.intermediate_size, "mlp")
    if True in kinds:
        divide("num_experts", config.num_experts, "expert")
        divide("moe_intermediate_size", config.moe_intermediate_size, "expert_mlp")
        divide("hidden_size", config.hidden_size, "expert_embed")

    heads, devices = config.num_key_value_heads, ways("cache_heads")
    if heads % devices == 0:
        return Placement(rules)
    if devices % heads:
        raise ValueError(
            f"num_key_value_heads and its devices must divide one another, got {heads} heads on {devices} devices "
            f"({', '.join(axes_of('cache_heads', rules))}): choose another mesh"
        )
    return Placement(rules.override({"kv_heads": None}), kv_repeats=devices // heads)
