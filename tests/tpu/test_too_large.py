"""What does not fit is an answer, with the compiler's own number."""

import jax
import jax.numpy as jnp
import pytest

from qwen3_jax.sharding import MeshConfig, named_sharding
from qwen3_jax.sharding.ahead_of_time.compile import compile_ahead
from qwen3_jax.sharding.ahead_of_time.topology import parse_topology, topology_devices

GIB = 2**30


@pytest.mark.parametrize(("gib", "fits"), [(5, True), (12, False)])
def test_the_peak_counts_arguments_once(gib, fits):
    """An array of so many GiB and its sines: twice its size on a chip of 16 GB."""
    mesh = MeshConfig().build(topology_devices(parse_topology("v5e:2x2"))[:1])
    array = jax.ShapeDtypeStruct((gib * GIB // 4096, 1024), jnp.float32, sharding=named_sharding(mesh, (None, None)))
    with jax.set_mesh(mesh):
        outcome = compile_ahead(jax.jit(jnp.sin), array)
    assert outcome.fits == fits
    assert outcome.peak_bytes == pytest.approx(2 * gib * GIB, rel=0.02)
