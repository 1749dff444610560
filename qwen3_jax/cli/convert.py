"""`qwen3-jax convert`: a checkpoint written anew."""

import argparse

from qwen3_jax.cli.arguments import Parser

_EPILOG = """\
The result is again in Hugging Face form, tokenizer and template included; a few megabytes are in memory at a time.

examples:
  qwen3-jax convert Qwen/Qwen3-0.6B ./qwen3-0.6b-f32 --dtype float32 --max-shard-size 500MB
  qwen3-jax convert Qwen/Qwen3-0.6B ./merged --adapter runs/lora/adapter
"""


def parser() -> Parser:
    result = Parser(
        "convert",
        "Writes a checkpoint in another dtype, with other shard sizes, or with adapters merged.",
        _EPILOG,
        json=True,
    )
    result.add_argument("source", metavar="SOURCE", help="a directory in Hugging Face form, or an id of the hub")
    result.add_argument("target", metavar="TARGET", help="the directory to write")
    result.add_argument("--dtype", metavar="NAME", help="bfloat16, float32 or float16 (each tensor's own)")
    result.add_argument("--adapter", metavar="PATH_OR_HUB_ID", help="adapters in PEFT's format to merge into it")
    result.add_argument("--max-shard-size", metavar="SIZE", default="5GB", help="such as 500MB or 2GiB (5GB)")
    return result


def run(args: argparse.Namespace) -> int:
    """Converts and says what was written."""
    from qwen3_jax.checkpoints.convert import convert
    from qwen3_jax.cli.common import print_result, spinner
    from qwen3_jax.cli.inspect import size

    with spinner(f"converting {args.source}"):
        done = convert(
            args.source, args.target, dtype=args.dtype, max_shard_size=args.max_shard_size, adapter=args.adapter
        )
    files = len(done["files"])
    written = f"{done['tensors']} tensors, {size(done['bytes'])} in {done['dtype']}"
    return print_result(args, done, f"{done['path']}: {written}, {files} file{'s' if files != 1 else ''}")
