"""What a Qwen3 is: the architecture, read from and written to Hugging Face's `config.json`."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ARCHITECTURES = {"qwen3": "Qwen3ForCausalLM", "qwen3_moe": "Qwen3MoeForCausalLM"}

LARGEST = 2**31 - 1  # sizes and positions are int32


@dataclasses.dataclass(frozen=True, kw_only=True)
class YarnConfig:
    """YaRN (arXiv 2309.00071) as Hugging Face's `rope_scaling` spells it.

    Raises:
      ValueError: a number outside of what the formulas take.
    """

    factor: float
    original_max_position_embeddings: int
    attention_factor: float | None = None
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True

    def __post_init__(self) -> None:
        factor, original = self.factor, self.original_max_position_embeddings
        if not factor >= 1:
            raise ValueError(f"rope_scaling factor must be at least 1, got {factor}: correct config.json")
        if not 1 <= factor * original <= LARGEST:
            raise ValueError(
                f"rope_scaling must give a context of at most {LARGEST} tokens, got {factor} * {original}: correct "
                "config.json"
            )
        if not 1e-3 <= self.beta_slow <= self.beta_fast <= 1e6:
            raise ValueError(
                f"rope_scaling must have 0.001 <= beta_slow <= beta_fast <= 1e6, got {self.beta_slow} and "
                f"{self.beta_fast}: correct config.json"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Architecture of one Qwen3 model; field names are those of Hugging Face's `config.json`.

    Raises:
      ValueError: the numbers can not describe a model (one line: what must hold, what came, what to do).
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int  # of the dense MLPs; unused when every layer is sparse
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int  # never derived: it differs from hidden_size / num_attention_heads for 0.6B, 4B, 32B and 235B
    rms_norm_eps: float = 1e-6
    rope_theta: float = 1_000_000.0
    yarn: YarnConfig | None = None
    max_position_embeddings: int = 40960
    tie_word_embeddings: bool = False
    initializer_range: float = 0.02
    num_experts: int = 0  # 0: a dense model
    num_experts_per_tok: int = 8
    moe_intermediate_size: int = 0
    norm_topk_prob: bool = True  # the published value; Hugging Face's class default is False
    decoder_sparse_step: int = 1
    mlp_only_layers: tuple[int, ...] = ()
    router_aux_loss_coef: float = 0.001

    def __post_init__(self) -> None:
        positive = (
            "vocab_size hidden_size num_hidden_layers num_attention_heads num_key_value_heads head_dim "
            "intermediate_size max_position_embeddings rope_theta rms_norm_eps decoder_sparse_step"
        )
        for name in positive.split():
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}: correct it in config.json")
        if not self.rope_theta > 1:
            raise ValueError(f"rope_theta must be above 1, got {self.rope_theta}: correct config.json")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads must be a multiple of num_key_value_heads, got {self.num_attention_heads} and "
                f"{self.num_key_value_heads}: correct one of them in config.json"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim must be even for rotary embeddings, got {self.head_dim}: correct config.json")
        if self.num_experts:
            if not 0 < self.num_experts_per_tok <= self.num_experts:
                raise ValueError(
                    f"num_experts_per_tok must be between 1 and num_experts={self.num_experts}, got "
                    f"{self.num_experts_per_tok}: correct config.json"
                )
            if self.moe_intermediate_size <= 0:
                raise ValueError(
                    f"moe_intermediate_size must be positive in a MoE model, got {self.moe_intermediate_size}: "
                    "correct config.json"
                )
        outside = [i for i in self.mlp_only_layers if not 0 <= i < self.num_hidden_layers]
        if outside:
            raise ValueError(
                f"mlp_only_layers must name layers below {self.num_hidden_layers}, got {outside}: correct config.json"
            )

    def is_sparse(self, layer: int) -> bool:
        """Whether decoder layer `layer` (from 0) is a mixture of experts; Hugging Face's rule."""
        return (
            self.num_experts > 0 and layer not in self.mlp_only_layers and (layer + 1) % self.decoder_sparse_step == 0
        )

    @property
    def context_length(self) -> int:
        """Positions the model can use: with YaRN also where `max_position_embeddings` is that of the model without.

        In: max_position_embeddings 40960 and YaRN, factor 4, original 32768     Out: 131072
        """
        if self.yarn is None:
            return self.max_position_embeddings
        return max(self.max_position_embeddings, int(self.yarn.factor * self.yarn.original_max_position_embeddings))

    @property
    def segments(self) -> tuple[tuple[bool, int], ...]:
        """Runs of identical layers, in order: (sparse, number of layers). One run is one `scan`.

        In:  4 layers, decoder_sparse_step=1, mlp_only_layers=(0,)
        Out: ((False, 1), (True, 3))
        """
        runs: list[tuple[bool, int]] = []
        for layer in range(self.num_hidden_layers):
            sparse = self.is_sparse(layer)
            if runs and runs[-1][0] == sparse:
                runs[-1] = (sparse, runs[-1][1] + 1)
            else:
                runs.append((sparse, 1))
        return tuple(runs)

    @property
    def model_type(self) -> str:
        return "qwen3_moe" if self.num_experts else "qwen3"

    @classmethod
    def from_hf(cls, hf: Mapping[str, Any]) -> "ModelConfig":
        """Reads the published spelling of `config.json` and transformers 5's.

        A key that changes the network and that it does not have is refused; other unknown keys are one warning.

        Raises:
          ValueError: another architecture or a variant of it, a missing or misspelled key, an unsupported rope type, a
            value of the wrong type.
        """
        from qwen3_jax.config_json import read_values  # which needs the classes above

        return cls(**read_values(hf))

    @classmethod
    def from_file(cls, path: str | Path) -> "ModelConfig":
        """Reads a `config.json`.

        Raises:
          FileNotFoundError: there is no such file.
          ValueError: the file is not a JSON object, or see `from_hf`.
        """
        path = Path(path)
        return cls.from_hf(read_json_object(path))

    def to_hf(self) -> dict[str, Any]:
        """The published spelling of `config.json`, which every release of transformers and every server reads."""
        out: dict[str, Any] = {
            "architectures": [ARCHITECTURES[self.model_type]],
            "attention_bias": False,
            "attention_dropout": 0.0,
            "hidden_act": "silu",
            "model_type": self.model_type,
            "rope_scaling": None,
            "sliding_window": None,
            "use_cache": True,
            "use_sliding_window": False,
            "max_window_layers": self.num_hidden_layers,
        }
        moe_only = {"num_experts", "num_experts_per_tok", "moe_intermediate_size", "norm_topk_prob"}
        moe_only |= {"decoder_sparse_step", "mlp_only_layers", "router_aux_loss_coef"}
        for field in dataclasses.fields(self):
            if field.name == "yarn" or (field.name in moe_only and not self.num_experts):
                continue
            value = getattr(self, field.name)
            out[field.name] = list(value) if isinstance(value, tuple) else value
        if self.num_experts:
            out["output_router_logits"] = False
        if self.yarn:
            scaling = {k: v for k, v in dataclasses.asdict(self.yarn).items() if v is not None}
            out["rope_scaling"] = {"rope_type": "yarn", **scaling}
        return dict(sorted(out.items()))


def read_json_object(path: Path) -> dict[str, Any]:
    """A JSON object from a file, with one clear line when it is missing, cut short or something else."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} must exist: no such file, point at a directory in Hugging Face form")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError(
            f"{path} must be JSON, got one too deeply nested: the file is damaged, fetch it again"
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} must be JSON, got {error}: the file is damaged, fetch it again") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(value).__name__}: fetch the file again")
    return value
