"""Laws of proxy loss as a function of the mixture, fitted in closed form and judged by what they were not fitted to.

    linear       L(r) = c + t.r                  RegMix's linear regression (Liu et al., 2407.01492)
    exponential  L(r) = c + exp(k + t.r)         Data Mixing Laws (Ye et al., 2403.16952), one law for each held-out set

r are the shares of the combinations, one row of them a proxy. For a given floor c the exponential law is linear in
log(L - c), so both are ridge regressions with a free intercept, whose leave-one-out predictions are exact and cost no
second fit. Law, floor and ridge are those with the least leave-one-out error, for each held-out set by itself.
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float

RIDGES = tuple(float(x) for x in np.logspace(-4, 1, 11))  # of the mean squared spread of the shares
FLOORS = (0.05, 0.15, 0.5, 1.5, 5.0)  # how far the floor lies below the least loss, in spreads of the losses
PERMUTATIONS = 200
MAX_P, MIN_R2 = 0.02, 0.4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Law:
    """The loss on one held-out set.

    Attributes:
      kind: see above.
      floor: c of the exponential law, 0 for the linear one.
      intercept, slopes: k (or c) and t.
      ridge: that was chosen.
      left_out: the loss of each proxy as predicted from the others.
    """

    kind: Literal["linear", "exponential"]
    floor: float
    intercept: float
    slopes: Float[np.ndarray, " C"]
    ridge: float
    left_out: Float[np.ndarray, " N"]

    def predict(self, shares: Float[np.ndarray, "*N C"]) -> Float[np.ndarray, "*N"]:
        """The loss of mixtures."""
        inner = self.intercept + shares @ self.slopes
        return inner if self.kind == "linear" else self.floor + np.exp(inner)

    def gradient(self, shares: Float[np.ndarray, " C"]) -> Float[np.ndarray, " C"]:
        """The slope of `predict` at one mixture."""
        scale = 1.0 if self.kind == "linear" else np.exp(self.intercept + shares @ self.slopes)
        return scale * self.slopes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fit:
    """Laws of all held-out sets and what they are worth for the weighted mean of them, the objective.

    Attributes:
      laws: one for each held-out set.
      weights: of the held-out sets, their sum 1.
      rmse: leave-one-out error of the objective.
      r2: 1 - squared leave-one-out error over that of the mean of the others; 0 is no better than that mean.
      rank_correlation: Spearman's, of predicted and measured objective, left out.
      p_value: share of random pairings of mixtures and losses, fitted the same way, that reach this r2.
    """

    laws: tuple[Law, ...]
    weights: Float[np.ndarray, " K"]
    rmse: float
    r2: float
    rank_correlation: float
    p_value: float

    @property
    def holds(self) -> bool:
        """Whether the loss follows the mixture, so that an optimum may be looked for."""
        return self.p_value <= MAX_P and self.r2 >= MIN_R2

    def predict(self, shares: Float[np.ndarray, "*N C"]) -> Float[np.ndarray, "*N"]:
        """The objective of mixtures."""
        return sum((w * law.predict(shares) for w, law in zip(self.weights, self.laws, strict=True)), np.float64(0))

    def gradient(self, shares: Float[np.ndarray, " C"]) -> Float[np.ndarray, " C"]:
        """The slope of `predict`."""
        parts = [w * law.gradient(shares) for w, law in zip(self.weights, self.laws, strict=True)]
        return np.sum(parts, axis=0)


class _Ridges:
    """Ridge regressions on one table of shares: what depends on the table alone, for each ridge."""

    def __init__(self, shares: Float[np.ndarray, "N C"]) -> None:
        count = len(shares)
        self.mean = shares.mean(0)
        centred = shares - self.mean
        left, singular, right = np.linalg.svd(centred, full_matrices=False)
        scale = max(float(singular[0] ** 2) / count, 1e-12)
        kept = singular > 1e-9 * singular[0]  # shares sum to 1: one direction has no spread
        left, singular, right = left[:, kept], singular[kept], right[kept]
        self.smoothers, self.solvers = [], []
        for ridge in RIDGES:
            strength = ridge * scale * count
            shrunk = singular**2 / (singular**2 + strength)
            self.smoothers.append((left * shrunk) @ left.T + 1.0 / count)
            self.solvers.append((right.T * (singular / (singular**2 + strength))) @ left.T)

    def left_out(self, values: Float[np.ndarray, "N ..."]) -> list[Float[np.ndarray, "N ..."]]:
        """For each ridge: each value as predicted from the others, exactly (the intercept is free)."""
        result = []
        for smoother in self.smoothers:
            leverage = np.clip(np.diag(smoother), 0.0, 1.0 - 1e-6).reshape(-1, *[1] * (values.ndim - 1))
            result.append(values - (values - np.tensordot(smoother, values, 1)) / (1.0 - leverage))
        return result


def fit_law(shares: Float[np.ndarray, "N C"], losses: Float[np.ndarray, " N"]) -> Law:
    """The law of least leave-one-out error for one held-out set.

    Raises:
      ValueError: fewer than 4 proxies, or a loss that is not finite.
    """
    _require(shares, losses)
    return _fit_law(_Ridges(shares), losses)


def fit(
    shares: Float[np.ndarray, "N C"], losses: Float[np.ndarray, "N K"], weights: Sequence[float], seed: int = 0
) -> Fit:
    """Laws for K held-out sets, and whether they hold.

    Args:
      shares: of C combinations, one row a proxy.
      losses: held-out losses of the proxies.
      weights: of the held-out sets in the objective, relative to one another.

    Raises:
      ValueError: fewer than 4 proxies, or a loss that is not finite.
    """
    _require(shares, losses)
    normal = np.asarray(weights, float) / np.sum(weights)
    ridges = _Ridges(shares)
    laws = tuple(_fit_law(ridges, column) for column in losses.T)
    measured = losses @ normal
    left_out = np.stack([law.left_out for law in laws], 1) @ normal
    r2 = _r2(measured, left_out)
    rng = np.random.default_rng(seed)
    reached = 0
    for _ in range(PERMUTATIONS):
        shuffled = losses[rng.permutation(len(losses))]
        guess = np.stack([_fit_law(ridges, column).left_out for column in shuffled.T], 1) @ normal
        reached += _r2(shuffled @ normal, guess) >= r2
    return Fit(
        laws=laws,
        weights=normal,
        rmse=float(np.sqrt(np.mean((measured - left_out) ** 2))),
        r2=r2,
        rank_correlation=rank_correlation(measured, left_out),
        p_value=(1 + reached) / (1 + PERMUTATIONS),
    )


def rank_correlation(a: Float[np.ndarray, " N"], b: Float[np.ndarray, " N"]) -> float:
    """Spearman's; 0 where one of the two does not vary."""
    ranks = [np.argsort(np.argsort(values)).astype(float) for values in (a, b)]
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return 0.0
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def _require(shares: np.ndarray, losses: np.ndarray) -> None:
    if len(shares) < 4:
        raise ValueError(f"a fit needs at least 4 proxies, got {len(shares)}: train more")
    if not np.isfinite(losses).all():
        raise ValueError("every proxy's loss must be finite, got one that is not: lower the learning rate")


def _fit_law(ridges: _Ridges, losses: Float[np.ndarray, " N"]) -> Law:
    spread = max(float(np.ptp(losses)), 1e-9)
    floors = [float(losses.min()) - part * spread for part in FLOORS]
    if losses.min() > 0:
        floors.append(0.0)
    targets = np.stack([losses, *(np.log(losses - floor) for floor in floors)], 1)  # [N, 1 + floors]
    best: tuple[float, int, int, np.ndarray] | None = None
    for number, guesses in enumerate(ridges.left_out(targets)):
        guesses[:, 1:] = np.exp(np.clip(guesses[:, 1:], None, 50.0)) + np.array(floors)
        errors = np.mean((guesses - losses[:, None]) ** 2, axis=0)
        column = int(np.argmin(errors))
        if best is None or errors[column] < best[0]:
            best = (float(errors[column]), number, column, guesses[:, column])
    assert best is not None
    _, number, column, left_out = best
    target = targets[:, column]
    slopes = ridges.solvers[number] @ (target - target.mean())
    return Law(
        kind="exponential" if column else "linear",
        floor=floors[column - 1] if column else 0.0,
        intercept=float(target.mean() - ridges.mean @ slopes),
        slopes=slopes,
        ridge=RIDGES[number],
        left_out=left_out,
    )


def _r2(measured: Float[np.ndarray, " N"], left_out: Float[np.ndarray, " N"]) -> float:
    count = len(measured)
    from_mean = (measured - measured.mean()) * count / (count - 1)  # against the mean of the others
    return float(1.0 - np.sum((measured - left_out) ** 2) / max(np.sum(from_mean**2), 1e-30))
