"""Every sink gets what was reported, and what a crash tore in metrics.jsonl is mended."""

import io
import json
import struct
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from qwen3_jax.train.config import TrainConfig
from qwen3_jax.train.parsing import parse
from qwen3_jax.train.report.sinks import (
    JsonLines,
    ProgressLine,
    TensorBoard,
    WeightsAndBiases,
    keep_lines_until,
    make_sinks,
)

RECORDS = [
    {"step": step, "loss": 2.0 / step, "tokens_per_second": 100, "domain_loss": {"code": 1.0, "math": None}}
    for step in (1, 2, 3, 4)
]


def test_lines_that_are_torn_repeated_or_of_steps_to_come_are_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    whole = [json.dumps(record) + "\n" for record in RECORDS]
    cases = {
        "".join(whole) + '{"step": 5, "lo': "".join(whole[:3]),  # killed while it wrote, and a step too far
        "".join(whole[:2]) + '{"step": 3}': "".join(whole[:2]),  # whole but for its end: it may be cut anywhere
        whole[0] + whole[1] + whole[1] + whole[0] + whole[2]: "".join(whole[:3]),
        whole[0] + "\0\0\0\n" + '"text"\n' + "\xff\n" + whole[1]: "".join(whole[:2]),  # blocks a machine never wrote
        "": "",
    }
    for before, after in cases.items():
        path.write_bytes(before.encode("latin-1"))
        last = keep_lines_until(path, 3)
        assert path.read_text() == after
        assert last == (json.loads(after.splitlines()[-1]) if after else None)
    assert keep_lines_until(tmp_path / "none.jsonl", 3) is None
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_record_that_the_disk_has_no_room_for_leaves_no_part_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = JsonLines(tmp_path / "metrics.jsonl")
    sink.write(RECORDS[0])
    import os

    write = os.write
    monkeypatch.setattr("os.write", lambda file, data: write(file, data[:7]) if len(data) > 20 else full())

    def full() -> int:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left on device"):
        sink.write(RECORDS[1])
    monkeypatch.undo()
    sink.write(RECORDS[2])
    sink.flush()
    sink.close()
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [RECORDS[0], RECORDS[2]]


def test_the_progress_line_is_plain_in_a_log_and_has_a_bar_on_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    plain = ProgressLine(every=2, steps=100)
    for record in RECORDS:
        plain.write(record)
    plain.close()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:4] for line in lines] == [
        ["step", "1", "loss", "2"],
        ["step", "2", "loss", "1"],
        ["step", "4", "loss", "0.5"],
    ]
    assert "domain_loss/code 1" in lines[0]
    screen = io.StringIO()
    bar = ProgressLine(every=2, steps=100, console=Console(file=screen, force_terminal=True, width=200))
    for record in RECORDS:
        bar.write(record)
    bar.close()
    assert "4/100" in screen.getvalue()
    assert "step 4  loss 0.5" in screen.getvalue()


def events(directory: Path) -> list[tuple[str, int, float]]:
    """What TensorBoard reads: each record is its length, a checksum, the event, a checksum."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for path in sorted(directory.glob("events.*")):
        data = path.read_bytes()
        while data:
            (size,) = struct.unpack("<Q", data[:8])
            event = Event.FromString(data[12 : 12 + size])
            data = data[16 + size :]
            found += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
            if event.session_log.status:
                found.append(("session start", event.step, 0.0))
    return found


def test_tensorboard_gets_every_scalar_and_forgets_steps_done_again(tmp_path: Path) -> None:
    for first in (1, 3):
        sink = TensorBoard(tmp_path, first)
        for record in RECORDS[first - 1 :]:
            sink.write(record)
        sink.flush()
        sink.close()
    found = events(tmp_path)
    assert [(step, value) for tag, step, value in found if tag == "loss"][:4] == [
        (step, pytest.approx(2.0 / step)) for step in (1, 2, 3, 4)
    ]
    assert ("domain_loss/code", 4, 1.0) in found
    assert not [tag for tag, _, _ in found if tag in ("step", "domain_loss/math")]
    assert [step for tag, step, _ in found if tag == "session start"] == [3]  # purges what the first start wrote of it


class FakeRun:
    def __init__(self) -> None:
        self.logged: list[Any] = []
        self.finished = False

    def log(self, values: dict[str, Any], step: int) -> None:
        self.logged.append((step, values))

    def finish(self) -> None:
        self.finished = True


def test_weights_and_biases_goes_on_with_the_same_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the documented interface: wandb.init(...) gives a run with log(values, step=) and finish()."""
    calls: list[dict[str, Any]] = []
    run = FakeRun()
    module = types.ModuleType("wandb")
    module.init = lambda **settings: calls.append(settings) or run  # type: ignore[attr-defined, func-returns-value]
    monkeypatch.setitem(sys.modules, "wandb", module)
    config = parse(TrainConfig, {"run_dir": str(tmp_path), "report": {"wandb": "proofs"}})
    for _ in range(2):
        sink = WeightsAndBiases(config)
        sink.write(RECORDS[0])
        sink.close()
    assert run.finished
    assert run.logged[0] == (1, {"loss": 2.0, "tokens_per_second": 100, "domain_loss/code": 1.0})
    assert [call["project"] for call in calls] == ["proofs", "proofs"]
    assert calls[0]["id"] == calls[1]["id"]
    assert calls[0]["resume"] == "allow"
    assert calls[0]["config"]["report"]["wandb"] == "proofs"


@pytest.mark.parametrize(("package", "key"), [("tensorboardX", "tensorboard"), ("wandb", "wandb")])
def test_a_sink_whose_package_is_missing_says_so(
    package: str, key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    value = {"tensorboard": True, "wandb": "project"}[key]
    config = parse(TrainConfig, {"run_dir": str(tmp_path), "report": {key: value}})
    with pytest.raises(ValueError, match=rf"report.{key} needs the package {package}, which is not there: pip install"):
        make_sinks(config, 1)
    assert not (tmp_path / "metrics.jsonl").exists()
