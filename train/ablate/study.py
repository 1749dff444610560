"""An ablation as its file says it: a base, a grid of changes, seeds, what to measure, and what the paper says."""

import dataclasses
import difflib
import hashlib
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qwen3_jax.train.config import TrainConfig, from_values
from qwen3_jax.train.parsing import apply, merge, parse, parse_overrides, read_mapping, read_overlays, to_dict

# Decide nothing of a run's numbers: a run is the same run when they change.
_FREE = ("run_dir", "report", "checkpoint_every", "keep_checkpoints")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Paper:
    """What is to be tested at small scale."""

    says: str
    source: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Claim:
    """One inequality between two cells, which the runs agree with, disagree with or leave open.

    Attributes:
      less, more: the choices of the cells; `metric` is to be less in one than in the other. A run that diverged has
        more of every loss than one that did not.
    """

    says: str
    metric: str
    less: Mapping[str, Any]
    more: Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudyFile:
    """The keys of a file of configs/ablation."""

    title: str
    base: str  # a training configuration, relative to the file
    grid: Mapping[str, Any]  # an axis: a key with a list of values, or a name with changes by name
    metrics: tuple[str, ...]
    set: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # changes to the base of all cells
    seeds: tuple[int, ...] = (0, 1, 2)
    baseline: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # choices that differences are taken to
    paper: Paper = dataclasses.field(default_factory=lambda: Paper(says="", source=""))
    claims: tuple[Claim, ...] = ()


@dataclasses.dataclass(frozen=True)
class Cell:
    """One point of the grid: the choice on each axis, and the changes that it makes."""

    choices: Mapping[str, str]
    changes: Mapping[str, Any]

    @property
    def name(self) -> str:
        """In: {"qk_norm": "with", "optimizer.learning_rate": "0.01"}   Out: "qk_norm=with learning_rate=0.01" """
        return " ".join(f"{axis.rpartition('.')[2]}={choice}" for axis, choice in self.choices.items())


@dataclasses.dataclass(frozen=True)
class Run:
    """One training run: a cell and a seed; `config` has no run_dir."""

    cell: Cell
    seed: int
    config: TrainConfig

    @property
    def directory(self) -> str:
        """Name below `runs/`. It holds a digest of the resolved configuration: another one never meets its files."""
        slug = re.sub(r"[^A-Za-z0-9=.+-]+", "_", self.cell.name)
        return f"{slug}_seed={self.seed}_{digest(self.config)}"


@dataclasses.dataclass(frozen=True)
class Study:
    """A file, its grid multiplied out, and every run's configuration."""

    path: Path
    file: StudyFile
    overrides: tuple[str, ...]
    cells: tuple[Cell, ...]
    runs: tuple[Run, ...]

    @property
    def name(self) -> str:
        return self.path.stem

    def cell(self, choices: Mapping[str, Any], what: str) -> Cell:
        """The one cell with these choices.

        Raises:
          ValueError: an axis or choice that is not in the grid (the nearest is named), or several cells.
        """
        wanted = _choices(choices, self.cells, what)
        found = [cell for cell in self.cells if wanted.items() <= cell.choices.items()]
        if len(found) != 1:
            raise ValueError(f"{what} must name one cell, got {dict(wanted)} for {len(found)}: give every axis")
        return found[0]

    def baseline_of(self, cell: Cell) -> Cell | None:
        """The cell with the baseline's choices and otherwise this one's; None for itself, or without a baseline."""
        wanted = {**cell.choices, **_choices(self.file.baseline, self.cells, "baseline")}
        return None if wanted == cell.choices else next(other for other in self.cells if other.choices == wanted)


def load_study(path: str | Path, overrides: Sequence[str] = ()) -> Study:
    """Reads an ablation and makes every run's configuration, so that a mistake anywhere shows before anything runs.

    Args:
      overrides: `key=value`, over the base and below the grid; `seeds=[0,1]` replaces the file's seeds.

    Raises:
      FileNotFoundError: no such file, or no such base.
      ValueError: an unknown key in the file, in an override or in a cell, a claim about no cell, two equal cells.
    """
    path = Path(path)
    values = read_mapping(path, "ablation")
    changes = parse_overrides(overrides)
    if "seeds" in changes:
        values["seeds"] = changes.pop("seeds")
    file = parse(StudyFile, values)
    if not file.seeds or len(set(file.seeds)) < len(file.seeds):
        raise ValueError(f"seeds must be different whole numbers, at least one, got {list(file.seeds)}: correct them")
    base = apply(apply(read_overlays(path.parent / file.base), file.set), changes)
    cells = tuple(_cells(file.grid))
    varied = {key for cell in cells for key in cell.changes}
    for key in changes:
        if key in varied:
            raise ValueError(f"{key} must not be set beside the grid, which sets it, got both: leave one out")
    runs = tuple(_run(base, cell, seed) for cell in cells for seed in file.seeds)
    _require_different(runs)
    study = Study(path, file, tuple(overrides), cells, runs)
    study.baseline_of(cells[0])
    for claim in file.claims:
        for choices in (claim.less, claim.more):
            study.cell(choices, f"the claim {claim.says!r}")
    return study


def digest(config: TrainConfig) -> str:
    """Eight hexadecimal digits of everything that decides a run's numbers."""
    return hashlib.sha256(json.dumps(identity(config), sort_keys=True).encode()).hexdigest()[:8]


def identity(config: TrainConfig) -> dict[str, Any]:
    """The configuration as plain JSON values, without what decides nothing."""
    values = {key: value for key, value in to_dict(config).items() if key not in _FREE}
    plain: dict[str, Any] = json.loads(json.dumps(values))
    return plain


def _run(base: Mapping[str, Any], cell: Cell, seed: int) -> Run:
    try:
        return Run(cell, seed, from_values(merge(apply(base, cell.changes), {"seed": seed, "run_dir": ""})))
    except ValueError as error:
        raise ValueError(f"in the cell {cell.name}: {error}") from None


def _cells(grid: Mapping[str, Any]) -> list[Cell]:
    """In: {"optimizer.learning_rate": [1, 2], "size": {"small": {"model.hidden_size": 8}}}     Out: two cells"""
    axes = []
    for axis, choices in grid.items():
        if isinstance(choices, (list, tuple)) and choices:
            axes.append([(axis, _text(value), {axis: value}) for value in choices])
        elif isinstance(choices, Mapping) and choices and all(isinstance(c, Mapping) for c in choices.values()):
            axes.append([(axis, _text(name), changes) for name, changes in choices.items()])
        else:
            raise ValueError(
                f"grid.{axis} must be a list of values or names with the changes of each, got {choices!r}: correct it"
            )
    if not axes:
        raise ValueError("grid must have an axis, got none: add e.g. optimizer.learning_rate: [1e-3, 1e-2]")
    cells = []
    for point in itertools.product(*axes):
        changes: dict[str, Any] = {}
        for axis, _, more in point:
            twice = changes.keys() & more.keys()
            if "seed" in more or twice:
                key = "seed" if "seed" in more else min(twice)
                raise ValueError(f"grid.{axis} must not set {key}, which seeds or another axis sets: leave one out")
            changes |= more
        cells.append(Cell({axis: choice for axis, choice, _ in point}, changes))
    return cells


def _choices(wanted: Mapping[str, Any], cells: Sequence[Cell], what: str) -> dict[str, str]:
    """The same with every choice as text, when all of them are in the grid."""
    out = {}
    for axis, choice in wanted.items():
        known = {cell.choices[axis] for cell in cells if axis in cell.choices}
        if _text(choice) not in known:
            among, got = (known, _text(choice)) if known else (cells[0].choices.keys(), axis)
            near = difflib.get_close_matches(got, sorted(among), n=1, cutoff=0.0)[0]
            raise ValueError(f"{what} must name choices of the grid, got {axis}: {choice}: did you mean {near}?")
        out[axis] = _text(choice)
    return out


def _text(value: Any) -> str:
    """As YAML writes it. In: True, None, 0.01     Out: "true", "null", "0.01" """
    return value if isinstance(value, str) else json.dumps(value)


def _require_different(runs: Sequence[Run]) -> None:
    seen: dict[tuple[int, str], Run] = {}
    for run in runs:
        other = seen.setdefault((run.seed, digest(run.config)), run)
        if other is not run:
            raise ValueError(
                f"cells must differ, got {other.cell.name} and {run.cell.name} with the same configuration: a choice "
                "of the grid has no effect"
            )
