"""Intervals against scipy's own, and by hand; experts' specialisation against scipy's divergence, and by hand."""

import itertools

import numpy as np
import pytest
from scipy import stats
from scipy.spatial.distance import jensenshannon

from qwen3_jax.train.ablate import mean_interval, mutual_information, paired_interval, total_variation


@pytest.mark.parametrize("n", [2, 3, 5, 20])
def test_the_interval_is_that_of_a_one_sample_t_test(n: int) -> None:
    values = np.random.default_rng(n).normal(3.0, 2.0, n)
    expected = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    found = mean_interval(list(values))
    assert found is not None
    assert (found.low, found.high, found.n) == (pytest.approx(expected.low), pytest.approx(expected.high), n)


def test_differences_are_taken_seed_by_seed() -> None:
    random = np.random.default_rng(0)
    seeds, hard = range(6), random.normal(0, 10, 6)  # what the seed does to both falls out
    ours = {seed: hard[seed] + 1.0 + random.normal(0, 0.1) for seed in seeds}
    theirs = {seed: hard[seed] + random.normal(0, 0.1) for seed in seeds}
    expected = stats.ttest_rel(list(ours.values()), list(theirs.values())).confidence_interval(0.95)
    found = paired_interval(ours, theirs | {99: 5.0})
    assert found is not None
    assert (found.low, found.high) == (pytest.approx(expected.low), pytest.approx(expected.high))
    assert found.low > 0.5
    apart = mean_interval(list(ours.values()))
    assert apart is not None
    assert apart.low is not None
    assert apart.low < 0  # taken apart the same runs say nothing


def test_by_hand() -> None:
    found = mean_interval([1.0, 2.0, 3.0])
    assert found is not None
    assert found.mean == 2.0
    assert found.half == pytest.approx(4.30265 / np.sqrt(3), rel=1e-5)  # t(0.975, 2), s = 1
    assert mean_interval([]) is None
    one = mean_interval([5.0])
    assert one is not None
    assert (one.mean, one.half, one.low, one.high) == (5.0, None, None, None)
    assert paired_interval({0: 1.0}, {1: 1.0}) is None


def test_specialisation_by_hand() -> None:
    own = np.array([[[4, 0], [0, 400]]])
    assert (mutual_information(own), total_variation(own)) == (1.0, 1.0)
    alike = np.array([[[1, 3], [10, 30]]])
    assert mutual_information(alike) == pytest.approx(0.0, abs=1e-12)
    assert total_variation(alike) == pytest.approx(0.0, abs=1e-12)
    half = np.array([[[2, 2, 0], [0, 2, 2]]])
    assert mutual_information(half) == pytest.approx(0.5)  # half the tokens tell the domain, half nothing
    assert total_variation(half) == pytest.approx(0.5)
    both = np.concatenate([np.pad(own, ((0, 0), (0, 0), (0, 1))), half])
    assert mutual_information(both) == pytest.approx(0.75)  # mean over layers


def test_two_domains_give_the_jensen_shannon_divergence() -> None:
    counts = np.random.default_rng(1).integers(0, 50, (3, 2, 8))
    shares = counts / counts.sum(-1, keepdims=True)
    expected = [jensenshannon(layer[0], layer[1], base=2) ** 2 for layer in shares]
    assert mutual_information(counts) == pytest.approx(np.mean(expected))


def test_against_loops_over_many_domains() -> None:
    counts = np.random.default_rng(2).integers(0, 9, (2, 4, 5)).astype(float)
    counts[:, 2] = 0  # a domain without tokens
    information, moved = [], []
    for layer in counts[:, [0, 1, 3]]:
        joint = np.array([[c / row.sum() / 3 for c in row] for row in layer])
        terms = [
            joint[g, e] * np.log2(joint[g, e] / (joint[g].sum() * joint[:, e].sum()))
            for g, e in itertools.product(range(3), range(5))
            if joint[g, e]
        ]
        information.append(sum(terms))
        moved += [3 * np.maximum(joint[g] - joint[h], 0).sum() for g, h in ((0, 1), (0, 2), (1, 2))]
    assert mutual_information(counts) == pytest.approx(np.mean(information))
    assert total_variation(counts) == pytest.approx(np.mean(moved))
    with pytest.raises(ValueError, match="tokens of two domains, got 1"):
        mutual_information(counts[:, 2:])
