"""What a batch is made of."""

import dataclasses
from collections.abc import Mapping
from typing import Literal

from qwen3_jax.train.pocket.prompts import Mixture
from qwen3_jax.train.settings.fusion import FusionConfig


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
    # Chat. template: an example for each assistant turn, after exactly the prompt that inference sees. keep: one
    # example a conversation, in which the thinking of every turn stays in the text.
    thinking: Literal["template", "keep"] = "template"
    sample_by: Literal["line", "paragraph", "document"] = "line"  # what one example of a .txt file is
    fusion: FusionConfig | None = None  # chat: draws flags, so that one model learns both modes

    def __post_init__(self) -> None:
        if self.thinking != "template" and self.kind != "chat":
            raise ValueError(f"data.sources.thinking needs kind: chat, got kind: {self.kind}: remove it")
        if self.fusion is not None and (self.kind != "chat" or self.thinking != "template"):
            raise ValueError(
                f"data.sources.fusion needs kind: chat and thinking: template, got {self.kind} and {self.thinking}: "
                "change them or remove it"
            )


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

    def __post_init__(self) -> None:
        if bool(self.by) != bool(self.weights):
            raise ValueError(
                f"data.mixture needs both `by` and `weights`, got by={list(self.by)} and {len(self.weights)} weights: "
                "add or remove one"
            )
        for one in self.weights:
            if not one.labels or not set(one.labels) <= set(self.by):
                raise ValueError(
                    f"data.mixture.weights.labels must be some of mixture.by={list(self.by)}, got {dict(one.labels)}: "
                    "correct the names"
                )
            if not one.weight >= 0:
                raise ValueError(f"data.mixture.weights.weight must be at least 0, got {one.weight}: correct it")
        if self.weights and not sum(one.weight for one in self.weights) > 0:
            raise ValueError("data.mixture.weights must not all be 0: correct them")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LengthShare:
    """The share of tokens that comes from documents of minimum <= tokens <= maximum."""

    share: float = 1.0
    minimum: int = 1
    maximum: int = 1 << 30

    def __post_init__(self) -> None:
        if not (self.share > 0 and 1 <= self.minimum <= self.maximum):
            raise ValueError(
                "data.lengths must have share > 0 and 1 <= minimum <= maximum, got "
                f"share={self.share} minimum={self.minimum} maximum={self.maximum}: correct them"
            )


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
    held_out: float = 0.0  # share of the examples, by hash of their content, kept from training for evaluation
    lookahead: float = 2.0  # batches of tokens that packing chooses from; more wastes less of the rows
    cache: str = ""  # directory of what is counted once about files; many hosts share it; "": the user's cache
    on_bad_record: Literal["stop", "skip"] = "stop"  # of a malformed one; skip leaves it out, with a warning
    threads: int = 2  # that read and tokenise ahead; 0: none

    def __post_init__(self) -> None:
        for name in ("rows", "length", "streams"):
            if getattr(self, name) <= 0:
                raise ValueError(f"data.{name} must be positive, got {getattr(self, name)}: correct the configuration")
        if not 0 <= self.held_out < 1:
            raise ValueError(f"data.held_out must be in 0..1, got {self.held_out}: correct the configuration")
        if self.lookahead < 1:
            raise ValueError(f"data.lookahead must be at least 1, got {self.lookahead}: correct the configuration")
        if self.threads < 0:
            raise ValueError(f"data.threads must be at least 0, got {self.threads}: correct the configuration")
        if not self.sources and (self.mixture.by or self.lengths or self.held_out):
            raise ValueError("data.mixture, data.lengths and data.held_out need data.sources, got none: add or remove")
