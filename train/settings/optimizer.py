"""How parameters move."""

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW or Muon, with warm-up and a schedule."""

    name: Literal["adamw", "muon"] = "adamw"
    learning_rate: float = 3e-3  # at the peak
    schedule: Literal["cosine", "wsd", "linear", "constant"] = "cosine"
    final_share: float = 0.02  # of the peak, at the last step; not of "constant"
    warmup_steps: int = 100
    decay_share: float = 0.2  # of the steps, at the end: when "wsd" (warm-up, stable, decay) decays
    weight_decay: float = 0.05  # on matrices; none on norms
    b1: float = 0.9
    b2: float = 0.98
    eps: float = 1e-8
    clip_norm: float = 1.0  # global norm of the gradient
    muon_momentum: float = 0.95
    muon_adam_rate: float = 0.1  # of learning_rate: what AdamW takes for embeddings, head and norms beside Muon
