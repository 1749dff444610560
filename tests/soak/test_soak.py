"""What `make soak` says of memory: the slope that is there, its confidence, and what a save costs."""

import numpy as np
import pytest

from tests.soak.memory import LIMIT, growth
from tests.soak.verdict import Verdict, report

MIB = 2**20


def samples(mib_an_hour: float, kib_a_save: float, interval: int, noise: float = 1.0) -> list[tuple[float, int, int]]:
    """Ten minutes at 10 steps a second: 300 MiB while it starts, then 1,000, and what grows."""
    rng, taken = np.random.default_rng(0), []
    for second in range(600):
        step = 10 * second
        size = 1000 * MIB + mib_an_hour * MIB * second / 3600 + kib_a_save * 1024 * (step // interval)
        size = 300 * MIB if second < 100 else size + noise * MIB * rng.standard_normal()
        taken.append((float(second), int(size), step))
    return taken


def test_a_slope_is_found_within_its_confidence() -> None:
    found = growth(samples(mib_an_hour=50.0, kib_a_save=0.0, interval=200), 200)
    assert abs(found.an_hour * found.mean_bytes / MIB - 50.0) < found.margin * found.mean_bytes / MIB < 10.0
    assert (found.seconds, found.steps, found.passes) == (599, 5990, False)


def test_what_each_save_keeps_is_growth_and_told_in_kib() -> None:
    """94 KiB a save, every 2 seconds, as it was before `train.checkpoints.mend_tensorstore`: 16% an hour."""
    found = growth(samples(mib_an_hour=0.0, kib_a_save=94.0, interval=20), 20)
    assert found.saves_an_hour == pytest.approx(1800, rel=0.01)
    assert float(found.kib_a_save.split()[0]) == pytest.approx(94.0, rel=0.05)
    assert not found.passes


def test_a_level_process_passes() -> None:
    found = growth(samples(mib_an_hour=0.0, kib_a_save=0.0, interval=20), 20)
    assert abs(found.an_hour) < found.margin < LIMIT
    assert found.passes


def test_too_short_a_time_has_no_confidence() -> None:
    with pytest.raises(ValueError, match="three blocks"):
        growth([(float(second), MIB, second) for second in range(40)], 20)


def test_the_page_says_which_run_fails() -> None:
    level = growth(samples(mib_an_hour=0.0, kib_a_save=0.0, interval=200), 200)
    grown = growth(samples(mib_an_hour=0.0, kib_a_save=94.0, interval=20), 20)
    verdict = Verdict(interval=20, steps=600, seed=0, runs=1)
    verdict.killed(lost=15)
    page = report(verdict, [level, grown], 30.0, "a machine").splitlines()
    rows = [line for line in page if line.startswith(("| 20 steps |", "| 200 steps |"))]
    assert [row.rsplit("|", 2)[1].strip() for row in rows] == ["yes", "no"]
    assert level.kib_a_save in rows[0]
    assert grown.percent in rows[1]
