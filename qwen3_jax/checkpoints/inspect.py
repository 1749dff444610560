"""What a checkpoint is, and what is odd about it: from config.json, the files' headers, the tokenizer and the template.

No tensor is read, so that a model of 235B parameters takes as long as one of 0.6B.
"""

import dataclasses
import functools
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qwen3_jax.checkpoints.files import read_entries, read_index, resolve_checkpoint, shorten, weight_files
from qwen3_jax.checkpoints.load import read_generation
from qwen3_jax.checkpoints.names import HEAD, check_tensors
from qwen3_jax.checkpoints.safetensors import INDEX, TensorEntry
from qwen3_jax.config import ModelConfig, read_json_object
from qwen3_jax.parameters.specs import num_parameters
from qwen3_jax.releases import config_names, load_model_config
from qwen3_jax.text.tokenizer import Tokenizer, load_tokenizer

_BYTES = {"float32": 4, "bfloat16": 2, "int8": 1}


def inspect_checkpoint(path_or_hub_id: str | Path) -> dict[str, Any]:
    """Everything `qwen3-jax inspect` shows, as one JSON object; "odd" holds one sentence a finding.

    Raises:
      FileNotFoundError: no such checkpoint, or no config.json.
      ValueError: another architecture, a damaged file, or tensors that are not those of config.json. A directory with
        config.json and no weights at all is described.
    """
    directory = resolve_checkpoint(path_or_hub_id)
    hf = read_json_object(directory / "config.json")
    config = ModelConfig.from_hf(hf)
    generation = read_generation(directory)
    has_tokenizer = (directory / "tokenizer.json").is_file() or any(directory.glob("*.model"))
    tok = load_tokenizer(directory) if has_tokenizer else None
    entries = read_entries(directory) if any(directory.glob("*.safetensors*")) else {}
    surplus_head = bool(entries) and check_tensors(config, entries, directory)
    template = describe_template(tok)
    odd = _odd_config(config) + _odd_files(directory, hf, entries, surplus_head)
    odd += _odd_tokens(config, hf, directory, tok, template)
    ends = generation.eos_token_ids
    if ends and tok and tok.eos_token_id not in ends:
        odd.append(f"the tokenizer ends an answer with {tok.eos_token_id}, the checkpoint with {list(ends)}")
    return {
        "path": str(directory),
        **inspect_config(config),
        "files": _describe_files(entries),
        "generation": {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in dataclasses.asdict(generation).items()
            if value not in (None, ())
        },
        "tokenizer": _describe_tokenizer(directory, tok),
        "template": template,
        "odd": odd,
    }


def inspect_config(config: ModelConfig) -> dict[str, Any]:
    """The part that follows from the architecture alone: sizes, memory, layers, rope."""
    total = num_parameters(config)
    sparse = sum(config.is_sparse(layer) for layer in range(config.num_hidden_layers))
    kv_1k = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 1024
    return {
        "release": _release(config),
        "config": config.to_hf(),
        "parameters": {
            "total": total,
            "active": num_parameters(config, active=True),
            "non_embedding": num_parameters(config, embedding=False),
        },
        "memory": {name: total * size for name, size in _BYTES.items()},
        "kv_cache_per_1k_tokens": {name: kv_1k * _BYTES[name] for name in ("float32", "bfloat16")},
        "layers": {"dense": config.num_hidden_layers - sparse, "sparse": sparse},
        "rope": {
            "type": "yarn" if config.yarn else "default",
            "theta": config.rope_theta,
            "max_position_embeddings": config.max_position_embeddings,
            "context_length": config.context_length,
            **({k: v for k, v in dataclasses.asdict(config.yarn).items() if v is not None} if config.yarn else {}),
        },
    }


def describe_template(tok: Tokenizer | None) -> dict[str, Any]:
    """What the chat template does, found by rendering it.

    Returns:
      kind: "hybrid" (`enable_thinking` acts), "thinking-only" (the prompt always ends inside <think>), "instruct" (no
        thinking) or "none"; and whether `enable_thinking` acts.
    """
    if tok is None or tok.chat_template is None:
        return {"kind": "none", "enable_thinking_acts": False}
    messages = [{"role": "user", "content": "x"}]
    try:
        thinking, direct = (tok.render(messages, enable_thinking=flag) for flag in (True, False))
    except ValueError as error:
        return {"kind": "broken", "enable_thinking_acts": False, "error": str(error)}
    if thinking != direct:
        kind = "hybrid"
    else:
        kind = "thinking-only" if thinking.rstrip().endswith("<think>") else "instruct"
    return {"kind": kind, "enable_thinking_acts": kind == "hybrid"}


def _describe_tokenizer(directory: Path, tok: Tokenizer | None) -> dict[str, Any] | None:
    if tok is None:
        return None
    settings, vocabulary = (
        read_json_object(path) if path.is_file() else {}
        for path in (directory / "tokenizer_config.json", directory / "tokenizer.json")
    )
    return {
        "class": settings.get("tokenizer_class"),
        "vocab_size": tok.vocab_size,
        "added_tokens": len(vocabulary.get("added_tokens") or settings.get("added_tokens_decoder") or ()),
        "eos_token_id": tok.eos_token_id,
        "think_ids": [tok.think_id, tok.end_think_id],
    }


def _describe_files(entries: Mapping[str, TensorEntry]) -> dict[str, Any] | None:
    if not entries:
        return None
    return {
        "count": len({entry.path for entry in entries.values()}),
        "tensors": len(entries),
        "parameters": sum(entry.size for entry in entries.values()),
        "bytes": sum(entry.nbytes for entry in entries.values()),
        "dtypes": dict(Counter(entry.dtype_name for entry in entries.values())),
    }


def _family(config: ModelConfig) -> dict[str, ModelConfig]:
    """The published releases of this size."""

    def size(c: ModelConfig) -> tuple[Any, ...]:
        return (c.hidden_size, c.intermediate_size, c.num_hidden_layers, c.num_attention_heads, c.num_experts)

    return {name: release for name, release in _releases().items() if size(release) == size(config)}


@functools.cache
def _releases() -> dict[str, ModelConfig]:
    return {name: load_model_config(name) for name in config_names()}


def _release(config: ModelConfig) -> list[str]:
    """Names of the published releases of this size and rope (Instruct and Thinking share theirs)."""
    rope, context = config.rope_theta, config.max_position_embeddings
    family = _family(config).items()
    return [name for name, r in family if (r.rope_theta, r.max_position_embeddings) == (rope, context)]


def _odd_config(config: ModelConfig) -> list[str]:
    odd = []
    family = _family(config)
    same_context = {n: r for n, r in family.items() if r.max_position_embeddings == config.max_position_embeddings}
    compared = same_context or family  # another context length is a user's choice, another theta is not
    if compared and all(release.rope_theta != config.rope_theta for release in compared.values()):
        known = ", ".join(f"{name} has {release.rope_theta:,.0f}" for name, release in compared.items())
        odd.append(f"rope_theta is {config.rope_theta:,.0f}, but {known}")
    if config.yarn and config.max_position_embeddings < config.context_length:
        odd.append(
            f"max_position_embeddings is {config.max_position_embeddings}, below the {config.context_length} positions "
            f"that YaRN of factor {config.yarn.factor:g} gives: servers stop there"
        )
    if config.num_experts and not config.norm_topk_prob:
        odd.append("norm_topk_prob is false: every published Qwen3 MoE has true (a default that was written out?)")
    return odd


def _odd_files(
    directory: Path, hf: Mapping[str, Any], entries: Mapping[str, TensorEntry], surplus_head: bool
) -> list[str]:
    odd = []
    if not entries:
        return ["no weights in this directory, only a config"]
    if surplus_head:
        odd.append(f"{HEAD} is stored though tied to the embedding: it is compared when loading, and not kept")
    dtypes = {entry.dtype.name for entry in entries.values()}
    declared = hf.get("torch_dtype") or hf.get("dtype")
    if len(dtypes) > 1:
        odd.append(f"the tensors have several dtypes: {', '.join(sorted(dtypes))}")
    elif declared and declared not in dtypes:
        odd.append(f"config.json says {declared}, the tensors are {', '.join(dtypes)}")
    used = {path.name for path in weight_files(directory)}
    stray = sorted(path.name for path in directory.glob("*.safetensors") if path.name not in used)
    if stray:
        odd.append(f"files that are not read: {shorten(stray)}")
    if (directory / INDEX).is_file():
        if "model.safetensors" in used:
            odd.append(f"{INDEX} stands beside model.safetensors and is not read")
        else:
            odd += _odd_index(directory, entries)
    for pattern in ("pytorch_model*.bin", "*.gguf"):
        if any(directory.glob(pattern)):
            odd.append(f"{pattern} files beside the safetensors are not read")
    return odd


def _odd_index(directory: Path, entries: Mapping[str, TensorEntry]) -> list[str]:
    weight_map = read_index(directory)
    odd = []
    misplaced = [name for name, entry in entries.items() if weight_map.get(name, entry.path.name) != entry.path.name]
    unlisted = [name for name in entries if name not in weight_map]
    if misplaced:
        odd.append(f"{INDEX} names another file than holds {shorten(misplaced)}")
    if unlisted:
        odd.append(f"{INDEX} does not list {shorten(unlisted)}")
    total = (read_json_object(directory / INDEX).get("metadata") or {}).get("total_size")
    actual = sum(entry.nbytes for entry in entries.values())
    if total is not None and total != actual:
        odd.append(f"{INDEX} says {total} bytes in all, the tensors have {actual}")
    return odd


def _odd_tokens(
    config: ModelConfig, hf: Mapping[str, Any], directory: Path, tok: Tokenizer | None, template: Mapping[str, Any]
) -> list[str]:
    odd = []
    if not (directory / "generation_config.json").is_file():
        odd.append("no generation_config.json: sampling takes the recommended values of each mode")
    if tok is None:
        return [*odd, "no tokenizer in this directory"]
    padding = config.vocab_size - tok.vocab_size
    if padding > 0:
        odd.append(f"{padding} of {config.vocab_size} embedding rows have no token (padding): they are never sampled")
    elif padding < 0:
        odd.append(f"the tokenizer has {tok.vocab_size} tokens, the embedding only {config.vocab_size} rows")
    if template["kind"] == "broken":
        odd.append(f"the chat template fails: {template['error']}")
    elif template["kind"] == "none":
        odd.append("no chat template: only raw text can be continued")
    long_context = config.max_position_embeddings >= 262144
    if template["kind"] == "hybrid" and long_context and _release(config):
        odd.append("the template switches thinking, but the configuration is of a 2507 release, which has one mode")
    if template["kind"] in ("instruct", "thinking-only") and _release(config) and not long_context:
        odd.append(f"the template is {template['kind']}, but the configuration is of a hybrid release")
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        ids = hf.get(key) if isinstance(hf.get(key), list) else [hf.get(key)]
        odd += [f"{key} {i} is no row of the embedding" for i in ids or [] if i is not None and i >= config.vocab_size]
    return odd
