"""The compiled step: its two forms agree, and it makes no copy of the cache."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen3_jax.infer.automaton import DONE, UNLIMITED, Tokens, initial
from qwen3_jax.infer.decode import DecodeState, decode
from qwen3_jax.infer.sampling import SamplingParams
from qwen3_jax.network.cache import init_cache
from qwen3_jax.network.model import Qwen3
from qwen3_jax.parameters.specs import restack
from tests.tiny import dense_config, moe_config


def make_state(config, layout, batch, capacity, max_new):
    zeros, ones = jnp.zeros((batch,), jnp.float32), jnp.ones((batch,), jnp.float32)
    return DecodeState(
        cache=init_cache(config, batch, capacity, layout, jnp.float32),
        token=jnp.full((batch,), 5, jnp.int32),
        automaton=initial(
            jnp.zeros((batch,), bool),
            jnp.full((batch,), UNLIMITED, jnp.int32),
            jnp.asarray(max_new, jnp.int32),
            jnp.zeros((batch, 1), jnp.int32),
            jnp.ones((batch,), jnp.int32),
        ),
        seen=jnp.zeros((batch, config.vocab_size), bool),
        keys=jax.random.split(jax.random.key(0), batch),
        sampling=SamplingParams(
            temperature=ones,
            top_k=jnp.zeros((batch,), jnp.int32),
            top_p=ones + 0,
            min_p=zeros,
            presence_penalty=zeros + 0,
        ),
        tokens=Tokens(think=jnp.int32(-1), end_think=jnp.int32(-1), ends=jnp.array([-1], jnp.int32), pad=jnp.int32(0)),
    )


@pytest.mark.parametrize("layout", ["stacked", "unrolled"])
def test_one_loop_of_k_steps_equals_k_steps(dense, layout):
    params = dense.params if layout == "unrolled" else restack(dense.params, dense.model.config)
    make = lambda: make_state(dense.model.config, layout, 2, 32, [5, 9])  # noqa: E731
    state, single = make(), []
    for _ in range(12):
        state, tokens, parts = decode(dense.model, params, state, 300, 1)
        single.append((np.asarray(tokens[0]), np.asarray(parts[0])))
    looped, tokens, parts = decode(dense.model, params, make(), 300, 12)
    np.testing.assert_array_equal(parts, [part for _, part in single])
    np.testing.assert_array_equal(tokens, [token for token, _ in single])
    np.testing.assert_array_equal(looped.automaton.phase, DONE)
    np.testing.assert_array_equal(looped.automaton.generated, [5, 9])
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
