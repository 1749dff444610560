"""The write of new keys or values into the cache, in place on every backend.

What does not fit is not written: `dynamic_update_slice` alone would clamp the slot and overwrite other tokens.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from qwen3_jax.kernels.cpu.cache_write import as_integers
from qwen3_jax.sharding import Rules, current_mesh, row_major, spec_of, target_platform


def buffer_axes(ndim: int) -> tuple[str | None, ...]:
    """Logical axes of the keys or values of one layer (4 dimensions) or of a run of layers (5)."""
    return (*(None,) * (ndim - 4), "batch", "cache_heads", "cache_length", "head_dim")


def write_slots(
    buffer: Float[Array, "*n B K S H"],
    new: Float[Array, "B T K H"],
    slots: Int[Array, " B"],
    layer: Int[Array, ""] | None,
    lock_step: bool,
    rules: Rules,
) -> Float[Array, "*n B K S H"]:
    """Writes T tokens of each row from its slot on.

    Args:
      layer: which layer of a stacked buffer; None for the buffer of one layer.
      lock_step: all rows have the slot of the first, so that one slice is written; else one slice a row.
    """
    new = new.swapaxes(1, 2).astype(buffer.dtype)
    if layer is not None:
        new = new[None]
    if lock_step:
        return _write(buffer, [new], [(layer, 0, slots[0])], rules)

    def local(buffer: Array, new: Array, slots: Array, layer: Array | None) -> Array:
        rows = jnp.split(new, slots.shape[0], axis=-4)
        return _write(buffer, rows, [(layer, row, slots[row]) for row in range(len(rows))], rules)

    if current_mesh() is None:
        return local(buffer, new, slots, layer)
    # Each device writes its own rows: the partitioner would gather the cache around a slice of a row.
    of_buffer = spec_of(buffer.shape, buffer_axes(buffer.ndim), rules)
    specs = (of_buffer, of_buffer, PartitionSpec(of_buffer[-4]), PartitionSpec())
    return jax.shard_map(local, in_specs=specs, out_specs=of_buffer, check_vma=False)(buffer, new, slots, layer)


def copy_rows(
    buffer: Float[Array, "*n B K S H"], new: Float[Array, "*n R K P H"], rows: Int[Array, " R"], rules: Rules
) -> Float[Array, "*n B K S H"]:
    """Writes the P slots of each new row over the first of row `rows[r]`; drops it where there is no such row."""
    of_buffer = spec_of(buffer.shape, buffer_axes(buffer.ndim), rules)
    batch_axes = of_buffer[-4] or ()

    def local(buffer: Array, new: Array, rows: Array) -> Array:
        first = jax.lax.axis_index(batch_axes) * buffer.shape[-4] if batch_axes else 0
        own = rows - first
        parts = jnp.split(new, rows.shape[0], axis=-4)
        return _write(buffer, parts, [(None, own[r], 0) for r in range(len(parts))], rules)

    if current_mesh() is None:
        return local(buffer, new, rows)
    of_new = PartitionSpec(*of_buffer[:-4], None, *of_buffer[-3:])  # every device sees all new rows
    specs = (of_buffer, of_new, PartitionSpec())
    return jax.shard_map(local, in_specs=specs, out_specs=of_buffer, check_vma=False)(buffer, new, rows)


def _write(
    buffer: Array, parts: Sequence[Array], starts: Sequence[tuple[Array | None, Array | int, Array | int]], rules: Rules
) -> Array:
    """Writes each part at its (layer, row, slot); layer None is the first of all."""

    def update(buffer: Array, parts: Sequence[Array]) -> Array:
        for part, (layer, row, slot) in zip(parts, starts, strict=True):
            lead = [0 if layer is None else layer] * (buffer.ndim - 4)
            start = [jnp.asarray(at, jnp.int32) for at in (*lead, row, 0, slot, 0)]
            fits = (start[-4] >= 0) & (start[-4] + part.shape[-4] <= buffer.shape[-4])
            fits &= start[-2] + part.shape[-2] <= buffer.shape[-2]
            old = jax.lax.dynamic_slice(buffer, start, part.shape)
            buffer = jax.lax.dynamic_update_slice(buffer, jnp.where(fits, part, old), start)
        return buffer

    platform = target_platform()
    if platform == "cpu":
        return as_integers(update, buffer, parts)
    buffer = update(buffer, parts)
    # Left alone, XLA:TPU keeps the buffer inside a loop in the order that suits the write of one slot (slots
    # outermost), and copies the whole cache in and out of the loop and to the products of attention.
    return row_major(buffer, buffer_axes(buffer.ndim), rules) if platform == "tpu" else buffer
