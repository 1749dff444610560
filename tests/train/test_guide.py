"""The commands of docs/guides/training.md run, with a smaller model and fewer steps."""

import json
import re
import shlex
from pathlib import Path

import pytest
import yaml

from qwen3_jax.cli import main
from tests.support import REPO
from tests.train.pocket_fixtures import MODEL

GUIDE = (REPO / "docs" / "guides" / "training.md").read_text(encoding="utf-8")
SMALL = {
    "steps": 12,
    "model": {**MODEL, "num_hidden_layers": 1},
    "tokenizer": {"vocab_size": 760, "corpus_size": 800},
    "data": {"rows": 2, "length": 256},
    "optimizer": {"warmup_steps": 1},
    "checkpoint_every": 4,
    "keep_checkpoints": 9,
}


def commands() -> list[str]:
    blocks = re.findall(r"```\n(.*?)```", GUIDE, flags=re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.startswith("qwen3-jax ")]


def smaller(command: str) -> list[str]:
    """The command with the numbers of the small run."""
    for theirs, ours in (("200", "8"), ("20:25", "3:4"), ("every=100", "every=6"), ("steps=100", "steps=4")):
        command = re.sub(rf"(?<![\w.]){theirs}\b" if theirs.isdigit() else theirs, ours, command)
    return shlex.split(command)[1:]


def test_its_commands_do_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("configs/train").mkdir(parents=True)
    Path("configs/train/example.yaml").write_text(yaml.safe_dump(SMALL))
    for command in commands():
        words = smaller(command)
        assert main(words) == 0, (words, capsys.readouterr().err)
    left = {path.name for path in Path("runs/example").iterdir()} - {".lock"}
    assert left == {"config.yaml", "environment.json", "metrics.jsonl", "checkpoints", "tokenizer", "model"}
    assert left <= {name.strip("/").split("/")[0] for name in re.findall(r"`([\w./]+)`", GUIDE)}
    assert Path("example-now/model.safetensors").read_bytes() != Path("example-8/model.safetensors").read_bytes()
    assert json.loads(Path("runs/second/model/config.json").read_text())["rope_theta"] == 20000.0
    assert list(Path("runs/profile/profile").rglob("*.xplane.pb"))
    assert list(Path("runs/profile/profile").rglob("*.trace.json.gz"))
    fields: set[str] = set()
    for path in Path("runs").glob("*/metrics.jsonl"):
        fields |= set().union(*map(json.loads, path.read_text().splitlines()))
    table = GUIDE[GUIDE.index("## metrics.jsonl") : GUIDE.index("Numbers are float32")]
    told = {name for line in table.splitlines() if "|" in line for name in re.findall(r"`(\w+)`", line.split("|")[1])}
    assert fields <= told
    assert "eval_loss" in fields


def test_the_shipped_example_trains_as_it_stands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """But for its steps; the whole of it takes one to three minutes on two cores."""
    words = ["train", str(REPO / "configs" / "train" / "example.yaml"), f"run_dir={tmp_path / 'run'}"]
    assert main([*words, "steps=3", "optimizer.warmup_steps=1"]) == 0, capsys.readouterr().err
    told = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in told] == [1, 2, 3]
    assert all({"step", "loss", "tokens_per_second"} <= line.keys() for line in told)
    assert told[-1]["loss"] < told[0]["loss"]
    assert (tmp_path / "run" / "model" / "model.safetensors").exists()
