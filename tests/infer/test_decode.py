"""The compiled step: its two forms agree, and it makes no copy of the cache."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen3_jax.infer.automaton import DONE, NOTHING
from qwen3_jax.infer.decode import decode
from qwen3_jax.infer.engine import plain_state
from qwen3_jax.network.cache import init_cache
from qwen3_jax.network.model import Qwen3
from qwen3_jax.parameters.specs import restack
from tests.tiny import dense_config, moe_config


def make_state(config, layout, batch, capacity, max_new, lock_step=True):
    cache = init_cache(config, batch, capacity, layout, jnp.float32, lock_step=lock_step)
    state = plain_state(cache, batch, config.vocab_size, temperature=1.0, top_k=0, top_p=1.0, log_probs=True)
    automaton = dataclasses.replace(state.rows.automaton, max_new_tokens=jnp.asarray(max_new, jnp.int32))
    rows = dataclasses.replace(state.rows, token=jnp.full((batch,), 5, jnp.int32), automaton=automaton)
    return dataclasses.replace(state, rows=rows)


@pytest.mark.parametrize("layout", ["stacked", "unrolled"])
def test_one_loop_of_k_steps_equals_k_steps(dense, layout):
    params = dense.params if layout == "unrolled" else restack(dense.params, dense.model.config)
    make = lambda: make_state(dense.model.config, layout, 2, 32, [5, 9])  # noqa: E731
    state, single = make(), []
    for _ in range(12):
        state, out = decode(dense.model, params, state, 300, 1)
        single.append(jax.tree.map(np.asarray, out))
    looped, out = decode(dense.model, params, make(), 300, 12)
    steps = jax.tree.map(lambda *parts: np.concatenate(parts), *single)
    for name in ("token", "part", "sampled"):
        np.testing.assert_array_equal(getattr(out, name), getattr(steps, name))
    real = steps.part != NOTHING
    for name in ("log_prob", "sampling_log_prob"):
        np.testing.assert_allclose(getattr(out, name)[real], getattr(steps, name)[real], rtol=1e-5)
    np.testing.assert_array_equal(looped.rows.automaton.phase, DONE)
    np.testing.assert_array_equal(looped.rows.automaton.generated, [5, 9])
    # The loop ends with its last row; the single steps went on with nothing to do.
    assert (looped.cache.length.tolist(), state.cache.length.tolist()) == ([9, 9], [12, 12])


@pytest.mark.parametrize("num_steps", [1, 4])
@pytest.mark.parametrize("layout", ["stacked", "unrolled"])
@pytest.mark.parametrize("make_config", [dense_config, moe_config])
def test_a_step_copies_no_cache(layout, make_config, num_steps):
    """Temporary memory of the compiled step stays below a tenth of the cache, so nothing copies it."""
    layers = 24 if layout == "stacked" else 8  # scanned layers cost nothing; of 8, a copy of one would show too
    config = make_config(num_hidden_layers=layers, vocab_size=400)
    if layout == "unrolled" and num_steps > 1:
        pytest.skip("on CPU the unrolled layout steps one at a time, and elsewhere it is not chosen")
    model = Qwen3(config, layout=layout)
    params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    state = make_state(config, layout, 4, 1024, [9] * 4)
    memory = decode.lower(model, params, state, 400, num_steps).compile().memory_analysis()
    cache_bytes = sum(x.size * x.dtype.itemsize for x in (*state.cache.keys, *state.cache.values))
    assert memory.temp_size_in_bytes < 0.1 * cache_bytes
    assert memory.alias_size_in_bytes >= cache_bytes  # donated: written in place
