"""A file becomes runs; every mistake in it shows before anything runs."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from qwen3_jax.config import ModelConfig
from qwen3_jax.parameters.specs import num_parameters
from qwen3_jax.train.ablate import load_study
from tests.support import REPO
from tests.train.ablate.studies import STUDY, write_study


def test_the_grid_is_multiplied_out(tmp_path: Path) -> None:
    study = load_study(write_study(tmp_path, set={"steps": 30, "data": {"rows": 4}}), ["steps=20"])
    assert [cell.name for cell in study.cells] == [
        "qk_norm=with learning_rate=0.01",
        "qk_norm=with learning_rate=0.1",
        "qk_norm=without learning_rate=0.01",
        "qk_norm=without learning_rate=0.1",
    ]
    assert [(run.cell, run.seed) for run in study.runs[2:4]] == [(study.cells[0], 2), (study.cells[1], 0)]
    last = study.runs[-1].config
    assert (last.seed, last.ablation.qk_norm, last.optimizer.learning_rate) == (2, False, 0.1)
    assert (last.steps, last.data.rows, last.data.length, last.run_dir) == (20, 4, 256, "")
    assert study.baseline_of(study.cells[3]) == study.cells[1]
    assert study.baseline_of(study.cells[1]) is None
    assert len({run.directory for run in study.runs}) == 12


def test_seeds_may_be_set_on_the_command_line(tmp_path: Path) -> None:
    assert [run.seed for run in load_study(write_study(tmp_path), ["seeds=[5]"]).runs] == [5] * 4


def test_a_directory_is_that_of_the_numbers_and_not_of_what_decides_nothing(tmp_path: Path) -> None:
    path = write_study(tmp_path)
    plain, same, other = (load_study(path, [text]).runs[0] for text in ("seed=3", "checkpoint_every=7", "steps=41"))
    assert plain.directory == same.directory != other.directory
    assert dataclasses.replace(same.config, checkpoint_every=4) == plain.config


@pytest.mark.parametrize(
    ("changes", "overrides", "message"),
    [
        ({"grid": {"optimizer.learning_rat": [1]}}, (), "did you mean optimizer.learning_rate?"),
        ({"grid": {"qk": {"with": {}, "without": {"ablation.qknorm": False}}}}, (), "did you mean ablation.qk_norm?"),
        ({"grid": {"optimizer.learning_rate": 3}}, (), "must be a list of values"),
        ({"grid": {}}, (), "grid must have an axis"),
        ({"grid": {"steps": [2, 2]}}, (), "cells must differ, got steps=2 and steps=2"),
        ({"grid": {"a": {"x": {"steps": 2}}, "steps": [3]}}, (), "must not set steps"),
        ({"grid": {"seed": [1, 2]}}, (), "must not set seed"),
        ({"baseline": {"qk_norm": "wit"}}, (), "baseline must name choices of the grid.*did you mean with?"),
        ({"baseline": {"qknorm": "with"}}, (), "did you mean qk_norm?"),
        ({"claims": [{**STUDY["claims"][0], "less": {"qk_norm": "with"}}]}, (), "must name one cell, got .* for 2"),
        ({"claims": [{"says": "x"}]}, (), "metric must be set"),
        ({"seeds": [1, 1]}, (), "seeds must be different"),
        ({"sets": {}}, (), "sets is not a key of the configuration: did you mean set?"),
        ({}, ("stepz=3",), "did you mean steps?"),
        ({}, ("optimizer.learning_rate=3",), "must not be set beside the grid"),
        ({}, ("steps",), "must be key=value"),
    ],
)  # fmt: skip
def test_mistakes_are_named(tmp_path: Path, changes: dict[str, Any], overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_study(write_study(tmp_path, **{"baseline": {}, "claims": [], **changes}), overrides)


def test_what_must_be_there(tmp_path: Path) -> None:
    path = tmp_path / "no.yaml"
    path.write_text("title: x", encoding="utf-8")
    with pytest.raises(ValueError, match="base must be set"):
        load_study(path)
    with pytest.raises(FileNotFoundError, match=r"nowhere\.yaml must exist"):
        load_study(write_study(tmp_path, base="nowhere.yaml"))


ABLATIONS = sorted((REPO / "configs" / "ablation").glob("*.yaml"))


@pytest.mark.parametrize("path", ABLATIONS, ids=lambda path: path.stem)
def test_the_committed_ablations_load_and_say_what_the_paper_says(path: Path) -> None:
    study = load_study(path)
    assert len(study.file.seeds) >= 3
    assert study.file.claims
    assert study.file.baseline
    assert "arXiv" in study.file.paper.source
    assert len(study.file.paper.says) > 40
    head = path.read_text(encoding="utf-8").splitlines()
    assert head[0].startswith(f"# qwen3-jax ablate configs/ablation/{path.name} run_dir=runs/{path.stem}")
    assert any("minutes on 2 CPU cores" in line for line in head[:7])
    for run in study.runs:
        size = num_parameters(ModelConfig.from_hf(run.config.model))
        assert 0.1e6 < size < 1e6


def test_all_five_ablations_are_there() -> None:
    assert [path.stem for path in ABLATIONS] == ["balance", "experts", "optimizer", "qk-norm", "rope-base"]


def test_the_experts_ablation_has_equal_active_sizes() -> None:
    """Feed-forward units a token meets: the same in every cell; parameters of the router come on top."""
    for run in load_study(REPO / "configs" / "ablation" / "experts.yaml").runs:
        model = ModelConfig.from_hf(run.config.model)
        sparse = model.is_sparse(0)
        assert (model.num_experts_per_tok * model.moe_intermediate_size if sparse else model.intermediate_size) == 128
        assert [model.is_sparse(layer) for layer in range(2)] == [sparse, sparse]


def test_the_file_in_the_guide_loads(tmp_path: Path) -> None:
    guide = (REPO / "docs" / "guides" / "ablations.md").read_text(encoding="utf-8")
    text = guide.partition("```yaml\n")[2].partition("```")[0]
    base = "base: configs/train/example.yaml"
    assert base in text
    path = tmp_path / "my.yaml"
    path.write_text(text.replace(base, f"base: {REPO}/configs/train/example.yaml"), encoding="utf-8")
    study = load_study(path)
    assert len(study.runs) == 12
    assert study.baseline_of(study.cells[1]) == study.cells[0]
