"""From a step's metrics on the device to one record; one step is held back, so that reading never waits for long."""

import dataclasses
import math
import os
import resource
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from qwen3_jax.config import ModelConfig
from qwen3_jax.plans.flops import attention_flops, head_parameters, layer_matrix_parameters
from qwen3_jax.sharding.ahead_of_time.chips import peak_flops
from qwen3_jax.train.config import TrainConfig
from qwen3_jax.train.report.sinks import Sink
from qwen3_jax.train.stop import NonFinite

_STATM = Path("/proc/self/statm")


class Reporter:
    """Hands a record of every step to the sinks; every process has one, so that all stop where the loss is not finite.

    Args:
      sinks: of this process; empty on all but the first.
      skipped: steps that were skipped before this start.
    """

    def __init__(
        self,
        config: TrainConfig,
        sinks: Sequence[Sink],
        domain_names: Sequence[str] = (),
        expert_devices: int = 1,
        skipped: int = 0,
    ) -> None:
        self._config, self._sinks, self._domains = config, sinks, domain_names
        self._expert_devices, self._non_finite = expert_devices, NonFinite(config, skipped)
        self._pending: tuple[int, Any, Any] | None = None
        self._evaluated: Any = None
        self._since = time.perf_counter()
        peak = config.report.peak_tflops * 1e12 or peak_flops(jax.devices()[0].device_kind)
        self._architecture = ModelConfig.from_hf(config.model)
        # With adapters most of the backward pass is not done: no figure that would mislead.
        self._peak = 0.0 if peak is None or config.lora is not None else peak * _devices(config)

    def push(self, step: int, metrics: Any, work: Any, share: Any = None) -> None:
        """Takes step `step`'s metrics (still being computed) and reports the step before.

        Args:
          metrics: `qwen3_jax.train.step.Metrics`, of which fields may be missing.
          work: what `count_work` gave for its batch.
          share: what this process put into the batch; its `examples` are named where the loss is not finite.
        """
        self.flush()
        values = {field.name: getattr(metrics, field.name) for field in dataclasses.fields(metrics)}
        self._pending = (step, _on_its_way((values, work)), share)

    def attach(self, evaluated: Mapping[str, Any]) -> None:
        """Adds what an evaluation after the step pushed last gave (still being computed)."""
        self._evaluated = _on_its_way(evaluated)

    def flush(self) -> None:
        """Reports the step held back.

        Raises:
          FloatingPointError: its loss or gradient is not finite; the line names step and data.
        """
        if self._pending is None:
            return
        step, waited, share = self._pending
        self._pending = None
        (metrics, (tokens, pairs)), evaluated = jax.tree.map(np.asarray, (waited, self._evaluated))
        self._evaluated = None
        self._non_finite.check(step, metrics, share)
        now = time.perf_counter()
        seconds = max(now - self._since, 1e-9)
        self._since = now
        if not self._sinks:
            return
        record = {"step": step} | step_numbers(metrics, self._domains, self._expert_devices)
        record["tokens_per_second"] = round(int(tokens) / seconds)
        if self._peak:
            flops = work_flops(self._architecture, float(tokens), float(pairs))
            record["mfu"] = round(flops / seconds / self._peak, 4)
        record["memory_bytes"] = memory_bytes()
        if self._config.on_non_finite == "skip":
            record["skipped"] = self._non_finite.skipped
        if evaluated is not None:
            record |= evaluated_numbers(evaluated, self._domains)
        for sink in self._sinks:
            sink.write(record)

    def persist(self) -> None:
        """Reports the step held back and returns when all records would survive the machine."""
        self.flush()
        for sink in self._sinks:
            sink.flush()


class Profile:
    """Traces the steps `report.profile_steps` (the first and the last one count) into run_dir/profile, for
    TensorBoard's profile plug-in, XProf or Perfetto."""

    def __init__(self, config: TrainConfig, first_step: int) -> None:
        steps = config.report.profile_steps
        self._steps = range(steps[0], steps[1] + 1) if steps else range(0)
        self._directory = Path(config.run_dir) / "profile"
        self._running = False
        if steps and not (set(self._steps) & set(range(first_step, config.steps + 1))):
            warnings.warn(
                f"report.profile_steps has no effect: this start does steps {first_step} to {config.steps}",
                stacklevel=2,
            )

    def before(self, step: int) -> None:
        """To be called before step `step` is dispatched."""
        if step in self._steps and not self._running:
            jax.profiler.start_trace(str(self._directory))
            self._running = True

    def after(self, step: int, done: Any) -> None:
        """To be called with what the step gives; waits for it where it is the last of the profile."""
        if self._running and step == self._steps[-1]:
            jax.block_until_ready(done)
            self.close()

    def close(self) -> None:
        """Ends a trace that is still going on."""
        if self._running:
            self._running = False
            jax.profiler.stop_trace()


@jax.jit
def count_work(segment_ids: Int[Array, "B T"]) -> tuple[Int[Array, ""], Float[Array, ""]]:
    """Tokens of a batch, and pairs of a query and a key that it sees.

    In: [[1, 1, 1, 2, 2, 0]]     Out: 5 and (1 + 2 + 3) + (1 + 2) = 9
    """
    index = jnp.broadcast_to(jnp.arange(segment_ids.shape[1]), segment_ids.shape)
    new = jnp.pad(segment_ids[:, 1:] != segment_ids[:, :-1], ((0, 0), (1, 0)))
    begins = jax.lax.cummax(jnp.where(new, index, 0), axis=1)
    real = segment_ids > 0
    return jnp.sum(real), jnp.sum(jnp.where(real, index - begins + 1, 0).astype(jnp.float32))


def work_flops(config: ModelConfig, tokens: float, pairs: float) -> float:
    """Forward and backward of a packed batch: what `plans.flops.step_flops` counts for rows of one document each,
    with the attention of the documents that are there."""
    products = 2.0 * (layer_matrix_parameters(config) + head_parameters(config)) * tokens
    return 3.0 * (products + attention_flops(config, pairs))


def memory_bytes() -> int:
    """The fullest local device's peak so far where its backend tells, else what the process has in memory now."""
    peaks = [(device.memory_stats() or {}).get("peak_bytes_in_use", 0) for device in jax.local_devices()]
    return int(max(peaks)) or resident_bytes()


def resident_bytes() -> int:
    """Of this process; where the system does not tell (outside Linux), the largest it ever was."""
    try:
        return int(_STATM.read_bytes().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def step_numbers(metrics: Mapping[str, Any], domains: Sequence[str], expert_devices: int) -> dict[str, Any]:
    """A step's `Metrics`, field by field and on the host already, as plain numbers; what is not finite is None, and
    what the step does not have is left out."""
    names = ("loss", "grad_norm", "learning_rate", "balance_loss", "z_loss")
    out: dict[str, Any] = {name: number(metrics[name]) for name in names if metrics.get(name) is not None}
    if "domain_loss" in metrics:
        out |= by_domain("domain_loss", metrics["domain_loss"], metrics["domain_tokens"], domains)
    return out | balance(metrics["expert_load"], expert_devices)


def evaluated_numbers(evaluated: Mapping[str, Any], domains: Sequence[str]) -> dict[str, Any]:
    """An evaluation's sums as `eval_loss` and `eval_domain_loss`."""
    totals, counts = np.asarray(evaluated["domain_loss"]), np.asarray(evaluated["domain_tokens"])
    loss = number(totals.sum() / max(counts.sum(), 1.0))
    return {"eval_loss": loss} | by_domain("eval_domain_loss", totals, counts, domains)


def by_domain(name: str, totals: Any, counts: Any, domains: Sequence[str]) -> dict[str, Any]:
    """Means of the domains that were met.

    In: totals [6, 0], counts [3, 0], domains ("code", "math")     Out: {name: {"code": 2.0}}
    """
    met = [index for index in range(len(domains)) if counts[index] > 0]
    return {name: {domains[index]: number(totals[index] / counts[index]) for index in met}}


def number(value: Any) -> float | None:
    """A float32 by its shortest spelling that reads back as the same float32; None where it is not finite."""
    single = np.float32(value)
    return float(str(single)) if np.isfinite(single) else None


def balance(expert_load: Sequence[Any], expert_devices: int) -> dict[str, Any]:
    """The experts' load, and how uneven it is. Empty for a dense model.

    Returns:
      expert_load, device_load: share of the assignments of each expert, and of each device of the expert axis, over all
        layers.
      expert_load_max: the busiest expert of any layer over the mean; 1 is even.
      device_load_max: the same of the devices of the expert axis.
      expert_load_entropy: of the load as a distribution, over its largest value log(E); the worst layer; 1 is even.

    In: loads [[4, 0, 2, 2]] on 2 devices
    Out: {"expert_load": [0.5, 0.0, 0.25, 0.25], "device_load": [0.5, 0.5], "expert_load_max": 2.0,
          "device_load_max": 1.0, "expert_load_entropy": 0.75}
    """
    if not expert_load:
        return {}
    load = np.concatenate([np.asarray(run) for run in expert_load]).astype(float)
    by_device = load.reshape(len(load), expert_devices, -1).sum(-1)
    share = load / np.maximum(load.sum(1, keepdims=True), 1e-9)
    entropy = -(share * np.log(np.maximum(share, 1e-30))).sum(1) / max(math.log(load.shape[1]), 1e-9)

    def worst(x: np.ndarray) -> float:
        return round(float((x.max(1) / np.maximum(x.mean(1), 1e-9)).max()), 3)

    def shares(x: np.ndarray) -> list[float]:
        return [round(float(each), 5) for each in x.sum(0) / max(x.sum(), 1e-9)]

    return {
        "expert_load": shares(load),
        "device_load": shares(by_device),
        "expert_load_max": worst(load),
        "device_load_max": worst(by_device),
        "expert_load_entropy": round(float(entropy.min()), 4),
    }


def _on_its_way(tree: Any) -> Any:
    """Starts the copies to the host, which are then there when they are read; on CPU there is nothing to copy."""
    if jax.default_backend() != "cpu":
        for leaf in jax.tree.leaves(tree):
            leaf.copy_to_host_async()
    return tree


def _devices(config: TrainConfig) -> int:
    return 1 if all(size == 1 for size in config.mesh.sizes.values()) else len(jax.devices())
