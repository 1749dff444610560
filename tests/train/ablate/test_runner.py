"""What runs, what does not run again, and what a crash leaves; the runs themselves are stood in for."""

import dataclasses
import json
import threading
from pathlib import Path
from typing import Any

import pytest

from qwen3_jax.files import write_json
from qwen3_jax.train.ablate import Outcome, Stopped, Study, load_study, run_study, tabulate, write_table
from qwen3_jax.train.ablate.plots import smoothed, write_plots
from qwen3_jax.train.ablate.runner import finite, read_metrics
from qwen3_jax.train.ablate.study import identity
from qwen3_jax.train.ablate.table import put_on_page
from qwen3_jax.train.ablate.worker import curve_measures, divergence, work
from qwen3_jax.train.config import load_config
from tests.train.ablate.studies import write_study


class Machine:
    """Writes the result that a run would have, or does not; keeps what it was asked to run."""

    def __init__(self, breaks: dict[int, int] | None = None) -> None:
        self.ran: list[str] = []
        self.breaks = breaks or {}  # call -> exit status without a result

    def __call__(self, directory: Path) -> tuple[int, str]:
        self.ran.append(directory.name)
        if len(self.ran) in self.breaks:
            return self.breaks[len(self.ran)], "MemoryError"
        config = load_config(directory / "run.yaml")
        diverges = not config.ablation.qk_norm and config.optimizer.learning_rate == 0.1
        loss = config.seed + (0.5 if config.ablation.qk_norm else 1.0 + 0.01 * config.seed)
        lines = [{"step": step, "loss": 9.0 / step, "tokens_per_second": 100} for step in range(1, 9)]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (directory / "metrics.jsonl").write_text(text, encoding="utf-8")
        write_json(
            directory / "result.json",
            finite(
                {
                    "status": "diverged" if diverges else "finished",
                    "reason": "the loss must be finite" if diverges else "",
                    "measures": {"held_out_loss": loss, "domain_loss": {"a": loss, "b": 2 * loss}},
                    "seconds": 1.0,
                    "config": identity(config),
                }
            ),
        )
        return 0, ""


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return load_study(write_study(tmp_path / "files"))


def silent(_: str) -> None:
    pass


def run(study: Study, root: Path, machine: Any, **more: Any) -> list[Outcome]:
    return run_study(study, root, execute=machine, report=silent, **more)


def test_what_is_finished_does_not_run_again(study: Study, tmp_path: Path) -> None:
    machine = Machine()
    first = run(study, tmp_path, machine)
    assert len(machine.ran) == len(first) == 12
    assert run(study, tmp_path, machine) == first
    assert len(machine.ran) == 12
    longer = load_study(study.path, ["steps=50"])
    assert all(outcome.status != "missing" for outcome in run(longer, tmp_path, machine))
    assert len(machine.ran) == 24  # another configuration is another run


def test_a_result_of_another_configuration_does_not_count(study: Study, tmp_path: Path) -> None:
    run(study, tmp_path, Machine())
    path = tmp_path / "runs" / study.runs[0].directory / "result.json"
    changed = json.loads(path.read_text())
    changed["config"]["steps"] = 1
    path.write_text(json.dumps(changed))
    machine = Machine()
    run(study, tmp_path, machine)
    assert machine.ran == [study.runs[0].directory]


def test_a_crash_is_shown_and_tried_again(study: Study, tmp_path: Path) -> None:
    outcomes = run(study, tmp_path, Machine({2: 1, 5: -9}))
    assert [i for i, outcome in enumerate(outcomes) if outcome.status == "failed"] == [1, 4]
    assert outcomes[4].reason == "exit status -9: MemoryError"
    table = tabulate(study, outcomes)
    assert table["cells"][0]["runs"] == {"finished": 2, "failed": 1}
    assert {(t["seed"], t["status"]) for t in table["not_finished"]} >= {(1, "failed")}
    machine = Machine()
    assert all(outcome.status != "failed" for outcome in run(study, tmp_path, machine))
    assert machine.ran == [study.runs[1].directory, study.runs[4].directory]


def test_a_run_that_was_asked_to_stop_stops_all(study: Study, tmp_path: Path) -> None:
    machine = Machine({3: 0})
    with pytest.raises(Stopped):
        run(study, tmp_path, machine)
    assert len(machine.ran) == 3


def test_shards_share_the_runs(study: Study, tmp_path: Path) -> None:
    machines = [Machine(), Machine()]
    first = run(study, tmp_path, machines[0], shard=(0, 2))
    assert [outcome.status == "missing" for outcome in first] == [False, True] * 6
    second = run(study, tmp_path, machines[1], shard=(1, 2))
    assert not [outcome for outcome in second if outcome.status == "missing"]
    assert sorted(machines[0].ran + machines[1].ran) == sorted(run.directory for run in study.runs)


def test_the_table_counts_what_diverged_and_leaves_it_out_of_means(study: Study, tmp_path: Path) -> None:
    outcomes = run(study, tmp_path, Machine())
    table = tabulate(study, outcomes)
    assert table["metrics"] == ["held_out_loss", "domain_loss.a", "domain_loss.b"]
    lost = table["cells"][3]
    assert (lost["runs"], lost["metrics"]["held_out_loss"]) == ({"diverged": 3}, None)
    without = table["cells"][2]
    assert without["values"]["held_out_loss"] == {"0": 1.0, "1": 2.01, "2": 3.02}
    assert without["metrics"]["domain_loss.b"]["mean"] == pytest.approx(2 * 2.01)
    difference = without["differences"]["held_out_loss"]
    assert without["against"] == study.cells[0].name
    assert difference["mean"] == pytest.approx(0.51)
    assert difference["half"] == pytest.approx(4.30265 * 0.01 / 3**0.5, rel=1e-4)  # s of 0.50, 0.51, 0.52
    assert table["claims"][0]["verdict"] == "agrees"
    assert table["claims"][0]["because"].startswith("diverged: 0 of 3 (qk_norm=with learning_rate=0.1), 3 of 3")


@pytest.mark.parametrize(
    ("less", "more", "verdict"),
    [
        ({"qk_norm": "with", "optimizer.learning_rate": 0.01}, {"qk_norm": "without"}, "agrees"),
        ({"qk_norm": "without", "optimizer.learning_rate": 0.01}, {"qk_norm": "with"}, "disagrees"),
        ({"qk_norm": "with", "optimizer.learning_rate": 0.1}, {"qk_norm": "with"}, "open"),
    ],
)
def test_verdicts(study: Study, tmp_path: Path, less: Any, more: Any, verdict: str) -> None:
    more = {"optimizer.learning_rate": 0.01, **more}
    claim = dataclasses.replace(study.file.claims[0], less=less, more=more)
    changed = dataclasses.replace(study, file=dataclasses.replace(study.file, claims=(claim,)))
    assert tabulate(changed, run(study, tmp_path, Machine()))["claims"][0]["verdict"] == verdict


def test_nothing_run_is_said_to_be_so(study: Study, tmp_path: Path) -> None:
    outcomes = [Outcome(run, "missing") for run in study.runs]
    table = tabulate(study, outcomes)
    assert table["claims"][0]["verdict"] == "not run"
    assert table["cells"][0]["runs"] == {"missing": 3}
    assert write_plots(tmp_path, table, outcomes) == []


def test_the_page_holds_one_section_a_study(study: Study, tmp_path: Path) -> None:
    outcomes = run(study, tmp_path, Machine())
    table = tabulate(study, outcomes)
    plots = write_plots(tmp_path, table, outcomes)
    assert plots == ["curves.png", "metrics.png"]
    write_table(tmp_path, table, plots)
    assert json.loads((tmp_path / "table.json").read_text())["cells"] == json.loads(json.dumps(table["cells"]))
    text = (tmp_path / "table.md").read_text()
    assert "| qk_norm=without learning_rate=0.1 | 3 diverged | - | - | - |" in text
    assert "| qk_norm=with learning_rate=0.01 | 3 finished | 1.500 ± 2.484 |" in text
    page = tmp_path / "docs" / "results.md"
    put_on_page(page, table, tmp_path, plots)
    put_on_page(page, table | {"name": "other"}, tmp_path, [])
    put_on_page(page, table | {"title": "Changed"}, tmp_path, plots)
    text = page.read_text()
    assert text.index("## Changed") < text.index("## A tiny study")
    assert text.count("## ") == 2
    assert (page.parent / "results" / "tiny-curves.png").read_bytes()[:4] == b"\x89PNG"
    assert "(results/tiny-curves.png)" in text


def test_a_second_process_waits_and_finds_it_done(tmp_path: Path) -> None:
    fcntl = pytest.importorskip("fcntl")
    with (tmp_path / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        other = threading.Thread(target=work, args=(tmp_path,))
        other.start()
        other.join(0.3)
        assert other.is_alive()
        (tmp_path / "result.json").write_text("{}")
        fcntl.flock(file, fcntl.LOCK_UN)
        other.join(20)
        assert not other.is_alive()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lock", "result.json"]


def test_what_a_curve_gives(tmp_path: Path) -> None:
    lines = [{"step": step, "loss": float(step), "tokens_per_second": 10 * step} for step in range(1, 21)]
    assert curve_measures(lines) == {"train_loss": 19.5, "tokens_per_second": 115.0}
    assert curve_measures([]) == {}
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps(lines[0]) + '\n{"step": 2, "evaluation": 3}\n{"step": 3, "lo', encoding="utf-8")
    assert read_metrics(path) == lines[:1]
    assert read_metrics(tmp_path / "none.jsonl") == []
    steps, losses = smoothed(list(range(1, 121)), [float(step) for step in range(1, 121)])
    assert (len(steps), steps[0], losses[0], steps[-1], losses[-1]) == (60, 2, 1.5, 120, 119.5)


def test_worse_than_guessing_is_diverged() -> None:
    assert divergence({"train_loss": 6.6, "held_out_loss": 6.6}, 768) == ""  # log 768 = 6.644
    assert divergence({"train_loss": 6.7}, 768).startswith("train_loss ends at 6.700, above 6.644")
    assert "held_out_loss" in divergence({"train_loss": 1.0, "held_out_loss": float("nan")}, 768)
