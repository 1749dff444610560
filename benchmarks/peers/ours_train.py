"""A training step of qwen3-jax: the step that `qwen3-jax train` runs, float32. Also what its parts cost.

step     seconds of a step
balance  seconds of a step by form of the balance loss, taking turns in this process
memory   bytes that the loss's gradient needs, by chunk (nothing runs)
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import peak_rss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--task", choices=["step", "balance", "memory"], default="step")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--chunk", type=int, default=0, help="tokens a chunk of the loss; 0: the default")
    parser.add_argument("--layout", default="unrolled")
    args = parser.parse_args()
    result = {"step": step_seconds, "balance": balance_seconds, "memory": loss_bytes}[args.task](args)
    print(json.dumps(result | {"peak_rss": peak_rss()}))


def prepare(args: argparse.Namespace, **changes: Any) -> tuple[Callable[..., Any], Any, Any, Any]:
    """The jitted step, a fresh state of the checkpoint's weights, a batch, and the configuration."""
    import jax
    import jax.numpy as jnp

    from qwen3_jax import from_pretrained
    from qwen3_jax.train.config import TrainConfig
    from qwen3_jax.train.data import Batch
    from qwen3_jax.train.optimizer import make_optimizer
    from qwen3_jax.train.parsing import parse
    from qwen3_jax.train.state import TrainState
    from qwen3_jax.train.step import make_model, make_step

    model, params = from_pretrained(args.checkpoint, dtype="float32", layout=args.layout)
    values: dict[str, Any] = {
        "model": model.config.to_hf(),
        "layout": args.layout,
        "data": {"rows": args.rows, "length": args.length},
        # transformers counts no warm-up here: the rate is the peak from the first step on.
        "optimizer": {"schedule": "constant", "warmup_steps": 0, "learning_rate": args.rate, "weight_decay": 0.05},
        "loss": {"chunk": args.chunk} if args.chunk else {},
    }
    config = parse(TrainConfig, {**values, **changes})
    with jax.numpy_dtype_promotion("standard"):
        opt_state = make_optimizer(config.optimizer, config.steps).init(params)
    state = TrainState(step=jnp.zeros((), jnp.int32), params=params, opt_state=opt_state)
    shape = (args.rows, args.length)
    tokens = np.random.default_rng(0).integers(0, model.config.vocab_size, shape).astype(np.int32)
    batch = Batch(
        tokens=tokens,
        targets=np.roll(tokens, -1, axis=1),
        loss_mask=np.broadcast_to(np.arange(args.length) < args.length - 1, shape).copy(),
        segment_ids=np.ones(shape, np.int32),
        domains=np.zeros(shape, np.int32),
    )
    return make_step(make_model(config, None), config), state, batch, config


def step_seconds(args: argparse.Namespace) -> dict[str, Any]:
    import jax

    step, state, batch, _ = prepare(args)
    began = time.perf_counter()
    program = step.lower(state, batch).compile()
    compile_s = time.perf_counter() - began
    seconds, busy, losses = [], [], []
    for _ in range(args.steps):
        began, worked = time.perf_counter(), time.process_time()
        state, metrics = program(state, batch)
        losses.append(float(metrics.loss) + (0.0 if metrics.balance_loss is None else float(metrics.balance_loss)))
        jax.block_until_ready(state)
        seconds.append(time.perf_counter() - began)
        busy.append(time.process_time() - worked)
    return {
        "step_s": min(seconds[1:]),
        "cpu_s": min(busy[1:]),
        "first_s": compile_s + seconds[0],
        "losses": losses,
        "version": f"jax {jax.__version__}",
        "temporary_peak": program.memory_analysis().temp_size_in_bytes,
    }


def balance_seconds(args: argparse.Namespace) -> dict[str, Any]:
    """Least seconds of a step for each (form, number of micro-batches)."""
    import jax

    runs: dict[str, list[Any]] = {}
    for form, micro_batches in (("none", 1), ("micro_batch", 1), ("global", 1), ("micro_batch", 4), ("global", 4)):
        loss = {"balance": form, **({"chunk": args.chunk} if args.chunk else {})}
        step, state, batch, _ = prepare(args, loss=loss, micro_batches=micro_batches)
        runs[f"{form}_{micro_batches}_s"] = [step.lower(state, batch).compile(), state, batch]
    best = dict.fromkeys(runs, float("inf"))
    for number in range(2 * args.steps + 1):
        for name, run in runs.items():
            began = time.perf_counter()
            run[1] = jax.block_until_ready(run[0](run[1], run[2])[0])
            if number:
                best[name] = min(best[name], time.perf_counter() - began)
    return best


def loss_bytes(args: argparse.Namespace) -> dict[str, Any]:
    """Temporary bytes of the gradient of the loss with respect to activations and head."""
    import jax
    import jax.numpy as jnp

    from qwen3_jax.kernels.cross_entropy import token_losses

    config = json.loads((Path(args.checkpoint) / "config.json").read_text(encoding="utf-8"))
    rows, length, width, vocab = args.rows, args.length, config["hidden_size"], config["vocab_size"]

    def shape(*sizes: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(sizes, dtype)

    def plain(hidden: Any, head: Any, targets: Any, weights: Any) -> Any:
        log_probs = jax.nn.log_softmax(jnp.einsum("btd,vd->btv", hidden, head))
        return -jnp.sum(weights * jnp.take_along_axis(log_probs, targets[..., None], -1)[..., 0])

    def chunked(chunk: int) -> Callable[..., Any]:
        return lambda hidden, head, targets, weights: token_losses(hidden, head, targets, weights, chunk).objective

    def temporary(loss: Callable[..., Any]) -> int:
        arguments = (
            shape(rows, length, width),
            shape(vocab, width),
            shape(rows, length, dtype=jnp.int32),
            shape(rows, length),
        )
        program = jax.jit(jax.grad(loss, (0, 1))).lower(*arguments).compile()
        return int(program.memory_analysis().temp_size_in_bytes)

    chunks = {f"chunk_{chunk}_peak": temporary(chunked(chunk)) for chunk in (256, 1024)}
    return {"plain_peak": temporary(plain), **chunks}


if __name__ == "__main__":
    main()
