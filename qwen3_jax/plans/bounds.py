"""What holds a program back on a machine: arithmetic, memory or the network, and what the slowest of them allows."""

import dataclasses

from jax.sharding import Mesh

from qwen3_jax.plans.estimate import Estimate
from qwen3_jax.plans.flops import Flops
from qwen3_jax.sharding.ahead_of_time.topology import Topology
from qwen3_jax.sharding.ahead_of_time.traffic import group_seconds


@dataclasses.dataclass(frozen=True)
class Bound:
    """Least seconds of a step by each of the three, if everything else cost nothing.

    Attributes:
      compute: the hardware's FLOPs at the chip's peak.
      memory: the bytes that weights, optimizer, cache and activations move, at the peak of HBM.
      network: the collectives one after another, each with all the links of its axes.
    """

    compute: float
    memory: float
    network: float

    @property
    def name(self) -> str:
        """ "compute", "memory" or "network": the largest."""
        parts = dataclasses.asdict(self)
        return max(parts, key=lambda part: parts[part])

    @property
    def seconds(self) -> float:
        """Of a step in which the three overlap wholly."""
        return max(self.compute, self.memory, self.network)

    @property
    def serial_seconds(self) -> float:
        """Of a step in which nothing overlaps."""
        return self.compute + self.memory + self.network

    def mfu(self, flops: Flops, topology: Topology, seconds: float | None = None) -> float:
        """Share of the peak that the model's FLOPs make at this bound."""
        return flops.model / (topology.chips * topology.chip.flops * (self.seconds if seconds is None else seconds))


def bound_of(flops: Flops, estimate: Estimate, network_seconds: float, topology: Topology) -> Bound:
    """From the FLOPs of the step, the traffic of one device, and the network's time."""
    chip = topology.chip
    return Bound(
        compute=flops.hardware / (topology.chips * chip.flops),
        memory=estimate.hbm_traffic * chip.devices / chip.hbm_bandwidth,
        network=network_seconds,
    )


def estimated_network_seconds(estimate: Estimate, topology: Topology, mesh: Mesh) -> float:
    """Of what the analytic model says is sent."""
    return sum(
        group_seconds(kind, moved, [axis for axis in axes if mesh.shape[axis] > 1], topology.chip, mesh)
        for (kind, axes), moved in estimate.communication.items()
    )
