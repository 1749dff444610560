"""The grouped product's kernels, interpreted on CPU: each row meets its own group's matrix, and so do the gradients."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, use_abstract_mesh

from qwen3_jax.experts.grouped import grouped_matmul
from qwen3_jax.kernels.triton import tile_rows

LOADS = {
    "ragged": [7, 0, 19, 14],
    "one takes all": [0, 0, 40, 0],
    "rows past the last group": [3, 17, 0, 9],
    "no rows": [0, 0, 0, 0],
}


def random(*shape):
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


X, W, COTANGENT = random(40, 24), random(4, 12, 24), random(40, 12)


@partial(jax.jit, static_argnames="implementation")
def product_with_gradients(sizes, implementation):
    y, pull_back = jax.vjp(lambda x, w: grouped_matmul(x, w, sizes, implementation), jnp.asarray(X), jnp.asarray(W))
    return y, *pull_back(jnp.asarray(COTANGENT))


@pytest.mark.parametrize("load", LOADS.values(), ids=LOADS)
@pytest.mark.parametrize("implementation", ["megablox", "triton"])
def test_each_row_meets_its_own_groups_matrix_and_so_do_the_gradients(implementation, load):
    y, dx, dw = product_with_gradients(jnp.asarray(load, jnp.int32), implementation)
    used, group = sum(load), np.repeat(np.arange(4), load)
    close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
    close(y[:used], np.einsum("roi,ri->ro", W[group], X[:used]))
    close(dx[:used], np.einsum("roi,ro->ri", W[group], COTANGENT[:used]))
    assert not np.any(y[used:])
    assert not np.any(dx[used:])
    for e in range(4):
        close(dw[e], COTANGENT[:used][group == e].T @ X[:used][group == e])


@pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated:DeprecationWarning")  # jax 0.12
def test_the_gpu_kernels_lower_for_cuda_in_both_directions():
    """On a machine without one: what Triton's lowering does not know fails here."""

    def both(x, w, sizes, cotangent):
        y, pull_back = jax.vjp(lambda x, w: grouped_matmul(x, w, sizes, "triton"), x, w)
        return y, *pull_back(cotangent)

    device = AbstractDevice(device_kind="NVIDIA H100 80GB HBM3", num_cores=132, platform="gpu")
    mesh = AbstractMesh((1,), ("data",), axis_types=(AxisType.Auto,), abstract_device=device)
    for dtype in (jnp.bfloat16, jnp.float32):
        x, w, cotangent = (jax.ShapeDtypeStruct(shape, dtype) for shape in ((512, 256), (8, 192, 256), (512, 192)))
        with use_abstract_mesh(mesh):
            traced = jax.jit(both).trace(x, w, jax.ShapeDtypeStruct((8,), jnp.int32), cotangent)
            text = traced.lower(lowering_platforms=("cuda",)).as_text()
        assert text.count("gpu$xla.gpu.triton") == 3


def test_tiles_are_as_tall_as_a_group_within_limits():
    assert [tile_rows(rows, 128) for rows in (8, 4096, 8192, 65536)] == [16, 32, 64, 128]
