"""Programs compiled ahead of time for TPUs that are not here. Needs libtpu (extra `tpu-plan`), and no TPU.

`make test-tpu` runs these in one process. What libtpu wants in the environment is set by
`sharding/ahead_of_time/topology.py`, before it is loaded; with it a second process may load libtpu too.
JAX itself stays on the CPU (`tests/conftest.py`).
"""

import importlib.util
import math
import re

import pytest

from qwen3_jax.sharding import MeshConfig
from qwen3_jax.sharding.ahead_of_time.compile import Outcome
from qwen3_jax.sharding.ahead_of_time.topology import parse_topology, topology_devices

SLICES = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}  # four chips each


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if importlib.util.find_spec("libtpu") is None:
        absent = pytest.mark.skip(reason="libtpu is not installed: make test-tpu, or pip install '.[tpu-plan]'")
        for item in items:
            item.add_marker(absent)


@pytest.fixture(scope="session", params=SLICES.values(), ids=SLICES)
def mesh_of_slice(request: pytest.FixtureRequest):
    """Makes a mesh over chips of a slice from the sizes of its axes."""
    devices = topology_devices(parse_topology(request.param))
    return lambda **sizes: MeshConfig(**sizes).build(devices[: math.prod(sizes.values())])


def kernels_of(outcome: Outcome) -> list[str]:
    """Names of the Pallas kernels that a compiled program calls, one a call: XLA calls an instruction after them.

    In: "%splash_mha_fwd_segmented.3 = ... custom_call_target="tpu_custom_call" ..."     Out: ["splash_mha_fwd"]
    """
    calls = [line for line in outcome.text.splitlines() if 'custom_call_target="tpu_custom_call"' in line]
    names = [line.partition(" = ")[0] for line in calls]
    return sorted((re.search(r"splash_mha_(?:fwd|dq|dkv)|tgmm|gmm", name) or [name])[0] for name in names)
