"""Where a run's numbers go, besides metrics.jsonl and the progress line."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Sinks of metrics, and profiles."""

    every: int = 10  # steps between progress lines; metrics.jsonl has every step
    tensorboard: bool = False  # event files in run_dir/tensorboard
    wandb: str = ""  # a Weights & Biases project; "": none
    profile_steps: tuple[int, ...] = ()  # first and last step of a profile in run_dir/profile
    peak_tflops: float = (
        0.0  # of one device, for MFU; 0: the published figure where sharding/ahead_of_time/chips.py has it, else no MFU
    )

    def __post_init__(self) -> None:
        if self.every <= 0:
            raise ValueError(f"report.every must be positive, got {self.every}: correct the configuration")
        if self.peak_tflops < 0:
            raise ValueError(f"report.peak_tflops must not be negative, got {self.peak_tflops}: correct it")
        if self.profile_steps and not (
            len(self.profile_steps) == 2 and 0 < self.profile_steps[0] <= self.profile_steps[1]
        ):
            raise ValueError(
                f"report.profile_steps must be a first and a last step, e.g. [10, 20], got {list(self.profile_steps)}: "
                "correct it"
            )
