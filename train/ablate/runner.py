"""Runs what is not done yet, one process after another; whatever ends one of them, the others go on."""

import dataclasses
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import yaml

import qwen3_jax
from qwen3_jax.files import replace_text
from qwen3_jax.train.ablate.study import Run, Study, identity
from qwen3_jax.train.parsing import to_dict
from qwen3_jax.train.report.sinks import read_records

Status = Literal["finished", "diverged", "failed", "missing"]
RESULT, CONFIG = "result.json", "run.yaml"  # in the directory of a run
_STOPPED = (0, -2, -15)  # without a result: the run was asked to stop, and has saved where it was


class Stopped(Exception):
    """The ablation was asked to stop; the same command goes on."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What is known of a run.

    Attributes:
      status: "finished" and "diverged" are results and stay; "failed" (a crash, a refusal) is tried again by the next
        command; "missing" has not been run.
      reason: why, in one line; "" for what is finished.
      measures: numbers by name, or by name and part (`domain_loss`).
      seconds: of the process that ended the run.
    """

    run: Run
    status: Status
    reason: str = ""
    measures: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    seconds: float = 0.0


def run_study(
    study: Study,
    root: Path,
    shard: tuple[int, int] = (0, 1),
    execute: Callable[[Path], tuple[int, str]] | None = None,
    report: Callable[[str], None] = print,
) -> list[Outcome]:
    """Runs this shard's share of the runs and gives the outcome of all runs, in the order of the study.

    Args:
      root: where the ablation keeps everything; `root/runs/NAME` is the run_dir of one run.
      shard: (i, n): of the runs 0, 1, 2 ... those whose number is i modulo n.
      execute: runs the directory of one run and gives its exit status and last line; by default in a process.

    Raises:
      Stopped: a run was asked to stop, and so are we.
    """
    index, shards = shard
    failures: dict[str, str] = {}
    mine = [run for number, run in enumerate(study.runs) if number % shards == index]
    for number, run in enumerate(mine, 1):
        if outcome_of(run, root).status == "missing":
            directory = prepare(run, root)
            status, line = (execute or _in_a_process)(directory)
            if not (directory / RESULT).exists():
                if status in _STOPPED:
                    raise Stopped
                failures[run.directory] = f"exit status {status}: {line}"
        outcome = outcome_of(run, root, failures)
        report(f"[{number}/{len(mine)}] {run.cell.name} seed={run.seed}: {_line(outcome)}")
    return [outcome_of(run, root, failures) for run in study.runs]


def prepare(run: Run, root: Path) -> Path:
    """The run's directory with its configuration in it; one that is half done keeps what it has."""
    directory = (root / "runs" / run.directory).absolute()
    directory.mkdir(parents=True, exist_ok=True)
    values = to_dict(dataclasses.replace(run.config, run_dir=str(directory)))
    replace_text(directory / CONFIG, yaml.safe_dump(values, sort_keys=False, allow_unicode=True))
    return directory


def outcome_of(run: Run, root: Path, failures: Mapping[str, str] | None = None) -> Outcome:
    """What the run's directory says. A result counts when the configuration in it is the run's."""
    try:
        found = json.loads((root / "runs" / run.directory / RESULT).read_text(encoding="utf-8"))
    except FileNotFoundError:
        found = {}
    if found.get("config") == identity(run.config):
        return Outcome(run, found["status"], found["reason"], found["measures"], found["seconds"])
    reason = (failures or {}).get(run.directory)
    return Outcome(run, "missing") if reason is None else Outcome(run, "failed", reason)


def _in_a_process(directory: Path) -> tuple[int, str]:
    """Exit status, and the last line that the process wrote; all it wrote is in log.txt."""
    log = directory / "log.txt"
    above = str(Path(qwen3_jax.__file__).parents[1])
    paths = [above, *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    with log.open("ab") as file:
        # -P: nothing that lies in the current folder is taken for a module.
        command = [sys.executable, "-P", "-m", "qwen3_jax.train.ablate.worker", str(directory)]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=environment)
        try:
            status = process.wait()
        except BaseException:  # Ctrl-C, SIGTERM: the run saves what it has
            process.terminate()
            process.wait()
            raise
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    return status, next((line.strip() for line in reversed(lines) if line.strip()), "")


def _line(outcome: Outcome) -> str:
    loss = outcome.measures.get("held_out_loss", outcome.measures.get("train_loss"))
    parts = [outcome.status, *filter(None, [outcome.reason])]
    if loss is not None:
        parts.append(f"loss {loss:.4f}")
    return ", ".join([*parts, f"{outcome.seconds:.0f} s"])


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl that have a training loss."""
    return [record for _, record in read_records(path) if "loss" in record]


def finite(value: Any) -> Any:
    """Numbers that JSON does not have become null."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
