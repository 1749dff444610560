"""Compile time against depth: the scanned form of Qwen3-0.6B's layers, 4 of them and 28.

    python -m benchmarks.compile_time           # prints the table
    python -m benchmarks.compile_time --write   # and writes docs/results/compile-time.md

Only shapes are needed, so no weights are made. The depths take turns in one process and the best of the rounds counts.
"""

import argparse
import dataclasses
import os
import platform
import time
from pathlib import Path

import jax
import jax.numpy as jnp

from benchmarks.common import made_by
from qwen3_jax import Qwen3, load_model_config

RESULT = Path(__file__).resolve().parent.parent / "docs" / "results" / "compile-time.md"
DEPTHS = (4, 28)
GOAL = 1.3


def compile_seconds(depth: int, layout: str, length: int = 128) -> float:
    """Seconds to trace, lower and compile the forward pass of `length` tokens in bfloat16."""
    config = dataclasses.replace(load_model_config("qwen3-0.6b"), num_hidden_layers=depth)
    model = Qwen3(config, layout=layout, param_dtype=jnp.bfloat16)
    tokens = jax.ShapeDtypeStruct((1, length), jnp.int32)
    params = jax.eval_shape(model.init, jax.random.key(0), tokens)["params"]
    jax.clear_caches()
    began = time.perf_counter()
    jax.jit(lambda p, t: model.apply({"params": p}, t, logits_to_keep=1).logits).lower(params, tokens).compile()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--write", action="store_true", help=f"write {RESULT.name}")
    args = parser.parse_args()
    best: dict[tuple[str, int], float] = {}
    for _ in range(args.rounds):
        for layout in ("stacked", "unrolled"):
            for depth in DEPTHS:
                seconds = compile_seconds(depth, layout)
                best[layout, depth] = min(seconds, best.get((layout, depth), seconds))
    rows = []
    for layout in ("stacked", "unrolled"):
        few, many = (best[layout, depth] for depth in DEPTHS)
        rows.append(f"| {layout} | {few:.2f} | {many:.2f} | {many / few:.2f} |")
    ratio = best["stacked", DEPTHS[1]] / best["stacked", DEPTHS[0]]
    text = "\n".join(
        [
            "# Compile time against depth",
            "",
            "Forward pass of Qwen3-0.6B's layers, 128 tokens, bfloat16: seconds to trace, lower and compile.",
            "",
            f"| layout | {DEPTHS[0]} layers | {DEPTHS[1]} layers | ratio |",
            "|---|---|---|---|",
            *rows,
            "",
            f"Goal for the scanned (stacked) form: at most {GOAL} times. "
            + ("Reached." if ratio <= GOAL else f"Missed: {ratio:.2f} times."),
            "The unrolled form pays for its depth once a shape; the compile cache keeps it for the next start.",
            "",
            f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {jax.default_backend()}; "
            f"Python {platform.python_version()}, jax {jax.__version__}; best of {args.rounds} rounds.",
            made_by("benchmarks.compile_time"),
            "",
        ]
    )
    print(text)
    if args.write:
        RESULT.parent.mkdir(parents=True, exist_ok=True)
        RESULT.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
