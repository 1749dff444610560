"""Plans of some models on GPUs, compiled without the GPUs: docs/results/plans-gpu.md.

    python -m benchmarks.plans_gpu --run        compiles what is not in docs/results/plans-gpu.json yet
    python -m benchmarks.plans_gpu --write      makes the page from plans-gpu.json

As benchmarks/plans.py. Needs JAX's CUDA plugin (the extra gpu-plan, in an environment of its own) and no GPU.
"""

from benchmarks.common import RESULTS, table
from benchmarks.plans import arguments, command, load, memory_rows, run, traffic_rows

PLANS, PAGE = RESULTS / "plans-gpu.json", RESULTS / "plans-gpu.md"

ROWS = [
    command("8b", "h100:1x8", "fsdp=8", "train", 4096, 8),
    command("32b", "h100:1x8", "tensor=8", "decode", 32768, 8),
    command("30b-a3b", "h100:1x8", "fsdp=8", "train", 4096, 8),
    command("30b-a3b", "h100:4x8", "fsdp=4,expert=8", "train", 4096, 32),
    command("30b-a3b", "h100:1x8", "expert=8", "decode", 4096, 64),
    command("32b", "h100:4x8", "fsdp=32", "train", 4096, 32),
    command("8b", "h100:1x8", "tensor=8", "decode", 32768, 8),
    command("8b", "a100:1x8", "fsdp=8", "train", 4096, 8),
    command("8b", "h200:1x8", "fsdp=8", "train", 4096, 8),
    command("8b", "b200:1x8", "fsdp=8", "train", 4096, 8),
]


def write() -> None:
    """The page."""
    plans = load(PLANS)
    header = ["model", "hosts x GPUs (GPUs)", "mesh", "batch x length", "parameters"]
    rest = ["activations", "peak of HBM, GiB", "ms: compute / memory / network", "bound", "allows"]
    sent = ["plan", "all-gather", "reduce-scatter", "all-to-all", "all-reduce", "permute", "sum", "model"]
    lines = [
        "# Plans: what each model needs on GPUs",
        "",
        "Every row is the project's own program, compiled for the GPUs by XLA's CUDA compiler on a machine without one:"
        " **nothing",
        "was run on a GPU**, and nothing here is a measurement. Memory is what the compiler reports, bytes sent are",
        "counted in the compiled program, FLOPs are computed, and the times are least times at the published peaks",
        "of `sharding/ahead_of_time/chips.py`, as in [plans.md](plans.md). Attention of the training step is XLA's,",
        "which holds the scores of a layer; a GPU that runs it takes cuDNN's, which can not be compiled without cuDNN.",
        "Experts run in the project's Triton kernel.",
        "",
    ]
    for title, mode, state in (("Training", "train", "optimizer"), ("Decoding", "decode", "cache")):
        if found := memory_rows(ROWS, plans, mode):
            lines += [f"## {title}", "", *table([*header, state, *rest], found), ""]
    lines += [
        "## What is sent",
        "",
        "GiB received per GPU and step, and the analytic model of `qwen3_jax/plans/estimate.py` beside it.",
        "",
        *table([*sent, "peak / model"], traffic_rows(ROWS, plans)),
        "",
        "## Commands",
        "",
        "```",
        *(row for row in ROWS if row in plans),
        "```",
        "",
    ]
    if missing := [row for row in ROWS if row not in plans]:
        lines += ["Not compiled yet (nothing is estimated in their place):", "", "```", *missing, "```", ""]
    lines += ["Made by `python -m benchmarks.plans_gpu --run` and `--write`; all values in `plans-gpu.json`."]
    PAGE.write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    """Compiles, writes, or both."""
    args = arguments(__doc__)
    if args.run:
        run(ROWS, PLANS, args.seconds, args.per_plan_seconds)
    if args.write:
        write()


if __name__ == "__main__":
    main()
