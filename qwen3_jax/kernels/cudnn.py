"""cuDNN's fused attention on GPU, on one device or on a mesh."""

from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from qwen3_jax.sharding import Rules, axes_of, current_mesh, logical_to_spec

_IMPLEMENTATION: Literal["cudnn", "xla"] = "cudnn"  # tests, which have no GPU, put JAX's own in its place


def cudnn_attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    segment_ids: Int[Array, "B T"] | None,
    rules: Rules,
) -> Float[Array, "B T N H"]:
    """See `qwen3_jax.kernels.self_attention`."""
    if current_mesh() is None:
        return _local(q, k, v, segment_ids)
    sequence = axes_of("sequence", rules)
    of_queries = logical_to_spec(("batch", "sequence", "heads", "head_dim"), rules)
    of_keys = logical_to_spec(("batch", "sequence", "cache_heads", "head_dim"), rules)
    of_ids = None if segment_ids is None else logical_to_spec(("batch", "sequence"), rules)
    return jax.shard_map(
        partial(_local, sequence=sequence),
        in_specs=(of_queries, of_keys, of_keys, of_ids),
        out_specs=of_queries,
        check_vma=False,
    )(q, k, v, segment_ids)


def _local(q: Array, k: Array, v: Array, ids: Array | None, sequence: tuple[str, ...] = ()) -> Array:
    """The queries at hand against the keys of the whole sequence, gathered over the mesh axes `sequence`."""
    if not sequence and ids is None:
        return jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation=_IMPLEMENTATION)
    all_ids = ids
    if sequence:
        k, v = (jax.lax.all_gather(x, sequence, axis=1, tiled=True) for x in (k, v))
        all_ids = None if ids is None else jax.lax.all_gather(ids, sequence, axis=1, tiled=True)
    mask = _mask(q.shape, k.shape[1], ids, all_ids, jax.lax.axis_index(sequence) if sequence else 0)
    # Causality is said apart from the mask where it can be: the kernel then skips what lies above the diagonal.
    return jax.nn.dot_product_attention(q, k, v, mask=mask, is_causal=not sequence, implementation=_IMPLEMENTATION)


def _mask(
    shape: tuple[int, ...], num_keys: int, ids: Array | None, all_ids: Array | None, part: Array | int
) -> Bool[Array, "B 1 T S"]:
    """Which keys the queries of part `part` of the sequence see. cuDNN wants the mask whole: [B, 1, T, S]."""
    batch, num_queries = shape[:2]
    queries = part * num_queries + jnp.arange(num_queries)
    mask = jnp.arange(num_keys)[None, None, :] <= queries[None, :, None]
    if ids is not None:
        assert all_ids is not None
        mask = mask & (ids[:, :, None] == all_ids[:, None, :])
    return jnp.broadcast_to(mask[:, None], (batch, 1, num_queries, num_keys))
