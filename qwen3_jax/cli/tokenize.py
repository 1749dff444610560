"""`qwen3-jax tokenize`: files of examples as tokens, ahead of training."""

import argparse

from qwen3_jax.cli.arguments import Parser

_EPILOG = """\
The directory is read with `kind: tokens`. A command that was stopped goes on when it is given again: shards
that are finished stay, and the bytes are the same as without the stop.

examples:
  qwen3-jax tokenize corpus/*.jsonl --tokenizer ./checkpoint --output tokens/corpus --label language --label domain
  qwen3-jax tokenize chats.parquet --kind chat --tokenizer ./checkpoint --output tokens/chats --thinking keep
"""


def parser() -> Parser:
    result = Parser("tokenize", "Tokenises files of examples ahead of training.", _EPILOG, json=True)
    add = result.add_argument
    add("inputs", metavar="INPUT", nargs="+", help="files, directories, globs, or hf:NAME")
    add("--tokenizer", metavar="PATH", required=True, help="a directory with tokenizer.json")
    add("--output", metavar="DIR", required=True, help="the directory to write")
    add("--kind", choices=["text", "chat"], default="text", help="what the examples are (text)")
    add("--field", metavar="NAME", default="", help="of an example (text or messages)")
    add("--thinking", choices=["template", "keep"], default="template", help="of earlier assistant turns (template)")
    add("--sample-by", choices=["line", "paragraph", "document"], default="line", help="in .txt (line)")
    add("--label", metavar="NAME", action="append", default=[], help="a field that is a label; repeat it")
    add("--shard-records", metavar="N", type=int, default=10_000, help="input records a shard (10000)")
    add("--workers", metavar="N", type=int, default=2, help="threads (2)")
    return result


def run(args: argparse.Namespace) -> int:
    """Tokenises and says what was written."""
    import dataclasses
    from pathlib import Path

    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from qwen3_jax.cli.arguments import UsageError
    from qwen3_jax.cli.common import print_result
    from qwen3_jax.compile_cache import user_cache
    from qwen3_jax.text.tokenizer import load_tokenizer
    from qwen3_jax.train.data.tokenize import tokenize
    from qwen3_jax.train.settings import SourceConfig

    for name in ("shard_records", "workers"):
        if getattr(args, name) < 1:
            raise UsageError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(args, name)}: raise it")
    sources = [
        SourceConfig(path=path, kind=args.kind, field=args.field, thinking=args.thinking, sample_by=args.sample_by)
        for path in args.inputs
    ]
    columns = (
        TextColumn("tokenising"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("records"),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("tokenising")
        done = tokenize(
            sources,
            load_tokenizer(args.tokenizer),
            Path(args.output),
            labels=args.label,
            shard_records=args.shard_records,
            workers=args.workers,
            cache=user_cache() / "data",
            advance=lambda count, total: progress.update(task, completed=count, total=total),
        )
    shards = f"{done.shards} shards" + (f", {done.done_before} were there before" if done.done_before else "")
    written = f"{done.documents:,} documents, {done.tokens:,} tokens written"
    return print_result(args, dataclasses.asdict(done), f"{done.path}: {shards}; {written}")
