"""Memory of training adapters against training all parameters.

    python -m benchmarks.lora --out docs/results/lora.md

Two measures. What the compiler reserves for the step of a published model, which is compiled and never run; and the
peak of a process that trains a small model for a few steps, one process a row.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.common import made_by, peak_rss, run_json
from qwen3_jax.config import ModelConfig
from qwen3_jax.network.model import Qwen3
from qwen3_jax.parameters.specs import num_parameters
from qwen3_jax.releases import load_model_config
from qwen3_jax.train.config import TrainConfig
from qwen3_jax.train.data import Batch
from qwen3_jax.train.parsing import parse
from qwen3_jax.train.state import init_state
from qwen3_jax.train.step import make_model, make_step

SMALL = ModelConfig(
    vocab_size=32_000,
    hidden_size=512,
    intermediate_size=1536,
    num_hidden_layers=8,
    num_attention_heads=8,
    num_key_value_heads=4,
    head_dim=64,
    tie_word_embeddings=True,
    max_position_embeddings=4096,
)
KINDS = {
    "full, float32": {"dtype": "float32"},
    "full, bfloat16": {"dtype": "bfloat16"},
    "LoRA, float32": {"dtype": "float32", "lora": {}},
    "LoRA, bfloat16": {"dtype": "bfloat16", "lora": {}},
}
STEPS = 4


def settings(architecture: ModelConfig, kind: str, rows: int, length: int, rank: int, **more: Any) -> TrainConfig:
    """One row of a table."""
    values: dict[str, Any] = dict(KINDS[kind])
    if "lora" in values:
        values["lora"] = {"r": rank, "target_modules": ["all-linear"]}
        values["init_from"] = "given"
    return parse(
        TrainConfig,
        {
            "model": architecture.to_hf(),
            "layout": "stacked",
            "steps": 100,
            "data": {"rows": rows, "length": length},
            "optimizer": {"warmup_steps": 1},
            **values,
            **more,
        },
    )


def base_dtype(config: TrainConfig) -> Any:
    return jnp.float32 if config.lora is None else jnp.dtype(config.dtype)


def base(model: Qwen3, config: TrainConfig) -> Any:
    """Random parameters in the dtype in which a run would load them."""
    plain = model.clone(lora=None, param_dtype=base_dtype(config))
    return jax.jit(lambda: plain.init(jax.random.key(0), jnp.zeros((1, 8), jnp.int32))["params"])()


def a_batch(config: TrainConfig) -> Batch:
    shape = (config.data.rows, config.data.length)
    tokens = np.random.default_rng(0).integers(0, 1000, shape).astype(np.int32)
    ones = np.ones(shape, np.int32)
    return Batch(
        tokens=tokens, targets=np.roll(tokens, -1, 1), loss_mask=ones > 0, segment_ids=ones, domains=np.zeros_like(ones)
    )


def compiled(config: TrainConfig) -> dict[str, float]:
    """GB that the state takes and that the step needs beside it, by the compiler; nothing is allocated."""
    model = make_model(config, None)
    state = jax.eval_shape(lambda: init_state(model, config, None, base(model, config)))
    memory = make_step(model, config).lower(state, a_batch(config)).compile().memory_analysis()
    parts = {"parameters": state.params, "optimizer": state.opt_state, "frozen": state.frozen}
    sizes = {
        name: sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree)) for name, tree in parts.items()
    }
    sizes["step"] = memory.temp_size_in_bytes
    return {name: size / 1e9 for name, size in (sizes | {"total": sum(sizes.values())}).items()}


def run_small(kind: str, rows: int, length: int, rank: int) -> dict[str, float]:
    """In a process of its own: a few steps, the peak of the process."""
    start = peak_rss()
    config = settings(SMALL, kind, rows, length, rank)
    model = make_model(config, None)
    state = init_state(model, config, None, base(model, config))
    step, batch = make_step(model, config), a_batch(config)
    for _ in range(STEPS):
        state, metrics = step(state, batch)
        loss = float(metrics.loss)
    assert np.isfinite(loss)
    return {"peak": peak_rss() / 1e9, "start": start / 1e9}


def report(compiled_rows: dict[str, Any], run_rows: dict[str, Any], args: argparse.Namespace) -> str:
    """The page."""
    lines = [
        "# LoRA: memory against full fine-tuning",
        "",
        made_by("benchmarks.lora"),
        "",
        f"Adapters of rank {args.rank} on all seven projections; AdamW; layers scanned. The base",
        "of a LoRA run is frozen and kept in the dtype of the activations; trained parameters and moments are float32.",
        "",
        f"**What the compiler reserves** for {args.model}, {args.rows} x {args.length} tokens a step (XLA:CPU, GB;",
        "every layer rematerialised; the state is updated in place; on CPU bfloat16 saves nothing beside the state):",
        "",
        "| run | trained | moments | frozen base | beside the state, in a step | together |",
        "|---|---|---|---|---|---|",
    ]
    for kind, row in compiled_rows.items():
        names = ("parameters", "optimizer", "frozen", "step", "total")
        lines.append(f"| {kind} | " + " | ".join(f"{row[name]:.3f}" for name in names) + " |")
    small = num_parameters(SMALL) / 1e6
    lines += [
        "",
        f"**Peak of a process** that trains a model of {small:.0f}M parameters for {STEPS} steps of",
        f"{args.small_rows} x {args.small_length} tokens (GB; `before` is the interpreter with JAX loaded):",
        "",
        "| run | peak | before |",
        "|---|---|---|",
    ]
    lines += [f"| {k} | {r['peak']:.2f} | {r['start']:.2f} |" for k, r in run_rows.items()]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="qwen3-0.6b", help="a name of configs/model; compiled, never run")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--small-rows", type=int, default=4)
    parser.add_argument("--small-length", type=int, default=256)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--run", choices=KINDS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        print(json.dumps(run_small(args.run, args.small_rows, args.small_length, args.rank)))
        return
    run_rows, compiled_rows = {}, {}
    for kind in KINDS:
        words = ["--run", kind, "--rank", str(args.rank)]
        words += ["--small-rows", str(args.small_rows), "--small-length", str(args.small_length)]
        run_rows[kind] = run_json([sys.executable, "-m", "benchmarks.lora", *words])
        print(kind, run_rows[kind], flush=True)
    architecture = load_model_config(args.model)
    for kind in KINDS:
        compiled_rows[kind] = compiled(settings(architecture, kind, args.rows, args.length, args.rank, remat="full"))
        print(kind, compiled_rows[kind], flush=True)
    text = report(compiled_rows, run_rows, args)
    print(text)
    if args.out:
        args.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
