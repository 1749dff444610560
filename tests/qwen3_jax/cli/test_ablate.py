"""`qwen3-jax ablate` as users start it: killed in the middle of a run, given again, and mistakes in one line."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from tests.support import REPO
from tests.train.ablate.studies import write_study

PATIENCE = 500  # seconds, for machines that do other things too
GRID = {"optimizer.learning_rate": [1e20, 0.003]}
SMALL = {"grid": GRID, "baseline": {"optimizer.learning_rate": 0.003}, "claims": []}


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def start_and_kill(command, root):
    """Kills the command and its worker, unasked, once the second run has a checkpoint; gives the second's directory."""
    process = subprocess.Popen(command, cwd=REPO, start_new_session=True, stderr=subprocess.PIPE)
    end = time.monotonic() + PATIENCE
    try:
        while True:
            assert time.monotonic() < end
            assert process.poll() is None, process.stderr.read()
            started = sorted((root / "runs").glob("learning_rate=0.003_*")) if root.exists() else []
            if started and any(path.name.isdigit() for path in (started[0] / "checkpoints").glob("*")):
                return started[0]  # orbax renames a checkpoint to its number when it is whole
            time.sleep(0.02)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stderr.close()


def test_killed_and_given_again_it_goes_on(run, tmp_path):
    """Two runs, of which the first diverges; the kill comes within the second."""
    study = write_study(tmp_path / "files", set={"steps": 100, "checkpoint_every": 25}, **SMALL)
    root = tmp_path / "out"
    argv = ["ablate", str(study), f"run_dir={root}", "seeds=[5]"]
    second = start_and_kill([sys.executable, "-m", "qwen3_jax.cli", *argv], root)
    first = next((root / "runs").glob("learning_rate=1e+20_seed=5_*"))
    done = (first / "result.json").read_bytes()
    assert not (second / "result.json").exists()
    before = lines_of(second / "metrics.jsonl")
    assert 25 <= len(before) < 100
    assert not (root / "table.json").exists()

    ran = run(*argv, "--json", "--page", tmp_path / "page.md")
    assert ran.status == 0, ran.err
    table = json.loads(ran.out)
    assert (first / "result.json").read_bytes() == done
    after = lines_of(second / "metrics.jsonl")
    assert [line["step"] for line in after] == list(range(1, 101))
    assert after[:25] == before[:25]  # tokens a second too: these steps were not done again
    assert "RuntimeWarning" not in (second / "log.txt").read_text()
    assert [row["runs"] for row in table["cells"]] == [{"diverged": 1}, {"finished": 1}]
    assert all("must be finite" in entry["reason"] for entry in table["not_finished"])
    assert table["cells"][0]["metrics"]["held_out_loss"] is None
    assert 0 < table["cells"][1]["metrics"]["held_out_loss"]["mean"] < 6.6
    assert {path.name for path in root.iterdir()} == {"runs", "table.md", "table.json", "curves.png", "metrics.png"}
    assert "## A tiny study" in (tmp_path / "page.md").read_text()

    ran = run(*argv)  # everything is done: nothing runs
    assert (ran.status, ran.out) == (0, f"{root}/table.md\n")
    assert [line.partition(": ")[2].split(",")[0] for line in ran.err.splitlines()] == ["diverged", "finished"]
    assert json.loads((root / "table.json").read_text()) == table


@pytest.mark.parametrize(
    ("changes", "words", "says"),
    [
        ({}, [], "run_dir must be set once, got 0 times"),
        ({}, ["run_dir=a", "run_dir=b"], "got 2 times"),
        ({}, ["run_dir=OUT", "--shard", "2/2"], "--shard must be I/N"),
        ({}, ["run_dir=OUT", "sed=1"], "did you mean seed?"),
        ({"grid": {"optimizer.learning_rat": [1.0]}}, ["run_dir=OUT"], "did you mean optimizer.learning_rate?"),
        ({"grid": {"ablation.qk_norm": ["perhaps"]}}, ["run_dir=OUT"], "ablation.qk_norm must be of type bool"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_runs(run, tmp_path, changes, words, says):
    study = write_study(tmp_path / "files", **{**SMALL, "baseline": {}, **changes})
    ran = run("ablate", study, *(word.replace("OUT", str(tmp_path / "out")) for word in words))
    assert (ran.status, ran.out) == (2, "")
    assert ran.err.startswith("error: ")
    assert ran.err.count("\n") == 1
    assert says in ran.err
    assert not (tmp_path / "out").exists()


def test_no_such_file(run, tmp_path):
    ran = run("ablate", "qk-nrom", f"run_dir={tmp_path}/out")
    assert ran.status == 2
    assert "qk-nrom must exist" in ran.err
