"""The key-value cache: static shapes, donated and carried through the layers.

A slot knows the position of its token, and a query at position p sees the slots with 0 <= position <= p: what may be
seen never depends on the order of the slots. Rows that are padded on the left write the same slot (`lock_step`), one
slice for all of them; otherwise each row writes at its own length, so that rows are admitted, copied and ended one by
one.

Past the capacity nothing is written. Outside of `jax.jit`, `Qwen3.apply` raises a ValueError then; inside, where
lengths are not known, the outputs of such a row are NaN. Its length grows all the same, so that it stays NaN.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from qwen3_jax.config import ModelConfig
from qwen3_jax.kernels.cache_write import buffer_axes, copy_rows, write_slots
from qwen3_jax.parameters.placement import ONE_DEVICE, Placement
from qwen3_jax.parameters.specs import Layout
from qwen3_jax.sharding import Rules, constrain, current_mesh, named_sharding

Layer = tuple[int, Int[Array, ""] | None]


@flax.struct.dataclass
class KVCache:
    """Keys and values of the tokens so far.

    Attributes:
      keys, values: one array a layer, [B, K, S, H], when the parameters are unrolled; one array a run of identical
        layers, [n, B, K, S, H], when they are stacked. Heads stand before slots: a head's keys are then one
        contiguous matrix, which both products of attention take without a transpose.
      positions: int32[B, S], the position of each slot's token; -1 where a slot is empty or holds padding.
      length: int32[B], the next slot of each row.
      lock_step: all rows have the same length.
      placement: where the arrays are on a mesh.
    """

    __no_type_check__ = True  # while JAX lowers or maps a pytree, its fields are not arrays

    keys: tuple[Array, ...]
    values: tuple[Array, ...]
    positions: Int[Array, "B S"]
    length: Int[Array, " B"]
    lock_step: bool = flax.struct.field(pytree_node=False, default=True)
    placement: Placement = flax.struct.field(pytree_node=False, default=ONE_DEVICE)

    @property
    def capacity(self) -> int:
        return self.positions.shape[1]

    def add_tokens(self, positions: Int[Array, "B T"]) -> "KVCache":
        """Takes the next T slots of each row for tokens at these positions (-1: padding); the layers `update` them.

        In:  positions 0 1 -1 -1, length 2, new positions 2     Out: positions 0 1 2 -1, length 3

        Raises:
          ValueError: they do not fit, where that is known (outside of `jax.jit`).
        """
        num_tokens = positions.shape[1]
        if not isinstance(self.length, jax.core.Tracer) and int(jnp.max(self.length)) + num_tokens > self.capacity:
            raise ValueError(
                f"the cache must have room for the new tokens, got {num_tokens} at slot {int(jnp.max(self.length))} "
                f"of {self.capacity}: grow_cache first"
            )
        length = self.length + num_tokens
        index = jnp.arange(self.capacity, dtype=jnp.int32)[None] - self.length[:, None]
        new = jnp.take_along_axis(positions, jnp.clip(index, 0, num_tokens - 1), axis=1)
        written = (index >= 0) & (index < num_tokens) & (length <= self.capacity)[:, None]
        return dataclasses.replace(
            self,
            positions=self.placement.constrain(jnp.where(written, new, self.positions), "batch", "cache_length"),
            length=self.placement.constrain(length, None),
        )

    def update(
        self, layer: Layer, keys: Float[Array, "B T K H"], values: Float[Array, "B T K H"]
    ) -> tuple["KVCache", Float[Array, "B K S H"], Float[Array, "B K S H"]]:
        """Writes the tokens of the last `add_tokens` in one layer.

        Args:
          layer: which array it has, and its index there when the layers are stacked. The array stays whole in the
            carry of the layer scan: as scanned input and output it would be copied at every step.

        Returns:
          the cache, and all keys and values of the layer.
        """
        number, index = layer
        slots, rules = self.length - keys.shape[1], self.placement.rules
        buffers = [
            write_slots(buffers[number], new, slots, index, self.lock_step, rules)
            for buffers, new in ((self.keys, keys), (self.values, values))
        ]
        new_keys, new_values = (
            (*old[:number], buffer, *old[number + 1 :])
            for old, buffer in zip((self.keys, self.values), buffers, strict=True)
        )
        if index is not None:
            buffers = [jax.lax.dynamic_index_in_dim(buffer, index, 0, keepdims=False) for buffer in buffers]
        return dataclasses.replace(self, keys=new_keys, values=new_values), buffers[0], buffers[1]

    def overflowed(self) -> Bool[Array, " B"]:
        """Rows that were given more tokens than they have slots."""
        return self.length > self.capacity

    def map(self, function: Callable[..., Any]) -> "KVCache":
        """`function(array, logical axes)` of each array."""
        return dataclasses.replace(
            self,
            keys=tuple(function(x, buffer_axes(x.ndim)) for x in self.keys),
            values=tuple(function(x, buffer_axes(x.ndim)) for x in self.values),
            positions=function(self.positions, ("batch", "cache_length")),
            length=function(self.length, (None,)),  # on all devices: a lock-step write reads the first
        )

    def constrained(self) -> "KVCache":
        """The cache laid out over the current mesh."""
        return self.map(lambda x, axes: self.placement.constrain(x, *axes))


def abstract_cache(
    config: ModelConfig,
    batch: int,
    capacity: int,
    layout: Layout,
    dtype: Any,
    placement: Placement = ONE_DEVICE,
    lock_step: bool = True,
    mesh: Mesh | None = None,
) -> KVCache:
    """The cache of `init_cache` as shapes, with their shardings on `mesh`."""
    slots = (batch, config.num_key_value_heads * placement.kv_repeats, capacity, config.head_dim)
    runs: list[tuple[int, ...]] = [(length,) for _, length in config.segments]
    shapes = [(*run, *slots) for run in ([()] * config.num_hidden_layers if layout == "unrolled" else runs)]
    shape: Any = jax.ShapeDtypeStruct
    cache = KVCache(
        keys=tuple(shape(each, dtype) for each in shapes),
        values=tuple(shape(each, dtype) for each in shapes),
        positions=shape((batch, capacity), jnp.int32),
        length=shape((batch,), jnp.int32),
        lock_step=lock_step,
        placement=placement,
    )
    if mesh is None:
        return cache
    return cache.map(lambda x, axes: x.update(sharding=named_sharding(mesh, axes, placement.rules)))


def init_cache(
    config: ModelConfig,
    batch: int,
    capacity: int,
    layout: Layout,
    dtype: Any,
    placement: Placement = ONE_DEVICE,
    lock_step: bool = True,
) -> KVCache:
    """An empty cache of `capacity` slots for `batch` rows, laid out over the current mesh when there is one.

    Args:
      dtype: of the activations, see `Qwen3.activation_dtype`.
      lock_step: all rows will write the same slot, see `KVCache`.
    """
    make = _empty if current_mesh() is None else _empty_on_mesh
    return make(abstract_cache(config, batch, capacity, layout, jnp.dtype(dtype), placement, lock_step))


def _empty(shapes: KVCache) -> KVCache:
    cache = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return dataclasses.replace(cache, positions=cache.positions - 1).constrained()


_empty_on_mesh = jax.jit(_empty, static_argnums=0)  # once: a new `jit` would compile at every call


def grow_cache(cache: KVCache, capacity: int) -> KVCache:
    """The same cache with empty slots appended up to `capacity`. Takes the old one: each array is freed as soon as it
    is copied, so that memory holds one array more than the new cache and not two caches."""
    assert capacity >= cache.capacity
    if capacity == cache.capacity:
        return cache
    rules = cache.placement.rules

    def grow(x: Array, axes: tuple[str | None, ...]) -> Array:
        if "cache_length" not in axes:
            return x
        grown = _pad_slots(x, capacity, axes, rules).block_until_ready()
        x.delete()
        return grown

    return cache.map(grow)


@partial(jax.jit, static_argnums=(1, 2, 3))
def _pad_slots(x: Array, capacity: int, axes: tuple[str | None, ...], rules: Rules) -> Array:
    slots = axes.index("cache_length")
    widths = [(0, capacity - x.shape[axis] if axis == slots else 0) for axis in range(x.ndim)]
    return constrain(jnp.pad(x, widths, constant_values=-1 if x.ndim == 2 else 0), axes, rules)


@partial(jax.jit, donate_argnames="cache")
def insert_rows(cache: KVCache, slots: Int[Array, " R"], prefix: KVCache) -> KVCache:
    """Copies row r of `prefix`, made by `prefill`, to row `slots[r]` of a per-row cache, which is donated.

    Args:
      slots: int32[R], rows of `cache`, all different; a number outside of it drops the row.
      prefix: a cache of R rows, of no more slots than `cache` has.
    """
    assert not cache.lock_step
    assert prefix.capacity <= cache.capacity
    rules = cache.placement.rules

    def insert(x: Array, new: Array) -> Array:
        return copy_rows(x, new, slots, rules)

    positions = jnp.pad(prefix.positions, ((0, 0), (0, cache.capacity - prefix.capacity)), constant_values=-1)
    return dataclasses.replace(
        cache,
        keys=tuple(map(insert, cache.keys, prefix.keys)),
        values=tuple(map(insert, cache.values, prefix.values)),
        positions=cache.positions.at[slots].set(positions, mode="drop"),
        length=cache.length.at[slots].set(prefix.length, mode="drop"),
    ).constrained()


@partial(jax.jit, donate_argnames="cache")
def clear_rows(cache: KVCache, rows: Bool[Array, " B"]) -> KVCache:
    """Empties these rows of a per-row cache, which is donated."""
    assert not cache.lock_step
    positions = jnp.where(rows[:, None], jnp.int32(-1), cache.positions)
    return dataclasses.replace(cache, positions=positions, length=jnp.where(rows, 0, cache.length)).constrained()
