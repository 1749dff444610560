"""Plans of all models on TPU slices, compiled without the slices: docs/results/plans.md.

    python -m benchmarks.plans --run        compiles what is not in docs/results/plans.json yet, one plan at a time
    python -m benchmarks.plans --write      makes the page and the plot from plans.json

Each row is one `qwen3-jax plan ... --json` command in a process of its own; what it printed is kept in plans.json under
the command, so that a run can be stopped and go on. Needs libtpu (the extra tpu-plan); minutes of CPU a row.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS, ROOT, table

PLANS, PAGE, PLOT = RESULTS / "plans.json", RESULTS / "plans.md", RESULTS / "plans-weak-scaling.png"
GIB = 2**30


def command(model: str, topology: str, mesh: str, mode: str, length: int, batch: int) -> str:
    return (
        f"qwen3-jax plan --model qwen3-{model} --mesh {mesh} --topology {topology} --mode {mode} "
        f"--sequence-length {length} --batch-size {batch}"
    )


# Decoding over `expert`: what is not an expert is whole on each of its devices, or a step would gather it.
WHOLE = "rules.embed=null,rules.router_embed=null"

# In the order of their importance: what is missing when a run is stopped is the end of this list.
ROWS = [
    command("235b-a22b", "v5p:8x8x4", "fsdp=32,expert=8", "train", 4096, 256),
    command("0.6b", "v5e:2x4", "fsdp=8", "train", 4096, 8),
    command("8b", "v5p:2x2x2", "fsdp=8", "train", 4096, 8),
    command("8b", "v5p:4x4x4", "fsdp=16,expert=4", "train", 4096, 64),
    command("8b", "v5p:8x8x4", "fsdp=32,expert=8", "train", 4096, 256),
    command("8b", "v5p:8x8x16", "data=4,fsdp=32,expert=8", "train", 4096, 1024),
    command("8b", "v5p:4x4x4", "fsdp=64", "train", 4096, 64),  # one axis over the whole slice: all-reduces
    command("8b", "v5p:8x8x4", "fsdp=256", "train", 4096, 256),  # the same
    command("235b-a22b", "v5p:8x8x4", f"data=4,expert=8,tensor=8,{WHOLE}", "decode", 131072, 64),
    command("32b", "v5p:2x2x2", "tensor=8", "decode", 131072, 8),
    command("32b", "v5p:4x4x4", "fsdp=16,expert=4", "train", 4096, 64),
    command("0.6b", "v5e:2x4", "tensor=8", "decode", 4096, 8),
    command("8b", "v6e:2x4", "tensor=8", "decode", 32768, 8),
    command("30b-a3b", "v5p:2x2x4", "fsdp=4,expert=4", "train", 4096, 16),
    command("8b", "v6e:4x4", "fsdp=16", "train", 4096, 16),
    command("32b", "v6e:8x8", "fsdp=64", "train", 4096, 64),
    command("30b-a3b", "v5e:2x4", f"expert=8,{WHOLE}", "decode", 4096, 64),
    command("30b-a3b", "v6e:8x8", "fsdp=8,expert=8", "train", 4096, 64),
    command("32b", "v6e:2x4", "tensor=8", "decode", 32768, 8),
    command("14b", "v5p:2x2x4", "fsdp=16", "train", 4096, 16),
    command("4b", "v5e:4x4", "fsdp=16", "train", 2048, 16),
    command("1.7b", "v5e:4x4", "fsdp=16", "train", 4096, 16),
    command("1.7b", "v5e:2x4", "tensor=8", "decode", 8192, 8),
    command("4b", "v5e:2x4", "tensor=8", "decode", 8192, 8),
    command("14b", "v6e:2x4", "tensor=8", "decode", 32768, 8),
    command("8b", "v5p:2x2x1", "tensor=4", "decode", 32768, 8),
    command("32b", "v5p:2x2x2", "tensor=8", "prefill", 32768, 8),
    command("30b-a3b", "v5e:8x8", "fsdp=8,expert=8", "train", 4096, 64),
    command("30b-a3b", "v6e:2x4", f"expert=8,{WHOLE}", "decode", 32768, 32),
    command("30b-a3b", "v5p:2x2x1", f"expert=4,{WHOLE}", "decode", 32768, 64),
    command("235b-a22b", "tpu7x:4x4x8", "fsdp=32,expert=8", "train", 4096, 256),
    command("235b-a22b", "tpu7x:2x2x4", f"expert=8,tensor=4,{WHOLE}", "decode", 32768, 64),
    command("0.6b", "v5e:2x4", "fsdp=8", "train", 32768, 8),
    command("8b", "v5e:2x4", "fsdp=8", "train", 4096, 8),  # does not fit: what is printed then
]
STAGES = [  # of pretraining, from their files
    f"qwen3-jax plan --config configs/train/stages/{name}.yaml --topology v5p:4x4x4 model.base=qwen3-{model}"
    for model in ("8b", "30b-a3b")
    for name in ("1-general", "2-reasoning", "3-long")
]
_LARGE = [row for row in ROWS if "qwen3-8b" in row and "v5p" in row and "--mode train" in row]
WHOLE_SLICE = [row for row in _LARGE if "fsdp=64" in row or "fsdp=256" in row]
WEAK = [row for row in _LARGE if row not in WHOLE_SLICE]  # 8, 64, 256, 1,024 chips


def run(rows: Sequence[str], kept: Path, limit_seconds: float, per_plan_seconds: float) -> None:
    """Compiles what is missing in the file `kept` until the time is up."""
    began = time.monotonic()
    for row in rows:
        if row in load(kept) or time.monotonic() - began > limit_seconds:
            continue
        words = [sys.executable, "-m", "qwen3_jax.cli", *row.split()[1:], "--json"]
        try:
            done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=per_plan_seconds)
        except subprocess.TimeoutExpired:
            print(f"not in {per_plan_seconds:.0f} s: {row}", flush=True)
            continue
        if done.returncode:
            print(f"{row}\n    {done.stderr.strip()[-300:]}", flush=True)
            continue
        plans = load(kept)
        plans[row] = json.loads(done.stdout)
        kept.write_text(json.dumps(plans, indent=1) + "\n", encoding="utf-8")
        print(f"{plans[row]['compile_seconds']:6.1f} s  {row}", flush=True)


def load(kept: Path) -> dict[str, Any]:
    """What was compiled so far, by command."""
    return json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}


def memory_rows(commands: Sequence[str], plans: dict[str, Any], mode: str) -> list[Sequence[str]]:
    """One row a plan: where it runs, what it holds, what bounds it."""
    from qwen3_jax.plans.report import mesh_text

    rows: list[Sequence[str]] = []
    for row in (row for row in commands if row in plans and plans[row]["mode"] == mode):
        plan = plans[row]
        memory = plan["memory"]
        state = memory.get("optimizer", memory.get("cache", 0))
        peak, hbm = plan["peak_bytes_per_chip"] / GIB, plan["hbm_bytes_per_chip"] / GIB
        seconds = plan["seconds"]
        rate = f"{plan['mfu_bound']:.0%} MFU" if mode == "train" else f"{plan['tokens_per_second_bound']:,.0f} tokens/s"
        rows.append(
            [
                _name(row, plan),
                f"{plan['topology']} ({plan['chips']})",
                mesh_text(plan["mesh"]) + (", dense whole" if plan.get("rules") else ""),
                f"{plan['batch_size']} x {plan['sequence_length']:,}",
                f"{memory['parameters'] / GIB:.2f}",
                f"{state / GIB:.2f}",
                f"{memory['activations'] / GIB:.2f}",
                f"**{peak:.2f}** of {hbm:.0f}{'' if plan['fits'] else ': does not fit'}",
                " / ".join(_short(1e3 * seconds[name]) for name in ("compute", "memory", "network")),
                plan["bound"],
                rate,
            ]
        )
    return rows


def _name(command: str, plan: dict[str, Any]) -> str:
    """In: the command of a stage     Out: "8b, 1-general" """
    stage, _, base = Path(plan["model"]).stem, *command.partition("model.base=qwen3-")[1:]
    return f"{base}, {stage}" if base else plan["model"].removeprefix("qwen3-")


def _short(value: float) -> str:
    """In: 1793.09, 0.2431     Out: "1,793", "0.243" """
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def traffic_rows(commands: Sequence[str], plans: dict[str, Any]) -> list[Sequence[str]]:
    """Compiled bytes by kind against the analytic model's total."""
    rows: list[Sequence[str]] = []
    for row in (row for row in commands if row in plans and plans[row]["fits"]):
        plan = plans[row]
        sent = plan["communication_bytes"]
        kinds = ("all-gather", "reduce-scatter", "all-to-all", "all-reduce", "collective-permute")
        expected, found = sum(plan["estimate"]["communication_bytes"].values()), sum(sent.values())
        rows.append(
            [
                f"{_name(row, plan)} {plan['mode']} {plan['topology']}",
                *(f"{sent.get(kind, 0) / GIB:.2f}" for kind in kinds),
                f"{found / GIB:.2f}",
                f"{expected / GIB:.2f}",
                f"{plan['peak_bytes_per_chip'] / GIB:.2f} / {plan['estimate']['peak_bytes_per_chip'] / GIB:.2f}",
            ]
        )
    return rows


def received(plan: dict[str, Any]) -> float:
    """Compiled bytes."""
    return float(sum(plan["communication_bytes"].values()))


def disagreement(plan: dict[str, Any]) -> float:
    """Of analytic and compiled bytes, relative to the compiled ones."""
    return sum(plan["estimate"]["communication_bytes"].values()) / received(plan) - 1


def known_point(plans: dict[str, Any]) -> list[str]:
    """What the first row says beside a published run."""
    if ROWS[0] not in plans:
        return []
    plan = plans[ROWS[0]]
    seconds = plan["seconds"]
    return [
        f"The first row is dropless. Its bound is the {plan['bound']}: {seconds['network']:.2f} s of collectives, most",
        "of them the five exchanges of rows a layer (to the experts and back; in the backward pass rows and gradients",
        f"there, gradients back), against {seconds['compute']:.2f} s of arithmetic. If the two overlap wholly, MFU is",
        f"at most {plan['mfu_bound']:.0%}; if not at all, {plan['mfu_without_overlap']:.0%}. MaxText's published run",
        "of this model on 256 chips reaches about 27%: a measured run, where ours is a bound. Memory had a limit of",
        "28 GiB and a goal of 22, which is missed: 2.3 GiB of it are the head's gradient, which is summed over chunks",
        "of tokens in float32.",
        "",
    ]


def plot(plans: dict[str, Any]) -> None:
    """Bytes a chip receives in a training step of 8B, one sequence a chip, at growing numbers of chips."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    points = sorted((plans[row] for row in WEAK if row in plans), key=lambda plan: plan["chips"])
    chips = [plan["chips"] for plan in points]
    figure, axes = plt.subplots(figsize=(6, 4))
    axes.plot(chips, [received(p) / GIB for p in points], "o-", label="compiled")
    expected = [sum(p["estimate"]["communication_bytes"].values()) / GIB for p in points]
    axes.plot(chips, expected, "s--", label="analytic model")
    axes.set_xscale("log", base=2)
    axes.set_xticks(chips, [str(count) for count in chips])
    axes.set_ylim(bottom=0)
    axes.set_xlabel("chips (v5p), one sequence of 4,096 tokens each")
    axes.set_ylabel("GiB received per chip and step")
    axes.set_title("Qwen3-8B, training step: weak scaling")
    axes.legend()
    figure.tight_layout()
    figure.savefig(PLOT, dpi=120)


def weak_scaling(plans: dict[str, Any], weak: Sequence[dict[str, Any]]) -> list[str]:
    """The section on one sequence a chip at growing numbers of chips."""
    from qwen3_jax.plans.report import mesh_text

    worst = max(weak, key=lambda plan: abs(disagreement(plan)))
    whole = [plans[row] for row in WHOLE_SLICE if row in plans]
    return [
        "## Weak scaling",
        "",
        "![bytes per chip against chips](plans-weak-scaling.png)",
        "",
        f"Qwen3-8B, one sequence of 4,096 tokens a chip, at {', '.join(str(p['chips']) for p in weak)} chips,",
        "slices written as two axes. The worst disagreement of the analytic model with the compiled bytes is",
        f"**{disagreement(worst):+.1%}, at {worst['chips']} chips**.",
        "",
        *(
            f"With `{mesh_text(plan['mesh'])}`, one axis over the whole slice of {plan['chips']} chips, the "
            f"compiler makes all-reduces of gathers and scatters: {disagreement(plan):+.1%}."
            for plan in whole
        ),
        "",
    ]


def write() -> None:
    """The page and the plot."""
    plans = load(PLANS)
    header = ["model", "slice (chips)", "mesh", "batch x length", "parameters"]
    rest = ["activations", "peak of HBM, GiB", "ms: compute / memory / network", "bound", "allows"]
    weak = sorted((plans[row] for row in WEAK if row in plans), key=lambda plan: plan["chips"])
    lines = [
        "# Plans: what each model needs on TPU slices",
        "",
        "Every row is the project's own program, compiled for the slice by the TPU compiler on a machine without one:",
        "nothing was run on a TPU. Memory is what the compiler reports, bytes sent are counted in the compiled",
        "program, FLOPs are computed (`qwen3_jax/plans/flops.py`), and the times are least times at the published",
        "peaks of `sharding/ahead_of_time/chips.py`: *bound* is the largest of the three, *allows* what it permits if",
        "the other two hide behind it. They are bounds and not predictions.",
        "",
        "## Training",
        "",
        "float32 parameters and AdamW, bfloat16 compute, stacked layers, every layer rematerialised; GiB per chip.",
        "",
        *table([*header, "optimizer", *rest], memory_rows(ROWS, plans, "train")),
        "",
        *known_point(plans),
        "### The three stages",
        "",
        "The same from the files of `configs/train/stages`, in their order (general, reasoning, long context): batches",
        "of 4.2 million tokens on 64 chips.",
        "",
        *table([*header, "optimizer", *rest], memory_rows(STAGES, plans, "train")),
        "",
        "## Decoding",
        "",
        "bfloat16; the loop of 32 tokens with sampling, every row's cache full; per token of each row. The cache is",
        "held once: what else the loop needs (*activations*) are scores, logits and gathered weights. *Dense whole*:",
        "weights that are not experts' lie whole on every device of `expert`, or each step would gather them.",
        "",
        *table([*header, "cache", *rest], memory_rows(ROWS, plans, "decode")),
        "",
    ]
    prefill = memory_rows(ROWS, plans, "prefill")
    if prefill:
        lines += ["## Prefill", "", "A prompt in chunks of 512 tokens, of which the last one is compiled.", ""]
        lines += [*table([*header, "cache", *rest], prefill), ""]
    lines += [
        "## What is sent",
        "",
        "GiB received per chip and step, and the analytic model of `qwen3_jax/plans/estimate.py` beside it. What the",
        "TPU compiler fuses with a product travels as rings of collective-permutes. The model counts weights as",
        "all-gathers and gradients as reduce-scatters; over an axis that is a whole 3-D slice the compiler makes",
        "all-reduces of them, of twice the bytes (write such a slice as two axes, fsdp=32,expert=8, for dense models",
        "too).",
        "",
        *table(
            [
                "plan",
                "all-gather",
                "reduce-scatter",
                "all-to-all",
                "all-reduce",
                "permute",
                "sum",
                "model",
                "peak / model",
            ],
            traffic_rows([*ROWS, *STAGES], plans),
        ),
        "",
    ]
    if weak:
        lines += weak_scaling(plans, weak)
    missing = [row for row in (*ROWS, *STAGES) if row not in plans]
    lines += ["## Commands", "", "```", *(row for row in (*ROWS, *STAGES) if row in plans), "```", ""]
    if missing:
        lines += ["Not compiled yet (nothing is estimated in their place):", "", "```", *missing, "```", ""]
    lines += ["Made by `python -m benchmarks.plans --run` and `--write`; all values in `plans.json`."]
    PAGE.write_text("\n".join(lines) + "\n", encoding="utf-8")
    plot(plans)


def arguments(description: str | None) -> argparse.Namespace:
    """Of the command line."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", action="store_true")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--seconds", type=float, default=1e9, help="begin no plan after so many seconds")
    parser.add_argument("--per-plan-seconds", type=float, default=3600)
    return parser.parse_args()


def main() -> None:
    """Compiles, writes, or both."""
    args = arguments(__doc__)
    if args.run:
        run([*ROWS, *STAGES], PLANS, args.seconds, args.per_plan_seconds)
    if args.write:
        write()


if __name__ == "__main__":
    main()
