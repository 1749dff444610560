"""The fit finds what made the losses, says when nothing did, and its errors are those of leaving proxies out."""

import itertools

import numpy as np
import pytest
from scipy.optimize import linprog

from qwen3_jax.train.mixture.fit import (
    RIDGES,
    Regression,
    best_mixture,
    draw_mixtures,
    fit,
    fit_law,
    rank_correlation,
    within,
)

NOISE = 0.01


def drawn(count: int, parts: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).dirichlet(np.ones(parts), count)


def exponential(shares: np.ndarray) -> np.ndarray:
    """Losses of three held-out sets: each falls with its own combination's share, the fourth combination helps none."""
    slopes = np.array([[-4.0, -0.5, 0.0, 0.5], [0.0, -3.0, -0.5, 0.5], [-0.5, 0.0, -5.0, 0.5]])
    return np.array([1.0, 1.5, 0.5]) + np.exp(shares @ slopes.T)


def true_optimum() -> np.ndarray:
    """Of the mean of `exponential`, on a grid of the simplex in steps of 1/100."""
    grid = [(a, b, c) for a in range(101) for b in range(101 - a) for c in range(101 - a - b)]
    shares = np.array([(a, b, c, 100 - a - b - c) for a, b, c in grid]) / 100
    return shares[np.argmin(exponential(shares).mean(1))]


def test_the_optimum_of_a_known_exponential_law_is_found() -> None:
    shares = drawn(40, 4, 0)
    losses = exponential(shares) + NOISE * np.random.default_rng(1).normal(size=(40, 3))
    fitted = fit(shares, losses, [1, 1, 1])
    assert fitted.holds
    assert {law.kind for law in fitted.laws} == {"exponential"}
    assert fitted.rmse < 2 * NOISE
    best, truth = best_mixture(fitted, shares, np.zeros(4), np.ones(4)), true_optimum()
    assert best.sum() == pytest.approx(1.0)
    assert np.abs(best - truth).max() < 0.05
    assert exponential(best).mean() - exponential(truth).mean() < NOISE / 2
    assert float(fitted.predict(best)) == pytest.approx(exponential(best).mean(), abs=2 * NOISE)


def test_a_linear_law_is_found_and_its_optimum_is_the_linear_program_s() -> None:
    shares, slopes = drawn(30, 5, 2), np.array([0.3, -0.8, 0.1, 0.5, -0.6])
    losses = 2 + shares @ slopes + NOISE * np.random.default_rng(3).normal(size=30)
    fitted = fit(shares, losses[:, None], [1])
    assert fitted.holds
    low, high = np.full(5, 0.05), np.full(5, 0.4)
    best = best_mixture(fitted, shares, low, high)
    program = linprog(slopes, A_eq=np.ones((1, 5)), b_eq=[1], bounds=list(zip(low, high, strict=True)))
    np.testing.assert_allclose(best, program.x, atol=1e-3)


def test_a_law_predicts_mixtures_it_has_not_seen_within_the_noise() -> None:
    """Over 20 draws of 16 proxies each: which law one draw speaks for is a matter of luck."""
    slopes = np.array([0.3, -0.8, 0.1, 0.5])
    truths = [lambda r: 2 + r @ slopes, lambda r: 2 + np.exp(3 * r @ slopes)]
    for truth in truths:
        errors = []
        for seed in range(20):
            shares, test = drawn(16, 4, seed), drawn(50, 4, 1000 + seed)
            law = fit_law(shares, truth(shares) + NOISE * np.random.default_rng(seed).normal(size=16))
            errors.append(np.mean((law.predict(test) - truth(test)) ** 2))
        assert np.sqrt(np.mean(errors)) < 1.5 * NOISE


def test_the_gradient_is_the_slope() -> None:
    shares = drawn(20, 4, 5)
    fitted, at = fit(shares, exponential(shares), [1, 2, 3]), np.array([0.4, 0.3, 0.2, 0.1])
    steps = 1e-6 * np.eye(4)
    slopes = [(fitted.predict(at + step) - fitted.predict(at - step)) / 2e-6 for step in steps]
    np.testing.assert_allclose(fitted.gradient(at), slopes, rtol=1e-5)


def test_left_out_predictions_are_those_of_fits_without_the_proxy() -> None:
    rng = np.random.default_rng(7)
    shares, values, weights = drawn(12, 5, 6), rng.normal(size=(2, 12)), np.ones((2, 12))
    weights[1] = rng.uniform(0.5, 1.5, 12)
    largest = np.linalg.norm(shares - shares.mean(0), 2) ** 2
    _, left_out = Regression(shares).solve(values, weights)
    for row, ridge, out in itertools.product(range(2), range(len(RIDGES)), range(12)):
        rest = np.arange(12) != out
        design = np.column_stack([np.ones(11), shares[rest]])
        weighted = weights[row, rest, None] * design
        penalty = np.diag([0.0, *[RIDGES[ridge] * largest] * 5])
        solution = np.linalg.solve(design.T @ weighted + penalty, weighted.T @ values[row, rest])
        assert left_out[row, ridge, out] == pytest.approx(solution[0] + shares[out] @ solution[1:], abs=1e-8)


def test_noise_is_not_called_a_law() -> None:
    """20 searches on losses that have nothing to do with the mixtures; by the p-value alone one in 50 would pass."""
    held = 0
    for seed in range(20):
        losses = 2 + 0.05 * np.random.default_rng(100 + seed).normal(size=(16, 3))
        held += fit(drawn(16, 6, seed), losses, [1, 1, 1], seed).holds
    assert held <= 1


def test_what_can_not_be_fitted_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 4 proxies, got 3"):
        fit_law(drawn(3, 2, 0), np.ones(3))
    with pytest.raises(ValueError, match="must be finite"):
        fit_law(drawn(4, 2, 0), np.array([1.0, 2.0, np.nan, 1.0]))
    assert not fit(drawn(6, 3, 0), np.ones((6, 2)), [1, 1]).holds  # all proxies alike


def test_bounds() -> None:
    np.testing.assert_allclose(within(np.array([0.7, 0.2, 0.1]), np.zeros(3), np.full(3, 0.5)), [0.5, 0.3, 0.2])
    with pytest.raises(ValueError, match=r"allow a sum of 1, got 0.000 to 0.900"):
        within(np.array([0.7, 0.2, 0.1]), np.zeros(3), np.full(3, 0.3))
    natural, high = np.array([0.7, 0.2, 0.1]), np.array([1.0, 0.5, 0.15])
    rows = draw_mixtures(natural, 200, (0.5, 4.0), high, np.random.default_rng(0))
    np.testing.assert_allclose(rows.sum(1), 1.0)
    assert (rows <= high + 1e-9).all()
    assert (rows >= 0).all()
    assert rows.std(0).min() > 0.03


def test_rank_correlation_is_spearmans() -> None:
    assert rank_correlation(np.array([1.0, 5.0, 9.0]), np.array([0.0, 0.1, 7.0])) == 1.0
    assert rank_correlation(np.array([1.0, 2.0, 3.0]), np.array([3.0, 2.0, 1.0])) == -1.0
    assert rank_correlation(np.ones(3), np.arange(3.0)) == 0.0
