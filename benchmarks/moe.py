"""The mixture of experts against `transformers`: prefill, decode at batch 1 and 8, and a dense model of the same
active size. Random weights of a small MoE (123 million parameters, 32 experts, 8 a token), float32.

    python -m benchmarks.moe                   # prints the table
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
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers

from infer.automaton import UNLIMITED, Tokens, initial
from infer.decode import DecodeState, decode, prefill
from infer.sampling import SamplingParams
from qwen3_jax import ModelConfig, Qwen3, from_pretrained, init_cache, num_parameters
from qwen3_jax.params import Params, layout_of

RESULT = Path(__file__).resolve().parent.parent / "docs" / "results" / "cpu-moe.md"

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
    decoder_sparse_step=1,
)
PROMPT, DECODE_PROMPT, CAPACITY = 512, 64, 256
PER_FETCH = 8  # decode steps dispatched before their tokens are fetched, as infer.generate does


class Ours:
    """The decode path of `infer.generate`, greedy."""

    def __init__(self, model: Qwen3, params: Params) -> None:
        self.model, self.params = model, params

    def fill(self, tokens: np.ndarray, capacity: int) -> tuple[Any, Any]:
        cache = init_cache(self.model.config, len(tokens), capacity, layout_of(self.params), jnp.float32)
        return prefill(self.model, self.params, cache, jnp.asarray(tokens), jnp.ones(tokens.shape, bool))

    def prefill(self, tokens: np.ndarray) -> float:
        start = time.perf_counter()
        jax.block_until_ready(self.fill(tokens, tokens.shape[1]))
        return time.perf_counter() - start

    def decode(self, tokens: np.ndarray, steps: int) -> tuple[float, list[list[int]]]:
        logits, cache = self.fill(tokens, CAPACITY)
        state = greedy_state(cache, jnp.argmax(logits, axis=-1).astype(jnp.int32), self.model.config.vocab_size)
        jax.block_until_ready(state)
        out, fetched = [], []
        start = time.perf_counter()
        for step in range(steps):
            state, token, _ = decode(self.model, self.params, state, self.model.config.vocab_size, 1)
            out.append(token)
            if (step + 1) % PER_FETCH == 0:
                fetched += jax.device_get(out)
                out = []
        seconds = time.perf_counter() - start
        return seconds, np.concatenate(fetched).T.tolist()


class Theirs:
    """`transformers` with its cache, called step by step: without what its `generate` adds."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def prefill(self, tokens: np.ndarray) -> float:
        start = time.perf_counter()
        self.model(torch.from_numpy(tokens), use_cache=True, logits_to_keep=1)
        return time.perf_counter() - start

    def decode(self, tokens: np.ndarray, steps: int) -> tuple[float, list[list[int]]]:
        out = self.model(torch.from_numpy(tokens), use_cache=True, logits_to_keep=1)
        made = []
        token = out.logits[:, -1].argmax(-1, keepdim=True)
        start = time.perf_counter()
        for _ in range(steps):
            out = self.model(token, past_key_values=out.past_key_values, use_cache=True)
            token = out.logits[:, -1].argmax(-1, keepdim=True)
            made.append(token)
        seconds = time.perf_counter() - start
        return seconds, torch.cat(made, 1).tolist()


def greedy_state(cache: Any, token: jax.Array, vocab_size: int) -> DecodeState:
    batch = token.shape[0]

    def full(value: Any, dtype: Any = jnp.int32) -> jax.Array:
        return jnp.full((batch,), value, dtype)

    return DecodeState(
        cache=cache,
        token=token,
        automaton=initial(
            full(False, bool), full(UNLIMITED), full(UNLIMITED), jnp.zeros((batch, 32), jnp.int32), full(0)
        ),
        seen=jnp.zeros((batch, vocab_size), bool),
        keys=jax.random.split(jax.random.key(0), batch),
        sampling=SamplingParams(
            temperature=full(0, jnp.float32),
            top_k=full(0),
            top_p=full(1, jnp.float32),
            min_p=full(0, jnp.float32),
            presence_penalty=full(0, jnp.float32),
        ),
        tokens=Tokens(think=jnp.int32(-1), end_think=jnp.int32(-1), ends=jnp.full((1,), -1), pad=jnp.int32(0)),
    )


def make(config: ModelConfig) -> tuple[Ours, Theirs]:
    """The same random weights in both."""
    torch.manual_seed(0)
    hf = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**config.to_hf()))
    hf = hf.float().eval()
    with tempfile.TemporaryDirectory() as directory:
        hf.save_pretrained(directory)
        return Ours(*from_pretrained(directory, dtype="float32")), Theirs(hf)


def best_of(rounds: int, contestants: dict[str, Callable[[], float]]) -> dict[str, float]:
    """Least seconds of each, taking turns; the pause lets one library's spinning threads go to sleep."""
    best = dict.fromkeys(contestants, float("inf"))
    for _ in range(rounds):
        for name, run in contestants.items():
            time.sleep(0.3)
            best[name] = min(best[name], run())
    return best


def memory_bandwidth() -> float:
    """Bytes per second at which one row meets a float32 matrix too large for the caches."""
    w, x = jnp.ones((65536, 1024), jnp.float32), jnp.ones((1, 1024), jnp.float32)
    product = jax.jit(lambda x, w: x @ w.T)

    def run() -> float:
        start = time.perf_counter()
        product(x, w).block_until_ready()
        return time.perf_counter() - start

    return w.nbytes / min(run() for _ in range(10))


def matmul_rate() -> float:
    """Floating-point operations per second of a large float32 product."""
    w = jnp.ones((2048, 2048), jnp.float32)
    product = jax.jit(lambda x, w: x @ w.T)

    def run() -> float:
        start = time.perf_counter()
        product(w, w).block_until_ready()
        return time.perf_counter() - start

    return 2 * 2048**3 / min(run() for _ in range(10))


def contest(rounds: int, steps: int) -> list[str]:
    """Runs everything; returns the lines of the result."""
    dense_config = dataclasses.replace(CONFIG, num_experts=0, moe_intermediate_size=0)
    ours, theirs = make(CONFIG)
    dense, _ = make(dense_config)
    rng = np.random.default_rng(0)
    prompt = rng.integers(0, CONFIG.vocab_size, (1, PROMPT))
    prompts = {batch: rng.integers(0, CONFIG.vocab_size, (batch, DECODE_PROMPT)) for batch in (1, 8)}

    compile_start = time.perf_counter()
    ours.prefill(prompt)
    compile_prefill = time.perf_counter() - compile_start
    theirs.prefill(prompt)
    for batch, tokens in prompts.items():
        got, want = ours.decode(tokens, steps)[1], theirs.decode(tokens, steps)[1]
        assert got == want, f"greedy tokens differ at batch {batch}"
    dense.decode(prompts[1], steps)

    runs: dict[str, Callable[[], float]] = {
        "prefill ours": lambda: ours.prefill(prompt),
        "prefill theirs": lambda: theirs.prefill(prompt),
        "dense ours": lambda: dense.decode(prompts[1], steps)[0],
    }
    for batch, tokens in prompts.items():
        runs[f"{batch} ours"] = lambda tokens=tokens: ours.decode(tokens, steps)[0]
        runs[f"{batch} theirs"] = lambda tokens=tokens: theirs.decode(tokens, steps)[0]
    best = best_of(rounds, runs)

    bandwidth, rate = memory_bandwidth(), matmul_rate()
    total, active = num_parameters(CONFIG), num_parameters(CONFIG, active=True)
    per_expert = 3 * CONFIG.hidden_size * CONFIG.moe_intermediate_size * CONFIG.num_hidden_layers
    # Experts that eight tokens of independent, even choices touch, of 32.
    touched = CONFIG.num_experts * (1 - (1 - CONFIG.num_experts_per_tok / CONFIG.num_experts) ** 8)
    without_experts = active - CONFIG.num_experts_per_tok * per_expert
    head = CONFIG.vocab_size * CONFIG.hidden_size
    bounds = {
        "prefill": rate / (2 * (active - head)),
        "1": bandwidth / (4 * active),
        "8": 8 * bandwidth / (4 * (without_experts + touched * per_expert)),
    }
    lines = [
        "# The mixture of experts on CPU",
        "",
        f"{total / 1e6:.1f} million parameters ({active / 1e6:.1f} active): {CONFIG.num_hidden_layers} layers of width "
        f"{CONFIG.hidden_size}, {CONFIG.num_experts} experts of {CONFIG.moe_intermediate_size}, "
        f"{CONFIG.num_experts_per_tok} a token, vocabulary {CONFIG.vocab_size}, tied. Random weights, float32.",
        "",
        "Tokens per second, ours through the prefill and decode functions of `infer.generate` (greedy), `transformers`",
        "called step by step with its cache and its default attention and expert implementations. Both made the same",
        f"tokens ({steps} steps, batch 1 and 8).",
        "",
        "| | qwen3-jax | transformers | ratio | goal | bound of this machine |",
        "|---|---|---|---|---|---|",
    ]
    for name, key, count in (
        (f"prefill, {PROMPT} tokens", "prefill", PROMPT),
        ("decode, batch 1", "1", steps),
        ("decode, batch 8", "8", 8 * steps),
    ):
        mine, other = count / best[f"{key} ours"], count / best[f"{key} theirs"]
        lines.append(f"| {name} | {mine:.1f} | {other:.1f} | {mine / other:.2f} | 1.0 | {bounds[key]:.0f} |")
    moe_step, dense_step = 1e3 * best["1 ours"] / steps, 1e3 * best["dense ours"] / steps
    lines += [
        "",
        f"One decode step at batch 1 takes {moe_step:.2f} ms; of a dense model of the same active size (feed-forward of "
        f"{dense_config.intermediate_size}: {num_parameters(dense_config) / 1e6:.1f} million parameters) "
        f"{dense_step:.2f} ms: {moe_step / dense_step:.2f} times.",
        f"Reading all experts' weights alone would take {4e3 * (total - active) / bandwidth:.1f} ms more.",
        "",
        f"Bounds: decoding reads the weights it touches once a step ({bandwidth / 1e9:.1f} GB/s for a float32 product of "
        f"one row, measured in the same run; at batch 8 an average of {touched:.1f} experts of a layer), prefill multiplies "
        f"by the active ones ({rate / 1e9:.0f} GFLOP/s for a large product).",
        f"First prefill, compilation included: {compile_prefill:.1f} s.",
    ]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--steps", type=int, default=32, help="decode steps a round, a multiple of 8")
    parser.add_argument("--write", action="store_true", help=f"write {RESULT.name}")
    args = parser.parse_args()
    torch.set_grad_enabled(False)
    lines = contest(args.rounds, args.steps)
    lines += [
        "",
        f"{cpu_name()}, {os.cpu_count()} cores, {jax.default_backend()}; Python {platform.python_version()}, jax "
        f"{jax.__version__}, torch {torch.__version__} ({torch.get_num_threads()} threads), transformers "
        f"{transformers.__version__}; best of {args.rounds} rounds, taking turns. "
        f"Load average at the end: {os.getloadavg()[0]:.1f}.",
        "Made by `python -m benchmarks.moe --write`.",
        "",
    ]
    text = "\n".join(lines)
    print(text)
    if args.write:
        RESULT.parent.mkdir(parents=True, exist_ok=True)
        RESULT.write_text(text, encoding="utf-8")


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    return names[0].split(":")[1].strip() if names else platform.machine()


if __name__ == "__main__":
    main()
