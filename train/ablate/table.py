"""The table of an ablation, alone or on a page of several: means with confidence intervals, differences, verdicts."""

import dataclasses
import re
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qwen3_jax.files import replace_text, write_json
from qwen3_jax.train.ablate.runner import Outcome, finite
from qwen3_jax.train.ablate.study import Cell, Claim, Study
from qwen3_jax.train.statistics import Interval, mean_interval, paired_interval

_TITLE = "# Ablations\n"
Values = Mapping[int, float]  # by seed


def tabulate(study: Study, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Everything the page and the plots show, as plain JSON values.

    A run that diverged or failed is in no mean and in every count. `metrics` of the file name measures, or parts of one
    ("domain_loss.code"); a measure with parts stands for all of them.
    """
    metrics = _metrics(study, outcomes)
    values = {metric: _by_cell(study, outcomes, metric) for metric in metrics}
    rows = []
    for cell in study.cells:
        baseline = study.baseline_of(cell)
        row = {
            "cell": cell.name,
            "choices": dict(cell.choices),
            "runs": _count(cell, outcomes),
            "metrics": {metric: _plain(mean_interval(list(values[metric][cell.name].values()))) for metric in metrics},
            "values": {
                metric: {str(seed): value for seed, value in values[metric][cell.name].items()} for metric in metrics
            },
        }
        if baseline is not None:
            row["against"] = baseline.name
            row["differences"] = {
                metric: _plain(paired_interval(values[metric][cell.name], values[metric][baseline.name]))
                for metric in metrics
            }
        rows.append(row)
    troubles = [
        {"cell": o.run.cell.name, "seed": o.run.seed, "status": o.status, "reason": o.reason}
        for o in outcomes
        if o.status != "finished"
    ]
    return {
        "name": study.name,
        "title": study.file.title,
        "command": _command(study),
        "seeds": list(study.file.seeds),
        "metrics": metrics,
        "cells": rows,
        "not_finished": troubles,
        "paper": dataclasses.asdict(study.file.paper),
        "claims": [{"says": claim.says, **_verdict(study, outcomes, claim)} for claim in study.file.claims],
        "seconds": round(sum(outcome.seconds for outcome in outcomes), 1),
    }


def write_table(root: Path, table: Mapping[str, Any], plots: Sequence[str] = ()) -> None:
    """table.json and table.md in the ablation's directory."""
    write_json(root / "table.json", finite(table))
    replace_text(root / "table.md", markdown(table, plots))


def put_on_page(page: Path, table: Mapping[str, Any], root: Path, plots: Sequence[str]) -> None:
    """Puts an ablation's section into a Markdown page, in the place of its older one where there is one.

    Plots are copied beside the page, into a directory of the page's name.

    In: a page with "<!-- qk-norm -->...<!-- end of qk-norm -->"     Out: the same page, with what is between replaced
    """
    page.parent.mkdir(parents=True, exist_ok=True)
    name, images = table["name"], page.parent / page.stem
    copied = []
    for plot in plots:
        images.mkdir(exist_ok=True)
        shutil.copyfile(root / plot, images / f"{name}-{plot}")
        copied.append(f"{page.stem}/{name}-{plot}")
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    section = f"{begin}\n{markdown(table, copied, level=2)}{end}\n"
    text = page.read_text(encoding="utf-8") if page.exists() else _TITLE
    old = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}\n", re.S)
    text = old.sub(lambda _: section, text) if old.search(text) else f"{text.rstrip()}\n\n{section}"
    replace_text(page, text)


def markdown(table: Mapping[str, Any], plots: Sequence[str] = (), level: int = 1) -> str:
    """The page of one ablation; `plots` are paths relative to it."""
    metrics, seeds = table["metrics"], len(table["seeds"])
    head = ["cell", "runs", *metrics]
    rows = [[row["cell"], _runs(row["runs"])] + [_show(row["metrics"][m]) for m in metrics] for row in table["cells"]]
    parts = [
        f"{'#' * level} {table['title']}",
        f"    {table['command']}",
        f"The paper: {table['paper']['says'].strip()} ({table['paper']['source'].strip()})",
        f"Mean and 95% confidence interval over {seeds} seeds (Student's t). A run that diverged is in no mean: the "
        f"column `runs` counts it. {table['seconds'] / 60:.1f} minutes.",
        _grid(head, rows),
    ]
    compared = [row for row in table["cells"] if "differences" in row]
    if compared:
        rows = [[r["cell"], r["against"]] + [_show(r["differences"][m], sign="+") for m in metrics] for r in compared]
        parts += ["Difference to the baseline, seed by seed:", _grid(["cell", "minus", *metrics], rows)]
    if table["claims"]:
        rows = [[claim["says"].strip(), claim["verdict"], claim["because"]] for claim in table["claims"]]
        parts += ["What this small scale says:", _grid(["claim", "verdict", "because"], rows)]
    parts += [f"![{Path(plot).stem}]({plot})" for plot in plots]
    if table["not_finished"]:
        lines = [
            f"- {t['cell']} seed={t['seed']}: {t['status']}. {t['reason']}".rstrip() for t in table["not_finished"]
        ]
        parts += ["Runs without a number:", "\n".join(lines)]
    return "\n\n".join(parts) + "\n"


def _command(study: Study) -> str:
    overrides = "".join(f" {override}" for override in study.overrides)
    return f"qwen3-jax ablate {study.path.as_posix()} run_dir=runs/{study.name}{overrides}"


def _metrics(study: Study, outcomes: Sequence[Outcome]) -> list[str]:
    names: list[str] = []
    for metric in study.file.metrics:
        parts = [o.measures[metric] for o in outcomes if isinstance(o.measures.get(metric), Mapping)]
        names += [f"{metric}.{key}" for key in dict.fromkeys(k for part in parts for k in part)] if parts else [metric]
    return names


def _value(outcome: Outcome, metric: str) -> float | None:
    value: Any = outcome.measures.get(metric)
    if value is None and "." in metric:
        name, _, part = metric.partition(".")
        value = (outcome.measures.get(name) or {}).get(part)
    return None if value is None or isinstance(value, Mapping) else float(value)


def _by_cell(study: Study, outcomes: Sequence[Outcome], metric: str) -> dict[str, dict[int, float]]:
    found: dict[str, dict[int, float]] = {cell.name: {} for cell in study.cells}
    for outcome in outcomes:
        value = _value(outcome, metric)
        if outcome.status == "finished" and value is not None:
            found[outcome.run.cell.name][outcome.run.seed] = value
    return found


def _count(cell: Cell, outcomes: Sequence[Outcome]) -> dict[str, int]:
    return dict(Counter(outcome.status for outcome in outcomes if outcome.run.cell.name == cell.name))


def _verdict(study: Study, outcomes: Sequence[Outcome], claim: Claim) -> dict[str, str]:
    """ "agrees" or "disagrees" where the interval of the difference leaves no doubt, or where every seed with a
    diverged run says the same; "open" otherwise, and "not run" without runs."""
    less, more = (study.cell(choices, "a claim") for choices in (claim.less, claim.more))
    by_seed = {
        cell.name: {o.run.seed: o for o in outcomes if o.run.cell.name == cell.name and o.status != "missing"}
        for cell in (less, more)
    }
    seeds = [seed for seed in by_seed[less.name] if seed in by_seed[more.name]]
    ends = [(by_seed[less.name][seed], by_seed[more.name][seed]) for seed in seeds]
    ends = [pair for pair in ends if all(outcome.status in ("finished", "diverged") for outcome in pair)]
    if not ends:
        return {"verdict": "not run", "because": "no seed has both runs"}
    lost = [sum(outcome.status == "diverged" for outcome in side) for side in zip(*ends, strict=True)]
    if "loss" in claim.metric and any(lost):
        counts = f"diverged: {lost[0]} of {len(ends)} ({less.name}), {lost[1]} of {len(ends)} ({more.name})"
        if lost == [0, len(ends)]:
            return {"verdict": "agrees", "because": counts}
        return {"verdict": "disagrees" if lost == [len(ends), 0] else "open", "because": counts}
    values = [
        {o.run.seed: v for o in side if (v := _value(o, claim.metric)) is not None} for side in zip(*ends, strict=True)
    ]
    found = paired_interval(values[1], values[0])
    if found is None:
        return {"verdict": "not run", "because": f"no run has {claim.metric}"}
    because = f"{claim.metric}: the difference is {_show(_plain(found), sign='+')}"
    if found.low is None or found.high is None or found.low <= 0 <= found.high:
        return {"verdict": "open", "because": because}
    return {"verdict": "agrees" if found.low > 0 else "disagrees", "because": because}


def _plain(interval: Interval | None) -> dict[str, Any] | None:
    return None if interval is None else dataclasses.asdict(interval)


def _show(interval: Mapping[str, Any] | None, sign: str = "") -> str:
    """In: mean 2.34567, half 0.0123     Out: "2.346 ± 0.012" """
    if interval is None:
        return "-"
    large = max(abs(interval["mean"]), interval["half"] or 0.0) >= 1000
    style = f"{sign},.0f" if large else f"{sign}.3f"
    mean = format(interval["mean"], style)
    return mean if interval["half"] is None else f"{mean} ± {format(interval['half'], style.lstrip('+'))}"


def _runs(count: Mapping[str, int]) -> str:
    """In: {"finished": 2, "diverged": 1}     Out: "2 finished, 1 diverged" """
    order = ("finished", "diverged", "failed", "missing")
    return ", ".join(f"{count[name]} {name}" for name in order if count.get(name))


def _grid(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])
