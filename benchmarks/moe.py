"""The mixture of experts against `transformers`: prefill, decode at batch 1 and 8, and a dense model of the same
active size. Random weights of a small MoE (123 million parameters, 32 experts, 8 a token), float32.

    python -m benchmarks.moe                   # prints the result
    python -m benchmarks.moe --write           # and writes docs/results/cpu-moe.md

The contestants take turns in one process and the best of all rounds counts, so that other load on the machine meets all
of them alike. Needs the test extra (torch, transformers).
"""

import argparse
import dataclasses
import os
import platform
import tempfile
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers

from benchmarks.common import GROUP, RESULTS, cpu_name, fastest, made_by, read_bandwidth, table
from benchmarks.peers.ours import greedy_state
from qwen3_jax import ModelConfig, Qwen3, from_pretrained, init_cache, num_parameters
from qwen3_jax.infer.decode import decode, prefill
from qwen3_jax.parameters.specs import Params, layout_of

CONFIG = ModelConfig(
    vocab_size=32000,
    hidden_size=512,
    intermediate_size=2048,  # only of the dense comparison: as many as one token's experts have together
    num_hidden_layers=8,
    num_attention_heads=8,
    num_key_value_heads=4,
    head_dim=64,
    tie_word_embeddings=True,
    num_experts=32,
    num_experts_per_tok=8,
    moe_intermediate_size=256,
)
DENSE = dataclasses.replace(CONFIG, num_experts=0, moe_intermediate_size=0)
PROMPT, CONTEXT, CAPACITY = 512, 64, 256
BATCHES = (1, 8)
TORCH_EXPERTS = ("grouped_mm", "eager")  # the implementations of transformers that run on CPU


class Ours:
    """The functions that `infer.generate` runs, greedy; as there, tokens are fetched after every 8 steps."""

    def __init__(self, model: Qwen3, params: Params) -> None:
        self.model, self.params = model, params

    def fill(self, tokens: np.ndarray, capacity: int) -> Any:
        cache = init_cache(self.model.config, len(tokens), capacity, layout_of(self.params), jnp.float32)
        return prefill(self.model, self.params, cache, jnp.asarray(tokens), jnp.ones(tokens.shape, bool))

    def prefill(self, tokens: np.ndarray) -> float:
        return fastest(lambda: jax.block_until_ready(self.fill(tokens, tokens.shape[1])), 1)

    def decode(self, tokens: np.ndarray, groups: int) -> tuple[float, list[list[int]]]:
        """Seconds of the fastest group of 8 steps, and all tokens."""
        vocab_size = self.model.config.vocab_size
        logits, cache = self.fill(tokens, CAPACITY)
        state = greedy_state(cache, jnp.argmax(logits, axis=-1).astype(jnp.int32), vocab_size)
        jax.block_until_ready(state)
        made, seconds = [], []
        for _ in range(groups):
            began, group = time.perf_counter(), []
            for _ in range(GROUP):
                state, out = decode(self.model, self.params, state, vocab_size, 1)
                group.append(out.token)
            made += jax.device_get(group)
            seconds.append(time.perf_counter() - began)
        return min(seconds), np.concatenate(made).T.tolist()


class Theirs:
    """`transformers` with its cache, called step by step: without what its `generate` adds to a step."""

    def __init__(self, model: Any, experts: str) -> None:
        self.model, self.experts = model, experts

    def feed(self, tokens: torch.Tensor, cache: Any = None) -> tuple[torch.Tensor, Any]:
        self.model.set_experts_implementation(self.experts)
        out = self.model(tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return out.logits[:, -1].argmax(-1, keepdim=True), out.past_key_values

    def prefill(self, tokens: np.ndarray) -> float:
        return fastest(lambda: self.feed(torch.from_numpy(tokens)), 1)

    def decode(self, tokens: np.ndarray, groups: int) -> tuple[float, list[list[int]]]:
        token, cache = self.feed(torch.from_numpy(tokens))
        made, seconds = [], []
        for _ in range(groups):
            began = time.perf_counter()
            for _ in range(GROUP):
                token, cache = self.feed(token, cache)
                made.append(token)
            seconds.append(time.perf_counter() - began)
        return min(seconds), torch.cat(made, 1).tolist()


def contestants(config: ModelConfig) -> dict[str, Ours | Theirs]:
    """The same random weights in all of them."""
    torch.manual_seed(0)
    hf = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**config.to_hf()))
    hf = hf.float().eval()
    with tempfile.TemporaryDirectory() as directory:
        hf.save_pretrained(directory)
        return {
            "ours": Ours(*from_pretrained(directory, dtype="float32")),
            **{name: Theirs(hf, name) for name in TORCH_EXPERTS},
        }


def contest(rounds: int, groups: int) -> dict[tuple[str, str], float]:
    """Least seconds of each task and contestant: a prefill, or 8 decode steps.

    Raises:
      AssertionError: the contestants' greedy tokens differ.
    """
    players = contestants(CONFIG)
    dense = contestants(DENSE)["ours"]
    rng = np.random.default_rng(0)
    prompt = rng.integers(0, CONFIG.vocab_size, (1, PROMPT))
    prompts = {batch: rng.integers(0, CONFIG.vocab_size, (batch, CONTEXT)) for batch in BATCHES}

    def decode_seconds(player: Ours | Theirs, batch: int) -> float:
        return player.decode(prompts[batch], groups)[0]

    dense.decode(prompts[1], 1)
    runs: dict[tuple[str, str], Callable[[], float]] = {("decode 1", "dense"): partial(decode_seconds, dense, 1)}
    for name, player in players.items():
        player.prefill(prompt)
        runs["prefill", name] = partial(player.prefill, prompt)
        for batch, tokens in prompts.items():
            want = players["ours"].decode(tokens, groups)[1]
            assert player.decode(tokens, groups)[1] == want, f"other greedy tokens: {name}, batch {batch}"
            runs[f"decode {batch}", name] = partial(decode_seconds, player, batch)

    best = dict.fromkeys(runs, float("inf"))
    for _ in range(rounds):
        for key, run in runs.items():
            time.sleep(0.3)  # the threads of one library spin for a while before they sleep
            best[key] = min(best[key], run())
    return best


def matmul_rate() -> float:
    """Floating-point operations per second of a large float32 product."""
    w = jnp.ones((2048, 2048), jnp.float32)
    product = jax.jit(lambda w: w @ w.T)
    return 2 * 2048**3 / fastest(lambda: product(w).block_until_ready(), 10)


def report(best: dict[tuple[str, str], float], bandwidth: float, rate: float) -> list[str]:
    total, active = num_parameters(CONFIG), num_parameters(CONFIG, active=True)
    per_expert = (total - active) // (CONFIG.num_experts - CONFIG.num_experts_per_tok)  # in all layers
    # Experts of a layer that eight tokens choose, on average, if all are chosen alike.
    touched = CONFIG.num_experts * (1 - (1 - CONFIG.num_experts_per_tok / CONFIG.num_experts) ** 8)
    read = {1: active, 8: active + (touched - CONFIG.num_experts_per_tok) * per_expert}
    head = CONFIG.vocab_size * CONFIG.hidden_size  # prefill computes the logits of one token only
    tasks = [(f"prefill, {PROMPT} tokens", "prefill", PROMPT, rate / (2 * (active - head)))]
    tasks += [(f"decode, batch {n}", f"decode {n}", GROUP * n, n * bandwidth / (4 * read[n])) for n in BATCHES]
    rows = []
    for title, task, tokens, bound in tasks:
        ours, *theirs = (tokens / best[task, name] for name in ("ours", *TORCH_EXPERTS))
        ratio = ours / max(theirs)
        verdict = "reached" if ratio >= 1 else f"missed by {1 - ratio:.0%}"
        speeds = [f"{speed:.1f}" for speed in (ours, *theirs)]
        rows.append([title, *speeds, f"{ratio:.2f}", f"1.0: {verdict}", f"{bound:.0f} ({ours / bound:.0%})"])
    moe_step, dense_step = (1e3 * best["decode 1", name] / GROUP for name in ("ours", "dense"))
    names = [f"transformers, {name}" for name in TORCH_EXPERTS]
    return [
        *table(["tokens per second", "qwen3-jax", *names, "ratio to the better", "goal", "bound (reached)"], rows),
        "",
        f"**Only the chosen experts are read.** A decode step at batch 1 takes {moe_step:.2f} ms, that of a dense "
        f"model of the same active size ({num_parameters(DENSE) / 1e6:.1f} million parameters, feed-forward of "
        f"{DENSE.intermediate_size}) {dense_step:.2f} ms: {moe_step / dense_step:.2f} times. Reading the other experts "
        f"too would take {4e3 * (total - active) / bandwidth:.1f} ms more. The difference that stays: the router, the "
        f"choice, and {3 * CONFIG.num_experts_per_tok} small products a layer instead of 3 large ones.",
        "",
        f"**Bounds.** A decode step reads the weights it uses once, at the {bandwidth / 1e9:.1f} GB/s that the fastest "
        f"product of one row read at in this run ({4e-6 * read[1]:.0f} MB at batch 1; at batch 8 {4e-6 * read[8]:.0f} "
        f"MB, as eight tokens choose {touched:.1f} of a layer's experts on average). Prefill multiplies by the active "
        f"parameters, at the {rate / 1e9:.0f} GFLOP/s of a large product.",
        "",
        "**What bounds prefill.** The experts' products run tile by tile in a loop: three of them are 14 ms of a "
        "layer's 16, where three products of as many rows with one matrix take 6.5 (measured alone). A group of 128 "
        "rows on average takes one and a half tiles of 128; shorter tiles are slower.",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--groups", type=int, default=4, help="groups of 8 decode steps a round; the fastest counts")
    parser.add_argument("--write", action="store_true", help="write the result to docs/results/")
    args = parser.parse_args()
    torch.set_grad_enabled(False)
    transformers.logging.disable_progress_bar()
    bandwidth, rate = read_bandwidth(), matmul_rate()
    best = contest(args.rounds, args.groups)
    # The best that anything in this run has read at, the dense model's steps included.
    dense = 4 * num_parameters(DENSE) * GROUP / best["decode 1", "dense"]
    bandwidth, rate = max(bandwidth, read_bandwidth(), dense), max(rate, matmul_rate())
    backend = jax.default_backend()
    total, active = num_parameters(CONFIG), num_parameters(CONFIG, active=True)
    lines = [
        f"# The mixture of experts on {backend.upper()}",
        "",
        f"{total / 1e6:.1f} million parameters, {active / 1e6:.1f} of them active: {CONFIG.num_hidden_layers} layers "
        f"of width {CONFIG.hidden_size}, {CONFIG.num_experts} experts of {CONFIG.moe_intermediate_size}, "
        f"{CONFIG.num_experts_per_tok} a token, tied embeddings of {CONFIG.vocab_size} rows. Random weights, float32.",
        "",
        "Decoding is greedy and continues a prompt of random tokens; ours runs the functions of `infer.generate`,",
        "sampling included; `transformers` is called step by step with its cache, once with each of its expert",
        "implementations.",
        f"All made the same tokens ({args.groups * GROUP} steps, batch 1 and 8).",
        "",
        *report(best, bandwidth, rate),
        "",
        f"{cpu_name()}, {os.cpu_count()} cores; Python {platform.python_version()}, jax {jax.__version__}, torch "
        f"{torch.__version__} ({torch.get_num_threads()} threads), transformers {transformers.__version__}; best of "
        f"{args.rounds} rounds, taking turns. Load average at the end: {os.getloadavg()[0]:.1f}.",
        made_by("benchmarks.moe"),
        "",
    ]
    text = "\n".join(lines)
    print(text)
    if args.write:
        RESULTS.mkdir(parents=True, exist_ok=True)
        (RESULTS / f"{backend}-moe.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
