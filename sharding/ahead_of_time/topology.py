"""Devices that are not here: to compile for them, not to run on them. Needs libtpu or the CUDA plugin, and no chips."""

import dataclasses
import importlib.util
import math
import os
import re
from typing import Any

import jax

from qwen3_jax.sharding.ahead_of_time.chips import Chip, find_chip
from qwen3_jax.sharding.ahead_of_time.gpu_target import target_config

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
_HOST_GPUS = 8  # that one NVSwitch joins on a DGX or HGX board
_CUDA_PLUGINS = ("jax_plugins.xla_cuda12", "jax_plugins.xla_cuda13")


@dataclasses.dataclass(frozen=True)
class Topology:
    """One or several equal slices of TPU chips, or hosts of GPUs.

    Attributes:
      chip: of the table in `qwen3_jax.sharding.ahead_of_time.chips`.
      shape: chips along each dimension of one slice's torus; of GPUs (hosts, GPUs of a host).
      slices: slices that only the data-centre network joins; of GPUs 1.
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
       "h100:4x8"           Topology(h100, (4, 8)): 4 hosts of 8 GPUs

    Raises:
      ValueError: an unknown chip, or a shape that its network can not have.
    """
    name, _, sizes = text.partition(":")
    chip = find_chip(name)
    what, dimensions = (f"a slice of {name}", chip.torus) if chip.torus else (f"{name} (hosts x GPUs of a host)", 2)
    example = "x".join(["4"] * chip.torus) if chip.torus else f"1x{_HOST_GPUS}"
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", sizes) or sizes.count("x") + 1 != dimensions:
        raise ValueError(f"{what} must have {dimensions} sizes, got {text!r}: write them as in {name}:{example}")
    if slices < 1:
        raise ValueError(f"the number of slices must be positive, got {slices}: correct it")
    shape = tuple(int(size) for size in sizes.split("x"))
    if not chip.torus and shape[1] > _HOST_GPUS:
        raise ValueError(f"a host must have at most {_HOST_GPUS} GPUs, got {text!r}: write {name}:HOSTSx{_HOST_GPUS}")
    if not chip.torus and slices > 1:
        raise ValueError(f"GPUs must have no slices, got {slices}: write the hosts, as in {name}:{slices}x{shape[1]}")
    return Topology(chip, shape, slices)


def topology_devices(topology: Topology) -> list[Any]:
    """Its devices, for `MeshConfig.build` and for compiling; they hold no data.

    Raises:
      ValueError: the compiler of these chips is not installed, or it knows no such slice.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    devices = _tpu_devices(topology) if topology.chip.torus else _gpu_devices(topology)
    assert len(devices) == topology.num_devices, (len(devices), topology)
    return devices


def _tpu_devices(topology: Topology) -> list[Any]:
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError("compiling for TPUs needs libtpu, which is not installed: pip install 'qwen3-jax[tpu-plan]'")
    more = {"num_slices": topology.slices} if topology.slices > 1 else {}
    return _describe("libtpu must know the slice", topology.name, platform="tpu", topology_name=topology.name, **more)


def _gpu_devices(topology: Topology) -> list[Any]:
    """Devices in the order of the hosts; JAX spells the shape slices x hosts x GPUs."""
    if not has_cuda_plugin():
        raise ValueError(
            "compiling for GPUs needs JAX's CUDA plugin, which is not installed: pip install 'qwen3-jax[gpu-plan]'"
        )
    hosts, gpus = topology.shape
    description = target_config(topology.chip)
    return _describe(
        "the CUDA plugin must know the GPUs",
        topology.name,
        platform="cuda",
        target_config=description,
        topology=f"1x{hosts}x{gpus}",
    )


def has_cuda_plugin() -> bool:
    """Whether JAX's plugin for CUDA is installed; it compiles without a GPU."""
    return importlib.util.find_spec("jax_plugins") is not None and any(
        importlib.util.find_spec(name) is not None for name in _CUDA_PLUGINS
    )


def _describe(rule: str, name: str, **arguments: Any) -> list[Any]:
    from jax.experimental import topologies

    try:
        described = topologies.get_topology_desc(**arguments)
    except (jax.errors.JaxRuntimeError, NotImplementedError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{rule}, got {name}: {reason}") from None
    return list(described.devices)
