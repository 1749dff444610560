"""Meshes that a model, a batch and a machine allow, best first by the analytic model."""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from qwen3_jax.config import ModelConfig
from qwen3_jax.parameters.placement import place
from qwen3_jax.plans.bounds import Bound, bound_of, estimated_network_seconds
from qwen3_jax.plans.estimate import Estimate, estimate
from qwen3_jax.plans.flops import Mode, step_flops
from qwen3_jax.sharding import MESH_AXES, MeshConfig
from qwen3_jax.sharding.ahead_of_time.topology import Topology, topology_devices

_ROOM = 0.92  # of a chip's memory, for an estimate to count as fitting


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A mesh and what the analytic model says of it."""

    sizes: dict[str, int]
    estimate: Estimate
    bound: Bound
    peak_per_chip: int
    fits: bool


def legal_meshes(
    config: ModelConfig, num_devices: int, mode: Mode, sequence_length: int, batch_size: int, slices: int = 1
) -> Iterator[dict[str, int]]:
    """Sizes of all meshes that divide the model, the batch and the sequence.

    The `expert` axis is for mixtures (for a dense model it is another `fsdp`), `context` for training; between slices
    lies `data`.
    """
    for sizes in _products(num_devices):
        if sizes["data"] % slices or (sizes["expert"] > 1 and not config.num_experts):
            continue
        if sizes["context"] > 1 and (mode != "train" or sequence_length % sizes["context"]):
            continue
        if batch_size % (sizes["data"] * sizes["fsdp"] * sizes["expert"]):
            continue
        try:
            place(config, jax.sharding.AbstractMesh(tuple(sizes.values()), MESH_AXES))
        except ValueError:
            continue
        yield sizes


def search(
    config: ModelConfig, topology: Topology, mode: Mode, sequence_length: int, batch_size: int, finalists: int = 40
) -> list[Candidate]:
    """All legal meshes: those that fit first, fastest first.

    Network times depend on how a mesh lies on the torus, which takes a while to work out: it is done for the
    `finalists` that send least for their memory, and only they are returned.
    """
    asked = (mode, sequence_length, batch_size)
    chip = topology.chip

    def rough(pair: tuple[dict[str, int], Estimate]) -> tuple[bool, float]:
        _, found = pair
        sent = sum(found.communication.values()) / chip.link_bandwidth + found.hbm_traffic / chip.hbm_bandwidth
        return not _fits(found, topology), sent

    legal = legal_meshes(config, topology.num_devices, *asked, topology.slices)
    ranked = sorted(((sizes, estimate(config, sizes, *asked)) for sizes in legal), key=rough)
    devices = topology_devices(topology)
    flops = step_flops(config, *asked)
    candidates = []
    for sizes, found in ranked[:finalists]:
        settings: dict[str, Any] = {**sizes, "slices": topology.slices}
        mesh = MeshConfig(**settings).build(devices)
        bound = bound_of(flops, found, estimated_network_seconds(found, topology, mesh), topology)
        candidates.append(Candidate(sizes, found, bound, found.peak * chip.devices, _fits(found, topology)))
    return sorted(candidates, key=lambda candidate: (not candidate.fits, candidate.bound.serial_seconds))


def nearest_that_fits(
    config: ModelConfig,
    topology: Topology,
    wanted: Mapping[str, int],
    mode: Mode,
    sequence_length: int,
    batch_size: int,
) -> dict[str, int] | None:
    """The legal mesh nearest to `wanted` (fewest doublings and halvings) that fits by the analytic model and is not
    `wanted` itself; None where no mesh of these chips does."""

    def distance(sizes: Mapping[str, int]) -> float:
        return sum(abs(math.log2(sizes[axis] / wanted[axis])) for axis in MESH_AXES)

    asked = (mode, sequence_length, batch_size)
    legal = legal_meshes(config, topology.num_devices, *asked, topology.slices)
    others = (sizes for sizes in legal if sizes != dict(wanted))
    fitting = (sizes for sizes in others if _fits(estimate(config, sizes, *asked), topology))
    return min(fitting, key=distance, default=None)


def _fits(found: Estimate, topology: Topology) -> bool:
    return found.peak * topology.chip.devices <= _ROOM * topology.chip.hbm_bytes


def _products(number: int, axes: tuple[str, ...] = MESH_AXES) -> Iterator[dict[str, int]]:
    """Sizes of the axes that multiply to `number`."""
    if len(axes) == 1:
        yield {axes[0]: number}
        return
    for size in range(1, number + 1):
        if number % size == 0:
            for rest in _products(number // size, axes[1:]):
                yield {axes[0]: size, **rest}
