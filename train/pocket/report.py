"""The evaluation of the pocket model as a page and a plot."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qwen3_jax.train.pocket import tasks

PAGE = """# The pocket model

Made by

    python -m qwen3_jax.train.pocket.evaluate {model} --out docs/results --problems {problems} --seed {seed} \
--dtype {dtype} --temperature {temperature:g}

on {problems} different held-out problems (a tenth of all problems, chosen by hash, is never trained on) of 1 to
{steps} steps, in nine languages; temperature 0 is greedy decoding. All numbers: `pocket.json`. The training record:
`pocket-training/`.

## Thinking against not thinking

{modes}

By number of steps:

{steps_table}

## Flags

{flags}

A conversation counts as obeyed when the model thinks exactly if the last flag says so (no flag: it thinks). The hard
switch (`enable_thinking=False`, the empty think block in the prompt) overrides whatever flag is written.

## The thinking budget

![accuracy against thinking budget](pocket-budget.png)

{budgets}

At the budget the documentation's stop-thinking text is fed in place of samples; then the model answers. A budget of 0
is the hard switch. **The ability was trained for**: in training, a share of the thinking samples
(`data.tasks.cut_thinking`, 0.3 in `configs/train/pocket.yaml`) is cut at a random token, followed by the
stop-thinking text (without loss) and the answer. Qwen3's report says that there it came by itself.
"""


def table(header: list[str], rows: list[list[str]]) -> str:
    """Markdown."""
    return "\n".join("| " + " | ".join(row) + " |" for row in [header, ["---"] * len(header), *rows])


def percent(value: float) -> str:
    return f"{100 * value:.1f}"


def page(measures: Mapping[str, Any]) -> str:
    modes, families = measures["modes"], list(tasks.FAMILIES)
    mode_rows = [
        [
            mode,
            percent(found["accuracy"]),
            *(percent(found["families"][family]["accuracy"]) for family in families),
            f"{found['thinking_tokens']:.1f}",
        ]
        for mode, found in modes.items()
    ]
    step_names = [str(steps) for steps in range(1, tasks.MAX_STEPS + 1)]
    step_rows = [
        [f"{family}, {mode}", *(percent(by[steps]) if steps in by else "" for steps in step_names)]
        for family in families
        for mode in modes
        for by in [modes[mode]["families"][family]["by_steps"]]
    ]
    flags = measures["flags"]
    flag_rows = [["all", percent(flags["obeyed"])], *([kind, percent(v)] for kind, v in flags["by_kind"].items())]
    budget_rows = [
        [
            "unlimited" if point["budget"] is None else str(point["budget"]),
            percent(point["accuracy"]),
            *(percent(point["families"][family]) for family in families),
            f"{point['thinking_tokens']:.1f}",
            percent(point["exhausted"]),
        ]
        for point in measures["budgets"]
    ]
    return PAGE.format(
        **{name: measures[name] for name in ("model", "problems", "seed", "dtype", "temperature")},
        steps=tasks.MAX_STEPS,
        modes=table(["mode", "% right", *(f"% {family}" for family in families), "thinking tokens"], mode_rows),
        steps_table=table(["% right at steps", *step_names], step_rows),
        flags=table(["conversations", "% obeyed"], flag_rows),
        budgets=table(
            ["budget", "% right", *(f"% {family}" for family in families), "thinking tokens used", "% cut"], budget_rows
        ),
    )


def plot(measures: Mapping[str, Any], path: Path) -> None:
    """Accuracy against budget; unlimited at the right edge."""
    from matplotlib.figure import Figure

    points = measures["budgets"]
    known = [point["budget"] for point in points if point["budget"] is not None]
    edge = max(known) + 12
    at = [edge if point["budget"] is None else point["budget"] for point in points]
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.plot(at, [100 * point["accuracy"] for point in points], "o-", color="black", label="all")
    for family in tasks.FAMILIES:
        axes.plot(at, [100 * point["families"][family] for point in points], ".--", label=family)
    axes.axhline(100 * measures["modes"]["hard switch"]["accuracy"], color="gray", linewidth=0.8, linestyle=":")
    axes.set_xticks([*known[::2], edge], [*(str(budget) for budget in known[::2]), "unlimited"])
    axes.set_xlabel("thinking budget, tokens (0: not thinking)")
    axes.set_ylabel(f"% right of {measures['problems']} held-out problems")
    axes.set_ylim(0, 102)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)


def write_report(measures: Mapping[str, Any], directory: Path) -> None:
    """pocket.md and pocket-budget.png."""
    (directory / "pocket.md").write_text(page(measures), encoding="utf-8")
    plot(measures, directory / "pocket-budget.png")
