"""The dictionary of `inspection` as text for a terminal."""

from collections.abc import Iterator, Mapping
from typing import Any


def render_inspection(info: Mapping[str, Any]) -> str:
    """What `inspect_checkpoint` (or `inspect_config`) returned, one fact a line."""
    return "\n".join(f"{label:<16}{text}" for label, text in _lines(info))


def _lines(info: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    config, parameters, layers = info["config"], info["parameters"], info["layers"]
    if "path" in info:
        yield "path", info["path"]
    yield "architecture", f"{config['architectures'][0]}{_release(info['release'])}"
    active = f", {parameters['active']:,} active" if parameters["active"] != parameters["total"] else ""
    yield "parameters", f"{parameters['total']:,}{active}, {parameters['non_embedding']:,} without embeddings"
    yield "layers", _layers(config, layers)
    heads = f"{config['num_attention_heads']} query and {config['num_key_value_heads']} key-value heads"
    yield "attention", f"{heads} of {config['head_dim']}, hidden {config['hidden_size']}"
    yield "vocabulary", f"{config['vocab_size']:,} rows, {'tied' if config['tie_word_embeddings'] else 'untied'} head"
    yield "rope", _rope(info["rope"])
    yield "memory", ", ".join(f"{_size(size)} in {name}" for name, size in info["memory"].items())
    cache = info["kv_cache_per_1k_tokens"]
    yield "cache", ", ".join(f"{_size(size)} in {name}" for name, size in cache.items()) + " for 1,024 tokens of a row"
    if "path" not in info:
        return
    yield from _files_and_tokens(info)
    for position, finding in enumerate(info["odd"]):
        yield "" if position else "odd", finding
    if not info["odd"]:
        yield "odd", "nothing"


def _files_and_tokens(info: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    files, tok, template = info["files"], info["tokenizer"], info["template"]
    if files:
        dtypes = ", ".join(f"{count:,} {name}" for name, count in files["dtypes"].items())
        plural = "s" if files["count"] > 1 else ""
        yield "files", f"{_size(files['bytes'])} in {files['count']} file{plural}: {dtypes} tensors"
    if info["generation"]:
        yield "generation", ", ".join(f"{name} {value}" for name, value in info["generation"].items())
    if tok:
        named = f"{tok['class']}, " if tok["class"] else ""
        yield "tokenizer", f"{named}{tok['vocab_size']:,} tokens, {tok['added_tokens']} of them added"
    acts = "enable_thinking acts" if template["enable_thinking_acts"] else "enable_thinking has no effect"
    yield "template", template["kind"] if template["kind"] == "none" else f"{template['kind']} ({acts})"


def _release(names: list[str]) -> str:
    return f", as {' and '.join(names)}" if names else ""


def _layers(config: Mapping[str, Any], layers: Mapping[str, int]) -> str:
    parts = []
    if layers["dense"]:
        parts.append(f"{layers['dense']} dense of {config['intermediate_size']}")
    if layers["sparse"]:
        chosen = f"{config['num_experts_per_tok']} of {config['num_experts']} experts"
        parts.append(f"{layers['sparse']} sparse with {chosen} of {config['moe_intermediate_size']}")
    return ", ".join(parts)


def _rope(rope: Mapping[str, Any]) -> str:
    text = f"theta {rope['theta']:,.0f}, {rope['max_position_embeddings']:,} positions"
    if rope["type"] == "yarn":
        text += f", YaRN of factor {rope['factor']:g} over {rope['original_max_position_embeddings']:,}"
    return text


def _size(count: float) -> str:
    """In: 1_192_099_840. Out: "1.19 GB"."""
    units = ["B", "KB", "MB", "GB", "TB"]
    while count >= 1000 and len(units) > 1:
        count /= 1000
        units.pop(0)
    return f"{count:.3g} {units[0]}"
