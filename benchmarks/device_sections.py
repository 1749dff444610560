"""The sections of `benchmarks.device`, each run as a process: `python -m benchmarks.device_sections NAME ...`.

A row is written as soon as it is known: {"what", "value", "shown", "note"}.
"""

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import fastest, run_json

STEPS = 32  # decode steps of one call, as `infer.generate` asks for on accelerators
CONTEXT = 512  # tokens in the cache when decoding is timed
PREFILL = 2048


class Section:
    """What a section is given, and where its rows go."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.tiny: bool = args.tiny
        self.scratch = Path(args.scratch)
        self.layout: str | None = None  # of the weights that decode; None: as they are loaded by default
        self.ceilings: dict[str, float] = json.loads(args.ceilings)
        self._file = (self.scratch / f"{args.name}.jsonl").open("w", encoding="utf-8")

    def row(self, what: str, value: float, shown: str, note: str = "") -> None:
        self._file.write(json.dumps({"what": what, "value": value, "shown": shown, "note": note}) + "\n")
        self._file.flush()

    def share(self, seconds: float, *, gigabytes: float = 0.0, teraflops: float = 0.0) -> str:
        """How near a time is to the least that the measured ceilings allow."""
        bandwidth, rate = self.ceilings.get("copy"), self.ceilings.get("product")
        if gigabytes and bandwidth:
            return f"{100 * gigabytes / seconds / bandwidth:.0f}% of the bound ({gigabytes:.2f} GB)"
        if teraflops and rate:
            return f"MFU {100 * teraflops / seconds / rate:.0f}% ({teraflops:.2f} TFLOP)"
        return ""


def median_seconds(run: Callable[[], Any], times: int = 7) -> float:
    """After two runs that do not count."""
    import jax

    seconds: list[float] = []
    for _ in range(2):
        jax.block_until_ready(run())
    for _ in range(times):
        began = time.perf_counter()
        jax.block_until_ready(run())
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def ceilings(section: Section) -> None:
    """Bytes a second of a copy (read and written), and FLOPs a second of a product in bfloat16."""
    import jax
    import jax.numpy as jnp

    size, width = (1 << 22, 512) if section.tiny else (1 << 30, 8192)
    x = jax.random.normal(jax.random.key(0), (size,), jnp.float32)
    copy = jax.jit(lambda x: x + 1)
    rate = 2 * x.nbytes / fastest(lambda: jax.block_until_ready(copy(x)), 12) / 1e9
    section.row("copy", rate, f"{rate:,.0f} GB/s", f"{x.nbytes / 1e9:.2f} GB read and written")
    del x
    a, b = (jax.random.normal(jax.random.key(i), (width, width), jnp.bfloat16) for i in range(2))
    product = jax.jit(lambda a, b: a @ b.T)
    rate = 2 * width**3 / fastest(lambda: jax.block_until_ready(product(a, b)), 40) / 1e12
    section.row("product", rate, f"{rate:,.1f} TFLOP/s", f"bfloat16, {width} x {width} x {width}, random values")


def random_params(config: Any, layout: str) -> Any:
    """bfloat16 weights, made on the device leaf by leaf; those of a run of layers a layer at a time."""
    import jax
    import jax.numpy as jnp

    from qwen3_jax.parameters.specs import global_specs, layer_specs

    made: dict[str, Any] = {}
    for number, (name, spec) in enumerate(global_specs(config).items()):
        init = jax.jit(lambda key, spec=spec: spec.initializer(0.02)(key, spec.shape, jnp.bfloat16))
        made[name] = init(jax.random.key(number))
    first = 0
    for segment, (sparse, length) in enumerate(config.segments):
        for number, (name, spec) in enumerate(layer_specs(config, sparse).items()):

            def layer(key: Any, spec: Any = spec) -> Any:
                return spec.initializer(0.02)(key, spec.shape, jnp.bfloat16)

            keys = jax.random.split(jax.random.key(100 * segment + number + 10), length)
            if layout == "stacked":
                made.setdefault(f"segments_{segment}", {})[name] = jax.jit(lambda k, f=layer: jax.lax.map(f, k))(keys)
                continue
            init = jax.jit(layer)
            for index in range(length):
                made.setdefault(f"layers_{first + index}", {})[name] = init(keys[index])
        first += length
    return made


def config_of(name: str, tiny: bool) -> Any:
    from qwen3_jax import load_model_config
    from qwen3_jax.config import ModelConfig

    base = load_model_config("qwen3-30b-a3b" if "moe" in name or "a3b" in name else "qwen3-0.6b").to_hf()
    if tiny:
        small = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
        small |= {"num_key_value_heads": 2, "head_dim": 16, "vocab_size": 512}
        experts = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
        return ModelConfig.from_hf({**base, **small, **(experts if "num_experts" in base else {})})
    if name == "moe":  # 0.65 billion parameters, of which a token meets 0.15 outside of the embedding
        small = {"hidden_size": 1024, "num_hidden_layers": 8, "num_attention_heads": 16, "num_key_value_heads": 4}
        small |= {"num_experts": 64, "num_experts_per_tok": 8, "moe_intermediate_size": 256, "vocab_size": 151936}
        return ModelConfig.from_hf({**base, **small, "head_dim": 128, "tie_word_embeddings": True})
    return load_model_config(f"qwen3-{name}")


def decode(section: Section, name: str) -> None:
    """Milliseconds a step at batch 1, 8 and 32 with 512 tokens in the cache, and the prefill of 2,048 tokens."""
    import jax
    import jax.numpy as jnp

    from benchmarks.peers.ours import greedy_state
    from qwen3_jax import Qwen3, init_cache, save_pretrained
    from qwen3_jax.checkpoints.load import default_layout
    from qwen3_jax.infer.decode import decode as decode_steps
    from qwen3_jax.infer.decode import prefill
    from qwen3_jax.plans.flops import experts_met, forward_flops

    config, layout = config_of(name, section.tiny), section.layout or default_layout()
    params = jax.block_until_ready(random_params(config, layout))
    model = Qwen3(config, layout=layout, param_dtype=jnp.bfloat16)  # type: ignore[arg-type]
    section.row("weights", 0, layout, "layout of the layers")
    total = sum(leaf.size for leaf in jax.tree.leaves(params))
    experts = sum(leaf.size for path, leaf in jax.tree_util.tree_leaves_with_path(params) if "experts" in str(path))
    lookup = 0 if config.tie_word_embeddings else config.vocab_size * config.hidden_size
    context, steps = (64, 4) if section.tiny else (CONTEXT, STEPS)
    for batch in (1,) if section.tiny else (1, 8, 32):
        capacity = context + 8 * steps + steps
        cache = init_cache(config, batch, capacity, layout, jnp.bfloat16)
        filled = jnp.where(jnp.arange(capacity) < context, jnp.arange(capacity), -1).astype(jnp.int32)
        cache = dataclasses.replace(
            cache, positions=jnp.tile(filled[None], (batch, 1)), length=jnp.full((batch,), context, jnp.int32)
        )
        state = greedy_state(cache, jnp.ones((batch,), jnp.int32), config.vocab_size)
        began, seconds = time.perf_counter(), []
        for _ in range(7):
            state, made = decode_steps(model, params, state, config.vocab_size, steps)
            jax.device_get(made)
            seconds.append((time.perf_counter() - began) / steps)
            began = time.perf_counter()
        step = statistics.median(seconds[1:])
        read = total - lookup - experts
        if experts:
            read += experts * experts_met(config, batch) / config.num_experts
        kv = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * batch
        gigabytes = 2 * (read + kv * (context + 4.5 * steps)) / 1e9
        note = f"{1e3 * step:.2f} ms a step, {section.share(step, gigabytes=gigabytes)}"
        note += f"; first call {steps * seconds[0]:.1f} s"
        section.row(f"decode, batch {batch}", batch / step, f"{batch / step:,.0f} tokens/s", note)
        del state, cache, made
    length = 64 if section.tiny else PREFILL
    tokens = jax.random.randint(jax.random.key(0), (1, length), 0, config.vocab_size)
    chunk = min(length, 512)

    def fill() -> Any:
        cache = init_cache(config, 1, length, layout, jnp.bfloat16)
        for begin in range(0, length, chunk):
            logits, cache = prefill(model, params, cache, tokens[:, begin : begin + chunk], jnp.ones((1, chunk), bool))
        return logits

    step = median_seconds(fill)
    note = section.share(step, teraflops=forward_flops(config, length, logits=1) / 1e12)
    section.row(f"prefill, {length} tokens in pieces of {chunk}", length / step, f"{length / step:,.0f} tokens/s", note)
    whole = jax.jit(lambda params, tokens: model.apply({"params": params}, tokens, logits_to_keep=1).logits)
    step = median_seconds(lambda: whole(params, tokens))
    note = section.share(step, teraflops=forward_flops(config, length, logits=1) / 1e12)
    section.row(f"forward pass, {length} tokens at once", length / step, f"{length / step:,.0f} tokens/s", note)
    if name == "0.6b" and section.layout is None:
        save_pretrained(section.scratch / "checkpoint", model, params)


def train(section: Section, name: str) -> None:
    """Seconds of a training step: float32 parameters, bfloat16 activations, AdamW, rows of 2,048 tokens."""
    import jax
    import jax.numpy as jnp

    from qwen3_jax.plans.flops import step_flops
    from qwen3_jax.train.config import TrainConfig
    from qwen3_jax.train.data import Batch
    from qwen3_jax.train.parsing import parse
    from qwen3_jax.train.state import init_state
    from qwen3_jax.train.step import make_model, make_step

    architecture = config_of(name, section.tiny)
    rows, length = (2, 64) if section.tiny else (4, 2048)
    config = parse(
        TrainConfig,
        {
            "model": architecture.to_hf(),
            "layout": "stacked",
            "dtype": "bfloat16",
            "remat": "dots" if name == "1.7b" else "none",  # 46 GiB of temporaries without, beside 26 of state
            "data": {"rows": rows, "length": length},
            "optimizer": {"schedule": "constant", "warmup_steps": 0, "learning_rate": 1e-4},
        },
    )
    model = make_model(config, None)
    state = init_state(model, config)
    shape = (rows, length)
    tokens = np.random.default_rng(0).integers(0, architecture.vocab_size, shape).astype(np.int32)
    batch = Batch(
        tokens=tokens,
        targets=np.roll(tokens, -1, axis=1),
        loss_mask=np.broadcast_to(np.arange(length) < length - 1, shape).copy(),
        segment_ids=np.ones(shape, np.int32),
        domains=np.zeros(shape, np.int32),
    )
    batch = jax.tree.map(jnp.asarray, batch)
    began = time.perf_counter()
    program = make_step(model, config).lower(state, batch).compile()  # type: ignore[attr-defined]
    compiled = time.perf_counter() - began
    seconds, losses = [], []
    for _ in range(8):
        began = time.perf_counter()
        state, metrics = program(state, batch)
        losses.append(float(metrics.loss))
        jax.block_until_ready(state)
        seconds.append(time.perf_counter() - began)
    step = statistics.median(seconds[1:])
    flops = step_flops(architecture, "train", length, rows).model
    note = f"{1e3 * step:.0f} ms, {section.share(step, teraflops=flops / 1e12)}; compiled in {compiled:.0f} s; "
    stats = jax.devices()[0].memory_stats() or {}
    note += f"loss {losses[0]:.3f} to {losses[-1]:.3f}"
    note += f"; peak {stats['peak_bytes_in_use'] / 2**30:.1f} GiB" if "peak_bytes_in_use" in stats else ""
    assert losses[-1] < losses[0], f"the loss must fall on one batch, got {losses}"
    section.row(f"training, {rows} x {length}", rows * length / step, f"{rows * length / step:,.0f} tokens/s", note)


def transformers(section: Section) -> None:
    """Decoding, prefill and a training step of the 0.6B weights that `decode-0.6b` saved."""
    checkpoint = section.scratch / "checkpoint"
    if not checkpoint.is_dir():
        raise SystemExit("decode-0.6b saved no weights: run it too")
    context, prefill = (64, 64) if section.tiny else (CONTEXT, PREFILL)
    words = ["--context", str(context), "--prefill", str(prefill), "--batches", "1", "8", "32"]
    found = run_json([sys.executable, "-m", "benchmarks.peers.hf", str(checkpoint), *words])
    for batch in (1, 8, 32):
        step = found[f"decode_{batch}_s"]
        section.row(
            f"decode, batch {batch}", batch / step, f"{batch / step:,.0f} tokens/s", f"{1e3 * step:.2f} ms a step"
        )
    rate = prefill / found["prefill_s"]
    section.row(f"prefill, {prefill} tokens at once", rate, f"{rate:,.0f} tokens/s", found["version"])
    rows, length = (2, 64) if section.tiny else (4, 2048)
    words = ["--rows", str(rows), "--length", str(length), "--steps", "6", "--dtype", "bfloat16"]
    step = run_json([sys.executable, "-m", "benchmarks.peers.hf_train", str(checkpoint), *words])["step_s"]
    rate = rows * length / step
    section.row(f"training, {rows} x {length}", rate, f"{rate:,.0f} tokens/s", f"{1e3 * step:.0f} ms, autocast")


def first_token(section: Section) -> None:
    """A process that loads 0.6B and answers one token: without and with what an earlier one compiled."""
    checkpoint = section.scratch / "checkpoint"
    if not checkpoint.is_dir():
        raise SystemExit("decode-0.6b saved no weights: run it too")
    cache = {"QWEN3_JAX_COMPILATION_CACHE_DIR": str(section.scratch / "compiled")}
    for what in ("first start", "second start"):
        words = [sys.executable, "-m", "benchmarks.peers.ours", str(checkpoint), "--first-token", "64"]
        found = run_json(words, cache)
        note = f"of which importing {found['import_s']:.1f} s, loading {found['load_s']:.1f} s"
        section.row(what, found["first_token_s"], f"{found['first_token_s']:.1f} s", note)


def parity(section: Section) -> None:
    """Every case of `benchmarks.device_parity`, computed here and by a process on CPU from the same inputs."""
    import jax

    from benchmarks.device_parity import LIMITS, compute, difference

    words = [sys.executable, "-m", "benchmarks.device_parity", str(section.scratch / "reference.npz")]
    words += ["--tiny"] if section.tiny else []
    reference = subprocess.Popen(words, env={**os.environ, "JAX_PLATFORMS": "cpu"})
    found = compute(section.tiny)
    if reference.wait():
        raise SystemExit(f"the reference on CPU ended with status {reference.returncode}")
    expected = np.load(section.scratch / "reference.npz")
    worst = []
    for name, value in found.items():
        if isinstance(value, str):
            section.row(name, float("nan"), "failed", value)
            worst.append(name)
            continue
        error, limit = difference(name, value, expected[name]), LIMITS[name.split(":")[0]]
        worst += [name] if not error <= limit else []
        section.row(name, error, f"{error:.2e}", f"at most {limit:g}" + ("" if error <= limit else ": **too large**"))
    if worst:
        raise SystemExit(f"on {jax.default_backend()} these differ from CPU: {', '.join(worst)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("--scratch", required=True)
    parser.add_argument("--ceilings", default="{}")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument(
        "--layout", choices=["stacked", "unrolled"], help="of the weights that decode; by default what is loaded"
    )
    args = parser.parse_args()
    section = Section(args)
    kind, _, model = args.name.partition("-")
    if kind == "decode":
        if model.endswith("-stacked"):
            model, section.layout = model.removesuffix("-stacked"), "stacked"
        decode(section, model)
    elif kind == "train":
        train(section, model)
    else:
        {"ceilings": ceilings, "parity": parity, "transformers": transformers, "first-token": first_token}[args.name](
            section
        )


if __name__ == "__main__":
    main()
