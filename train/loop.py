"""The training loop: dispatches step n, then reports step n-1; resumes exactly; stops where the loss is not finite."""

import contextlib
import json
import math
import queue
import signal
import threading
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import jax

from qwen3_jax.config import ModelConfig
from qwen3_jax.model import Qwen3
from train.checkpoints import Checkpoints
from train.config import TrainConfig
from train.data import Batch, Cursor, Source, batches
from train.step import Metrics, TrainState, init_state, make_step


class Stop:
    """Asks the loop to save and leave; SIGTERM sets it while training (in the main thread)."""

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> "Stop":
        self._main = threading.current_thread() is threading.main_thread()
        if self._main:
            self._before = signal.signal(signal.SIGTERM, self._ask)
        return self

    def __exit__(self, *_: Any) -> None:
        if self._main:
            signal.signal(signal.SIGTERM, self._before)

    def _ask(self, *_: Any) -> None:
        self.asked = True


class Reporter:
    """Writes metrics.jsonl; holds one step back, so that reading its loss never waits for the step just dispatched."""

    def __init__(self, path: Path, config: TrainConfig) -> None:
        self._path, self._config = path, config
        self._pending: tuple[int, Metrics] | None = None
        self._since, self._tokens = time.perf_counter(), 0

    def push(self, step: int, metrics: Metrics, tokens: int) -> None:
        """Takes step `step`'s metrics (still being computed) and reports the step before."""
        self.flush()
        self._pending = (step, metrics)
        self._tokens += tokens

    def flush(self) -> None:
        """Reports the step held back.

        Raises:
          FloatingPointError: its loss is not finite; the line names the step.
        """
        if self._pending is None:
            return
        step, metrics = self._pending
        self._pending = None
        loss = float(metrics.loss)
        if not math.isfinite(loss):
            raise FloatingPointError(f"the loss must be finite, got {loss} at step {step}: lower the learning rate")
        if step % self._config.log_every and step not in (1, self._config.steps):
            return
        now = time.perf_counter()
        line = {
            "step": step,
            "loss": round(loss, 5),
            "grad_norm": round(float(metrics.grad_norm), 4),
            "learning_rate": float(f"{float(metrics.learning_rate):.4g}"),
            "tokens_per_second": round(self._tokens / max(now - self._since, 1e-9)),
        }
        self._since, self._tokens = now, 0
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        print("  ".join(f"{key} {value}" for key, value in line.items()), flush=True)


def train(config: TrainConfig, source: Source) -> tuple[Qwen3, TrainState]:
    """Trains to `config.steps`, from the newest checkpoint in `run_dir` when there is one.

    Raises:
      FloatingPointError: the loss is not finite.
    """
    run_dir = Path(config.run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    model = Qwen3(ModelConfig.from_hf(config.model), layout=config.layout)
    state, cursor = init_state(model, config), Cursor()
    step_function = make_step(model, config)
    with Checkpoints(run_dir / "checkpoints", config.keep_checkpoints) as checkpoints, Stop() as stop:
        if checkpoints.latest() is not None:
            state, cursor = checkpoints.restore(state)
            _drop_lines_after(run_dir / "metrics.jsonl", int(state.step))
        reporter = Reporter(run_dir / "metrics.jsonl", config)
        first = int(state.step) + 1
        with contextlib.closing(prefetch(batches(source, cursor, config.data.rows, config.data.length))) as stream:
            for step in range(first, config.steps + 1):
                batch, cursor = next(stream)
                state, metrics = step_function(state, batch)
                reporter.push(step, metrics, int((batch.segment_ids > 0).sum()))
                stopping = stop.asked
                if step % config.checkpoint_every == 0 or step == config.steps or stopping:
                    reporter.flush()  # a state that is not finite is never saved
                    checkpoints.save(state, cursor)
                if stopping:
                    print(f"asked to stop: saved step {step}, run the same command to go on", flush=True)
                    break
        reporter.flush()
    return model, jax.block_until_ready(state)


def prefetch(stream: Iterator[tuple[Batch, Cursor]], ahead: int = 2) -> Generator[tuple[Batch, Cursor], None, None]:
    """Makes the next batches in a thread while the devices work; an error in it is raised at `next`."""
    made: queue.Queue[Any] = queue.Queue(maxsize=ahead)
    done = threading.Event()

    def work() -> None:
        item: Any
        while not done.is_set():
            try:
                item = next(stream)
            except Exception as error:  # handed to the consumer, which raises it
                item = error
            while not done.is_set():
                try:
                    made.put(item, timeout=0.1)
                    break
                except queue.Full:
                    continue
            if isinstance(item, Exception):
                return

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while True:
            item = made.get()
            if isinstance(item, Exception):
                raise item
            yield item
    finally:
        done.set()
        thread.join()


def _drop_lines_after(path: Path, step: int) -> None:
    """Forgets lines of steps that will be done again."""
    if path.exists():
        lines = path.read_text(encoding="utf-8").splitlines()
        kept = [line for line in lines if json.loads(line)["step"] <= step]
        path.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
