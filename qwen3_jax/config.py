"""What a Qwen3 is: the architecture, read from and written to Hugging Face's `config.json`."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_ARCHITECTURES = {"qwen3": "Qwen3ForCausalLM", "qwen3_moe": "Qwen3MoeForCausalLM"}

# Keys of published and transformers-5 files that describe something other than the architecture, or that a decoder of
# this family does not use. They are accepted; every other unknown key is refused (nothing is silently ignored).
_NOT_ARCHITECTURE = frozenset(
    "architectures model_type transformers_version torch_dtype dtype use_cache initializer_range _name_or_path "
    "attention_dropout output_router_logits router_aux_loss_coef bos_token_id eos_token_id pad_token_id "
    "max_window_layers layer_types output_hidden_states output_attentions return_dict torchscript "
    "chunk_size_feed_forward is_encoder_decoder id2label label2id problem_type _attn_implementation "
    "_experts_implementation head_type task_specific_params tie_encoder_decoder add_cross_attention is_decoder".split()
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class YarnConfig:
    """YaRN (arXiv 2309.00071) as Hugging Face's `rope_scaling` spells it."""

    factor: float
    original_max_position_embeddings: int
    attention_factor: float | None = None
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True


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

        Raises:
          ValueError: another architecture, a missing or unknown key, an unsupported rope type or attention variant.
        """
        hf = dict(hf)
        model_type = hf.get("model_type")
        if model_type not in _ARCHITECTURES:
            raise ValueError(
                f"model_type must be one of {sorted(_ARCHITECTURES)}, got {model_type!r}: this checkpoint is another "
                "architecture, point at a Qwen3 one"
            )
        classes = hf.get("architectures") or _ARCHITECTURES.values()
        if not set(classes) & set(_ARCHITECTURES.values()):
            raise ValueError(
                f"architectures must hold {_ARCHITECTURES[model_type]}, got {classes!r}: this checkpoint has another "
                "head than a language model's"
            )
        _refuse_variants(hf)
        values: dict[str, Any] = {"yarn": _read_rope(hf)}
        values["rope_theta"] = hf.pop("rope_theta", cls.rope_theta)
        if "num_local_experts" in hf:  # transformers 5's name
            hf.setdefault("num_experts", hf.pop("num_local_experts"))
        if model_type == "qwen3":
            for key in ("num_experts", "moe_intermediate_size"):
                if hf.pop(key, 0):
                    raise ValueError(f"{key} must not be set when model_type is 'qwen3': use 'qwen3_moe' or remove it")
        elif not hf.get("num_experts"):
            raise ValueError("num_experts must be set when model_type is 'qwen3_moe': add it to config.json")
        else:
            # Hugging Face's class defaults, so that a file that leaves them out means here what it means there.
            hf.setdefault("norm_topk_prob", False)
        known = {field.name for field in dataclasses.fields(cls)} - {"yarn", "rope_theta"}
        unknown = sorted(k for k in hf if k not in known and k not in _NOT_ARCHITECTURE)
        if unknown:
            raise ValueError(f"config.json has keys this model does not know: {', '.join(unknown)}: remove them")
        for key in known & hf.keys():
            if hf[key] is not None:
                values[key] = hf[key]
        values["mlp_only_layers"] = tuple(values.get("mlp_only_layers", ()))
        required = [f.name for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING]
        missing = [name for name in required if name not in values]
        if missing:
            raise ValueError(f"config.json must set {', '.join(missing)}: add what is missing")
        for field in dataclasses.fields(cls):
            if field.name in values:
                _check_type(field.name, field.type, values[field.name])
            if field.name in values and field.type is float:
                values[field.name] = float(values[field.name])
        return cls(**values)

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
            "architectures": [_ARCHITECTURES[self.model_type]],
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


def _refuse_variants(hf: dict[str, Any]) -> None:
    """Options of the Hugging Face class that no Qwen3 release uses and this model does not have."""
    for key, allowed in (
        ("attention_bias", (False, None)),
        ("use_sliding_window", (False, None)),
        ("hidden_act", ("silu", None)),
        ("sliding_window", (None,)),
        ("dual_chunk_attention_config", (None,)),
        ("quantization_config", (None,)),
    ):
        value = hf.pop(key, None)
        if key == "sliding_window" and not isinstance(value, str):
            continue  # published files carry a number here that `use_sliding_window: false` turns off
        if value not in allowed:
            raise ValueError(f"{key} must be {allowed[0]!r} for this model, got {value!r}: it is not supported")
    layer_types = hf.get("layer_types") or []
    if any(kind != "full_attention" for kind in layer_types):
        raise ValueError(f"layer_types must all be 'full_attention', got {sorted(set(layer_types))}: not supported")


def _read_rope(hf: dict[str, Any]) -> YarnConfig | None:
    """Takes `rope_scaling` / `rope_parameters` out of `hf`, leaving `rope_theta` in it."""
    scaling = hf.pop("rope_scaling", None)
    parameters = hf.pop("rope_parameters", None)
    merged = {**(parameters or {}), **(scaling or {})}
    if merged.get("rope_theta") is not None:
        hf["rope_theta"] = merged["rope_theta"]
    merged.pop("rope_theta", None)
    rope_type = merged.pop("rope_type", None) or merged.pop("type", None) or "default"
    merged.pop("type", None)
    if rope_type == "default":
        if merged:
            raise ValueError(f"rope_scaling of type 'default' must have no other keys, got {sorted(merged)}")
        return None
    if rope_type != "yarn":
        raise ValueError(f"rope_type must be 'default' or 'yarn', got {rope_type!r}: it is not supported")
    fields = {field.name for field in dataclasses.fields(YarnConfig)}
    unknown = sorted(merged.keys() - fields)
    if unknown:
        raise ValueError(f"rope_scaling must have only YaRN's keys {sorted(fields)}, got also {unknown}: remove them")
    original = merged.get("original_max_position_embeddings")
    if not original:
        # Hugging Face falls back on max_position_embeddings, 40960 for a model trained at 32768: a silent error.
        raise ValueError(
            "rope_scaling of type 'yarn' must set original_max_position_embeddings (32768 for the hybrid Qwen3 "
            "releases): add it to config.json"
        )
    if merged.get("factor") is None:
        merged["factor"] = hf.get("max_position_embeddings", ModelConfig.max_position_embeddings) / original
    for field in dataclasses.fields(YarnConfig):
        value = merged.get(field.name)
        if value is None:
            merged.pop(field.name, None)
            continue
        kind = {"truncate": bool, "original_max_position_embeddings": int}.get(field.name, float)
        _check_type(f"rope_scaling.{field.name}", kind, value)
        merged[field.name] = kind(value)
    if not merged["factor"] >= 1:
        raise ValueError(f"rope_scaling factor must be at least 1, got {merged['factor']}: correct config.json")
    return YarnConfig(**merged)


def _check_type(name: str, kind: Any, value: Any) -> None:
    if kind is int and (isinstance(value, bool) or not isinstance(value, int)):
        raise ValueError(f"{name} must be an integer, got {value!r}: correct config.json")
    if kind is float and (isinstance(value, bool) or not isinstance(value, (int, float))):
        raise ValueError(f"{name} must be a number, got {value!r}: correct config.json")
    if kind is bool and not isinstance(value, bool):
        raise ValueError(f"{name} must be true or false, got {value!r}: correct config.json")
