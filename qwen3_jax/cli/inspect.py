"""`qwen3-jax inspect`: what a checkpoint is, without reading a tensor."""

import argparse
from collections.abc import Iterator, Mapping
from typing import Any

from qwen3_jax.cli.arguments import Parser, UsageError

_EPILOG = """\
Odd is what loads but differs from the published releases or is easily overlooked: rope_theta against the release,
padded vocabulary rows, a template that contradicts the configuration, files that are not read.

examples:
  qwen3-jax inspect ./Qwen3-0.6B
  qwen3-jax inspect --model-config qwen3-30b-a3b --json
"""


def parser() -> Parser:
    result = Parser("inspect", "Says what a checkpoint, or a published size, is.", _EPILOG, json=True)
    result.add_argument("path", metavar="PATH", nargs="?", help="a directory in Hugging Face form, or an id of the hub")
    result.add_argument(
        "--model-config", metavar="NAME", help="a file of configs/model (qwen3-0.6b ...), or any config.json or YAML"
    )
    return result


def run(args: argparse.Namespace) -> int:
    """Prints the findings."""
    if (args.path is None) == (args.model_config is None):
        got = "neither" if args.path is None else "both"
        raise UsageError(f"one of PATH and --model-config is needed, got {got}: see qwen3-jax inspect --help")
    from qwen3_jax.checkpoints.inspect import inspect_checkpoint, inspect_config
    from qwen3_jax.cli.common import print_json
    from qwen3_jax.releases import load_model_config

    if args.path is not None:
        found = inspect_checkpoint(args.path)
    else:
        found = {"model_config": args.model_config, **inspect_config(load_model_config(args.model_config))}
    if args.json:
        print_json(found)
    else:
        _show(found)
    return 0


def _show(found: Mapping[str, Any]) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)
    console.print(Text(str(found.get("path") or found["model_config"]), style="bold"), soft_wrap=True)
    for label, text in _lines(found):
        console.print(Text.assemble((f"  {label:<13}", "cyan"), text), soft_wrap=True)
    for finding in found.get("odd", []):
        console.print(Text.assemble(("  odd          ", "yellow"), finding), soft_wrap=True)


def _lines(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Label and text of each line."""
    config, layers, rope = found["config"], found["layers"], found["rope"]
    yield "release", ", ".join(found["release"]) or "none of the published sizes"
    kinds = [f"{count} {kind}" for kind, count in layers.items() if count]
    yield "architecture", f"{config['model_type']}, {' and '.join(kinds)} layers"
    counts = found["parameters"]
    active, other = f"{counts['active']:,} active a token", f"{counts['non_embedding']:,} not embedding"
    yield "parameters", f"{counts['total']:,} in all, {active}, {other}"
    yield "memory", ", ".join(f"{name} {size(value)}" for name, value in found["memory"].items())
    cache = ", ".join(f"{name} {size(value)}" for name, value in found["kv_cache_per_1k_tokens"].items())
    yield "cache", f"{cache} for 1,024 tokens"
    extra = [f"{k}={v:g}" if isinstance(v, float) else f"{k}={v}" for k, v in rope.items() if k != "type"]
    yield "rope", f"{rope['type']}, {', '.join(extra)}"
    yield "config", ", ".join(f"{key}={value}" for key, value in config.items() if value not in (None, False, [], 0.0))
    files = found.get("files")
    if files:
        dtypes = ", ".join(f"{count} {name}" for name, count in files["dtypes"].items())
        yield "files", f"{files['count']}, {files['tensors']} tensors ({dtypes}), {size(files['bytes'])}"
    tokenizer = found.get("tokenizer")
    if tokenizer:
        yield (
            "tokenizer",
            f"{tokenizer['class'] or 'no class named'}, {tokenizer['vocab_size']:,} tokens, "
            f"{tokenizer['added_tokens']} of them added, end {tokenizer['eos_token_id']}, "
            f"think tags {tokenizer['think_ids']}",
        )
    if "template" in found:
        acts = "acts" if found["template"]["enable_thinking_acts"] else "has no effect"
        yield "template", f"{found['template']['kind']} (enable_thinking {acts})"
    if found.get("generation"):
        yield "generation", ", ".join(f"{key}={value}" for key, value in found["generation"].items())


def size(count: int) -> str:
    """In: 1192099840. Out: "1.19 GB"."""
    value, unit = float(count), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.3g} {unit}"
