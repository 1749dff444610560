"""Laws of proxy loss as a function of the mixture, fitted in closed form and judged by what they were not fitted to.

    linear       L(r) = c + t.r                  RegMix's linear regression (Liu et al., 2407.01492)
    exponential  L(r) = c + exp(k + t.r)         Data Mixing Laws (Ye et al., 2403.16952), one law for each held-out set

r are the shares of the combinations, one row of them a proxy. For a given floor c the exponential law is linear in
log(L - c), weighted by (L - c)^2 so that errors count in nats. Both are then ridge regressions with a free intercept,
whose leave-one-out predictions follow exactly from the one fit. Law, floor and ridge are those with the least
leave-one-out error, for each held-out set by itself; a tie goes to the linear law.
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float
from scipy.optimize import minimize

RIDGES = tuple(float(x) for x in np.logspace(-4, 1, 11))  # of the mean squared spread of the shares
FLOORS = tuple(float(x) for x in np.logspace(-2, 0.8, 15))  # floor below the least loss, in spreads of the losses
PERMUTATIONS = 100
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
        return np.asarray(inner if self.kind == "linear" else self.floor + np.exp(inner))

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
        return np.asarray(sum(w * law.predict(shares) for w, law in zip(self.weights, self.laws, strict=True)))

    def gradient(self, shares: Float[np.ndarray, " C"]) -> Float[np.ndarray, " C"]:
        """The slope of `predict`."""
        parts = [w * law.gradient(shares) for w, law in zip(self.weights, self.laws, strict=True)]
        return np.sum(parts, axis=0)


class Regression:
    """Ridge regressions on one table of shares, for all ridges and several weightings of the proxies at once."""

    def __init__(self, shares: Float[np.ndarray, "N C"]) -> None:
        self.mean = shares.mean(0)
        centred = shares - self.mean
        self._design = np.column_stack([np.ones(len(shares)), centred])
        largest = max(float(np.linalg.norm(centred, 2)) ** 2, 1e-12)
        free = np.ones(self._design.shape[1])
        free[0] = 0.0  # the intercept
        self._penalties = np.array(RIDGES)[:, None, None] * largest * np.diag(free)

    def solve(
        self, values: Float[np.ndarray, "F N"], weights: Float[np.ndarray, "F N"]
    ) -> tuple[Float[np.ndarray, "F R D"], Float[np.ndarray, "F R N"]]:
        """Intercept (at the mean shares) and slopes, and each value as predicted from the others.

        Args:
          values: F different ones to regress.
          weights: of the proxies, mean 1 in each row.
        """
        design = self._design
        weighted = weights[:, :, None] * design  # [F, N, D]
        gram = np.einsum("nd,fne->fde", design, weighted)[:, None] + self._penalties
        gains = np.linalg.solve(gram, weighted.transpose(0, 2, 1)[:, None])  # [F, R, D, N]
        found = np.einsum("frdn,fn->frd", gains, values)
        leverage = np.einsum("nd,frdn->frn", design, gains)
        residuals = values[:, None] - np.einsum("nd,frd->frn", design, found)
        return found, values[:, None] - residuals / (1.0 - np.clip(leverage, 0.0, 1.0 - 1e-6))


def fit_law(shares: Float[np.ndarray, "N C"], losses: Float[np.ndarray, " N"]) -> Law:
    """The law of least leave-one-out error for one held-out set.

    Raises:
      ValueError: fewer than 4 proxies, or a loss that is not finite.
    """
    _require(shares, losses)
    return _fit_law(Regression(shares), losses)


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
    regression = Regression(shares)
    laws = tuple(_fit_law(regression, column) for column in losses.T)
    measured = losses @ normal
    left_out = np.stack([law.left_out for law in laws], 1) @ normal
    r2 = _r2(measured, left_out)
    rng = np.random.default_rng(seed)
    reached = 0
    for _ in range(PERMUTATIONS):
        shuffled = losses[rng.permutation(len(losses))]
        guess = np.stack([_fit_law(regression, column).left_out for column in shuffled.T], 1) @ normal
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


def _fit_law(regression: Regression, losses: Float[np.ndarray, " N"]) -> Law:
    spread = max(float(np.ptp(losses)), 1e-9)
    floors = [float(losses.min()) - part * spread for part in FLOORS]
    if losses.min() > 0:
        floors.append(0.0)
    above = losses - np.array(floors)[:, None]  # [floors, N]
    weights = np.concatenate([np.ones((1, len(losses))), above**2 / np.mean(above**2, axis=1, keepdims=True)])
    found, left_out = regression.solve(np.concatenate([losses[None], np.log(above)]), weights)
    left_out[1:] = np.array(floors)[:, None, None] + np.exp(np.clip(left_out[1:], None, 50.0))
    law, ridge = _choice((left_out - losses) ** 2)
    at_mean, slopes = found[law, ridge, 0], found[law, ridge, 1:]
    return Law(
        kind="exponential" if law else "linear",
        floor=floors[law - 1] if law else 0.0,
        intercept=float(at_mean - regression.mean @ slopes),
        slopes=slopes,
        ridge=RIDGES[ridge],
        left_out=left_out[law, ridge],
    )


def _choice(errors: Float[np.ndarray, "F R N"]) -> tuple[int, int]:
    """Law and ridge of least error. The linear law, which is the first, stands unless the best exponential one beats it
    by more than one standard error of the difference."""
    mean = errors.mean(2)
    linear = (0, int(np.argmin(mean[0])))
    law, ridge = np.unravel_index(np.argmin(mean[1:]), mean[1:].shape)
    best = (int(law) + 1, int(ridge))
    difference = errors[linear] - errors[best]
    error = float(np.std(difference, ddof=1)) / np.sqrt(len(difference))
    return best if difference.mean() > error else linear


def _r2(measured: Float[np.ndarray, " N"], left_out: Float[np.ndarray, " N"]) -> float:
    count = len(measured)
    from_mean = (measured - measured.mean()) * count / (count - 1)  # against the mean of the others
    return float(1.0 - np.sum((measured - left_out) ** 2) / max(np.sum(from_mean**2), 1e-30))


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
