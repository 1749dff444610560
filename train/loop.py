"""The training loop: dispatches step n, then reports step n-1; resumes exactly; stops where the loss is not finite."""

import contextlib
import dataclasses
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Float

from qwen3_jax.files import write_json
from qwen3_jax.network.model import Qwen3
from qwen3_jax.parameters.specs import Params
from qwen3_jax.sharding import MeshConfig
from qwen3_jax.sharding.launch.processes import is_first
from qwen3_jax.train.checkpoints import Checkpoints
from qwen3_jax.train.config import TrainConfig
from qwen3_jax.train.data import Batch, Data
from qwen3_jax.train.objectives.objective import domain_losses
from qwen3_jax.train.report.reporter import Profile, Reporter, count_work
from qwen3_jax.train.report.sinks import Sink, keep_lines_until, make_sinks
from qwen3_jax.train.state import TrainState, abstract_state, init_state
from qwen3_jax.train.step import TRACES, make_model, make_step
from qwen3_jax.train.stop import Stop
from qwen3_jax.train.streams import batch_sharding, gather_places, prefetch, streams_here

# Parameters to begin with, on the mesh, in the model's layout; see `train.initial`.
Initial = Callable[[Qwen3, Mesh | None], Params]


class Evaluation:
    """Loss on held-out batches, the same ones every time. `evaluation(state)` gives sums of losses and token counts
    by domain, still being computed."""

    def __init__(
        self, config: TrainConfig, model: Qwen3, data: Data, here: Sequence[int], layout: NamedSharding | None
    ) -> None:
        self._every, self._steps = config.evaluation.every, config.steps
        self._batches: list[Batch] = []
        if not self._every:
            return
        self._batches = [share.place(layout) for share in data.held_out(here)]
        if not self._batches:
            raise ValueError(
                "evaluation must have a held-out example that fills a batch's row, got none: give more by "
                "evaluation.sources or data.held_out, or set evaluation.every=0"
            )
        domains = max(len(data.domain_names), 1)

        def losses(params: Any, batch: Batch) -> tuple[Float[Array, "domains"], Float[Array, "domains"]]:
            TRACES["evaluation"] += 1
            return domain_losses(model, params, batch, config.loss.chunk, domains)

        self._losses = jax.jit(losses)

    def due(self, step: int) -> bool:
        """Whether to evaluate after this step: every so many, and after the last."""
        return bool(self._every) and (step % self._every == 0 or step == self._steps)

    def __call__(self, state: TrainState) -> dict[str, Any]:
        """Of the averaged parameters where there are any."""
        params = state.averaged_params
        parts = [self._losses(params, batch) for batch in self._batches]
        totals, counts = zip(*parts, strict=True)
        return {"domain_loss": sum(totals[1:], totals[0]), "domain_tokens": sum(counts[1:], counts[0])}


@dataclasses.dataclass(frozen=True)
class _Run:
    """What stays the same over all steps.

    Attributes:
      layout: where a batch lies.
      here: the streams that this process makes.
    """

    config: TrainConfig
    data: Data
    model: Qwen3
    mesh: Mesh | None
    layout: NamedSharding | None
    here: Sequence[int]
    evaluation: Evaluation


def train(
    config: TrainConfig, data: Data, initial: Initial | None = None, stop: Stop | None = None
) -> tuple[Qwen3, TrainState]:
    """Trains to `config.steps`, from the newest checkpoint in `run_dir` when there is one.

    Args:
      initial: gives the parameters where there is no checkpoint; None draws them from the seed.
      stop: asks to leave early; None listens to SIGTERM while this runs.

    Returns:
      The model and the state, whose step is below `config.steps` where it was asked to leave.

    Raises:
      FloatingPointError: the loss or the gradient is not finite.
      OSError: the disk is full.
    """
    run_dir = Path(config.run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        stop = stop or stack.enter_context(Stop())
        mesh = make_training_mesh(config.mesh)
        model = make_model(config, mesh)
        _warn_of_remat(config)
        layout = batch_sharding(mesh, model.placement.rules)
        here = streams_here(config.data.streams, config.data.rows, config.data.length, layout)
        if mesh is not None:
            stack.enter_context(jax.set_mesh(mesh))
        # Before there are parameters: a mistake in it shows in seconds.
        run = _Run(config, data, model, mesh, layout, here, Evaluation(config, model, data, here, layout))
        with Checkpoints(run_dir / "checkpoints", config.keep_checkpoints) as checkpoints:
            state, places = begin(config, model, mesh, checkpoints, initial)
            state = _steps(run, checkpoints, state, places, stop)
    if int(state.step) < config.steps and is_first():
        print(f"asked to stop: saved step {int(state.step)}; the same command goes on from there", flush=True)
    return model, jax.block_until_ready(state)


def begin(
    config: TrainConfig, model: Qwen3, mesh: Mesh | None, checkpoints: Checkpoints, initial: Initial | None
) -> tuple[TrainState, list[Any] | None]:
    """The state to go on from, and the places in the data; without a checkpoint a new state, and None."""
    if checkpoints.latest() is None:
        return init_state(model, config, mesh, None if initial is None else initial(model, mesh)), None
    like = abstract_state(model, config, mesh)
    if model.lora is not None:  # no checkpoint holds the base
        assert initial is not None
        like = dataclasses.replace(like, frozen=initial(model, mesh))
    return checkpoints.restore(like)


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


def _steps(
    run: _Run, checkpoints: Checkpoints, state: TrainState, places: Sequence[Any] | None, stop: Stop
) -> TrainState:
    """All steps that are left, or those until it is asked to stop; a state that is not finite is never saved."""
    config, first = run.config, int(state.step) + 1
    step_function = make_step(run.model, config, run.mesh, max(len(run.data.domain_names), 1))
    with contextlib.ExitStack() as stack:
        reporter = stack.enter_context(_reporting(run, first))
        profile = stack.enter_context(contextlib.closing(Profile(config, first)))
        stream = stack.enter_context(contextlib.closing(prefetch(run.data.batches(run.here, places))))
        places_after: Mapping[int, Any] = {}

        def save() -> None:
            reporter.persist()  # before the checkpoint: no step that is saved lacks its line
            checkpoints.save(state, partial(gather_places, places_after, config.data.streams))

        for step in range(first, config.steps + 1):
            try:
                share, places_after = next(stream)
            except ValueError:  # a record that can not be read: what was learnt until there is kept
                if places_after and jax.process_count() == 1:  # others may be a step further
                    save()
                raise
            profile.before(step)
            with jax.profiler.StepTraceAnnotation("train", step_num=step):
                batch = share.place(run.layout)
                state, metrics = step_function(state, batch)
                reporter.push(step, metrics, count_work(batch.segment_ids), share)
                if run.evaluation.due(step):
                    reporter.attach(run.evaluation(state))
            profile.after(step, metrics)
            checkpoints.check()
            stopping = stop.asked(step)
            if step % config.checkpoint_every == 0 or step == config.steps or stopping:
                save()
            if stopping:
                break
        reporter.flush()
        if config.data.sources and first <= config.steps:
            _report_data(run, gather_places(places_after, config.data.streams))
    return state


def _report_data(run: _Run, places: Sequence[Any]) -> None:
    """What was read since the run began, by label and against the target: printed, and in run_dir/data.json."""
    if is_first():
        report = run.data.report(places)
        print(report, flush=True)
        write_json(Path(run.config.run_dir) / "data.json", report.to_dict())


@contextlib.contextmanager
def _reporting(run: _Run, first: int) -> Iterator[Reporter]:
    """The reporter, with sinks on process 0 only; what an earlier start wrote of the steps to come is forgotten."""
    sinks: list[Sink] = []
    last = None
    if is_first():
        last = keep_lines_until(Path(run.config.run_dir) / "metrics.jsonl", first - 1)
        sinks = make_sinks(run.config, first)
    try:
        expert_devices = 1 if run.mesh is None else run.mesh.shape["expert"]
        yield Reporter(run.config, sinks, run.data.domain_names, expert_devices, (last or {}).get("skipped", 0))
    finally:
        for sink in sinks:
            sink.close()


def _warn_of_remat(config: TrainConfig) -> None:
    if config.remat != "none" and config.layout == "unrolled" and jax.default_backend() == "cpu":
        warnings.warn(
            f"remat={config.remat} has next to no effect on CPU with layout=unrolled, where the compiler joins what is "
            "to be computed twice: add layout=stacked",
            stacklevel=2,
        )
