"""Programs compiled ahead of time for GPUs that are not here. Needs JAX's CUDA plugin (extra `gpu-plan`), and no GPU.

`make test-gpu-plan` runs these in an environment of their own: with the plugin in it, JAX looks for a GPU in whatever
runs there. JAX itself stays on the CPU (`tests/conftest.py`).
"""

import math

import pytest

from qwen3_jax.sharding import MeshConfig
from qwen3_jax.sharding.ahead_of_time.topology import has_cuda_plugin, parse_topology, topology_devices


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not has_cuda_plugin():
        absent = pytest.mark.skip(
            reason="JAX's CUDA plugin is not installed: make test-gpu-plan, or pip install '.[gpu-plan]'"
        )
        for item in items:
            if "gpu" in item.path.parts:
                item.add_marker(absent)


@pytest.fixture(scope="session")
def mesh_of_gpus():
    """Makes a mesh over GPUs of two hosts of two from the sizes of its axes."""
    devices = topology_devices(parse_topology("h100:2x2"))
    return lambda **sizes: MeshConfig(**sizes).build(devices[: math.prod(sizes.values())])
