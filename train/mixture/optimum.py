"""Mixtures to try, and the best one that a fit knows of."""

import numpy as np
from jaxtyping import Float
from scipy.optimize import minimize

from qwen3_jax.train.mixture.fit import Fit


def within(
    shares: Float[np.ndarray, " C"], low: Float[np.ndarray, " C"], high: Float[np.ndarray, " C"]
) -> Float[np.ndarray, " C"]:
    """The nearest shares (Euclidean) between two bounds that sum to 1: clip(shares + x), x found by bisection.

    In: [0.7, 0.2, 0.1], low 0, high 0.5      Out: [0.5, 0.3, 0.2]

    Raises:
      ValueError: no shares between the bounds sum to 1.
    """
    if low.sum() > 1 + 1e-9 or high.sum() < 1 - 1e-9 or (low > high + 1e-12).any():
        raise ValueError(
            f"the bounds of the shares must allow a sum of 1, got {low.sum():.3f} to {high.sum():.3f}: raise "
            "max_epochs or take more data"
        )
    least, most = float((low - shares).min()), float((high - shares).max())
    for _ in range(100):
        middle = (least + most) / 2
        if np.clip(shares + middle, low, high).sum() < 1:
            least = middle
        else:
            most = middle
    return np.clip(shares + most, low, high)


def draw_mixtures(
    natural: Float[np.ndarray, " C"],
    count: int,
    concentration: tuple[float, ...],
    high: Float[np.ndarray, " C"],
    rng: np.random.Generator,
) -> Float[np.ndarray, "N C"]:
    """Mixtures around the natural one, Dirichlet, as RegMix draws them.

    Their mean is the natural mixture's square root (RegMix's temperature 0.5, so that rare combinations are seen). How
    far they go differs from one to the next: the mean parameter of a combination is log-uniform in `concentration`.

    Args:
      high: the largest share of each, by what there is of it.
    """
    base = np.sqrt(natural) / np.sqrt(natural).sum()
    low = np.zeros_like(base)
    rows = []
    for _ in range(count):
        mass = np.exp(rng.uniform(*np.log(concentration))) * len(base)
        rows.append(within(rng.dirichlet(np.maximum(base * mass, 1e-3)), low, high))
    return np.stack(rows)


def best_mixture(
    fitted: Fit,
    starts: Float[np.ndarray, "N C"],
    low: Float[np.ndarray, " C"],
    high: Float[np.ndarray, " C"],
) -> Float[np.ndarray, " C"]:
    """The mixture of least predicted objective between two bounds.

    Linear and exponential laws with positive weights are convex, so a minimum is the minimum; several starts only guard
    against a solver that stops early.

    Raises:
      ValueError: no shares between the bounds sum to 1.
    """
    order = np.argsort(fitted.predict(starts))[:4]
    best = within(starts[order[0]], low, high)
    for start in starts[order]:
        found = minimize(
            lambda r: float(fitted.predict(r)),
            within(start, low, high),
            jac=fitted.gradient,
            method="SLSQP",
            bounds=list(zip(low, high, strict=True)),
            constraints={"type": "eq", "fun": lambda r: r.sum() - 1.0, "jac": np.ones_like},
            options={"maxiter": 500, "ftol": 1e-12},
        )
        shares = within(found.x, low, high)
        if fitted.predict(shares) < fitted.predict(best):
            best = shares
    return best
