"""Training configuration: frozen dataclasses, read from YAML, overridden by `dotted.key=value` arguments."""

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml

from sharding import MeshConfig
from train.settings import (
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
    remat: bool = False  # compute each layer again in the backward pass instead of keeping what it made
    micro_batches: int = 1  # parts of a batch whose gradients are accumulated
    ema_decay: float = 0.0  # of an average of the parameters that is exported and evaluated; 0: none
    on_non_finite: Literal["stop", "skip"] = "stop"  # what a loss or gradient that is not finite does to the step
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)  # one device by default
    tokenizer: TokenizerConfig = dataclasses.field(default_factory=TokenizerConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    loss: LossConfig = dataclasses.field(default_factory=LossConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    lora: LoraConfig | None = None
    evaluation: EvaluationConfig = dataclasses.field(default_factory=EvaluationConfig)
    report: ReportConfig = dataclasses.field(default_factory=ReportConfig)
    checkpoint_every: int = 200  # steps
    keep_checkpoints: int = 2

    def __post_init__(self) -> None:
        for name in ("steps", "micro_batches", "checkpoint_every", "keep_checkpoints"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}: correct the configuration")
        if self.data.rows % (self.data.streams * self.micro_batches):
            raise ValueError(
                f"data.rows must be a multiple of data.streams={self.data.streams} times micro_batches="
                f"{self.micro_batches}, got {self.data.rows}: change one"
            )


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """Reads a YAML file and applies `dotted.key=value` overrides (values are YAML).

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: not a mapping, an unknown key (the nearest key is named), a value of the wrong type.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} must exist: no such training configuration, see configs/train")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"{path} must be YAML, got {' '.join(str(error).split())}: correct the file") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold a mapping, got {type(values).__name__}: correct the file")
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise ValueError(
                f"an override must be key=value, got {override!r}: write e.g. optimizer.learning_rate=1e-3"
            )
        _assign(values, key.split("."), yaml.safe_load(text))
    config = parse(TrainConfig, values)
    assert isinstance(config, TrainConfig)
    return config


def parse(kind: Any, values: Mapping[str, Any], prefix: str = "") -> Any:
    """A dataclass of type `kind` from a nested mapping; see `load_config` for what it raises."""
    hints = typing.get_type_hints(kind)
    arguments = {}
    for key, value in values.items():
        if key not in hints:
            near = difflib.get_close_matches(str(key), hints, n=1, cutoff=0.0)
            raise ValueError(f"{prefix}{key} is not a key of the configuration: did you mean {prefix}{near[0]}?")
        arguments[key] = _convert(hints[key], value, f"{prefix}{key}")
    return kind(**arguments)


def to_dict(config: TrainConfig) -> dict[str, Any]:
    """Plain YAML values, the inverse of `parse`."""

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: plain(item) for key, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, tuple) else value

    return plain(dataclasses.asdict(config))


def _assign(values: dict[str, Any], path: list[str], value: Any) -> None:
    for key in path[:-1]:
        values = values.setdefault(key, {})
        if not isinstance(values, dict):
            raise ValueError(f"{'.'.join(path)} can not be set: {key} is a value, not a section; correct the override")
    values[path[-1]] = value


def _convert(kind: Any, value: Any, name: str) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, Mapping):
            raise ValueError(f"{name} must be a section with keys of its own, got {value!r}: correct the configuration")
        return parse(kind, value, f"{name}.")
    if origin is Literal:
        if value not in arguments:
            raise ValueError(f"{name} must be one of {list(arguments)}, got {value!r}: correct the configuration")
        return value
    if origin in (typing.Union, types.UnionType):
        return None if value is None else _convert(next(a for a in arguments if a is not type(None)), value, name)
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise ValueError(f"{name} must be a list, got {value!r}: correct the configuration")
        return tuple(_convert(arguments[0], item, name) for item in value)
    if kind is float and isinstance(value, (int, str)) and not isinstance(value, bool):
        try:
            return float(value)  # YAML 1.1 reads 3e-3 as a string
        except ValueError:
            pass
    expected = origin if isinstance(origin, type) else kind
    if not isinstance(value, expected) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"{name} must be of type {expected.__name__}, got {value!r}: correct the configuration")
    return value
