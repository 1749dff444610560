"""What a device must compute as a CPU does: kernels, small models, sampling, generation, from the same inputs.

    python -m benchmarks.device_parity reference.npz     # the CPU's results (JAX_PLATFORMS=cpu)

The same code runs in both places; what differs is what the project chooses there: cuDNN or splash attention, Triton or
megablox products, XLA's own elsewhere. The CPU computes grouped products in float32, from the values that the device
has in bfloat16, and attention with numpy: on one Intel processor XLA's own attention was wrong outside of `jit`
(docs/results/device.md). Errors are |difference| / |reference| over a whole array, or as LIMITS says.
"""

import argparse
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

# Stated before the first run. bfloat16 has 8 bits: 2e-2 is a few roundings; float32 products run at the highest
# precision. "tokens" counts the share that differs.
LIMITS = {
    "attention": 2e-2,
    "attention gradients": 3e-2,
    "experts": 2e-2,
    "experts gradients": 3e-2,
    "experts in float32": 1e-4,
    "logits in float32": 1e-4,
    "decoded logits in float32": 1e-4,
    "logits in bfloat16, KL": 1e-2,
    "sampled tokens": 1e-2,
    "greedy tokens": 0.0,
}


def difference(name: str, found: Any, expected: Any) -> float:
    found, expected = np.asarray(found), np.asarray(expected)
    if "tokens" in name:
        return float(np.mean(found != expected)) if found.shape == expected.shape else 1.0
    found, expected = found.astype(np.float64), expected.astype(np.float64)
    if "KL" in name:  # of the device's distribution from that of the reference
        p, q = (x - np.log(np.sum(np.exp(x - x.max(-1, keepdims=True)), -1, keepdims=True)) - x.max(-1, keepdims=True)
                for x in (expected, found))  # fmt: skip
        return float(np.mean(np.sum(np.exp(p) * (p - q), -1)))
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def compute(tiny: bool) -> dict[str, Any]:
    """Every case; a string in place of an array says why a case failed."""
    import jax

    found: dict[str, Any] = {}
    with jax.default_matmul_precision("highest"):
        for case in (_attention, _experts, _models, _sampling, _generation):
            try:
                case(found, tiny)
            except Exception as error:  # one that fails must not hide the others
                traceback.print_exc()
                found[f"greedy tokens: {case.__name__[1:]}"] = (
                    f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
                )
    return {name: value if isinstance(value, str) else np.asarray(value) for name, value in found.items()}


def _kernel_input(values: Any, kind: str = "bfloat16") -> Any:
    """Rounded to `kind`; on CPU, where the reference is computed, widened again."""
    import jax
    import jax.numpy as jnp

    x = jnp.asarray(values, kind)
    return x.astype(jnp.float32) if jax.default_backend() == "cpu" else x


def _attention(found: dict[str, Any], tiny: bool) -> None:
    import jax
    import jax.numpy as jnp

    from qwen3_jax.kernels import self_attention

    heads, keys, width = (4, 2, 64) if tiny else (16, 8, 128)
    for length, packed in ((64, False), (256, True), (131, False), (77, True)):
        rng = np.random.default_rng(length)
        shapes = [(2, length, count, width) for count in (heads, keys, keys, heads)]
        q, k, v, cotangent = (_kernel_input(rng.standard_normal(shape)) for shape in shapes)
        ids = np.minimum(np.arange(length) * 4 // length, 3)[None].repeat(2, 0).astype(np.int32)
        documents = jnp.asarray(ids) if packed else None

        def attend(q: Any, k: Any, v: Any, documents: Any = documents) -> Any:
            return self_attention(q, k, v, documents)

        name = f"{length} tokens{', packed' if packed else ''}"
        if jax.default_backend() == "cpu":
            out, gradients = _numpy_attention(q, k, v, ids if packed else np.zeros_like(ids), cotangent)
            found[f"attention: {name}"] = out
            found[f"attention gradients: {name}"] = np.concatenate([gradient.ravel() for gradient in gradients])
            continue
        out, back = jax.vjp(attend, q, k, v)
        found[f"attention: {name}"] = out.astype(jnp.float32)
        gradients = jax.jit(back)(cotangent.astype(out.dtype))
        found[f"attention gradients: {name}"] = jnp.concatenate([g.astype(jnp.float32).ravel() for g in gradients])


def _numpy_attention(*arrays: Any) -> tuple[Any, tuple[Any, Any, Any]]:
    """Causal attention within documents and its gradients, in float64, from the definition."""
    q, k, v, ids, cotangent = (np.asarray(x, np.float64) for x in arrays)
    group, length, scale = q.shape[2] // k.shape[2], q.shape[1], q.shape[3] ** -0.5
    k, v = (x.repeat(group, axis=2) for x in (k, v))
    seen = np.tril(np.ones((length, length), bool)) & (ids[:, :, None] == ids[:, None, :])
    scores = np.where(seen[:, None], np.einsum("btnh,bsnh->bnts", q, k) * scale, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    of_weights = np.einsum("btnh,bsnh->bnts", cotangent, v)
    of_scores = weights * (of_weights - (of_weights * weights).sum(-1, keepdims=True)) * scale
    of_q = np.einsum("bnts,bsnh->btnh", of_scores, k)
    of_k, of_v = np.einsum("bnts,btnh->bsnh", of_scores, q), np.einsum("bnts,btnh->bsnh", weights, cotangent)
    shape = (*k.shape[:2], -1, group, k.shape[3])
    of_k, of_v = (x.reshape(shape).sum(3) for x in (of_k, of_v))
    return np.einsum("bnts,bsnh->btnh", weights, v), (of_q, of_k, of_v)


def _experts(found: dict[str, Any], tiny: bool) -> None:
    import jax
    import jax.numpy as jnp

    from qwen3_jax.experts.execution import choose_execution
    from qwen3_jax.experts.grouped import grouped_matmul

    groups, out, width = (4, 64, 64) if tiny else (64, 768, 1024)
    for rows, kind in ((512, "bfloat16"), (37, "bfloat16"), (256, "float32")):
        rng = np.random.default_rng(rows)
        x, cotangent = (_kernel_input(rng.standard_normal((rows, size)), kind) for size in (width, out))
        w = _kernel_input(rng.standard_normal((groups, out, width)) / width**0.5, kind)
        sizes = np.bincount(rng.integers(0, groups // 2, rows), minlength=groups)  # half have no row

        def product(x: Any, w: Any, sizes: Any = sizes) -> Any:
            return grouped_matmul(x, w, jnp.asarray(sizes, jnp.int32), choose_execution("grouped"))  # type: ignore[arg-type]

        y, back = jax.vjp(product, x, w)
        label = "experts in float32" if kind == "float32" else "experts"
        found[f"{label}: {rows} rows of {groups}"] = y.astype(jnp.float32)
        gradients = [g.astype(jnp.float32).ravel() for g in back(cotangent)]
        label = label if kind == "float32" else "experts gradients"
        found[f"{label}: gradients, {rows} rows of {groups}"] = jnp.concatenate(gradients)


def _models(found: dict[str, Any], _: bool) -> None:
    """A dense and a mixed model of two layers: whole sequences, then the last token from the cache."""
    import jax
    import jax.numpy as jnp

    from benchmarks.device_sections import config_of
    from qwen3_jax import Qwen3, init_cache

    for name in ("0.6b", "moe"):
        config = config_of(name, tiny=True)
        model = Qwen3(config, layout="stacked")
        shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8), jnp.int32))["params"]
        rng = np.random.default_rng(1)
        draw = rng.standard_normal
        params = jax.tree.map(lambda leaf, draw=draw: jnp.asarray(draw(leaf.shape) * 0.1, jnp.float32), shapes)
        tokens = jnp.asarray(rng.integers(0, config.vocab_size, (3, 48)), jnp.int32)
        real = jnp.asarray(np.arange(48)[None] >= np.array([[0], [7], [20]]))
        whole = jax.jit(lambda params, tokens, real, model=model: model.apply({"params": params}, tokens, real).logits)
        logits = whole(params, tokens, real)
        found[f"logits in float32: {name}"] = logits[:, 20:]
        cache = init_cache(config, 3, 64, "stacked", jnp.float32)

        @jax.jit
        def step(params: Any, tokens: Any, real: Any, cache: Any, model: Any = model) -> Any:
            out = model.apply({"params": params}, tokens, real, cache=cache, logits_to_keep=1)
            return out.logits, out.cache

        _, cache = step(params, tokens[:, :47], real[:, :47], cache)
        found[f"decoded logits in float32: {name}"], _ = step(params, tokens[:, 47:], real[:, 47:], cache)
        narrow = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
        found[f"logits in bfloat16, KL: {name}"] = whole(narrow, tokens, real)[:, 20:]


def _sampling(found: dict[str, Any], tiny: bool) -> None:
    import jax
    import jax.numpy as jnp

    from qwen3_jax.infer.penalties import History
    from qwen3_jax.infer.sampling import sample
    from qwen3_jax.infer.sampling_params import sampling_params

    vocab, batch = (4096 if tiny else 151_936), 16
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.standard_normal((batch, vocab)) * 3, jnp.float32)
    rows = [
        {
            "temperature": 0.0 if row % 4 == 3 else 0.7,
            "top_k": 20 if row % 2 else 0,
            "top_p": 0.9 if row % 3 else 1.0,
            "frequency_penalty": 0.5 * (row % 5 == 0),
            "repetition_penalty": 1.1 if row % 7 == 0 else 1.0,
        }
        for row in range(batch)
    ]
    history = History(
        counts=jnp.asarray(rng.integers(0, 3, (batch, vocab)), jnp.int32),
        prompt=jnp.asarray(rng.random((batch, vocab)) < 0.1),
        generated=jnp.zeros(batch, jnp.int32),
        ends=jnp.full((batch, 8), -1, jnp.int32),
    )
    draw: Callable[..., Any] = jax.jit(sample, static_argnames="valid_vocab")
    keys = [jax.random.split(jax.random.key(i), batch) for i in range(64)]
    made = [draw(logits, history, sampling_params(rows), key, valid_vocab=vocab)[0] for key in keys]
    found["sampled tokens: 1,024 draws, all tiers"] = jnp.stack(made)


def _generation(found: dict[str, Any], _: bool) -> None:
    """The pocket model answers in both modes and under a budget, float32, greedily."""
    import qwen3_jax
    from qwen3_jax import infer

    path = qwen3_jax.pocket_path()
    model, params = qwen3_jax.from_pretrained(path, dtype="float32")
    tok = qwen3_jax.load_tokenizer(path)
    question = [{"role": "user", "content": "What is 7+5*3 mod 10, left to right?"}]
    configs = [infer.GenerationConfig(temperature=0.0, max_new_tokens=120, thinking_budget=n) for n in (None, 0, 5)]
    results = infer.generate(model, params, tok, [question] * 3, configs)
    for config, result in zip(configs, results, strict=True):
        found[f"greedy tokens: pocket model, budget {config.thinking_budget}"] = np.array(result.tokens)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args()
    found = compute(args.tiny)
    failed = {name: value for name, value in found.items() if isinstance(value, str)}
    if failed:
        sys.exit(f"the reference failed: {failed}")
    np.savez(args.out, **found)


if __name__ == "__main__":
    main()
