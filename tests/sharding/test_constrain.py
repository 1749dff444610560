"""The order of an array's dimensions in memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen3_jax.sharding import make_mesh, named_sharding, row_major

AXES = ("batch", "cache_heads", "cache_length")


@pytest.mark.parametrize("sizes", [None, {"data": 2, "tensor": 4}], ids=["no mesh", "mesh"])
def test_row_major_pins_each_part_and_moves_nothing(sizes):
    x = np.arange(4 * 8 * 16, dtype=np.float32).reshape(4, 8, 16)
    mesh = None if sizes is None else make_mesh(**sizes)
    given = jnp.asarray(x) if mesh is None else jax.device_put(x, named_sharding(mesh, AXES))
    part = given.sharding.shard_shape(x.shape)

    function = jax.jit(lambda x: row_major(x + 1, AXES))
    with jax.set_mesh(mesh) if mesh is not None else jax.default_device(jax.devices()[0]):
        lowered = function.lower(given)
        out = function(given)
    np.testing.assert_array_equal(out, x + 1)
    assert out.sharding.is_equivalent_to(given.sharding, 3)
    assert "LayoutConstraint" in lowered.as_text()
    assert "x".join(map(str, part)) in lowered.as_text().split("LayoutConstraint")[1].splitlines()[0]
    assert "all-gather" not in lowered.compile().as_text()
