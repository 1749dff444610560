"""A training step against `transformers` with torch's AdamW: a small dense model and a small mixture of experts, 8 rows
of 256 tokens, float32. Beside it: memory of the chunked loss, and what the exact balance loss costs.

    python -m benchmarks.train                   # prints the result, 6 minutes
    python -m benchmarks.train --write           # and writes docs/results/cpu-train.md

Each contestant runs in a process of its own, from the same checkpoint on the same batch; they take turns, and the best
step of all rounds counts. Needs the test extra (torch, transformers).
"""

import argparse
import dataclasses
import os
import platform
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.common import RESULTS, cpu_name, fastest, made_by, merge_best, run_json, table
from qwen3_jax import ModelConfig, Qwen3, num_parameters, save_pretrained
from qwen3_jax.parameters.specs import ParamSpec, spec_tree

DENSE = ModelConfig(
    vocab_size=32000,
    hidden_size=384,
    intermediate_size=1024,
    num_hidden_layers=8,
    num_attention_heads=6,
    num_key_value_heads=2,
    head_dim=64,
    tie_word_embeddings=True,
)
MOE = dataclasses.replace(
    DENSE,
    hidden_size=512,
    num_attention_heads=8,
    num_key_value_heads=4,
    num_experts=32,
    num_experts_per_tok=8,
    moe_intermediate_size=256,
)
BALANCE = dataclasses.replace(MOE, num_hidden_layers=2, vocab_size=2048)  # where the experts are most of the work
ROWS, LENGTH = 8, 256
GOALS = {"dense": 1.3, "moe": 1.6}
TORCH_EXPERTS = ("grouped_mm", "eager")  # the implementations of transformers that run on CPU


def write_checkpoint(config: ModelConfig, directory: Path) -> None:
    """Random weights, drawn by numpy."""
    rng = np.random.default_rng(0)

    def draw(spec: ParamSpec) -> jax.Array:
        if spec.init == "ones":
            return jnp.ones(spec.shape, jnp.float32)
        return jnp.asarray(rng.standard_normal(spec.shape, np.float32) * config.initializer_range)

    tree = spec_tree(config, "unrolled")
    params = jax.tree.map(draw, tree, is_leaf=lambda leaf: isinstance(leaf, ParamSpec))
    save_pretrained(directory, Qwen3(config, layout="unrolled"), params)


def contest(rounds: int, steps: int, directory: Path) -> dict[str, dict[str, Any]]:
    """Best of every contestant, "dense ours", "moe grouped_mm" and so on.

    Raises:
      AssertionError: losses differ: they do not do the same work.
    """
    contestants: dict[str, list[str]] = {}
    for name, config in (("dense", DENSE), ("moe", MOE)):
        write_checkpoint(config, directory / name)
        shared = [str(directory / name), "--steps", str(steps), "--rows", str(ROWS), "--length", str(LENGTH)]
        contestants[f"{name} ours"] = ["benchmarks.peers.ours_train", *shared]
        for experts in TORCH_EXPERTS if name == "moe" else ("",):
            extra = ["--experts", experts] if experts else []
            contestants[f"{name} {experts or 'torch'}"] = ["benchmarks.peers.hf_train", *shared, *extra]
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, command in contestants.items():
            results[name].append(run_json([sys.executable, "-m", *command]))
            print(name, {key: results[name][-1][key] for key in ("step_s", "cpu_s", "first_s", "losses")}, flush=True)
    best = {name: merge_best([{**one, "losses": None} for one in runs]) for name, runs in results.items()}
    for name in GOALS:
        want = results[f"{name} ours"][0]["losses"]
        for other, runs in results.items():
            if other.startswith(name):
                np.testing.assert_allclose(runs[0]["losses"][:2], want[:2], rtol=2e-4, err_msg=other)
    return best


def extras(steps: int, directory: Path) -> dict[str, Any]:
    """Memory of the loss, and seconds by form of the balance loss."""
    write_checkpoint(BALANCE, directory / "balance")
    shape = ["--rows", str(ROWS), "--length", str(LENGTH), "--steps", str(steps)]
    ours = [sys.executable, "-m", "benchmarks.peers.ours_train"]
    memory = run_json([*ours, str(directory / "dense"), "--task", "memory", *shape])
    return memory | run_json([*ours, str(directory / "balance"), "--task", "balance", *shape])


def product_rate() -> float:
    """Floating-point operations per second of a large float32 product in XLA."""
    w = jnp.ones((2048, 2048), jnp.float32)
    product = jax.jit(lambda w: w @ w.T)
    return 2 * 2048**3 / fastest(lambda: product(w).block_until_ready(), 10)


def report(best: dict[str, dict[str, Any]], more: dict[str, Any], rate: float) -> list[str]:
    rows = []
    for name, config in (("dense", DENSE), ("moe", MOE)):
        speeds = {
            who.partition(" ")[2]: ROWS * LENGTH / one["step_s"] for who, one in best.items() if who.startswith(name)
        }
        ours = speeds.pop("ours")
        peer = max(speeds, key=lambda who: speeds[who])
        ratio, goal = ours / speeds[peer], GOALS[name]
        verdict = "reached" if ratio >= goal else f"missed by {1 - ratio / goal:.0%}"
        done = 6 * num_parameters(config, active=True) * ours / rate
        size = f"{num_parameters(config) / 1e6:.0f}M"
        worked = [f"{best[f'{name} {who}']['cpu_s']:.2f}" for who in ("ours", peer)]
        memory = [f"{best[f'{name} {who}']['peak_rss'] / 2**30:.1f}" for who in ("ours", peer)]
        cells = [f"{name} {size}", f"{ours:.0f}", f"{speeds[peer]:.0f} ({peer})", f"{ratio:.2f}"]
        rows.append([*cells, f"{goal}: {verdict}", f"{done:.0%}", " / ".join(worked), " / ".join(memory)])
    header = [
        "tokens per second",
        "qwen3-jax",
        "transformers",
        "ratio",
        "goal",
        "of the product rate",
        "processor s a step",
        "peak GB",
    ]
    plain, small = more["plain_peak"], more["chunk_256_peak"]
    exact, local, without = (more[f"{form}_1_s"] for form in ("global", "micro_batch", "none"))
    exact4, local4 = (more[f"{form}_4_s"] for form in ("global", "micro_batch"))
    return [
        *table(header, rows),
        "",
        "Processor seconds and memory: ours / theirs. Of a busy machine they say more than the clock.",
        "",
        f"**Memory of the loss** (temporary bytes of its gradient, {ROWS} x {LENGTH} tokens, vocabulary of "
        f"{DENSE.vocab_size}): plain {plain / 2**20:.0f} MiB, in chunks of 256 tokens {small / 2**20:.0f} MiB, of 1024 "
        f"{more['chunk_1024_peak'] / 2**20:.0f} MiB.",
        "",
        f"**The balance loss** ({num_parameters(BALANCE) / 1e6:.0f}M, {BALANCE.num_hidden_layers} layers of the "
        f"mixture): a step without it {without:.3f} s, micro-batch form {local:.3f} s, exact {exact:.3f} s "
        f"({exact / local - 1:+.1%}, goal under 3%). With 4 micro-batches: micro-batch form {local4:.3f} s, exact "
        f"{exact4:.3f} s ({exact4 / local4 - 1:+.0%}; one more forward pass is a third of the products).",
        "",
        f"The product rate is {rate / 1e9:.0f} GFLOP/s, of a large float32 product in XLA in this run; a step is "
        "counted as 6 operations a token and active parameter, attention's own products not counted.",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--write", action="store_true", help="write the result to docs/results/")
    args = parser.parse_args()
    rate = product_rate()
    with tempfile.TemporaryDirectory() as directory:
        best = contest(args.rounds, args.steps, Path(directory))
        more = extras(args.steps, Path(directory))
    rate = max(rate, product_rate())
    versions = f"{best['dense ours']['version']}, {best['dense torch']['version']}"
    load = os.getloadavg()[0]
    busy = (
        f" **The machine was busy (load {load:.0f}): numbers are rough.**" if load > 2 * (os.cpu_count() or 1) else ""
    )
    lines = [
        "# A training step on CPU",
        "",
        f"{ROWS} rows of {LENGTH} tokens, float32, AdamW, gradients clipped; from the same weights on the same batch,",
        "with the same losses. The mixture has 32 experts, 8 a token; the balance loss is pooled on their side and",
        f"the exact one on ours.{busy}",
        "",
        *report(best, more, rate),
        "",
        f"{cpu_name()}, {os.cpu_count()} cores; Python {platform.python_version()}, {versions}; best of {args.rounds} "
        f"rounds of {args.steps} steps, taking turns. Load average at the end: {load:.1f}.",
        made_by("benchmarks.train"),
        "",
    ]
    text = "\n".join(lines)
    print(text)
    if args.write:
        RESULTS.mkdir(parents=True, exist_ok=True)
        (RESULTS / "cpu-train.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
