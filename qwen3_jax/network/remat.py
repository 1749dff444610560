"""What a layer keeps for its backward pass and what it computes again.

  none       everything is kept.
  dots       the results of products with weights are kept (those of experts are not: they are loops or kernels, with
             `num_experts_per_tok` rows a token); norms, rope, scores and activations are computed again.
  attention  of these only what attention's own products give, which are narrow; the MLP or the experts run again.
  full       nothing is kept but the layer's input: one more forward pass.

From none to full memory falls and work grows; on CPU with layers in the "stacked" layout only (see `recomputed`).
"""

from collections.abc import Callable
from typing import Any, Literal, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from qwen3_jax.sharding import current_mesh, target_platform

Remat = Literal["none", "dots", "attention", "full"]


def keep(name: Literal["attention"], x: Array) -> Array:
    """`x`, under the name by which a policy keeps it."""
    kept: Array = checkpoint_name(x, name)
    return kept


def rematerialise(layer: Any, remat: str, prevent_cse: bool) -> Any:
    """The module class whose backward pass computes again what `remat` does not keep.

    Args:
      prevent_cse: needed outside of a scan, where the compiler would join the two computations.

    Raises:
      ValueError: an unknown policy.
    """
    if remat not in get_args(Remat):
        raise ValueError(f"remat must be one of {', '.join(get_args(Remat))}, got {remat!r}: choose one")
    if remat == "none":
        return layer
    policies = jax.checkpoint_policies
    policy = {
        "dots": policies.dots_with_no_batch_dims_saveable,
        "attention": policies.save_only_these_names("attention"),
        "full": None,
    }[remat]
    return nn.remat(layer, prevent_cse=prevent_cse, policy=policy)


def recomputed(function: Callable[..., Array]) -> Callable[..., Array]:
    """`function`, of which nothing but the arguments is kept for the backward pass: on a CPU as the only device, where
    memory is time (each page of a step's buffers costs a fault). Elsewhere `function` as it is; there the `remat`
    policies are for that.

    `jax.checkpoint` does not do it there: XLA:CPU takes its barriers out, then joins the second computation with the
    first or runs it early, and keeps the results after all. Here it waits for the gradient, by a zero made of that.
    """
    if target_platform() != "cpu" or current_mesh() is not None:
        return function

    def forward(*arguments: Any) -> tuple[Array, tuple[Any, ...]]:
        return function(*arguments), arguments

    def backward(arguments: tuple[Any, ...], cotangent: Array) -> tuple[Any, ...]:
        zero = zero_after(cotangent)

        def late(x: Array) -> Array:
            return x + zero.astype(x.dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x

        gradients: tuple[Any, ...] = jax.vjp(function, *jax.tree.map(late, arguments))[1](cotangent)
        return gradients

    rule = jax.custom_vjp(function)
    rule.defvjp(forward, backward)
    return rule


def zero_after(x: Float[Array, "..."]) -> Float[Array, ""]:
    """A float32 zero of which XLA knows neither, nor that it can be had before `x`."""
    some = jax.lax.convert_element_type(x.reshape(-1)[0], jnp.float32)
    ones = jax.lax.population_count(jax.lax.bitcast_convert_type(some, jnp.int32))
    return (ones > 32).astype(jnp.float32)
