"""Masks and positions against literal matrices."""

import jax.numpy as jnp
import numpy as np

from qwen3_jax.kernels.masks import cache_mask, causal_mask, positions_from_mask, positions_from_segments


def test_positions_count_real_tokens_only():
    real = jnp.array([[0, 0, 1, 1, 1], [1, 1, 1, 0, 0]], bool)
    np.testing.assert_array_equal(positions_from_mask(real), [[0, 0, 0, 1, 2], [0, 1, 2, 2, 2]])


def test_positions_restart_at_each_document():
    segments = jnp.array([[1, 1, 1, 2, 2, 0, 0], [4, 3, 3, 3, 3, 3, 9]])
    np.testing.assert_array_equal(positions_from_segments(segments), [[0, 1, 2, 0, 1, 0, 1], [0, 0, 1, 2, 3, 4, 0]])


def test_causal_mask_hides_the_future_and_padding():
    mask = causal_mask(jnp.array([[0, 1, 1]], bool))
    np.testing.assert_array_equal(mask[0], [[0, 0, 0], [0, 1, 0], [0, 1, 1]])


def test_causal_mask_keeps_documents_apart():
    mask = causal_mask(jnp.ones((1, 4), bool), jnp.array([[1, 1, 2, 2]]))
    np.testing.assert_array_equal(mask[0], [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]])


def test_cache_mask_is_by_position_and_not_by_slot():
    mask = cache_mask(jnp.array([[0, -1, 2, 1, -1]]), jnp.array([[1, 2, -1]]))
    np.testing.assert_array_equal(mask[0], [[1, 0, 0, 1, 0], [1, 0, 1, 1, 0], [0, 0, 0, 0, 0]])
