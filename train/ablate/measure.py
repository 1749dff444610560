"""What a trained network does on held-out data: losses by domain and by position, and which experts see what."""

import itertools
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Num

from qwen3_jax.kernels.cross_entropy import token_losses
from qwen3_jax.kernels.masks import positions_from_segments
from qwen3_jax.network.model import Qwen3
from qwen3_jax.train.data import Batch
from qwen3_jax.train.objectives.objective import apply_to_batch, by_domain

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


def mutual_information(counts: Num[np.ndarray, "L G E"]) -> float:
    """Bits that a token's expert tells of its domain, mean over the layers.

    With p(e|g) the share of expert e in domain g and p(e) the mean of it over the domains:
    I = mean_g sum_e p(e|g) log2(p(e|g) / p(e)), at most log2 of the number of domains and 0 where all domains use the
    experts alike. Each domain counts the same, however many tokens it has; those without tokens are left out.

    In: [[[4, 0], [0, 4]]] (each domain has its own expert)     Out: 1.0

    Args:
      counts: assignments by layer, domain and expert.

    Raises:
      ValueError: fewer than two domains have tokens.
    """
    shares = _shares(counts)
    pooled = shares.mean(axis=1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        bits = np.where(shares > 0, shares * np.log2(shares / pooled), 0.0)
    return float(bits.sum(axis=2).mean())


def total_variation(counts: Num[np.ndarray, "L G E"]) -> float:
    """Half the sum of |p(e|g) - p(e|h)| over the experts, mean over pairs of domains and layers: the share of
    assignments that would have to move. Arguments and errors as `mutual_information`.

    In: [[[4, 0], [0, 4]]]     Out: 1.0
    """
    shares = _shares(counts)
    pairs = itertools.combinations(range(shares.shape[1]), 2)
    return float(np.mean([np.abs(shares[:, g] - shares[:, h]).sum(axis=1) / 2 for g, h in pairs]))


@partial(jax.jit, static_argnums=(0, 3))
def _sums(model: Qwen3, params: Any, batch: Batch, domains: int) -> dict[str, Any]:
    out, head = apply_to_batch(model, params, batch)
    counted = jnp.asarray(batch.loss_mask, jnp.float32)
    length = batch.tokens.shape[1]  # also the chunk of tokens whose logits exist at once
    losses = token_losses(out.hidden, head, batch.targets, counted, length).losses * counted
    buckets = len(bucket_names(length))
    bucket = _bucket(positions_from_segments(batch.segment_ids))
    real = (batch.segment_ids > 0).astype(jnp.int32)
    return {
        "domain_loss": by_domain(batch.domains, losses, domains),
        "domain_tokens": by_domain(batch.domains, counted, domains),
        "position_loss": by_domain(bucket, losses, buckets),
        "position_tokens": by_domain(bucket, counted, buckets),
        "expert_counts": _expert_counts(model, out.router_logits, batch.domains, real, domains),
    }


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


def _means(names: Sequence[str], totals: np.ndarray, counts: np.ndarray) -> dict[str, float]:
    return {name: float(total / count) for name, total, count in zip(names, totals, counts, strict=True) if count > 0}


def _shares(counts: Num[np.ndarray, "L G E"]) -> Float[np.ndarray, "L seen E"]:
    counts = np.asarray(counts, np.float64)
    seen = counts.sum(axis=(0, 2)) > 0
    if seen.sum() < 2:
        raise ValueError(f"specialisation needs tokens of two domains, got {int(seen.sum())}: add held-out data")
    counts = counts[:, seen]
    return counts / counts.sum(axis=2, keepdims=True)
