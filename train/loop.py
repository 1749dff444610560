"""The training loop: dispatches step n, then reports step n-1; resumes exactly; stops where the loss is not finite."""

import contextlib
import json
import math
import queue
import signal
import threading
import time
import warnings
from collections.abc import Generator, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from jaxtyping import Array, Int

from qwen3_jax.model import Qwen3
from sharding import MeshConfig
from sharding.processes import is_first
from train.checkpoints import Checkpoints
from train.config import TrainConfig
from train.data import Data
from train.step import Metrics, TrainState, init_state, make_model, make_step
from train.streams import batch_sharding, gather_places, streams_here

T = TypeVar("T")


class Stop:
    """Asks the loop to save and leave; SIGTERM sets it while training (in the main thread).

    Many processes must leave at one step: JAX takes the signal of any of them and finds a step that none has passed.
    """

    def __init__(self) -> None:
        self._asked = False

    def asked(self, step: int) -> bool:
        """Whether to leave after this step; asked once a step."""
        if jax.process_count() > 1:
            return bool(multihost_utils.reached_preemption_sync_point(step))
        return self._asked

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


class Reporter:
    """Writes metrics.jsonl; holds one step back, so that reading its loss never waits for the step just dispatched.

    Every process has one, so that all stop where the loss is not finite; the first one writes.
    """

    def __init__(self, path: Path, config: TrainConfig, expert_devices: int = 1) -> None:
        self._path, self._config, self._expert_devices = path, config, expert_devices
        self._pending: tuple[int, Metrics, int | Array] | None = None
        self._since, self._tokens = time.perf_counter(), 0

    def push(self, step: int, metrics: Metrics, tokens: int | Array) -> None:
        """Takes step `step`'s metrics (still being computed) and reports the step before."""
        self.flush()
        self._pending = (step, metrics, tokens)

    def flush(self) -> None:
        """Reports the step held back.

        Raises:
          FloatingPointError: its loss is not finite; the line names the step.
        """
        if self._pending is None:
            return
        step, metrics, tokens = self._pending
        self._pending = None
        loss = float(metrics.loss)
        self._tokens += int(tokens)
        if not math.isfinite(loss):
            raise FloatingPointError(f"the loss must be finite, got {loss} at step {step}: lower the learning rate")
        now = time.perf_counter()
        line = {
            "step": step,
            "loss": round(loss, 5),
            "grad_norm": round(float(metrics.grad_norm), 4),
            "learning_rate": float(f"{float(metrics.learning_rate):.4g}"),
            **_balance(metrics.expert_load, self._expert_devices),
            "tokens_per_second": round(self._tokens / max(now - self._since, 1e-9)),
        }
        self._since, self._tokens = now, 0
        if not is_first():
            return
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        if step % self._config.report.every and step not in (1, self._config.steps):
            return
        print("  ".join(f"{key} {value}" for key, value in line.items()), flush=True)


def train(config: TrainConfig, data: Data) -> tuple[Qwen3, TrainState]:
    """Trains to `config.steps`, from the newest checkpoint in `run_dir` when there is one.

    Raises:
      FloatingPointError: the loss is not finite.
    """
    run_dir = Path(config.run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    mesh = make_training_mesh(config.mesh)
    model = make_model(config, mesh)
    rows, length, streams = config.data.rows, config.data.length, config.data.streams
    layout = batch_sharding(mesh, model.placement.rules)
    here = streams_here(streams, rows, length, layout)
    state, places = init_state(model, config, mesh), None
    step_function = make_step(model, config, mesh)
    with contextlib.ExitStack() as stack:
        checkpoints = stack.enter_context(Checkpoints(run_dir / "checkpoints", config.keep_checkpoints))
        stop = stack.enter_context(Stop())
        if mesh is not None:
            stack.enter_context(jax.set_mesh(mesh))
        if checkpoints.latest() is not None:
            state, places = checkpoints.restore(state)
            if is_first():
                _drop_lines_after(run_dir / "metrics.jsonl", int(state.step))
        reporter = Reporter(run_dir / "metrics.jsonl", config, 1 if mesh is None else mesh.shape["expert"])
        stream = stack.enter_context(contextlib.closing(prefetch(data.batches(here, places))))
        for step in range(int(state.step) + 1, config.steps + 1):
            share, after = next(stream)
            batch = share.place(layout)
            state, metrics = step_function(state, batch)
            reporter.push(step, metrics, _num_tokens(batch.segment_ids))
            stopping = stop.asked(step)
            if step % config.checkpoint_every == 0 or step == config.steps or stopping:
                reporter.flush()  # a state that is not finite is never saved
                checkpoints.save(state, partial(gather_places, after, streams))
            if stopping:
                if is_first():
                    print(f"asked to stop: saved step {step}, run the same command to go on", flush=True)
                break
        reporter.flush()
    return model, jax.block_until_ready(state)


@jax.jit
def _num_tokens(segment_ids: Int[Array, "B T"]) -> Int[Array, ""]:
    return jnp.sum(segment_ids > 0)


def _balance(expert_load: Sequence[Any], expert_devices: int) -> dict[str, float]:
    """How uneven the experts' load is: the busiest expert, and the busiest device of the expert axis, of any layer,
    over the mean. 1 is even. Empty for a dense model.

    In: loads [[4, 0, 2, 2]] on 2 devices      Out: {"expert_load_max": 2.0, "device_load_max": 1.0}
    """
    if not expert_load:
        return {}
    load = np.concatenate([np.asarray(run) for run in expert_load]).astype(float)
    by_device = load.reshape(len(load), expert_devices, -1).sum(-1)

    def worst(x: np.ndarray) -> float:
        return round(float((x.max(1) / np.maximum(x.mean(1), 1e-9)).max()), 3)

    return {"expert_load_max": worst(load), "device_load_max": worst(by_device)}


def make_training_mesh(config: MeshConfig) -> Mesh | None:
    """The mesh that the configuration asks for; None for one device, where there is nothing to lay out.

    Raises:
      ValueError: sizes that do not use every device.
    """
    if all(size == 1 for size in config.sizes.values()):
        if jax.process_count() > 1:
            raise ValueError(
                f"mesh must use the {len(jax.devices())} devices of all {jax.process_count()} processes, got one: set "
                "e.g. mesh.fsdp=-1"
            )
        if len(jax.devices()) > 1 and jax.default_backend() != "cpu":  # CPU has as many as one asks it to have
            warnings.warn(f"mesh: one of {len(jax.devices())} devices is used; set e.g. mesh.fsdp=-1", stacklevel=2)
        return None
    return config.build()


def prefetch(stream: Iterator[T], ahead: int = 2) -> Generator[T, None, None]:
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
