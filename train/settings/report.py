"""Where a run's numbers go, besides metrics.jsonl and the progress line."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Sinks of metrics, and profiles."""

    every: int = 10  # steps between progress lines; metrics.jsonl has every step
    tensorboard: bool = False  # event files in run_dir/tensorboard
    wandb: str = ""  # a Weights & Biases project; "": none
    profile_steps: tuple[int, ...] = ()  # first and last step of a profile in run_dir/profile

    def __post_init__(self) -> None:
        if self.every <= 0:
            raise ValueError(f"report.every must be positive, got {self.every}: correct the configuration")
