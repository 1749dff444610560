"""Recomputation in the backward pass where `jax.checkpoint` does not do it: on a CPU as the only device."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from qwen3_jax.sharding import current_mesh, target_platform


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
