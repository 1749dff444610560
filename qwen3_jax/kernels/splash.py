"""Splash attention: JAX's block-sparse attention kernel for TPU, on one device or on a mesh."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention as splash
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from qwen3_jax.sharding import Rules, axes_of, current_mesh, logical_to_spec, mesh_size

Kernel = Any  # callable pytree: the tables of blocks to visit are its leaves (its class is not public)

LANES = 128  # of a TPU's vector registers: blocks of a sequence are multiples of it
_LARGEST_BLOCK = 512  # tokens; a block of scores is then 1 MiB, and larger ones skip less of the upper triangle


def splash_attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    segment_ids: Int[Array, "B T"] | None,
    rules: Rules,
    interpret: bool,
) -> Float[Array, "B T N H"]:
    """See `qwen3_jax.kernels.self_attention`. Sequences are padded to whole blocks, on every device of `context`."""
    length = q.shape[1]
    parts = mesh_size(axes_of("sequence", rules))
    padding = -length % (LANES * parts)
    if padding:  # behind the last token, where causality hides it
        q, k, v = (jnp.pad(x, ((0, 0), (0, padding), (0, 0), (0, 0))) for x in (q, k, v))
        segment_ids = None if segment_ids is None else jnp.pad(segment_ids, ((0, 0), (0, padding)))
    # The kernel does not scale. In float32, so that bfloat16 queries are rounded once more and not twice.
    q = (q.astype(jnp.float32) * jnp.float32(q.shape[-1] ** -0.5)).astype(q.dtype)
    kernel = _make_kernel(length + padding, parts, interpret)
    if current_mesh() is None:
        out = _local(kernel, q, k, v, segment_ids)
    else:
        out = _sharded(kernel, q, k, v, segment_ids, rules)
    return out[:, :length]


def block_size(length: int) -> int:
    """The largest block that divides a sequence.

    In:  4096     Out: 512
    In:  1152     Out: 384
    """
    return max(size for size in range(LANES, _LARGEST_BLOCK + 1, LANES) if length % size == 0)


def _make_kernel(length: int, parts: int, interpret: bool) -> Kernel:
    """The kernel with its tables of blocks to visit, one for each of the `parts` of the queries.

    One mask stands for every head, so that the tables do not grow with them.
    """
    of_q, of_kv = block_size(length // parts), block_size(length)
    sizes = splash.BlockSizes(
        block_q=of_q,
        block_kv=of_kv,
        block_q_dkv=of_q,
        block_kv_dkv=of_kv,
        block_q_dq=of_q,
        block_kv_dq=of_kv,
    )
    mask = splash.MultiHeadMask([splash.CausalMask((length, length))])
    return splash.make_splash_mha(mask, block_sizes=sizes, head_shards=1, q_seq_shards=parts, interpret=interpret)


def _sharded(kernel: Kernel, q: Array, k: Array, v: Array, segment_ids: Array | None, rules: Rules) -> Array:
    """Each device with its own rows, heads and part of the queries."""
    sequence = axes_of("sequence", rules)
    of_queries = logical_to_spec(("batch", "sequence", "heads", "head_dim"), rules)
    of_keys = logical_to_spec(("batch", "sequence", "cache_heads", "head_dim"), rules)
    of_ids = None if segment_ids is None else logical_to_spec(("batch", "sequence"), rules)
    tables = kernel.manual_sharding_spec(NamedSharding(current_mesh(), PartitionSpec(None, sequence or None)))
    return jax.shard_map(
        partial(_local, sequence=sequence),
        in_specs=(tables, of_queries, of_keys, of_keys, of_ids),
        out_specs=of_queries,
        check_vma=False,
    )(kernel, q, k, v, segment_ids)


def _local(
    kernel: Kernel, q: Array, k: Array, v: Array, segment_ids: Array | None, sequence: tuple[str, ...] = ()
) -> Array:
    """The queries at hand against the keys of the whole sequence, gathered over the mesh axes `sequence`."""

    def whole(x: Array) -> Array:
        return jax.lax.all_gather(x, sequence, axis=1, tiled=True) if sequence else x

    q, k, v = (x.swapaxes(1, 2) for x in (q, whole(k), whole(v)))
    if segment_ids is None:
        out = jax.vmap(kernel)(q, k, v)
    else:
        out = jax.vmap(kernel)(q, k, v, splash.SegmentIds(q=segment_ids, kv=whole(segment_ids)))
    return out.swapaxes(1, 2)
