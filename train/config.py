"""Training configuration: frozen dataclasses, read from YAML, overridden by `dotted.key=value` arguments."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from qwen3_jax.experts.execution import BACKENDS
from qwen3_jax.kernels import ATTENTION_BACKENDS
from qwen3_jax.network.remat import Remat
from qwen3_jax.releases import load_model_config
from qwen3_jax.sharding import MeshConfig
from qwen3_jax.train.parsing import apply, parse, parse_overrides, read_overlays
from qwen3_jax.train.settings import (
    AblationConfig,
    DataConfig,
    EvaluationConfig,
    LoraConfig,
    LossConfig,
    OptimizerConfig,
    ReportConfig,
    TokenizerConfig,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One run; everything that decides its numbers."""

    run_dir: str = ""  # where metrics, checkpoints and the exported model go; set it on the command line
    seed: int = 0
    steps: int = 1000
    init_from: str = ""  # a model in Hugging Face form, or the run_dir of an earlier run; "": fresh parameters
    model: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # config.json; with init_from: keys that change
    layout: Literal["stacked", "unrolled"] = "unrolled"  # of the parameters while training
    dtype: Literal["float32", "bfloat16"] = "float32"  # of activations and products; parameters stay float32
    # What of each layer is computed again in the backward pass instead of kept, see qwen3_jax.network.remat.
    remat: Remat = dataclasses.field(default="none", metadata={"aliases": {True: "full", False: "none"}})
    attention_backend: str = "auto"  # see qwen3_jax.kernels
    moe_backend: str = "auto"  # see qwen3_jax.experts.execution
    micro_batches: int = 1  # parts of a batch whose gradients are accumulated
    ema_decay: float = 0.0  # of an average of the parameters that is exported and evaluated; lower at first; 0: none
    on_non_finite: Literal["stop", "skip"] = "stop"  # what a loss or gradient that is not finite does to the step
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)  # one device by default
    tokenizer: TokenizerConfig = dataclasses.field(default_factory=TokenizerConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    loss: LossConfig = dataclasses.field(default_factory=LossConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    lora: LoraConfig | None = None
    ablation: AblationConfig = dataclasses.field(default_factory=AblationConfig)
    evaluation: EvaluationConfig = dataclasses.field(default_factory=EvaluationConfig)
    report: ReportConfig = dataclasses.field(default_factory=ReportConfig)
    checkpoint_every: int = 200  # steps
    keep_checkpoints: int = 2

    def __post_init__(self) -> None:
        for name in ("steps", "micro_batches", "checkpoint_every", "keep_checkpoints"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}: correct the configuration")
        if not 0 <= self.seed < 2**32:  # of a larger one jax.random.key takes the low bits
            raise ValueError(f"seed must be in 0..{2**32 - 1}, got {self.seed}: correct the configuration")
        for name, known in (
            ("remat", get_args(Remat)),
            ("attention_backend", ATTENTION_BACKENDS),
            ("moe_backend", BACKENDS),
        ):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {list(known)}, got {getattr(self, name)!r}: choose one")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay must be in [0, 1), got {self.ema_decay}: correct the configuration")
        if self.data.rows % (self.data.streams * self.micro_batches):
            raise ValueError(
                f"data.rows must be a multiple of data.streams={self.data.streams} times micro_batches="
                f"{self.micro_batches}, got {self.data.rows}: change one"
            )


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """Reads a YAML file and applies `dotted.key=value` overrides (values are YAML).

    A file may name another as its `base` (relative to itself) and say only what differs, see `train.parsing`;
    `model.base` names a release of configs/model, or a file in the form of config.json, that the other keys of `model`
    change.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: not a mapping, an unknown key (the nearest key is named, or those there are), a value of the wrong
        type, a number that is not finite.
    """
    return from_values(apply(read_overlays(path), parse_overrides(overrides)))


def from_values(values: Mapping[str, Any]) -> TrainConfig:
    """A configuration from nested plain values, `model.base` resolved; raises as `load_config`."""
    model = values.get("model")
    if isinstance(model, Mapping) and "base" in model:
        changes = {key: value for key, value in model.items() if key != "base"}
        values = {**values, "model": load_model_config(model["base"]).to_hf() | changes}
    return parse(TrainConfig, values)


def without_effect(config: TrainConfig) -> Iterator[str]:
    """One line for each setting that was changed and has no effect: what it is, why, and what to do."""
    data, fresh = config.data, DataConfig()
    if config.loss.balance == "micro_batch" and config.micro_batches == 1:
        yield "loss.balance=micro_batch is loss.balance=global with micro_batches=1: raise micro_batches, or remove it"
    if config.evaluation.sources and not config.evaluation.every:
        yield "evaluation.sources are not read with evaluation.every=0: set evaluation.every, or remove them"
    if data.held_out and config.evaluation.sources:
        yield (
            f"data.held_out={data.held_out} takes examples from training that nothing evaluates, as there are "
            "evaluation.sources: remove one of the two"
        )
    if data.held_out and not config.evaluation.every:
        yield (
            f"data.held_out={data.held_out} takes examples from training that nothing evaluates with "
            "evaluation.every=0: set evaluation.every, or remove it"
        )
    for name in ("tasks", "curriculum_examples"):
        if data.sources and getattr(data, name) != getattr(fresh, name):
            yield f"data.{name} is of the pocket model's tasks and has no effect with data.sources: remove it"
    taken = "tokenizer.path" if config.tokenizer.path else "init_from" if config.init_from else ""
    if taken and config.tokenizer.vocab_size != TokenizerConfig().vocab_size:
        yield f"tokenizer.vocab_size has no effect with {taken}, whose tokenizer is taken: remove it"
