"""What a search for a mixture is asked for."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qwen3_jax.train.config import TrainConfig
from qwen3_jax.train.parsing import apply, merge, parse, parse_overrides, read_mapping, to_dict
from qwen3_jax.train.settings import WeightConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class MixtureSearch:
    """Proxy runs, a fit, an optimum, and the check of it."""

    run_dir: str = ""  # where proxies, the fit and its report go; set it on the command line
    seed: int = 0  # of the mixtures that are drawn and of the proxies
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)  # the run that the mixture is for
    proxy: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # keys of `train` that differ in a proxy
    by: tuple[str, ...] = ()  # labels whose combinations get a weight
    proxies: int = 16  # runs with mixtures that are drawn
    natural_proxies: int = 2  # runs with the natural mixture, of different seeds: they show how far seeds go
    concentration: tuple[float, ...] = (0.5, 4.0)  # mean Dirichlet parameter of a combination: least and most
    max_epochs: float = 4.0  # how often `train` may see one combination; 4: Muennighoff et al., 2305.16264
    target: tuple[WeightConfig, ...] = ()  # what the loss is to be low on; (): each value of train.data.domain, evenly
    verify_seeds: int = 0  # runs of `train` with each of the natural and the fitted mixture; 0: none

    def __post_init__(self) -> None:
        if not self.by:
            raise ValueError("by must name the labels that make a combination, got none: write e.g. by: [domain]")
        if self.proxies < 4 or self.natural_proxies < 1:
            raise ValueError(
                f"a fit needs at least 4 proxies and 1 of natural_proxies, got {self.proxies} and "
                f"{self.natural_proxies}: raise them"
            )
        if len(self.concentration) != 2 or not 0 < self.concentration[0] <= self.concentration[1]:
            raise ValueError(f"concentration must be [least, most] above 0, got {list(self.concentration)}: correct it")
        if not self.max_epochs > 0 or self.verify_seeds == 1 or self.verify_seeds < 0:
            raise ValueError(
                f"max_epochs must be positive and verify_seeds 0 or at least 2, got {self.max_epochs} and "
                f"{self.verify_seeds}: correct them"
            )
        for what, sources in (("data", self.train.data.sources), ("evaluation", self.train.evaluation.sources)):
            if not sources:
                raise ValueError(f"train.{what}.sources must name files with labels, got none: add them")
        if self.train.data.mixture.weights:
            raise ValueError("train.data.mixture.weights must be left out, got some: they are what is looked for")

    @property
    def final_tokens(self) -> int:
        """That `train` reads at most."""
        return self.train.steps * self.train.data.rows * self.train.data.length


def load_search(path: str | Path, overrides: Sequence[str] = ()) -> MixtureSearch:
    """Reads a YAML file and applies `dotted.key=value` overrides; raises as `train.load_config`."""
    made = parse(MixtureSearch, apply(read_mapping(Path(path), "mixture"), parse_overrides(overrides)))
    assert isinstance(made, MixtureSearch)
    return made


def changed(config: TrainConfig, changes: Mapping[str, Any]) -> TrainConfig:
    """A training configuration with other values for some keys; raises as `train.load_config`."""
    made = parse(TrainConfig, merge(to_dict(config), changes))
    assert isinstance(made, TrainConfig)
    return made
