"""What is measured on held-out data while training."""

import dataclasses

from qwen3_jax.train.settings.data import SourceConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """Loss on held-out examples."""

    every: int = 0  # steps; 0: never
    rows: int = 0  # packed rows an evaluation; 0: as many as a batch has
    batches: int = 4  # the same ones at every evaluation
    sources: tuple[SourceConfig, ...] = ()  # none: the share `data.held_out`, or the pocket model's held-out tasks

    def __post_init__(self) -> None:
        for name, least in (("every", 0), ("rows", 0), ("batches", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"evaluation.{name} must be at least {least}, got {getattr(self, name)}: correct it")
