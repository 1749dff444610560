"""Means over seeds, and what they leave open: Student's t, two-sided."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import stats

CONFIDENCE = 0.95


@dataclasses.dataclass(frozen=True)
class Interval:
    """A mean and its 95% confidence interval.

    Attributes:
      mean: of the n values.
      half: half the interval's width; None for one value, which says nothing of the spread.
      n: number of values.
    """

    mean: float
    half: float | None
    n: int

    @property
    def low(self) -> float | None:
        return None if self.half is None else self.mean - self.half

    @property
    def high(self) -> float | None:
        return None if self.half is None else self.mean + self.half


def mean_interval(values: Sequence[float]) -> Interval | None:
    """mean +- t(0.975, n - 1) s / sqrt(n), s with n - 1 in the denominator; None without values.

    In: [1.0, 2.0, 3.0]     Out: 2.0 +- 2.484 (t = 4.303, s = 1)
    """
    if not values:
        return None
    n, mean = len(values), float(np.mean(values))
    if n == 1:
        return Interval(mean, None, 1)
    error = float(np.std(values, ddof=1)) / math.sqrt(n)
    return Interval(mean, float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)) * error, n)


def paired_interval(values: Mapping[int, float], baseline: Mapping[int, float]) -> Interval | None:
    """The interval of value minus baseline, seed by seed: what two runs of a seed share (data, order, first
    parameters) falls out. Seeds that one of them lacks are left out."""
    return mean_interval([values[seed] - baseline[seed] for seed in values if seed in baseline])
