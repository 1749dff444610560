"""The key-value cache: static shapes, one write position for all rows, carried and donated.

Rows are padded on the left, so that every row writes its next token into the same slot: the write is one
`dynamic_update_slice` at a scalar index, which XLA does in place on a donated buffer. What a row may see is `filled`.
"""

import dataclasses
from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from qwen3_jax.config import ModelConfig
from qwen3_jax.parameters.placement import ONE_DEVICE, Placement
from qwen3_jax.parameters.specs import Layout
from qwen3_jax.sharding import current_mesh, row_major, target_platform


@flax.struct.dataclass
class KVCache:
    """Keys and values of the tokens so far.

    Attributes:
      keys, values: one array a layer, [B, K, S, H], when the parameters are unrolled; one array a run of identical
        layers, [n, B, K, S, H], when they are stacked. Heads stand before slots: a head's keys are then one
        contiguous matrix, which both products of attention take without a transpose.
      filled: bool[B, S], slots that hold a real token.
      length: int32 scalar, the next slot to write.
    """

    __no_type_check__ = True  # while JAX lowers or maps a pytree, its fields are not arrays

    keys: tuple[Array, ...]
    values: tuple[Array, ...]
    filled: Bool[Array, "B S"]
    length: Int[Array, ""]

    @property
    def capacity(self) -> int:
        return self.filled.shape[1]


def buffer_axes(ndim: int) -> tuple[str | None, ...]:
    """Logical axes of the keys or values of one layer (4 dimensions) or of a run of layers (5)."""
    return (*(None,) * (ndim - 4), "batch", "cache_heads", "cache_length", "head_dim")


def init_cache(
    config: ModelConfig, batch: int, capacity: int, layout: Layout, dtype: Any, placement: Placement = ONE_DEVICE
) -> KVCache:
    """An empty cache of `capacity` slots for `batch` rows, laid out over the current mesh when there is one."""
    if current_mesh() is None:
        return _empty(config, batch, capacity, layout, dtype, placement)
    make = partial(_empty, config, batch, capacity, layout, dtype, placement)
    return jax.jit(make)()


def constrain_cache(cache: KVCache, placement: Placement) -> KVCache:
    """The cache laid out over the current mesh."""

    def lay(x: Array) -> Array:
        return placement.constrain(x, *buffer_axes(x.ndim))

    return dataclasses.replace(
        cache,
        keys=tuple(map(lay, cache.keys)),
        values=tuple(map(lay, cache.values)),
        filled=placement.constrain(cache.filled, "batch", "cache_length"),
    )


def _empty(config: ModelConfig, batch: int, capacity: int, layout: Layout, dtype: Any, placement: Placement) -> KVCache:
    slots = (batch, config.num_key_value_heads * placement.kv_repeats, capacity, config.head_dim)
    if layout == "unrolled":
        shapes: list[tuple[int, ...]] = [slots] * config.num_hidden_layers
    else:
        shapes = [(length, *slots) for _, length in config.segments]
    cache = KVCache(
        keys=tuple(jnp.zeros(shape, dtype) for shape in shapes),
        values=tuple(jnp.zeros(shape, dtype) for shape in shapes),
        filled=jnp.zeros((batch, capacity), bool),
        length=jnp.zeros((), jnp.int32),
    )
    return constrain_cache(cache, placement)


def grow_cache(cache: KVCache, capacity: int, placement: Placement = ONE_DEVICE) -> KVCache:
    """The same cache with empty slots appended up to `capacity`."""
    assert capacity >= cache.capacity
    if current_mesh() is None:
        return _grown(cache, capacity, placement)
    return jax.jit(_grown, static_argnums=(1, 2))(cache, capacity, placement)


def _grown(cache: KVCache, capacity: int, placement: Placement) -> KVCache:
    extra = capacity - cache.capacity

    def pad(x: Array) -> Array:
        return jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [(0, extra), (0, 0)])

    cache = dataclasses.replace(
        cache,
        keys=tuple(map(pad, cache.keys)),
        values=tuple(map(pad, cache.values)),
        filled=jnp.pad(cache.filled, [(0, 0), (0, extra)]),
    )
    return constrain_cache(cache, placement)


def mark_filled(cache: KVCache, real: Bool[Array, "B T"]) -> KVCache:
    """Marks the next T slots as filled where `real`; the layers write them, the caller advances `length`."""
    zero = jnp.zeros((), jnp.int32)
    return dataclasses.replace(cache, filled=jax.lax.dynamic_update_slice(cache.filled, real, (zero, cache.length)))


def write_layer(
    buffer: Float[Array, "B K S H"], new: Float[Array, "B T K H"], slot: Int[Array, ""], placement: Placement
) -> Float[Array, "B K S H"]:
    """Writes T tokens from `slot` on."""
    zero = jnp.zeros((), jnp.int32)
    return _write(buffer, new.swapaxes(1, 2), (zero, zero, slot, zero), placement)


def write_stacked(
    buffer: Float[Array, "n B K S H"],
    new: Float[Array, "B T K H"],
    layer: Int[Array, ""],
    slot: Int[Array, ""],
    placement: Placement,
) -> Float[Array, "n B K S H"]:
    """Writes T tokens of one layer into the stacked buffer, which stays the carry of the layer scan: as scanned input
    and output it would be copied whole at every step."""
    zero = jnp.zeros((), jnp.int32)
    return _write(buffer, new.swapaxes(1, 2)[None], (layer, zero, zero, slot, zero), placement)


def _write(buffer: Array, update: Array, start: tuple[Array, ...], placement: Placement) -> Array:
    """`dynamic_update_slice`, in place on every backend.

    XLA:CPU has no bfloat16 form of it and would take the whole buffer to float32 and back. As integers the bits just
    move. XLA:TPU, left to itself, keeps the buffer inside a loop in the order that suits the write of one slot (slots
    outermost): it then copies the whole cache in and out of the loop, and every layer's part of it once more for the
    products of attention.
    """
    update, platform = update.astype(buffer.dtype), target_platform()
    if platform == "tpu":
        written = jax.lax.dynamic_update_slice(buffer, update, start)
        return row_major(written, buffer_axes(buffer.ndim), placement.rules)
    if buffer.dtype != jnp.bfloat16 or platform != "cpu":
        return jax.lax.dynamic_update_slice(buffer, update, start)
    bits = jax.lax.bitcast_convert_type(buffer, jnp.uint16)
    bits = jax.lax.dynamic_update_slice(bits, jax.lax.bitcast_convert_type(update, jnp.uint16), start)
    return jax.lax.bitcast_convert_type(bits, buffer.dtype)
