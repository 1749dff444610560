"""The grouped product: each row meets its own group's matrix, whatever the tile, and so do the gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen3_jax import grouped_matmul as module
from qwen3_jax.grouped_matmul import grouped_matmul, tile_rows

LOADS = {
    "even": [4, 4, 4, 4],
    "ragged": [1, 9, 0, 6],
    "first empty": [0, 0, 15, 1],
    "one takes all": [0, 16, 0, 0],
    "last takes all": [0, 0, 0, 16],
}


def random(*shape):
    return jnp.asarray(np.random.default_rng(sum(shape)).normal(size=shape), jnp.float32)


def row_by_row(x, w, sizes):
    group = np.repeat(np.arange(len(sizes)), sizes)
    return jnp.stack([w[e] @ row for e, row in zip(group, x, strict=True)])


@pytest.mark.parametrize("load", LOADS.values(), ids=LOADS)
@pytest.mark.parametrize("tile", [1, 3, 4, 16])
def test_tiles_give_each_row_its_own_groups_matrix_and_gradients(load, tile):
    x, w, weight = random(16, 6), random(4, 5, 6), random(16, 5)
    sizes = jnp.asarray(load, jnp.int32)

    def loss(multiply):
        return jax.value_and_grad(lambda x, w: jnp.sum(weight * multiply(x, w)), argnums=(0, 1))

    got = loss(lambda x, w: module._tiled(x, w, sizes, tile))(x, w)
    want = loss(lambda x, w: row_by_row(x, w, load))(x, w)
    np.testing.assert_allclose(module._tiled(x, w, sizes, tile), row_by_row(x, w, load), rtol=1e-5, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), got, want)
    empty = np.asarray(load) == 0
    assert not np.any(np.asarray(got[1][1])[empty]), "an expert without rows has a gradient"


@pytest.mark.parametrize("load", LOADS.values(), ids=LOADS)
def test_ragged_dot_is_the_same_function(load):
    x, w, sizes = random(16, 6), random(4, 5, 6), jnp.asarray(load, jnp.int32)
    results = [grouped_matmul(x, w, sizes, implementation) for implementation in ("tiles", "ragged_dot")]
    np.testing.assert_allclose(*results, rtol=1e-5, atol=1e-5)


def test_tile_table_of_a_small_case():
    groups, starts, ends, count = module._tile_table(jnp.asarray([3, 0, 1], jnp.int32), 4, 2)
    assert count == 3
    assert groups[:3].tolist() == [0, 0, 2]
    assert starts[:3].tolist() == [0, 2, 3]
    assert ends[:3].tolist() == [3, 3, 4]


def test_tile_table_is_long_enough_for_any_load():
    rng = np.random.default_rng(0)
    for tile in (1, 2, 5, 16):
        for _ in range(20):
            sizes = rng.multinomial(40, rng.dirichlet(np.full(8, 0.3)))
            *_, groups, count = (None, *module._tile_table(jnp.asarray(sizes, jnp.int32), 40, tile))[1::3]
            assert count == sum(-(-size // tile) for size in sizes) <= groups.shape[0]


@pytest.mark.parametrize(
    ("rows", "groups", "tile"), [(8, 128, 1), (64, 32, 1), (256, 32, 16), (1024, 32, 32), (4096, 32, 128), (9, 1, 9)]
)
def test_tiles_are_as_tall_as_a_group_within_limits(rows, groups, tile):
    assert tile_rows(rows, groups) == tile
