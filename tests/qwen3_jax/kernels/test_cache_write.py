"""Each backend's write into the cache is numpy's, and leaves alone what does not fit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen3_jax.kernels import cache_write
from qwen3_jax.kernels.cpu.cache_write import write_pieces


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("write", [write_pieces, cache_write._update, cache_write._scatter])
def test_pieces_are_written_where_they_fit(write, dtype):
    rng = np.random.default_rng(0)
    buffer, new = rng.normal(size=(3, 4, 2, 8, 2)), rng.normal(size=(1, 4, 2, 3, 2))
    slots, targets = [5, 6, 0, 4], [2, 1, 4, 0]  # the second ends past the last slot, the third is past the last row
    expected = buffer.copy()
    for piece in (0, 3):
        expected[1, targets[piece], :, slots[piece] : slots[piece] + 3] = new[0, piece]
    starts = jnp.array([[1, target, 0, slot, 0] for slot, target in zip(slots, targets, strict=True)], jnp.int32)
    arrays = (jnp.asarray(buffer, dtype), jnp.asarray(new, dtype), starts, jnp.array([True, False, False, True]))
    np.testing.assert_array_equal(jax.jit(write)(*arrays), jnp.asarray(expected, dtype))


@pytest.mark.parametrize("write", [write_pieces, cache_write._update, cache_write._scatter])
def test_one_piece_for_all_rows(write):
    """In lock step; one layer, without the leading axis."""
    buffer, new = jnp.zeros((2, 1, 4, 1)), jnp.arange(4.0).reshape(2, 1, 2, 1) + 1
    for slot, expected in ((1, [[0, 1, 2, 0], [0, 3, 4, 0]]), (3, [[0] * 4] * 2)):
        out = jax.jit(write)(buffer, new, jnp.array([[0, 0, slot, 0]]), jnp.array([slot == 1]))
        np.testing.assert_array_equal(out[:, 0, :, 0], expected)
