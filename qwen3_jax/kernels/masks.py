"""Who may attend to whom: boolean masks [B, T, S], True where query t sees slot s."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


def positions_from_mask(real: Bool[Array, "B T"]) -> Int[Array, "B T"]:
    """Position of each real token among the real tokens of its row; padding gets 0.

    In:  0 0 1 1 1     Out: 0 0 0 1 2
    In:  1 1 1 0 0     Out: 0 1 2 2 2   (padding is masked, its position does not matter)
    """
    return jnp.maximum(jnp.cumsum(real.astype(jnp.int32), axis=1) - 1, 0)


def positions_from_segments(segment_ids: Int[Array, "B T"]) -> Int[Array, "B T"]:
    """Position of each token within its document.

    In:  1 1 1 2 2 0 0     Out: 0 1 2 0 1 0 1
    """
    index = jnp.arange(segment_ids.shape[1], dtype=jnp.int32)[None, :]
    is_start = jnp.concatenate(
        [jnp.ones_like(segment_ids[:, :1], dtype=bool), segment_ids[:, 1:] != segment_ids[:, :-1]], axis=1
    )
    start = jnp.where(is_start, index, 0)
    # Starts grow to the right, so a running maximum carries each document's start to its tokens.
    start = jax.lax.cummax(start, axis=1)
    return index - start


def causal_mask(real: Bool[Array, "B T"], segment_ids: Int[Array, "B T"] | None = None) -> Bool[Array, "B T T"]:
    """Token t sees real tokens s <= t, of its own document when `segment_ids` is given.

    In:  real 0 1 1        Out: 0 0 0
                                0 1 0
                                0 1 1
    """
    index = jnp.arange(real.shape[1])
    mask = (index[None, None, :] <= index[None, :, None]) & real[:, None, :]
    if segment_ids is not None:
        mask = mask & (segment_ids[:, :, None] == segment_ids[:, None, :])
    return mask


def document_ids(real: Bool[Array, "B T"] | None, segment_ids: Int[Array, "B T"] | None) -> Int[Array, "B T"] | None:
    """What `causal_mask` says beyond causality, as kernels take it: tokens of equal id see each other. Padding is a
    document of its own, so that every token sees at least itself. None: one document a row, no padding.

    In:  real 0 1 1 1, segment_ids 0 1 1 2     Out: -1 1 1 2
    """
    if real is None:
        return segment_ids
    return jnp.where(real, jnp.int32(1) if segment_ids is None else segment_ids, jnp.int32(-1))


def cache_mask(slots: Int[Array, "B S"], queries: Int[Array, "B T"]) -> Bool[Array, "B T S"]:
    """A query at position p sees the slots of positions 0 to p; -1 is an empty slot, or a query that is padding.

    In:  slots 0 -1 2 1 -1, queries 1 2     Out: 1 0 0 1 0
                                                 1 0 1 1 0
    """
    slots = slots[:, None, :]
    return (slots >= 0) & (slots <= queries[:, :, None])
