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
      interval: steps from save to save.
      an_hour: the slope as a share of the mean resident size, an hour; whatever grows, saves or the loop.
      margin: half of its 95% confidence interval.
      saves_an_hour: as they came, after warm-up.
    """

    interval: int
    an_hour: float
    margin: float
    mean_bytes: float
    seconds: float
    steps: int
    saves_an_hour: float

    @property
    def passes(self) -> bool:
        return self.an_hour < LIMIT

    @property
    def kib_a_save(self) -> str:
        """All growth laid to the saves, with its confidence: the most that one can cost."""
        if not self.saves_an_hour:
            return "-"
        unit = self.mean_bytes / 1024 / self.saves_an_hour
        low, high = (unit * (self.an_hour + sign * self.margin) for sign in (-1, 1))
        return f"{unit * self.an_hour:+.1f} ({low:+.1f} to {high:+.1f})"

    @property
    def percent(self) -> str:
        low, high = (100 * (self.an_hour + sign * self.margin) for sign in (-1, 1))
        return f"{100 * self.an_hour:+.2f}% ({low:+.2f} to {high:+.2f})"

    def line(self) -> str:
        return (
            f"memory of a run left alone for {self.seconds / 60:.1f} minutes ({self.steps} steps), a save every "
            f"{self.interval} ({self.saves_an_hour:.0f} an hour): {self.percent} an hour of "
            f"{self.mean_bytes / 2**20:.0f} MiB after warm-up, {self.kib_a_save} KiB a save"
        )


def growth(samples: Sequence[tuple[float, int, int]], interval: int) -> Growth:
    """A least-squares line through means over `BLOCK` seconds, so that neighbours hardly depend on one another.

    Args:
      samples: seconds since the start, bytes and the last step, the warm-up with them.
      interval: steps from save to save.

    Raises:
      ValueError: too short for a line with a confidence.
    """
    seconds, sizes, steps = np.array(samples, float).T
    warm = seconds >= WARM_UP * seconds[-1]
    block = (seconds[warm] // BLOCK).astype(int)
    points = [(seconds[warm][block == b].mean(), sizes[warm][block == b].mean()) for b in np.unique(block)]
    if len(points) < 3:
        raise ValueError(
            f"samples must span three blocks of {BLOCK:.0f} s after warm-up, got {len(points)}: go on longer"
        )
    times, means = np.array(points).T
    fit = stats.linregress(times, means)
    an_hour = 3600 / means.mean()
    saves = steps[-1] // interval - steps[warm][0] // interval
    return Growth(
        interval=interval,
        an_hour=float(fit.slope) * an_hour,
        margin=float(stats.t.ppf(0.975, len(times) - 2) * fit.stderr) * an_hour,
        mean_bytes=float(means.mean()),
        seconds=float(seconds[-1]),
        steps=int(steps[-1]),
        saves_an_hour=float(3600 * saves / (seconds[-1] - seconds[warm][0])),
    )
