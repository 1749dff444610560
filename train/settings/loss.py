"""What is minimised."""

import dataclasses
from typing import Literal

Balance = Literal["global", "micro_batch", "sequence", "huggingface", "none"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Cross-entropy, and what is added to it."""

    chunk: int = 2048  # tokens whose logits exist at once
    z_loss: float = 0.0  # coefficient of the mean of log(Z)^2
    balance: Balance = "global"  # over what the experts' selection frequency is counted, see train.objectives.balance
    balance_coefficient: float | None = None  # None: the model's router_aux_loss_coef

    def __post_init__(self) -> None:
        if self.chunk <= 0:
            raise ValueError(f"loss.chunk must be positive, got {self.chunk}: correct the configuration")
        for name in ("z_loss", "balance_coefficient"):
            if (getattr(self, name) or 0) < 0:
                raise ValueError(f"loss.{name} must not be negative, got {getattr(self, name)}: correct it")
        if self.balance == "none" and self.balance_coefficient is not None:
            raise ValueError(
                f"loss.balance_coefficient has no effect with loss.balance=none, got {self.balance_coefficient}: "
                "remove it"
            )
