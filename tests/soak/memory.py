"""Whether a process's memory grows: a line through samples of its resident size, with its confidence."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from scipy import stats

WARM_UP, BLOCK = 0.25, 20.0  # share of the time that does not count; seconds averaged into one point
LIMIT = 0.01  # of the resident size, an hour


@dataclasses.dataclass(frozen=True)
class Growth:
    """Of one run.

    Attributes:
      an_hour: the slope as a share of the mean resident size, an hour.
      margin: half of its 95% confidence interval.
    """

    an_hour: float
    margin: float
    mean_bytes: float
    seconds: float
    steps: int

    @property
    def passes(self) -> bool:
        return self.an_hour < LIMIT

    def line(self) -> str:
        return (
            f"memory of a run left alone for {self.seconds / 60:.1f} minutes ({self.steps} steps): "
            f"{100 * self.an_hour:+.2f}% an hour (95%: {100 * (self.an_hour - self.margin):+.2f}% to "
            f"{100 * (self.an_hour + self.margin):+.2f}%) of {self.mean_bytes / 2**20:.0f} MiB after warm-up"
        )


def growth(samples: Sequence[tuple[float, int]], steps: int) -> Growth:
    """A least-squares line through means over `BLOCK` seconds, so that neighbours hardly depend on one another.

    Args:
      samples: seconds since the start and bytes, the warm-up with them.
    """
    seconds, sizes = np.array(samples, float).T
    warm = seconds >= WARM_UP * seconds[-1]
    block = (seconds[warm] // BLOCK).astype(int)
    points = [(seconds[warm][block == b].mean(), sizes[warm][block == b].mean()) for b in np.unique(block)]
    times, means = np.array(points).T
    fit = stats.linregress(times, means)
    an_hour = 3600 / means.mean()
    margin = float(stats.t.ppf(0.975, len(times) - 2) * fit.stderr) * an_hour
    return Growth(float(fit.slope) * an_hour, margin, float(means.mean()), float(seconds[-1]), steps)
