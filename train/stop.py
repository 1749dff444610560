"""What ends a run before its last step: SIGTERM, which asks the loop to save and go, and steps that are not finite.

Steps whose loss or gradient is not finite stop the run or are skipped, and name their data either way:
non_finite_P.json    of the step that stopped the run: its number and the examples in process P's part of its batch;
                     removed when a later start has gone past that step
non_finite_P.jsonl   the same of each step that was skipped, one object a line
"""

import contextlib
import json
import math
import signal
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
from jax.experimental import multihost_utils

from qwen3_jax.files import replace_text
from qwen3_jax.sharding.launch.processes import is_first
from qwen3_jax.train.config import TrainConfig
from qwen3_jax.train.report.sinks import JsonLines, keep_lines_until

SKIPS_IN_A_ROW = 20  # steps that are not finite, after which a run that skips them stops all the same


class Stopped(BaseException):
    """SIGTERM came where it ends what is done at once (`Stop.at_once`); like KeyboardInterrupt, no `except Exception`
    takes it for an error."""


class Stop:
    """Asks the loop to save and leave; SIGTERM sets it while in force (in the main thread).

    Many processes must leave at one step: JAX takes the signal of any of them and finds a step that none has passed.
    """

    def __init__(self) -> None:
        self._asked, self._at_once = False, False

    def asked(self, step: int) -> bool:
        """Whether to leave after this step; asked once a step."""
        if jax.process_count() > 1:
            return bool(multihost_utils.reached_preemption_sync_point(step))
        return self._asked

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """SIGTERM leaves this block where it is: for work before the first step, which may take long and keeps what is
        finished by itself. One of many processes is not left so: JAX takes their signals.

        Raises:
          Stopped: it came, now or before.
        """
        self._at_once = True
        try:
            if self._asked:
                raise Stopped
            yield
        except BaseException as error:
            if self._asked and not isinstance(error, Stopped):  # a library's word for it
                raise Stopped from error
            raise
        finally:
            self._at_once = False
        if self._asked:
            raise Stopped

    def __enter__(self) -> "Stop":
        self._main = threading.current_thread() is threading.main_thread() and jax.process_count() == 1
        if self._main:
            self._before = signal.signal(signal.SIGTERM, self._ask)
        return self

    def __exit__(self, *_: Any) -> None:
        if self._main:
            signal.signal(signal.SIGTERM, self._before)

    def _ask(self, *_: Any) -> None:
        self._asked = True
        if self._at_once:
            raise Stopped


class NonFinite:
    """Looks at every step of a run, in order; every process has one, so that all stop together.

    Args:
      skipped: steps that were skipped before this start.
    """

    def __init__(self, config: TrainConfig, skipped: int = 0) -> None:
        self._run_dir, self._skips = Path(config.run_dir), config.on_non_finite == "skip"
        self.skipped, self._in_a_row = skipped, 0
        self._stopped: dict[Path, int] | None = None

    def check(self, step: int, metrics: Mapping[str, Any], share: Any = None) -> None:
        """Passes a step whose loss and gradient are finite, or notes that it was skipped.

        Args:
          metrics: `loss`, `grad_norm` and, where the step says so itself, `finite`.
          share: what this process put into the batch; its `examples` are named.

        Raises:
          FloatingPointError: they are not and the run stops; the line names step and data.
        """
        self._begin_at(step)
        loss, norm = float(metrics["loss"]), float(metrics["grad_norm"])
        if math.isfinite(loss) and math.isfinite(norm) and bool(metrics.get("finite", True)):
            self._in_a_row = 0
            self._forget_stops(step)
            return
        self.skipped, self._in_a_row = self.skipped + 1, self._in_a_row + 1
        what = f"loss and gradient must be finite, got loss {loss} and gradient norm {norm} at step {step}"
        names = [str(name) for name in getattr(share, "examples", ())]
        record = {"step": step, "examples": names}
        if self._skips:
            _append(self._path(".jsonl"), record)
            if self._in_a_row < SKIPS_IN_A_ROW:
                self._forget_stops(step)
                print(f"{what} ({_name(names, self._path('.jsonl'))}): the step is skipped", flush=True)
                return
        replace_text(self._path(".json"), json.dumps(record, ensure_ascii=False) + "\n")
        data = _name(names, self._path(".json"))
        if self._skips:
            ask = f"as for {SKIPS_IN_A_ROW} steps in a row: lower the learning rate, or look at the data of all of them"
            raise FloatingPointError(f"{what} ({data}), {ask}")
        raise FloatingPointError(f"{what} ({data}): lower the learning rate, or look at these data")

    def _begin_at(self, step: int) -> None:
        """At the first step of this start: what an earlier one skipped from here on is forgotten, as it is done again,
        and what it stopped at is found. A job of fewer processes than the earlier one leaves the others' to the first.
        """
        if self._stopped is not None:
            return
        self._stopped = {}
        for path in sorted(self._run_dir.glob("non_finite_*.json*")):
            owner = path.stem.removeprefix("non_finite_")
            mine = is_first() if owner.isdecimal() and int(owner) >= jax.process_count() else path.stem == self._stem
            if mine and path.suffix == ".jsonl":
                keep_lines_until(path, step - 1)
            elif mine and path.suffix == ".json":
                self._stopped[path] = _step_of(path)

    def _forget_stops(self, step: int) -> None:
        assert self._stopped is not None
        for path in [path for path, stopped in self._stopped.items() if stopped <= step]:
            path.unlink(missing_ok=True)
            del self._stopped[path]

    @property
    def _stem(self) -> str:
        return f"non_finite_{jax.process_index()}"

    def _path(self, suffix: str) -> Path:
        return self._run_dir / (self._stem + suffix)


def _append(path: Path, record: Mapping[str, Any]) -> None:
    with contextlib.closing(JsonLines(path)) as file:
        file.write(record)
        file.flush()


def _name(examples: list[str], path: Path) -> str:
    """A few in words, all of them in the file."""
    if not examples:
        return "the data has no names"
    more = f" and {len(examples) - 3} more" if len(examples) > 3 else ""
    return f"data {', '.join(examples[:3])}{more}, listed in {path}"


def _step_of(path: Path) -> int:
    """Of a file that a stop left; 0 where it can not be read, so that it goes with the first step."""
    try:
        return int(json.loads(path.read_text(encoding="utf-8"))["step"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0
