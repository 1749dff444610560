"""Thinking-mode fusion: how chat data with and without thinking becomes samples of both modes."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class FusionConfig:
    """Shares of the shapes of table 9 in Qwen3's report; see `train.fusion`."""

    drop_thinking: float = 0.0  # of the samples with thinking: it is left out, which makes non-thinking samples of them
    flagged: float = 0.5  # of the thinking samples: they say /think; in the others thinking is the default
    hard: float = 0.2  # of the non-thinking samples: the hard switch, an empty block in the prompt; the rest: /no_think
    elsewhere: float = 0.3  # of the flags that decide: in an earlier turn, or the system message where there is none
    seed: int = 0  # of the draws, which are by an example's content

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if field.name != "seed" and not 0 <= getattr(self, field.name) <= 1:
                raise ValueError(f"fusion.{field.name} must be in 0..1, got {getattr(self, field.name)}: correct it")
