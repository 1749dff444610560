"""A plan: what one compiled step of a model needs on a machine, as plain values for people and programs."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from jax.sharding import Mesh

from qwen3_jax.config import ModelConfig
from qwen3_jax.plans.bounds import bound_of, estimated_network_seconds
from qwen3_jax.plans.estimate import estimate
from qwen3_jax.plans.flops import Mode, step_flops
from qwen3_jax.plans.search import nearest_that_fits
from qwen3_jax.sharding import MeshConfig
from qwen3_jax.sharding.ahead_of_time.compile import Outcome
from qwen3_jax.sharding.ahead_of_time.hlo import parse_program
from qwen3_jax.sharding.ahead_of_time.topology import Topology
from qwen3_jax.sharding.ahead_of_time.traffic import Collective, communication, seconds

_PREALLOCATED = 0.75  # of a GPU's memory, JAX's default


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """What is planned.

    Attributes:
      model: the name or path it was asked by.
      batch_size: sequences over all chips.
    """

    model: str
    config: ModelConfig
    mesh: MeshConfig
    topology: Topology
    mode: Mode
    sequence_length: int
    batch_size: int


def describe(request: Request, mesh: Mesh, outcome: Outcome, held: Mapping[str, int], calls: int = 1) -> dict[str, Any]:
    """The plan, from a compiled program (or from the attempt).

    Args:
      held: bytes per device of "parameters" and of "optimizer" or "cache".
      calls: how often the program runs in a step (chunks of a prompt).

    Returns:
      `fits`, `peak_bytes_per_chip`, `hbm_bytes_per_chip`, `memory` (per chip), `communication_bytes` (received per chip
      and step, by kind), `communication` (by kind and axes, with how often), `flops_per_step` and
      `hardware_flops_per_step` (of all chips), `seconds`, `bound`, `mfu_bound`, `tokens_per_second_bound`, `notes` and
      what was asked. Where it does not fit, `largest_buffers` and `nearest_mesh` say what to do, and where there is no
      program bytes sent and the bound are those of the analytic model.
    """
    topology, devices = request.topology, request.topology.chip.devices
    sizes = {str(name): int(size) for name, size in mesh.shape.items()}
    asked = (request.mode, request.sequence_length, request.batch_size)
    flops = step_flops(request.config, *asked)
    analytic = estimate(request.config, sizes, *asked, request.mesh.table)
    if outcome.text:
        found = communication(parse_program(outcome.text), mesh)
        network = calls * sum(seconds(collective, topology.chip, mesh) for collective in found)
        sent, source = _by_kind_and_axes(found, calls * devices), "compiled"
    else:
        network = estimated_network_seconds(analytic, topology, mesh)
        sent, source = _estimated(analytic.communication, sizes, devices), "estimated"
    bound = bound_of(flops, analytic, network, topology)
    peak = (outcome.peak_bytes if outcome.peak_bytes is not None else analytic.peak) * devices
    fits = outcome.fits and peak <= topology.chip.hbm_bytes  # the CUDA compiler does not refuse what is too large
    tokens = request.batch_size * (1 if request.mode == "decode" else request.sequence_length)
    memory = {name: size * devices for name, size in held.items()}
    memory["activations"] = max(peak - sum(memory.values()), 0)
    plan: dict[str, Any] = {
        "model": request.model,
        "mode": request.mode,
        "topology": topology.name,
        "num_slices": topology.slices,
        "chips": topology.chips,
        "mesh": sizes,
        "rules": dict(request.mesh.rules),
        "sequence_length": request.sequence_length,
        "batch_size": request.batch_size,
        "fits": fits,
        "peak_bytes_per_chip": peak,
        "hbm_bytes_per_chip": topology.chip.hbm_bytes,
        "memory": memory,
        "communication_bytes": _by_kind(sent),
        "communication": sent,
        "communication_source": source,
        "flops_per_step": flops.model,
        "hardware_flops_per_step": flops.hardware,
        "seconds": dataclasses.asdict(bound),
        "bound": bound.name,
        "mfu_bound": bound.mfu(flops, topology),
        "mfu_without_overlap": bound.mfu(flops, topology, bound.serial_seconds),
        "tokens_per_second_bound": tokens / bound.seconds,
        "estimate": {
            "peak_bytes_per_chip": analytic.peak * devices,
            "parts": {name: size * devices for name, size in analytic.parts.items()},
            "communication_bytes": _by_kind(_estimated(analytic.communication, sizes, devices)),
            "hbm_traffic_bytes_per_chip": analytic.hbm_traffic * devices,
        },
        "compile_seconds": round(outcome.seconds, 1),
        "notes": _too_long(request) + notes(request.topology, request.mode, peak if fits else 0),
    }
    if not fits:
        plan["largest_buffers"] = _largest(outcome, memory, plan["estimate"]["parts"])
        plan["largest_buffers_source"] = "compiler" if outcome.buffers else "analytic model"
        plan["nearest_mesh"] = nearest_that_fits(request.config, topology, sizes, *asked)
    return plan


def notes(topology: Topology, mode: Mode, peak: int = 0) -> list[str]:
    """In what the compiled program differs from the one that runs there; empty for TPUs."""
    if topology.chip.torus:
        return []
    found = ["compiled without a GPU, on which kernels are tuned: the choice of kernels, not the program, may differ"]
    if mode == "train":
        found.append(
            "attention is XLA's, which holds a layer's scores: cuDNN's, which a GPU takes and which holds none, can "
            "not be compiled without cuDNN"
        )
    if peak > _PREALLOCATED * topology.chip.hbm_bytes:
        found.append(
            f"JAX takes {_PREALLOCATED:.0%} of a GPU's memory unless it is told more: set "
            f"XLA_PYTHON_CLIENT_MEM_FRACTION to {peak / topology.chip.hbm_bytes:.2f} or more"
        )
    return found


def _too_long(request: Request) -> list[str]:
    context = request.config.context_length
    if request.sequence_length <= context:
        return []
    return [f"a sequence of {request.sequence_length} tokens exceeds the model's context of {context}"]


def mesh_text(sizes: Mapping[str, int], rules: Mapping[str, Any] | None = None) -> str:
    """As `sharding.parse_mesh` takes it.

    In: {"data": 1, "expert": 8, "tensor": 2}, {"embed": None}     Out: "expert=8,tensor=2,rules.embed=null"
    """
    parts = [f"{axis}={size}" for axis, size in sizes.items() if size > 1] or ["data=1"]
    entries = {name: "null" if entry is None else entry for name, entry in (rules or {}).items()}
    return ",".join([*parts, *(f"rules.{name}={entry}" for name, entry in entries.items())])


def _by_kind_and_axes(found: Sequence[Collective], times: int) -> list[dict[str, Any]]:
    total: dict[tuple[str, tuple[str, ...]], list[int]] = {}
    for collective in found:
        entry = total.setdefault((collective.kind, collective.axes), [0, 0])
        entry[0] += collective.total_bytes * times
        entry[1] += collective.runs
    rows = [
        {"kind": kind, "axes": list(axes), "bytes": size, "runs": runs} for (kind, axes), (size, runs) in total.items()
    ]
    return sorted(rows, key=lambda row: -row["bytes"])


def _estimated(
    sent: Mapping[tuple[str, tuple[str, ...]], float], sizes: Mapping[str, int], devices: int
) -> list[dict[str, Any]]:
    rows = [
        {"kind": kind, "axes": [axis for axis in axes if sizes[axis] > 1], "bytes": int(size * devices)}
        for (kind, axes), size in sent.items()
    ]
    return sorted(rows, key=lambda row: -row["bytes"])


def _by_kind(rows: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for row in rows:
        kind = row["kind"].removeprefix("ragged-")  # as many bytes as the rows there are, where the load is even
        total[kind] = total.get(kind, 0) + row["bytes"]
    return total


def _largest(outcome: Outcome, held: Mapping[str, int], parts: Mapping[str, int]) -> list[dict[str, Any]]:
    """The compiler's list where it gives one, else what is held and what the analytic model adds to it."""
    if outcome.buffers:
        return [{"what": buffer.what, "bytes": buffer.bytes} for buffer in outcome.buffers[:8]]
    known = {name: size for name, size in held.items() if name != "activations"} | dict(parts)
    return [{"what": name, "bytes": size} for name, size in sorted(known.items(), key=lambda item: -item[1])[:8]]
