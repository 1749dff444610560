"""A run that is killed, stopped, or out of disk loses nothing that was saved; two runs do not share a directory."""

import contextlib
import dataclasses
import fcntl
import importlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from qwen3_jax.cli import main
from qwen3_jax.train.checkpoints import committed
from qwen3_jax.train.data import make_data
from qwen3_jax.train.run_dir import Lock
from tests.train.pocket_fixtures import MODEL

RUN = importlib.import_module("qwen3_jax.train.run")  # `train.run` is the function
KILLED = Path(__file__).with_name("killed.py")
SETTINGS: dict[str, Any] = {
    "steps": 24,
    "model": {**MODEL, "num_hidden_layers": 1},
    "tokenizer": {"vocab_size": 760, "corpus_size": 800},
    "data": {"rows": 2, "length": 256, "threads": 0, "lookahead": 1.0},  # nothing is read far ahead of its step
    "optimizer": {"warmup_steps": 3},
    "evaluation": {"every": 6, "batches": 1},
    "checkpoint_every": 4,
}


def write(tmp_path: Path, **changes: Any) -> str:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(SETTINGS | changes), encoding="utf-8")
    return str(path)


def lines(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def test_a_run_that_is_killed_in_a_line_and_in_a_save_ends_as_one_that_is_not(tmp_path: Path) -> None:
    """The whole of it: `make soak` kills at random."""
    config, whole, run_dir = write(tmp_path), tmp_path / "whole", tmp_path / "run"

    def start(moment: str) -> int:
        words = [sys.executable, str(KILLED), config, str(whole), str(run_dir), moment]
        return subprocess.run(words, check=False, capture_output=True, timeout=300).returncode

    assert start("line") == -signal.SIGKILL
    assert (run_dir / "metrics.jsonl").read_bytes().endswith(b'\n{"step": 11, "lo')
    assert committed(run_dir / "checkpoints")[0] == 8
    assert start("save") == -signal.SIGKILL
    left = [path.name for path in (run_dir / "checkpoints").iterdir() if not path.name.isdigit()]
    assert len(left) == 1
    assert left[0].startswith("16.orbax-checkpoint-tmp")
    assert committed(run_dir / "checkpoints")[0] == 12
    assert start("never") == 0
    assert not [path.name for path in (run_dir / "checkpoints").iterdir() if not path.name.isdigit()]
    ours, theirs = lines(run_dir), lines(whole)
    assert [line["step"] for line in ours] == list(range(1, 25))
    for key in ("loss", "grad_norm", "learning_rate", "eval_loss"):
        assert [line.get(key) for line in ours] == [line.get(key) for line in theirs]
    assert (run_dir / "model" / "model.safetensors").read_bytes() == (
        whole / "model" / "model.safetensors"
    ).read_bytes()
    starts = json.loads((run_dir / "environment.json").read_text())
    assert len(starts) == 3
    assert {"jax", "orbax-checkpoint", "numpy"} <= starts[0]["packages"].keys()
    assert starts[0]["command"][-1] == "line"


class AtExample:
    """Data of the run, in which something happens when example `at` is made."""

    def __init__(self, at: int, what: Any) -> None:
        self._at, self._what = at, what

    def __call__(self, config: Any, tok: Any) -> Any:
        made = make_data(config, tok)
        documents, at, what = made.documents, self._at, self._what

        class Happening:
            name = staticmethod(documents.name)

            def pieces(self, index: int) -> Any:
                if index == at:
                    what()
                return documents.pieces(index)

        return dataclasses.replace(made, documents=Happening())


def test_sigterm_saves_ends_with_0_and_the_same_command_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", write(tmp_path), f"run_dir={tmp_path / 'run'}", "steps=12"]
    monkeypatch.setattr(RUN, "make_data", AtExample(60, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    assert main(words) == 0
    out, err = capsys.readouterr()
    told = lines(tmp_path / "run")[-1]["step"]
    assert 0 < told < 12
    assert out.splitlines()[-1] == f"asked to stop: saved step {told}; the same command goes on from there"
    assert err == ""
    assert committed(tmp_path / "run" / "checkpoints")[0] == told  # nothing is done again
    assert not (tmp_path / "run" / "model").exists()
    monkeypatch.undo()
    assert main(words) == 0
    assert [line["step"] for line in lines(tmp_path / "run")] == list(range(1, 13))
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "run" / "model")
    export = tmp_path / "export"
    assert main(["export", str(tmp_path / "run"), str(export), "--step", str(told)]) in (0, 2)  # 2: kept no more
    assert main(["export", str(tmp_path / "run"), str(export)]) == 0
    exported, model = (directory / "model.safetensors" for directory in (export, tmp_path / "run" / "model"))
    assert exported.read_bytes() == model.read_bytes()
    capsys.readouterr()
    assert main(["export", str(tmp_path / "run"), str(export), "--step", "5"]) == 2
    assert "--step must be one of the checkpoints [8, 12], got 5" in capsys.readouterr().err


def test_a_record_that_can_not_be_read_costs_no_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was learnt before it is saved, though no checkpoint was due; the next start stops at the same record."""

    def broken() -> None:
        raise ValueError("text.jsonl line 61 must be a conversation, got 3: correct it")

    words = ["train", write(tmp_path, checkpoint_every=1000), f"run_dir={tmp_path / 'run'}", "steps=12"]
    monkeypatch.setattr(RUN, "make_data", AtExample(60, broken))
    assert main(words) == 2
    told = [line["step"] for line in lines(tmp_path / "run")]
    assert told == list(range(1, len(told) + 1))
    assert 0 < len(told) < 12
    assert committed(tmp_path / "run" / "checkpoints")[0] == len(told)
    assert main(words) == 2
    assert [line["step"] for line in lines(tmp_path / "run")] == told
    assert capsys.readouterr().err.count("line 61 must be a conversation") == 2
    monkeypatch.undo()
    assert main(words) == 0  # the record is mended


@contextlib.contextmanager
def small_disk(directory: Path, size: str) -> Iterator[None]:
    """A file system of its own in memory."""
    directory.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(directory)], capture_output=True, check=False
    )
    if mount.returncode:
        pytest.skip(f"a small file system can not be mounted here: {mount.stderr.decode().strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(directory)], check=True)


@pytest.mark.skipif(sys.platform != "linux", reason="mounts a file system in memory")
@pytest.mark.parametrize("room", [0, 100_000], ids=["for nothing", "for lines but no checkpoint"])
def test_a_full_disk_is_one_line_and_costs_nothing_that_was_saved(
    room: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    disk = tmp_path / "disk"
    with small_disk(disk, "8m"):

        def fill() -> None:
            free = os.statvfs(disk)
            with (disk / "ballast").open("wb", buffering=0) as file, contextlib.suppress(OSError):
                left = free.f_bavail * free.f_frsize - room
                while left > 0:
                    left -= file.write(bytes(min(left, 4096)))

        run_dir = disk / "run"
        words = ["train", write(tmp_path), f"run_dir={run_dir}", "steps=20"]
        monkeypatch.setattr(RUN, "make_data", AtExample(75, fill))  # after the checkpoint of step 4
        assert main([*words, "keep_checkpoints=1"]) == 1
        _, err = capsys.readouterr()
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        assert "No space left on device" in err
        saved = committed(run_dir / "checkpoints")[0]
        assert 4 <= saved < 20
        if room:
            assert f"{run_dir}/checkpoints: " in err
            assert f"the newest whole checkpoint is of step {saved}; make room" in err
        told = lines(run_dir)  # every line is whole
        assert told[-1]["step"] >= saved
        assert not [path.name for path in (run_dir / "checkpoints").iterdir() if not path.name.isdigit()]
        (disk / "ballast").unlink()
        monkeypatch.undo()
        assert main(words) == 0
        assert [line["step"] for line in lines(run_dir)] == list(range(1, 21))


def test_a_second_run_in_the_same_directory_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Lock(tmp_path):
        assert main(["train", write(tmp_path), f"run_dir={tmp_path}"]) == 2
        err = capsys.readouterr().err
        assert err.startswith(
            f"error: {tmp_path} must have one process training in it, got a second one beside process "
        )
        assert str(os.getpid()) in err
        assert err.count("\n") == 1
        assert not (tmp_path / "metrics.jsonl").exists()
    with (tmp_path / ".lock").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # it was let go
