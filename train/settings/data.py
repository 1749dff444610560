"""What a batch is made of."""

import dataclasses
from collections.abc import Mapping
from typing import Literal

from train.pocket.prompts import Mixture


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """The run's tokenizer: one that exists, or a BPE made at the start of the run."""

    path: str = ""  # a tokenizer's directory; "": that of `init_from`, else one is made from the data's own text
    vocab_size: int = 880  # of the one made: the bytes and the 26 added tokens included; at most the model's vocab_size
    corpus_size: int = 8000  # examples it is made from


@dataclasses.dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """Files of examples."""

    path: str = ""  # a file, a directory or a glob (.jsonl, .parquet, .arrayrecord, .txt), or hf:NAME
    kind: Literal["text", "chat", "tokens"] = "text"
    field: str = ""  # of an example; "": "text", "messages" or "tokens"
    labels: Mapping[str, str] = dataclasses.field(default_factory=dict)  # of every example that has none of its own


@dataclasses.dataclass(frozen=True, kw_only=True)
class WeightConfig:
    """The share of the tokens that examples with these labels get."""

    labels: Mapping[str, str] = dataclasses.field(default_factory=dict)  # all of them must match
    weight: float = 1.0  # relative to the other weights


@dataclasses.dataclass(frozen=True, kw_only=True)
class MixtureConfig:
    """Instance-level mixture: weights of label combinations, not of sources."""

    by: tuple[str, ...] = ()  # labels that make a combination; (): examples come as often as they stand in the files
    weights: tuple[WeightConfig, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class LengthShare:
    """The share of tokens that comes from documents of minimum <= tokens <= maximum."""

    share: float = 1.0
    minimum: int = 1
    maximum: int = 1 << 30


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What a batch is made of."""

    rows: int = 32  # packed rows in a batch
    length: int = 256  # tokens in a row
    streams: int = 1  # parts of a batch made apart from one another; a multiple of the hosts that take different rows
    sources: tuple[SourceConfig, ...] = ()  # none: the pocket model's tasks
    mixture: MixtureConfig = dataclasses.field(default_factory=MixtureConfig)
    lengths: tuple[LengthShare, ...] = ()  # (): documents come as long as they are
    domain: str = "domain"  # the label by which losses are reported
    tasks: Mixture = dataclasses.field(default_factory=Mixture)  # of the pocket model's tasks
    curriculum_examples: int = 0  # the longest chain grows to its full length over so many examples; 0: at once

    def __post_init__(self) -> None:
        for name in ("rows", "length", "streams"):
            if getattr(self, name) <= 0:
                raise ValueError(f"data.{name} must be positive, got {getattr(self, name)}: correct the configuration")
