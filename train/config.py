"""Training configuration: frozen dataclasses, read from YAML, overridden by `dotted.key=value` arguments."""

import dataclasses
import math
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from qwen3_jax.experts.execution import BACKENDS
from qwen3_jax.kernels import ATTENTION_BACKENDS
from qwen3_jax.network.remat import Remat
from qwen3_jax.releases import load_model_config
from qwen3_jax.sharding import MeshConfig
from qwen3_jax.train.nearest_key import suggestion
from qwen3_jax.train.overlays import apply, parse_overrides, read_overlays
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

    A file may name another as its `base` (relative to itself) and say only what differs, see `train.overlays`;
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
    config = parse(TrainConfig, values)
    assert isinstance(config, TrainConfig)
    return config


def parse(kind: Any, values: Mapping[str, Any], prefix: str = "", whole: Any = None) -> Any:
    """A dataclass of type `kind` from a nested mapping; see `load_config` for what it raises.

    Args:
      prefix: of the keys, in messages: "optimizer." where `kind` is that section.
      whole: the configuration of which it is a section, where a key that is not known is looked for; None: `kind`.
    """
    hints = typing.get_type_hints(kind)
    aliases = {field.name: field.metadata.get("aliases", {}) for field in dataclasses.fields(kind)}
    arguments = {}
    for key, value in values.items():
        if key not in hints:
            instead = suggestion(str(key), prefix, kind, whole or kind)
            raise ValueError(f"{prefix}{key} is not a key of the configuration: {instead}")
        if isinstance(value, bool):  # what older files say
            value = aliases[key].get(value, value)
        arguments[key] = _convert(hints[key], value, f"{prefix}{key}", whole or kind)
    for field in dataclasses.fields(kind):
        if field.name not in arguments and field.default is field.default_factory is dataclasses.MISSING:
            raise ValueError(f"{prefix}{field.name} must be set, got nothing: add it")
    return kind(**arguments)


def to_dict(config: TrainConfig) -> dict[str, Any]:
    """Plain YAML values, the inverse of `parse`."""

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: plain(item) for key, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, tuple) else value

    return plain(dataclasses.asdict(config))


def _convert(kind: Any, value: Any, name: str, whole: Any) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is str and value is None:
        return ""  # how YAML reads `init_from=`
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, Mapping):
            raise ValueError(f"{name} must be a section with keys of its own, got {value!r}: correct the configuration")
        return parse(kind, value, f"{name}.", whole)
    if origin is Literal:
        if value not in arguments:
            raise ValueError(f"{name} must be one of {list(arguments)}, got {value!r}: correct the configuration")
        return value
    if origin in (typing.Union, types.UnionType):
        kind = next(a for a in arguments if a is not type(None))
        return None if value is None else _convert(kind, value, name, whole)
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise ValueError(f"{name} must be a list, got {value!r}: correct the configuration")
        return tuple(_convert(arguments[0], item, name, whole) for item in value)
    if kind is float and isinstance(value, (int, str)) and not isinstance(value, bool):
        try:
            value = float(value)  # YAML 1.1 reads 3e-3 as a string
        except OverflowError:
            value = math.inf
        except ValueError:
            pass
    _refuse_non_finite(value, name)
    expected = origin if isinstance(origin, type) else kind
    if not isinstance(value, expected) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"{name} must be of type {expected.__name__}, got {value!r}: correct the configuration")
    return value


def _refuse_non_finite(value: Any, name: str) -> None:
    """No number of a configuration may be NaN or infinite, in sections without declared keys (`model`) neither."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            _refuse_non_finite(item, f"{name}.{key}")
    elif isinstance(value, (list, tuple)):
        for item in value:
            _refuse_non_finite(item, name)
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number, got {value}: correct the configuration")
