"""What a trained network does on held-out data: losses by domain and by position, and which experts see what."""

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from qwen3_jax.kernels.masks import positions_from_segments
from qwen3_jax.network.model import Qwen3
from qwen3_jax.train.ablate.specialisation import mutual_information, total_variation
from qwen3_jax.train.data import Batch

_FIRST_BUCKET = 32  # positions; each bucket of positions is twice as long as the one before


def measure(model: Qwen3, params: Any, batches: Iterable[Batch], domains: Sequence[str]) -> dict[str, Any]:
    """Runs the network over the batches.

    Returns:
      `held_out_loss` (nats a token), `domain_loss` by name of the domain, `position_loss` by positions of a document
      ("0-31", "32-63", "64-127" ...); for a mixture of experts `expert_information` (bits, see `mutual_information`),
      `expert_variation` (see `total_variation`) where there are two domains, and `expert_load_max` (the busiest
      expert's load over the mean, worst layer).
    """
    sums: Any = None
    length = 0
    for batch in batches:
        found = jax.tree.map(np.asarray, _sums(model, params, batch, len(domains)))
        sums = found if sums is None else jax.tree.map(np.add, sums, found)
        length = batch.tokens.shape[1]
    if sums is None or not sums["domain_tokens"].sum():
        raise ValueError("held-out data must have tokens to measure on, got none: give evaluation more of it")
    out: dict[str, Any] = {
        "held_out_loss": float(sums["domain_loss"].sum() / sums["domain_tokens"].sum()),
        "domain_loss": _means(domains, sums["domain_loss"], sums["domain_tokens"]),
        "position_loss": _means(bucket_names(length), sums["position_loss"], sums["position_tokens"]),
    }
    counts = sums["expert_counts"]
    if counts is not None:
        load = counts.sum(axis=1)
        out["expert_load_max"] = float((load.max(axis=1) / load.mean(axis=1)).max())
        if (counts.sum(axis=(0, 2)) > 0).sum() > 1:
            out["expert_information"] = mutual_information(counts)
            out["expert_variation"] = total_variation(counts)
    return out


def bucket_names(length: int) -> list[str]:
    """In: 100     Out: ["0-31", "32-63", "64-127"]"""
    names, low, high = [], 0, _FIRST_BUCKET
    while low < length:
        names.append(f"{low}-{high - 1}")
        low, high = high, high * 2
    return names


@partial(jax.jit, static_argnums=(0, 3))
def _sums(model: Qwen3, params: Any, batch: Batch, domains: int) -> dict[str, Any]:
    out = model.apply(
        {"params": params},
        batch.tokens,
        attention_mask=batch.segment_ids > 0,
        segment_ids=batch.segment_ids,
        logits_to_keep=1,
    )
    head = params["embed_tokens" if model.config.tie_word_embeddings else "lm_head"]
    counted = jnp.asarray(batch.loss_mask, jnp.float32)
    losses = _token_losses(out.hidden, head, batch.targets) * counted
    buckets = len(bucket_names(batch.tokens.shape[1]))
    bucket = _bucket(positions_from_segments(batch.segment_ids))
    real = (batch.segment_ids > 0).astype(jnp.int32)
    return {
        "domain_loss": _by(batch.domains, losses, domains),
        "domain_tokens": _by(batch.domains, counted, domains),
        "position_loss": _by(bucket, losses, buckets),
        "position_tokens": _by(bucket, counted, buckets),
        "expert_counts": _expert_counts(model, out.router_logits, batch.domains, real, domains),
    }


def _token_losses(hidden: Float[Array, "B T D"], head: Float[Array, "V D"], targets: Int[Array, "B T"]) -> Array:
    """Cross-entropy of every token; logits exist for one row at a time."""

    def row(of_row: tuple[Array, Array]) -> Array:
        states, labels = of_row
        logits = jnp.einsum("td,vd->tv", states, head.astype(states.dtype), preferred_element_type=jnp.float32)
        chosen = jnp.take_along_axis(logits, labels[:, None], axis=1)[:, 0]
        return jax.nn.logsumexp(logits, axis=1) - chosen

    return jax.lax.map(row, (hidden, targets))


def _expert_counts(
    model: Qwen3, router_logits: tuple[Array, ...], group: Int[Array, "B T"], real: Int[Array, "B T"], groups: int
) -> Array | None:
    """[L, groups, E]: how often real tokens of a group chose an expert; None for a dense model."""
    if not router_logits:
        return None
    logits = jnp.concatenate(router_logits)  # [L, B, T, E]; softmax keeps their order

    def layer(of_layer: Array) -> Array:
        chosen = jax.lax.top_k(of_layer, model.config.num_experts_per_tok)[1]
        place = jnp.zeros((groups, of_layer.shape[-1]), jnp.int32)
        return place.at[group[..., None], chosen].add(real[..., None])

    return jax.lax.map(layer, logits)


def _bucket(positions: Int[Array, "B T"]) -> Int[Array, "B T"]:
    """In: 0, 31, 32, 63, 64, 127, 128     Out: 0, 0, 1, 1, 2, 2, 3"""
    return 32 - jax.lax.clz(positions // _FIRST_BUCKET)


def _by(group: Int[Array, "B T"], values: Float[Array, "B T"], groups: int) -> Float[Array, " groups"]:
    return jnp.zeros(groups, jnp.float32).at[group].add(values)


def _means(names: Sequence[str], totals: np.ndarray, counts: np.ndarray) -> dict[str, float]:
    return {name: float(total / count) for name, total, count in zip(names, totals, counts, strict=True) if count > 0}
