"""The grouped product: each row meets its own group's matrix, whatever the tile, and so do the gradients."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen3_jax.experts.grouped import grouped_matmul
from qwen3_jax.kernels.cpu import tiled_matmul as module
from qwen3_jax.kernels.cpu.tiled_matmul import tile_rows
from qwen3_jax.kernels.tiles import tile_table

LOADS = {
    "even": [4, 4, 4, 4],
    "ragged": [1, 9, 0, 6],
    "first empty": [0, 0, 15, 1],
    "one takes all": [0, 16, 0, 0],
    "last takes all": [0, 0, 0, 16],
}


def random(*shape):
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


X, W, COTANGENT = random(16, 6), random(4, 5, 6), random(16, 5)


@partial(jax.jit, static_argnames="tile")
def tiled_with_gradients(sizes, tile):
    y, pull_back = jax.vjp(lambda x, w: module._tiled(x, w, sizes, tile), jnp.asarray(X), jnp.asarray(W))
    return y, *pull_back(jnp.asarray(COTANGENT))


@pytest.mark.parametrize("load", LOADS.values(), ids=LOADS)
@pytest.mark.parametrize("tile", [1, 3, 16])
def test_tiles_give_each_row_its_own_groups_matrix_and_gradients(load, tile):
    group = np.repeat(np.arange(4), load)
    y, dx, dw = tiled_with_gradients(jnp.asarray(load, jnp.int32), tile)
    close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
    close(y, np.einsum("roi,ri->ro", W[group], X))
    close(dx, np.einsum("roi,ro->ri", W[group], COTANGENT))
    for e in range(4):
        close(dw[e], COTANGENT[group == e].T @ X[group == e])
        assert e in group or not np.any(dw[e]), "an expert without rows has a gradient"


@pytest.mark.parametrize("load", LOADS.values(), ids=LOADS)
def test_ragged_dot_is_the_same_function(load):
    multiply = jax.jit(grouped_matmul, static_argnums=3)
    sizes = jnp.asarray(load, jnp.int32)
    np.testing.assert_allclose(
        multiply(X, W, sizes, "tiles"), multiply(X, W, sizes, "ragged_dot"), rtol=1e-5, atol=1e-5
    )


def test_tile_table_of_a_small_case():
    groups, starts, ends, count = tile_table(jnp.asarray([3, 0, 1], jnp.int32), 4, 2)
    assert count == 3
    assert groups[:3].tolist() == [0, 0, 2]
    assert starts[:3].tolist() == [0, 2, 3]
    assert ends[:3].tolist() == [3, 3, 4]


def test_tile_table_is_long_enough_for_any_load():
    rng = np.random.default_rng(0)
    table = jax.jit(tile_table, static_argnums=(1, 2))
    for tile in (1, 5, 16):
        for _ in range(20):
            sizes = rng.multinomial(40, rng.dirichlet(np.full(8, 0.3)))
            groups, _, _, count = table(jnp.asarray(sizes, jnp.int32), 40, tile)
            assert count == sum(-(-size // tile) for size in sizes) <= groups.shape[0]


@pytest.mark.parametrize(
    ("rows", "groups", "tile"), [(8, 128, 1), (64, 32, 1), (256, 32, 16), (1024, 32, 32), (4096, 32, 128), (9, 1, 9)]
)
def test_tiles_are_as_tall_as_a_group_within_limits(rows, groups, tile):
    assert tile_rows(rows, groups) == tile
