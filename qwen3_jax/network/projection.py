"""The product with one of a layer's matrices."""

import jax
from jaxtyping import Array, Float

from qwen3_jax.kernels.linear import linear
from qwen3_jax.parameters.specs import Params


def project(params: Params, name: str, x: Float[Array, "... I"]) -> Float[Array, "... O"]:
    """`x` times the projection `name` of a layer, plus what its adapter adds where it has one.

    Args:
      params: of the layer, as they are multiplied; B holds the scale already.
    """
    y = linear(x, params[name])
    if f"{name}_lora_A" not in params:
        return y
    with jax.named_scope("lora"):
        return y + linear(linear(x, params[f"{name}_lora_A"]), params[f"{name}_lora_B"])
