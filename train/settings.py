"""The sections of a training configuration; `train.config` puts them together and reads them."""

import dataclasses
from collections.abc import Mapping
from typing import Literal


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


@dataclasses.dataclass(frozen=True, kw_only=True)
class AblationConfig:
    """What an ablation takes away from the network; such a model has no Hugging Face form and is not exported."""

    qk_norm: bool = True  # the norm of queries and keys


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
class TaskMixture:
    """Shares of the shapes of conversation in the pocket model's tasks, by default those that it was trained on."""

    families: tuple[str, ...] = ("arithmetic", "cups")  # drawn evenly
    min_steps: int = 1
    max_steps: int = 12
    thinking: float = 0.6  # samples whose last flag asks for thinking, or that have none
    hard: float = 0.2  # samples with the hard switch; the rest says /no_think
    flagged: float = 0.5  # thinking samples that say so (/think); in the others thinking is the default
    multi_turn: float = 0.15  # conversations with one or two earlier turns
    system: float = 0.1  # conversations with a system message beside those that carry the flag there
    small_talk: float = 0.01
    cut_thinking: float = 0.3  # thinking samples cut by the stop-thinking text: the budget ability is trained for


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
    tasks: TaskMixture = dataclasses.field(default_factory=TaskMixture)  # of the pocket model's tasks
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """Loss on held-out examples."""

    every: int = 0  # steps; 0: never
    rows: int = 0  # packed rows an evaluation; 0: as many as a batch has
    batches: int = 4  # the same ones at every evaluation
    sources: tuple[SourceConfig, ...] = ()  # none: the share `data.held_out`, or the pocket model's held-out tasks

    def __post_init__(self) -> None:
        for name, least in (("every", 0), ("rows", 0), ("batches", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"evaluation.{name} must be at least {least}, got {getattr(self, name)}: correct it")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Adapters in the sense of LoRA (Hu et al., 2106.09685), with PEFT's names. The base (`init_from`) is frozen."""

    r: int = 8  # rank
    lora_alpha: float = 16.0  # the update is scaled by lora_alpha / r
    # Projections that have an adapter, in every layer; [all-linear] means these and gate_proj, up_proj, down_proj.
    target_modules: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")
    use_rslora: bool = False  # scale by lora_alpha / sqrt(r)


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


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Sinks of metrics, and profiles."""

    every: int = 10  # steps between progress lines; metrics.jsonl has every step
    tensorboard: bool = False  # event files in run_dir/tensorboard
    wandb: str = ""  # a Weights & Biases project; "": none
    profile_steps: tuple[int, ...] = ()  # first and last step of a profile in run_dir/profile
    peak_tflops: float = (
        0.0  # of one device, for MFU; 0: the published figure where sharding/ahead_of_time/chips.py has it, else no MFU
    )

    def __post_init__(self) -> None:
        if self.every <= 0:
            raise ValueError(f"report.every must be positive, got {self.every}: correct the configuration")
        if self.peak_tflops < 0:
            raise ValueError(f"report.peak_tflops must not be negative, got {self.peak_tflops}: correct it")
        if self.profile_steps and not (
            len(self.profile_steps) == 2 and 0 < self.profile_steps[0] <= self.profile_steps[1]
        ):
            raise ValueError(
                f"report.profile_steps must be a first and a last step, e.g. [10, 20], got {list(self.profile_steps)}: "
                "correct it"
            )
