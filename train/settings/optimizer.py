"""How parameters move."""

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW or Muon, with warm-up and a schedule."""

    name: Literal["adamw", "muon"] = "adamw"
    learning_rate: float = 3e-3  # at the peak
    schedule: Literal["cosine", "wsd", "linear", "constant"] = "cosine"
    final_share: float = 0.02  # of the peak, which a step after the last would have; not of "constant"
    warmup_steps: int = 100  # the first of them has rate zero, see train.optimizer.schedule
    decay_share: float = 0.2  # of the steps, at the end: when "wsd" (warm-up, stable, decay) decays
    weight_decay: float = 0.05  # on matrices; none on norms
    b1: float = 0.9  # of AdamW, as b2 and eps; with "muon" for what it leaves to AdamW
    b2: float = 0.98
    eps: float = 1e-8
    clip_norm: float = 1.0  # global norm of the gradient; 0: not clipped
    muon_momentum: float = 0.95
    muon_adam_rate: float = 0.1  # of learning_rate: what AdamW takes for embeddings, head and norms beside Muon

    def __post_init__(self) -> None:
        for name in ("learning_rate", "eps"):
            if getattr(self, name) <= 0:
                raise ValueError(f"optimizer.{name} must be positive, got {getattr(self, name)}: correct it")
        for name in ("weight_decay", "clip_norm", "final_share", "muon_adam_rate"):
            if getattr(self, name) < 0:
                raise ValueError(f"optimizer.{name} must not be negative, got {getattr(self, name)}: correct it")
        for name in ("b1", "b2", "muon_momentum"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"optimizer.{name} must be in [0, 1), got {getattr(self, name)}: correct it")
        if not 0 < self.decay_share < 1:
            raise ValueError(f"optimizer.decay_share must be between 0 and 1, got {self.decay_share}: correct it")
        if self.name != "muon":
            self._unused("muon_momentum", "optimizer.name=muon")
            self._unused("muon_adam_rate", "optimizer.name=muon")
        if self.schedule != "wsd":
            self._unused("decay_share", "optimizer.schedule=wsd")
        if self.schedule == "constant":
            self._unused("final_share", "a schedule that decays")

    def _unused(self, name: str, needs: str) -> None:
        default = next(field.default for field in dataclasses.fields(self) if field.name == name)
        if getattr(self, name) != default:
            raise ValueError(f"optimizer.{name} has an effect only with {needs}, got {getattr(self, name)}: remove it")
