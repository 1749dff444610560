"""Devices of a slice that is not here: to compile for it, not to run on it. Needs libtpu and no TPU."""

import dataclasses
import importlib.util
import math
import os
import re
from typing import Any

import jax

from sharding.chips import Chip, find_chip

# libtpu asks the cloud's metadata server what machine it is on unless it is told; the last lets two processes use it.
_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """One or several equal slices of chips.

    Attributes:
      chip: of the table in `sharding.chips`.
      shape: chips along each dimension of one slice's torus.
      slices: slices that only the data-centre network joins.
    """

    chip: Chip
    shape: tuple[int, ...]
    slices: int = 1

    @property
    def chips(self) -> int:
        return math.prod(self.shape) * self.slices

    @property
    def num_devices(self) -> int:
        """Devices of JAX: what the sizes of a mesh multiply to."""
        return self.chips * self.chip.devices

    @property
    def name(self) -> str:
        """Of one slice, as `parse_topology` takes it."""
        return f"{self.chip.name}:{'x'.join(map(str, self.shape))}"


def parse_topology(text: str, slices: int = 1) -> Topology:
    """In: "v5p:8x8x4"     Out: Topology(v5p, (8, 8, 4))

    Raises:
      ValueError: an unknown chip, or a shape that its network can not have.
    """
    name, _, sizes = text.partition(":")
    chip = find_chip(name)
    if not chip.torus:
        raise ValueError(
            f"a topology must be one of TPUs, got {text!r}: plans for GPUs are not compiled here (the CUDA compiler "
            "needs its plugin and a description of the board), name a TPU slice such as v5p:4x4x4"
        )
    example = "x".join(["4"] * chip.torus)
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", sizes) or sizes.count("x") + 1 != chip.torus:
        raise ValueError(
            f"a slice of {name} must have {chip.torus} sizes, got {text!r}: write them as in {name}:{example}"
        )
    if slices < 1:
        raise ValueError(f"the number of slices must be positive, got {slices}: correct it")
    return Topology(chip, tuple(int(size) for size in sizes.split("x")), slices)


def topology_devices(topology: Topology) -> list[Any]:
    """Its devices, for `MeshConfig.build` and for compiling; they hold no data.

    Raises:
      ValueError: libtpu is not installed, or it knows no such slice.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError("compiling for TPUs needs libtpu, which is not installed: pip install 'qwen3-jax[tpu-plan]'")
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from jax.experimental import topologies

    more = {"num_slices": topology.slices} if topology.slices > 1 else {}
    try:
        described = topologies.get_topology_desc(platform="tpu", topology_name=topology.name, **more)
    except (jax.errors.JaxRuntimeError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"libtpu must know the slice, got {topology.name}: {reason}") from None
    devices = list(described.devices)
    assert len(devices) == topology.num_devices, (len(devices), topology)
    return devices
