"""How differently domains use the experts, from router counts: 0 when every domain uses them alike.

Each domain counts the same, however many tokens of it there are; domains without tokens are left out.
"""

import itertools

import numpy as np
from jaxtyping import Float, Num


def mutual_information(counts: Num[np.ndarray, "L G E"]) -> float:
    """Bits that a token's expert tells of its domain, mean over the layers.

    With p(e|g) the share of expert e in domain g and p(e) the mean of it over the domains:
    I = mean_g sum_e p(e|g) log2(p(e|g) / p(e)), at most log2 of the number of domains.

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


def _shares(counts: Num[np.ndarray, "L G E"]) -> Float[np.ndarray, "L seen E"]:
    counts = np.asarray(counts, np.float64)
    seen = counts.sum(axis=(0, 2)) > 0
    if seen.sum() < 2:
        raise ValueError(f"specialisation needs tokens of two domains, got {int(seen.sum())}: add held-out data")
    counts = counts[:, seen]
    return counts / counts.sum(axis=2, keepdims=True)
