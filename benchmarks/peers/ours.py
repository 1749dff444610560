"""qwen3-jax: loading, compiling, prefill and decoding through the functions that `infer.generate` uses.

Also run with `--first-token`: only from process start to the first token of a short prompt, with the persistent
compile cache in the directory given.
"""

import argparse
import dataclasses
import json
import time
from typing import Any

from benchmarks.common import GROUP, peak_rss, since_start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--prefill", type=int, default=512)
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 8])
    parser.add_argument("--groups", type=int, default=6)
    parser.add_argument("--first-token", type=int, default=0, metavar="TOKENS")
    args = parser.parse_args()

    from qwen3_jax import enable_compile_cache, from_pretrained

    if args.first_token:
        enable_compile_cache()
    import jax

    jax.devices()
    out: dict[str, Any] = {"import_s": since_start(), "import_rss": peak_rss()}
    began = time.perf_counter()
    model, params = from_pretrained(args.checkpoint, dtype=args.dtype)
    jax.block_until_ready(params)
    out["load_s"] = time.perf_counter() - began
    out["load_rss"] = peak_rss()
    if args.first_token:
        out["first_token_s"] = first_token_seconds(model, params, args.first_token)
    else:
        out |= {"devices": f"{len(jax.devices())} {jax.devices()[0].device_kind}", "backend": jax.default_backend()}
        out["version"] = f"jax {jax.__version__}"
        out |= speeds(model, params, args)
    out["peak_rss"] = peak_rss()
    stats = jax.devices()[0].memory_stats()
    if stats:
        out["device_peak"] = stats["peak_bytes_in_use"]
    print(json.dumps(out))


def first_token_seconds(model: Any, params: Any, length: int) -> float:
    """From process start to a token on the host."""
    import jax
    import jax.numpy as jnp

    from qwen3_jax import init_cache
    from qwen3_jax.infer.decode import first_token, prefill

    cache = init_cache(model.config, 1, 256, model.layout, model.param_dtype)
    tokens = jnp.ones((1, length), jnp.int32)
    state = greedy_state(cache, tokens[:, 0], model.config.vocab_size)  # before the prompt is fed, as `generate` does
    logits, cache = prefill(model, params, cache, tokens, jnp.ones((1, length), bool))
    state = dataclasses.replace(state, cache=cache)
    _, out = first_token(state, logits, model.config.vocab_size)
    jax.device_get(out.token)
    return since_start()


def speeds(model: Any, params: Any, args: argparse.Namespace) -> dict[str, Any]:
    """Seconds to compile, for the long prompt, and per decode step at each batch size."""
    import jax
    import jax.numpy as jnp

    from qwen3_jax import init_cache
    from qwen3_jax.infer.decode import decode, prefill

    config, out = model.config, {}
    # As `generate` does: one step a call on CPU, where products are slow inside a loop.
    steps = 1 if jax.default_backend() == "cpu" else GROUP

    def empty(batch: int, capacity: int) -> Any:
        return jax.block_until_ready(init_cache(config, batch, capacity, model.layout, model.param_dtype))

    def compile_prefill(batch: int, length: int, capacity: int) -> Any:
        tokens, real = jnp.ones((batch, length), jnp.int32), jnp.ones((batch, length), bool)
        program = prefill.lower(model, params, empty(batch, capacity), tokens, real).compile()
        return lambda cache: jax.block_until_ready(program(params, cache, tokens, real))

    began = time.perf_counter()
    fill = compile_prefill(1, args.prefill, args.prefill + 256)
    out["compile_prefill_s"] = time.perf_counter() - began
    seconds = []
    for _ in range(4):
        cache = empty(1, args.prefill + 256)
        began = time.perf_counter()
        fill(cache)
        seconds.append(time.perf_counter() - began)
        del cache
    out["prefill_s"] = min(seconds)

    for batch in args.batches:
        capacity = args.context + 128
        fill = compile_prefill(batch, args.context, capacity)
        logits, cache = fill(empty(batch, capacity))
        state = greedy_state(cache, jnp.argmax(logits, -1).astype(jnp.int32), config.vocab_size)
        began = time.perf_counter()
        program = decode.lower(model, params, state, config.vocab_size, steps).compile()
        out[f"compile_decode_{batch}_s"] = time.perf_counter() - began
        seconds = []
        for _ in range(args.groups):
            began, made = time.perf_counter(), []
            for _ in range(GROUP // steps):
                state, step = program(params, state)
                made.append(step.token)
            jax.device_get(made)
            seconds.append((time.perf_counter() - began) / GROUP)
        out[f"decode_{batch}_s"] = min(seconds)
        out.setdefault("small_rss", peak_rss())
    return out


def greedy_state(cache: Any, token: Any, vocab_size: int) -> Any:
    """The state of `infer.decode` for rows that are decoded greedily and never end."""
    from qwen3_jax.infer.engine import plain_state

    state = plain_state(cache, token.shape[0], vocab_size)
    return dataclasses.replace(state, rows=dataclasses.replace(state.rows, token=token))


if __name__ == "__main__":
    main()
