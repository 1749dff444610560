"""What the interruptions cost, and the page that says it."""

import dataclasses
from collections.abc import Sequence

from tests.soak.memory import BLOCK, Growth


@dataclasses.dataclass
class Verdict:
    """Counts; every comparison is asserted where it is made."""

    interval: int
    steps: int
    seed: int
    runs: int = 0
    lost: list[int] = dataclasses.field(default_factory=list)  # steps done again after each kill
    seconds: list[float] = dataclasses.field(default_factory=list)  # from each SIGTERM to the end

    def killed(self, lost: int) -> None:
        """Saving waits for the save before it, so that two intervals are the most there can be."""
        assert 0 <= lost < 2 * self.interval, f"{lost} steps lost, with an interval of {self.interval}"
        self.lost.append(lost)

    def terminated(self, seconds: float, lost: int) -> None:
        assert lost == 0, f"SIGTERM must lose nothing, got {lost} steps"
        self.seconds.append(seconds)

    def line(self) -> str:
        worst = f"; at most {max(self.lost)} steps done again after a kill" if self.lost else ""
        terms = f"; {len(self.seconds)} times SIGTERM, at most {max(self.seconds):.1f} s" if self.seconds else ""
        return f"{self.runs} runs of {self.steps} steps, {len(self.lost)} kills{worst}{terms}: nothing lost"


def report(verdict: Verdict, memory: Sequence[Growth], minutes: float, machine: str) -> str:
    """The page of docs/results."""
    lines = [
        "# Soak: kill -9 and SIGTERM at random moments",
        "",
        f"`SOAK_MINUTES={minutes:.0f} make soak` (seed {verdict.seed}; {machine}, shared with other work). A small",
        f"MoE, {verdict.steps} steps, a checkpoint every {verdict.interval}; interruptions at random steps and during",
        "start-up. After each run: every step has one line, losses, gradient norms, expert loads and evaluations are",
        "those of a run without a break to the last digit, the exported parameters are the same bytes, and no leftover",
        "of a crash is there.",
        "",
        "| | |",
        "|---|---|",
        f"| runs taken to their end, each equal to the reference | {verdict.runs} |",
        f"| kill -9 | {len(verdict.lost)} |",
        f"| steps done again after a kill: mean, most (interval {verdict.interval}) | "
        f"{sum(verdict.lost) / max(len(verdict.lost), 1):.1f}, {max(verdict.lost, default=0)} |",
        f"| SIGTERM, each ended with 0 and lost no step | {len(verdict.seconds)} |",
        f"| seconds from SIGTERM to the end: median, most | {_median(verdict.seconds)}, "
        f"{max(verdict.seconds, default=0.0):.1f} |",
    ]
    if memory:
        lines += [
            "",
            "Memory of two runs left alone side by side, in the second half of the time. The goal is under 1% an",
            f"hour for the first, which saves at the default interval ({memory[0].interval} steps: here far more often",
            "than real runs do); the second shows what a save costs. The first quarter is warm-up; a line through",
            f"means over {BLOCK:.0f} seconds, with 95% confidence; the cost of a save lays all growth to the saves.",
            "",
            "| a save every | saves an hour | minutes, steps | resident | growth an hour | KiB a save | under 1% |",
            "|---|---|---|---|---|---|---|",
        ]
        lines += [
            f"| {grown.interval} steps | {grown.saves_an_hour:.0f} | {grown.seconds / 60:.1f}, {grown.steps} | "
            f"{grown.mean_bytes / 2**20:.0f} MiB | {grown.percent} | {grown.kib_a_save} | "
            f"{'yes' if grown.passes else 'no'} |"
            for grown in memory
        ]
    return "\n".join(lines) + "\n"


def _median(values: list[float]) -> str:
    return f"{sorted(values)[len(values) // 2]:.1f}" if values else "-"
