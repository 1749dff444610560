"""The ragged exchange compiles for slices that have no such collective too."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from qwen3_jax.sharding import MeshConfig, named_sharding, ragged_all_to_all
from qwen3_jax.sharding.ahead_of_time.compile import compile_ahead
from qwen3_jax.sharding.ahead_of_time.topology import parse_topology, topology_devices


@pytest.mark.parametrize(("slice_name", "native"), [("v5e:4x4", True), ("v5e:4x8", False), ("v6e:4x8", True)])
def test_ragged_exchange(slice_name, native):
    devices = topology_devices(parse_topology(slice_name))
    mesh = MeshConfig(fsdp=len(devices) // 4, expert=4).build(devices)
    rows = PartitionSpec(("fsdp", "expert"))

    def local(operand, output, *places):
        return ragged_all_to_all(operand, output, *places, "expert")

    exchange = jax.jit(jax.shard_map(local, in_specs=rows, out_specs=rows, check_vma=False))
    layout = named_sharding(mesh, ("batch",))
    array = jax.ShapeDtypeStruct((64 * len(devices), 256), jnp.bfloat16, sharding=layout)
    places = [jax.ShapeDtypeStruct((4 * len(devices),), jnp.int32, sharding=layout)] * 4
    with jax.set_mesh(mesh):
        outcome = compile_ahead(exchange, array, array, *places)
    assert ("ragged-all-to-all" in outcome.text) == native
    assert native or "all-gather" in outcome.text
