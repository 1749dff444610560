"""Where a run's numbers go: one record a step, to each of these."""

import contextlib
import json
import os
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from qwen3_jax.files import replacing
from qwen3_jax.train.config import TrainConfig
from qwen3_jax.train.parsing import to_dict

Record = Mapping[str, Any]


@runtime_checkable
class Sink(Protocol):
    """Takes the records of a run, each with its `step`, in order."""

    def write(self, record: Record) -> None: ...

    def flush(self) -> None:
        """Returns when what was written would survive the machine."""
        ...

    def close(self) -> None: ...


class JsonLines:
    """One JSON object a line. A record is in the file whole or not at all, on a full disk too."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def write(self, record: Record) -> None:
        data = (json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n").encode()
        before = os.fstat(self._file).st_size
        try:
            while data:
                data = data[os.write(self._file, data) :]
        except OSError as error:
            os.ftruncate(self._file, before)
            raise OSError(error.errno, error.strerror, str(self._path)) from None

    def flush(self) -> None:
        os.fsync(self._file)

    def close(self) -> None:
        os.close(self._file)


class ProgressLine:
    """A line every so many steps, and at the first and the last; on a terminal a bar beneath them."""

    def __init__(self, every: int, steps: int, console: Console | None = None) -> None:
        self._every, self._steps = every, steps
        console = console or Console()
        self._bar: Progress | None = None
        if console.is_terminal:
            columns = (MofNCompleteColumn(), BarColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
            self._bar = Progress(*columns, console=console, refresh_per_second=2)
            self._task = self._bar.add_task("", total=steps)
            self._bar.start()

    def write(self, record: Record) -> None:
        step = record["step"]
        if self._bar is not None:
            text = f"loss {_short(record['loss'])}  {record['tokens_per_second']:,} tokens/s"
            self._bar.update(self._task, completed=step, description=text)
        if step % self._every == 0 or step in (1, self._steps) or "eval_loss" in record:
            short = {name: value for name, value in record.items() if not isinstance(value, list)}  # not each expert's
            line = "  ".join(f"{name} {_short(value)}" for name, value in scalars(short))
            if self._bar is not None:
                self._bar.console.print(line, highlight=False)
            else:
                print(line, flush=True)

    def flush(self) -> None:
        pass

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()


class TensorBoard:
    """Event files; steps that a resumed run does again replace the ones there."""

    def __init__(self, directory: Path, first_step: int) -> None:
        try:
            from tensorboardX import FileWriter
            from tensorboardX.proto.event_pb2 import Event, SessionLog
            from tensorboardX.proto.summary_pb2 import Summary
        except ImportError:
            raise ValueError(
                "report.tensorboard needs the package tensorboardX, which is not there: pip install "
                "'qwen3-jax[tensorboard]', or set report.tensorboard=false"
            ) from None
        self._summary = Summary
        # A file's name has the second and the host in it: two starts within a second must not share it.
        self._writer = FileWriter(str(directory), filename_suffix=f".{first_step}")
        if first_step > 1:  # how TensorBoard is told to forget this step and what follows
            self._writer.add_event(Event(step=first_step, file_version="brain.Event:2"))
            self._writer.add_event(Event(step=first_step, session_log=SessionLog(status=SessionLog.START)))

    def write(self, record: Record) -> None:
        values = [(name, value) for name, value in scalars(record) if name != "step" and value is not None]
        summary = self._summary(value=[self._summary.Value(tag=name, simple_value=value) for name, value in values])
        self._writer.add_summary(summary, record["step"])  # one event: each costs a checksum and a lock

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """A run of the project `report.wandb`, which a later start of the same run_dir goes on with."""

    def __init__(self, config: TrainConfig) -> None:
        try:
            import wandb
        except ImportError:
            raise ValueError(
                "report.wandb needs the package wandb, which is not there: pip install 'qwen3-jax[wandb]', or leave "
                "report.wandb empty"
            ) from None
        run_dir = Path(config.run_dir)
        known = run_dir / "wandb_id"
        if not known.exists():
            known.write_text(uuid.uuid4().hex[:12], encoding="utf-8")
        self._run = wandb.init(
            project=config.report.wandb,
            name=run_dir.resolve().name,
            id=known.read_text(encoding="utf-8").strip(),
            resume="allow",
            dir=str(run_dir),
            config=to_dict(config),
        )

    def write(self, record: Record) -> None:
        values = {name: value for name, value in scalars(record) if name != "step" and value is not None}
        self._run.log(values, step=record["step"])

    def flush(self) -> None:
        pass  # it sends in a process of its own

    def close(self) -> None:
        self._run.finish()


def make_sinks(config: TrainConfig, first_step: int) -> list[Sink]:
    """Those that the configuration asks for.

    Raises:
      ValueError: a package that is missing.
    """
    run_dir = Path(config.run_dir)
    sinks: list[Sink] = []
    if config.report.tensorboard:
        sinks.append(TensorBoard(run_dir / "tensorboard", first_step))
    if config.report.wandb:
        sinks.append(WeightsAndBiases(config))
    return [JsonLines(run_dir / "metrics.jsonl"), *sinks, ProgressLine(config.report.every, config.steps)]


def scalars(record: Record) -> Iterator[tuple[str, Any]]:
    """In: {"loss": 1.0, "domain_loss": {"code": 2.0}}     Out: ("loss", 1.0), ("domain_loss/code", 2.0)"""
    for name, value in record.items():
        if isinstance(value, Mapping):
            yield from ((f"{name}/{key}", item) for key, item in value.items())
        elif isinstance(value, list):
            yield from ((f"{name}/{index}", item) for index, item in enumerate(value))
        else:
            yield name, value


def _short(value: Any) -> str:
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def keep_lines_until(path: Path, step: int) -> dict[str, Any] | None:
    """Forgets lines of steps that will be done again, lines that a crash tore, and all but the first of a step's.

    Returns:
      The last line that is left.
    """
    last: dict[str, Any] | None = None
    if not path.exists():
        return None
    with replacing(path) as partial, partial.open("wb") as new:
        for line, record in read_records(path):
            if (0 if last is None else last["step"]) < record["step"] <= step:
                new.write(line)
                last = record
    return last


def read_records(path: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Whole lines and the records in them; none where there is no file. A line that a crash tore is left out."""
    if not path.exists():
        return
    with path.open("rb") as file:
        for line in file:
            with contextlib.suppress(ValueError):
                record = json.loads(line) if line.endswith(b"\n") else None
                if isinstance(record, dict) and isinstance(record.get("step"), int):
                    yield line, record
