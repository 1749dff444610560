"""Reading Hugging Face's `config.json` in every spelling: what is known, refused, or only warned about."""

import dataclasses
import difflib
import re
import sys
import warnings
from collections.abc import Mapping
from typing import Any

from qwen3_jax.config import ARCHITECTURES, LARGEST, ModelConfig, YarnConfig

# What a key that the file leaves out means to transformers (`norm_topk_prob` of a mixture alone).
_LEFT_OUT = {"rope_theta": 10_000.0, "max_position_embeddings": 32768}
_ORIGINAL = "original_max_position_embeddings"

# Keys of published and transformers-5 files that say nothing about the architecture.
_NOT_ARCHITECTURE = frozenset(
    "architectures model_type transformers_version torch_dtype dtype use_cache initializer_range _name_or_path "
    "attention_dropout output_router_logits router_aux_loss_coef bos_token_id eos_token_id pad_token_id "
    "max_window_layers layer_types sliding_window output_hidden_states output_attentions return_dict torchscript "
    "chunk_size_feed_forward id2label label2id problem_type _attn_implementation _experts_implementation head_type "
    "task_specific_params tie_encoder_decoder is_decoder".split()
)

# Keys that change the network: pattern, values that say what every Qwen3 is (or null), why others are refused.
_VARIANTS: tuple[tuple[str, tuple[Any, ...], str], ...] = (
    (r"(\w+_)?bias", (False,), "its projections have no bias"),
    (r"(use_)?qk_?(layer)?_?norm(alization)?", (True,), "its queries and keys are normalized"),
    (r"hidden_act(ivation)?", ("silu", "swish"), "its feed-forward layers use SiLU"),
    (r"use_(sliding_window|swa)|attention_chunk_size|attention_sinks?", (False,), "its attention sees all tokens"),
    (r"(num|n)_shared_experts?|shared_expert\w*", (0,), "its mixtures have no shared expert"),
    (r"first_k_dense_replace", (0,), "`mlp_only_layers` names its dense layers"),
    (r"moe_layer_freq|routed_scaling_factor|n_group|topk_group", (1, 0), "its router is one softmax over all experts"),
    (r"scoring_func", ("softmax",), "its router is one softmax over all experts"),
    (r"\w*soft_?cap(ping)?", (0,), "its logits are not capped"),
    (r"partial_rotary_factor|rotary_pct", (1,), "all planes of a head are rotated"),
    (r"rope_interleaved?|use_mrope|use_alibi|alibi|no_rope_layers?", (False, []), "it has plain rotary embeddings"),
    (r"logits?_scal(e|ing)|\w+_multiplier|scale_(emb|depth)", (1,), "it scales no activations"),
    (r"is_causal", (True,), "it is causal"),
    (r"is_encoder_decoder|add_cross_attention|use_bidirectional_attention", (False,), "it is a causal decoder"),
    (r"(q|kv)_lora_rank|num_kv_shared_layers|(attn|attention)_output_gate", (0,), "it has plain grouped attention"),
    (r"linear_(num|key|value|conv)_\w+|full_attention_interval|mamba_\w+", (), "every layer has full attention"),
    (r"(vision|audio|text|thinker|talker)_config", (), "it reads text alone"),
    (r"yarn", (), "it stands under `rope_scaling`"),
    (r"dual_chunk_attention_config", (), "dual chunk attention is not supported: remove it for contexts up to 262,144"),
    (r"quantization_config", (), "quantized weights are not supported: use the bfloat16 release"),
)


def read_values(hf: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `ModelConfig`; see `ModelConfig.from_hf` for what is raised."""
    hf = dict(hf)
    _check_plain_values(hf)
    model_type = hf.get("model_type")
    if model_type not in ARCHITECTURES:
        raise ValueError(
            f"model_type must be one of {sorted(ARCHITECTURES)}, got {model_type!r}: this checkpoint is another "
            "architecture, point at a Qwen3 one"
        )
    classes = hf.get("architectures") or list(ARCHITECTURES.values())
    if not set(classes) & set(ARCHITECTURES.values()):
        raise ValueError(
            f"architectures must hold {ARCHITECTURES[model_type]}, got {classes!r}: this checkpoint has another "
            "head than a language model's"
        )
    _refuse_variants(hf)
    if hf.get("num_local_experts") is not None:  # transformers 5's name
        hf.setdefault("num_experts", hf["num_local_experts"])
    hf.pop("num_local_experts", None)
    if model_type == "qwen3":
        for key in ("num_experts", "moe_intermediate_size"):
            if hf.pop(key, 0):
                raise ValueError(f"{key} must not be set when model_type is 'qwen3': use 'qwen3_moe' or remove it")
    elif not hf.get("num_experts"):
        raise ValueError("num_experts must be set when model_type is 'qwen3_moe': add it to config.json")
    else:
        hf = {"norm_topk_prob": False, **hf}
    yarn = _read_rope(hf)
    hf = {**_LEFT_OUT, **{key: value for key, value in hf.items() if value is not None}}
    values: dict[str, Any] = {"yarn": yarn}
    kinds = {field.name: field.type for field in dataclasses.fields(ModelConfig) if field.name != "yarn"}
    _refuse_misspellings(hf, kinds)
    for key in kinds.keys() & hf.keys():
        values[key] = _typed(key, kinds[key], hf[key])
    required = [f.name for f in dataclasses.fields(ModelConfig) if f.default is dataclasses.MISSING]
    missing = [name for name in required if name not in values]
    if missing:
        raise ValueError(f"config.json must set {', '.join(missing)}: add what is missing")
    return values


def _check_plain_values(hf: Mapping[str, Any]) -> None:
    """Types of the keys that are not numbers of the architecture."""
    for key in ("model_type", "torch_dtype", "dtype"):
        if not isinstance(hf.get(key), str | None):
            raise ValueError(f"{key} must be a name, got {hf[key]!r}: correct config.json")
    for key in ("architectures", "layer_types"):
        names = hf.get(key)
        if names is not None and not (isinstance(names, list | tuple) and all(isinstance(n, str) for n in names)):
            raise ValueError(f"{key} must be a list of names, got {names!r}: correct config.json")
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        ids = hf.get(key)
        for value in ids if isinstance(ids, list | tuple) else () if ids is None else (ids,):
            _typed(key, int, value)


def _refuse_variants(hf: dict[str, Any]) -> None:
    """Takes the keys of `_VARIANTS` out of `hf`, where they say what every Qwen3 is."""
    for key in list(hf):
        for pattern, same, reason in _VARIANTS:
            if re.fullmatch(pattern, key):
                value = hf.pop(key)
                if value is not None and value not in same:
                    expected = repr(same[0]) if same else "absent"
                    raise ValueError(f"{key} must be {expected} for this model, got {value!r}: {reason}")
                break
    other = sorted({kind for kind in hf.get("layer_types") or () if kind != "full_attention"})
    if other:
        raise ValueError(f"layer_types must all be 'full_attention', got {other}: not supported")


def _refuse_misspellings(hf: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    """Warns about the keys that are not known, unless one looks like a known key: that would change the network."""
    unknown = sorted(key for key in hf if key not in known and key not in _NOT_ARCHITECTURE)
    for key in unknown:
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.9)
        if near:
            raise ValueError(f"config.json has the unknown key {key}: did you mean {near[0]}?")
    if unknown:
        warnings.warn(f"config.json: unknown keys have no effect: {', '.join(unknown)}", stacklevel=1)


def _read_rope(hf: dict[str, Any]) -> YarnConfig | None:
    """Takes `rope_scaling` / `rope_parameters` out of `hf`, leaving `rope_theta` in it."""
    merged: dict[str, Any] = {}
    for key in ("rope_parameters", "rope_scaling"):
        section = hf.pop(key, None) or {}
        if not isinstance(section, Mapping):
            raise ValueError(f"{key} must be an object with keys of its own, got {section!r}: correct config.json")
        merged |= section
    theta = merged.pop("rope_theta", None)
    if theta is not None:
        hf["rope_theta"] = theta
    kinds = [merged.pop(key, None) for key in ("rope_type", "type")]
    rope_type = kinds[0] or kinds[1] or "default"
    if rope_type == "default":
        if merged:
            raise ValueError(f"rope_scaling of type 'default' must have no other keys, got {sorted(merged)}")
        return None
    if rope_type != "yarn":
        raise ValueError(f"rope_type must be 'default' or 'yarn', got {rope_type!r}: it is not supported")
    types = {
        field.name: {"truncate": bool, _ORIGINAL: int}.get(field.name, float)
        for field in dataclasses.fields(YarnConfig)
    }
    unknown = sorted(merged.keys() - types)
    if unknown:
        raise ValueError(f"rope_scaling must have only YaRN's keys {sorted(types)}, got also {unknown}: remove them")
    if not merged.get(_ORIGINAL):
        # Hugging Face falls back on max_position_embeddings, 40960 for a model trained at 32768: a silent error.
        raise ValueError(
            f"rope_scaling of type 'yarn' must set {_ORIGINAL} (32768 for the hybrid Qwen3 releases): add it to "
            "config.json"
        )
    values = {key: _typed(f"rope_scaling.{key}", types[key], v) for key, v in merged.items() if v is not None}
    if "factor" not in values:
        context = hf.get("max_position_embeddings") or _LEFT_OUT["max_position_embeddings"]
        values["factor"] = _typed("max_position_embeddings", int, context) / values[_ORIGINAL]
    return YarnConfig(**values)


def _typed(name: str, kind: Any, value: Any) -> Any:
    """`value` as a field of type `kind` holds it.

    Raises:
      ValueError: it is of another type, not finite or too large.
    """
    if kind is bool:
        if not isinstance(value, bool):
            raise ValueError(f"{name} must be true or false, got {value!r}: correct config.json")
        return value
    if kind not in (int, float):
        if not isinstance(value, list | tuple):
            raise ValueError(f"{name} must be a list of integers, got {value!r}: correct config.json")
        return tuple(_typed(name, int, item) for item in value)
    what, types = ("an integer", int) if kind is int else ("a number", (int, float))
    if isinstance(value, bool) or not isinstance(value, types):
        raise ValueError(f"{name} must be {what}, got {value!r}: correct config.json")
    if not abs(value) <= (LARGEST if kind is int else sys.float_info.max):  # NaN neither
        raise ValueError(
            f"{name} must be {what} in range, got {value if kind is float else 'more'}: correct config.json"
        )
    return kind(value)
