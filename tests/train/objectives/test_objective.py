"""Sums by domain, for the report."""

import jax.numpy as jnp
import numpy as np

from qwen3_jax.train.objectives.objective import by_domain


def test_sums_by_domain() -> None:
    domains = jnp.asarray([[0, 0, 2], [1, 2, 5]], jnp.int32)
    values = jnp.asarray([[1.0, 2.0, 4.0], [8.0, 16.0, 32.0]], jnp.float32)
    np.testing.assert_array_equal(by_domain(domains, values, 3), [3, 8, 20])  # 5 is none of the three
    np.testing.assert_array_equal(by_domain(domains, values, 1), [63])
