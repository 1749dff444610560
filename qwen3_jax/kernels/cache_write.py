"""The write of new keys or values into the cache, in place on every backend.

What does not fit is not written: `dynamic_update_slice` alone would clamp the slot and overwrite other tokens.
"""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from qwen3_jax.kernels.cpu.cache_write import write_pieces
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
    new = new if layer is None else new[None]

    def local(buffer: Array, new: Array, slots: Array, layer: Array | None) -> Array:
        rows = jnp.arange(slots.shape[0], dtype=jnp.int32)
        return _write(buffer, new, layer, rows, slots, rules)

    if lock_step or current_mesh() is None:
        return local(buffer, new, slots[:1] if lock_step else slots, layer)
    # Each device writes its own rows: the partitioner would gather the cache around a slice of a row.
    of_buffer = spec_of(buffer.shape, buffer_axes(buffer.ndim), rules)
    specs = (of_buffer, of_buffer, PartitionSpec(of_buffer[-4]), PartitionSpec())
    return jax.shard_map(local, in_specs=specs, out_specs=of_buffer, check_vma=False)(buffer, new, slots, layer)


def copy_rows(
    buffer: Float[Array, "*n B K S H"], new: Float[Array, "*n R K P H"], rows: Int[Array, " R"], rules: Rules
) -> Float[Array, "*n B K S H"]:
    """Writes the P slots of each new row over the first of row `rows[r]`; drops it where there is no such row."""
    if current_mesh() is None:
        return _write(buffer, new, None, rows, jnp.zeros_like(rows), rules)
    of_buffer = spec_of(buffer.shape, buffer_axes(buffer.ndim), rules)

    def local(buffer: Array, new: Array, rows: Array) -> Array:
        first = jax.lax.axis_index(of_buffer[-4]) * buffer.shape[-4] if of_buffer[-4] else 0
        return _write(buffer, new, None, rows - first, jnp.zeros_like(rows), rules)

    of_new = PartitionSpec(*of_buffer[:-4], None, *of_buffer[-3:])  # every device sees all new rows
    specs = (of_buffer, of_new, PartitionSpec())
    return jax.shard_map(local, in_specs=specs, out_specs=of_buffer, check_vma=False)(buffer, new, rows)


def _write(buffer: Array, new: Array, layer: Array | None, rows: Array, slots: Array, rules: Rules) -> Array:
    """Writes as many pieces as there are `rows`: equal runs of the new rows, each to its row and slot."""
    size, num_slots = new.shape[-4] // rows.shape[0], new.shape[-2]
    fits = (rows >= 0) & (rows + size <= buffer.shape[-4]) & (slots + num_slots <= buffer.shape[-2])
    lead = [jnp.full_like(rows, 0 if layer is None else layer)] * (buffer.ndim - 4)
    zero = jnp.zeros_like(rows)
    starts = jnp.stack([*lead, rows, zero, slots, zero], axis=1)
    platform = target_platform()
    if platform == "cpu":
        return write_pieces(buffer, new, starts, fits)
    if platform == "gpu":
        return _scatter(buffer, new, starts, fits)
    # Left alone, XLA:TPU keeps the buffer inside a loop in the order that suits the write of one slot (slots
    # outermost), and copies the whole cache in and out of the loop and to the products of attention.
    return row_major(_update(buffer, new, starts, fits), buffer_axes(buffer.ndim), rules)


def _update(buffer: Array, new: Array, starts: Int[Array, "R dims"], fits: Bool[Array, " R"]) -> Array:
    for start, fit, part in zip(starts, fits, jnp.split(new, starts.shape[0], axis=-4), strict=True):
        old = jax.lax.dynamic_slice(buffer, list(start), part.shape)
        buffer = jax.lax.dynamic_update_slice(buffer, jnp.where(fit, part, old), list(start))
    return buffer


def _scatter(buffer: Array, new: Array, starts: Int[Array, "R dims"], fits: Bool[Array, " R"]) -> Array:
    """One parallel program, where branches and loops of unknown length wait for the host. All dimensions but the last
    are indexed: XLA:GPU transposes the operand of a scatter so that indexed dimensions come first."""
    size = new.shape[-4] // starts.shape[0]
    starts, fits = jnp.repeat(starts, size, axis=0), jnp.repeat(fits, size)
    starts = starts.at[:, -4].add(jnp.tile(jnp.arange(size, dtype=starts.dtype), starts.shape[0] // size))
    starts = starts.at[:, -2].set(jnp.where(fits, starts[:, -2], buffer.shape[-2]))  # past the end: dropped
    index = []
    for dim in range(new.ndim - 1):
        shape = [1] * (new.ndim - 1)
        shape[-3 % len(shape)] = -1
        index.append(starts[:, dim].reshape(shape))
        if dim != new.ndim - 4:
            shape = [1] * (new.ndim - 1)
            shape[dim] = -1
            index[-1] = index[-1] + jnp.arange(new.shape[dim], dtype=starts.dtype).reshape(shape)
    return buffer.at[tuple(index)].set(new, mode="drop", unique_indices=True)
