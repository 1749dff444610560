"""Communication that XLA does not have on every platform, with one signature and one gradient everywhere."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Shaped

from qwen3_jax.sharding.platforms import has_ragged_exchange


def ragged_all_to_all(
    operand: Shaped[Array, "N ..."],
    output: Shaped[Array, "M ..."],
    input_offsets: Int[Array, " K"],
    send_sizes: Int[Array, " K"],
    output_offsets: Int[Array, " K"],
    recv_sizes: Int[Array, " K"],
    axis_name: str,
) -> Shaped[Array, "M ..."]:
    """Each device sends slices of its `operand` to the others, which write them into their `output`.

    `jax.lax.ragged_all_to_all` where the platform has it (`has_ragged_exchange`), else an emulation that gathers every
    operand: P times the bytes. K is a multiple of the axis' size P: entries i*K/P to (i+1)*K/P are the slices sent to
    (or received from) device i.

    In:  device 0 has operand [a b b], send_sizes [1 2], input_offsets [0 1], output_offsets [0 0], recv_sizes [1 1]
         device 1 has operand [c d -], send_sizes [1 1], input_offsets [0 1], output_offsets [1 2], recv_sizes [2 1]
         output [. . . .] on both
    Out: device 0 [a c . .]     device 1 [b b d .]

    Args:
      operand: the slices must not overlap, or the gradient is that of one of them.
      output: rows that nothing is written to are kept.
      input_offsets: where each slice begins in `operand`.
      send_sizes: rows of each slice.
      output_offsets: where each slice begins in the receiver's `output`.
      recv_sizes: rows of each slice that comes in.
      axis_name: mesh axis, inside `jax.shard_map`.
    """
    places = (input_offsets, send_sizes, output_offsets, recv_sizes)

    @jax.custom_vjp
    def exchange(operand: Array, output: Array, places: tuple[Array, ...]) -> Array:
        if has_ragged_exchange():
            return jax.lax.ragged_all_to_all(operand, output, *places, axis_name=axis_name)
        return _emulated(operand, output, places[0], places[1], places[2], axis_name)

    def forward(operand: Array, output: Array, places: tuple[Array, ...]) -> tuple[Array, tuple[Array, ...]]:
        return exchange(operand, output, places), places

    def backward(places: tuple[Array, ...], cotangent: Array) -> tuple[Array, Array, Any]:
        # The way back. JAX's own rule loses rows of `output` where one of several slices is empty.
        sources, sizes, targets, received = places
        arrived = jax.lax.all_to_all(targets, axis_name, 0, 0, tiled=True)
        origins = jax.lax.all_to_all(sources, axis_name, 0, 0, tiled=True)
        operand_shape = jnp.zeros((operand.shape[0], *cotangent.shape[1:]), cotangent.dtype)
        to_operand = ragged_all_to_all(cotangent, operand_shape, arrived, received, origins, sizes, axis_name)
        steps = jnp.zeros(cotangent.shape[0] + 1, jnp.int32).at[arrived].add(1).at[arrived + received].add(-1)
        kept = (jnp.cumsum(steps)[:-1] == 0).reshape(-1, *(1,) * (cotangent.ndim - 1))
        return to_operand, jnp.where(kept, cotangent, jnp.zeros((), cotangent.dtype)), None

    exchange.defvjp(forward, backward)
    return exchange(operand, output, places)


def _emulated(
    operand: Array, output: Array, input_offsets: Array, send_sizes: Array, output_offsets: Array, axis_name: str
) -> Array:
    """Every device looks up, for each row of its output, the slice that covers it among all slices sent to it."""
    me, devices = jax.lax.axis_index(axis_name), jax.lax.axis_size(axis_name)
    slices = input_offsets.shape[0] // devices

    def to_me(x: Array) -> Array:
        return jax.lax.all_gather(x.reshape(devices, slices), axis_name)[:, me].reshape(-1)

    begin, size, place = to_me(input_offsets), to_me(send_sizes), to_me(output_offsets)
    everything = jax.lax.all_gather(operand, axis_name, tiled=True)
    first_row = jnp.asarray(np.repeat(np.arange(devices, dtype=np.int32) * operand.shape[0], slices)) + begin
    row = jnp.arange(output.shape[0], dtype=place.dtype)[:, None]
    covers = (place[None] <= row) & (row < (place + size)[None])
    which = jnp.argmax(covers, axis=1)
    source = first_row[which] + row[:, 0] - place[which]
    written = jnp.any(covers, axis=1)
    rows = everything[jnp.where(written, source, 0)]
    return jnp.where(written.reshape(-1, *(1,) * (output.ndim - 1)), rows, output)
