"""The cache's contract: positions decide, rows are on their own, nothing is overwritten, copied or compiled twice."""

import dataclasses
from functools import partial

import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np
import pytest

from qwen3_jax.network.cache import abstract_cache, clear_rows, grow_cache, init_cache, insert_rows
from qwen3_jax.network.model import Qwen3
from qwen3_jax.parameters.placement import place
from qwen3_jax.sharding import make_mesh
from tests.tiny import dense_config, moe_config, random_params

CONFIG = dense_config()
LAYOUTS = ("stacked", "unrolled")


@partial(jax.jit, static_argnames="model")
def run(model, params, tokens, cache, mask=None):
    return model.apply({"params": params}, tokens, attention_mask=mask, cache=cache)


def tokens_of(batch, length, seed=1):
    return jnp.asarray(np.random.default_rng(seed).integers(0, 512, (batch, length)), jnp.int32)


def buffers(cache):
    return [np.asarray(x) for x in (*cache.keys, *cache.values)]


@pytest.fixture
def compiles():
    """Programs that XLA compiled, by anyone, since the fixture was made."""
    seen = []

    def listen(event, duration, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            seen.append(duration)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield seen
    jax.monitoring.unregister_event_duration_listener(listen)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows_are_admitted_and_ended_one_by_one(layout):
    """Prompts of different lengths, copied into rows of a larger cache at different times, decode as if alone."""
    model, params = Qwen3(CONFIG), random_params(CONFIG, layout)
    tokens, lengths = tokens_of(2, 10), (6, 3)
    whole = jax.jit(model.apply)({"params": params}, tokens).logits
    padded, mask = np.zeros((2, 8), np.int32), np.zeros((2, 8), bool)
    for row, length in enumerate(lengths):  # one padded on the left, one on the right
        at = slice(8 - length, 8) if row == 0 else slice(0, length)
        padded[row, at], mask[row, at] = tokens[row, :length], True
    prefix = run(model, params, padded, init_cache(CONFIG, 2, 8, layout, jnp.float32), mask).cache
    cache = init_cache(CONFIG, 3, 16, layout, jnp.float32, lock_step=False)
    cache = insert_rows(cache, jnp.array([2, 0]), prefix)
    np.testing.assert_array_equal(cache.length, [8, 0, 8])
    np.testing.assert_array_equal(cache.positions[2], [-1, -1, *range(6)] + [-1] * 8)
    np.testing.assert_array_equal(cache.positions[0], [0, 1, 2] + [-1] * 13)

    def feed(cache, first, last):
        fed = jnp.stack([tokens[1, first], jnp.int32(0), tokens[0, last]])[:, None]
        return run(model, params, fed, cache)

    for step in range(3):
        out = feed(cache, lengths[1] + step, lengths[0] + step)
        cache = out.cache
        np.testing.assert_allclose(out.logits[0, 0], whole[1, lengths[1] + step], atol=2e-5)
        np.testing.assert_allclose(out.logits[2, 0], whole[0, lengths[0] + step], atol=2e-5)
    cache = clear_rows(cache, jnp.array([True, True, False]))
    np.testing.assert_array_equal(cache.length, [0, 0, 11])
    cache = insert_rows(cache, jnp.array([1, 3]), prefix)  # 3 is no row: dropped
    out = run(model, params, jnp.array([[0], [tokens[0, 6]], [tokens[0, 9]]]), cache)
    np.testing.assert_allclose(out.logits[1:, 0], whole[0, [6, 9]], atol=2e-5)
    np.testing.assert_array_equal(out.cache.positions[0], [0] + [-1] * 15)


@pytest.mark.parametrize("sizes", [{"data": 2, "tensor": 2}, {"fsdp": 4}], ids=str)
def test_rows_on_a_mesh_are_rows_on_one_device(sizes):
    """Also a prefix of two rows on four devices, which it does not divide over."""
    mesh = make_mesh(**sizes, devices=jax.devices()[:4])
    caches = []
    for placement in (None, place(CONFIG, mesh)):
        model = Qwen3(CONFIG) if placement is None else Qwen3(CONFIG, placement=placement)
        made = partial(init_cache, CONFIG, layout="stacked", dtype=jnp.bfloat16, placement=model.placement)
        params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), random_params(CONFIG))
        with jax.set_mesh(make_mesh(devices=jax.devices()[:1]) if placement is None else mesh):
            prefix = run(model, params, tokens_of(2, 4), made(batch=2, capacity=8)).cache
            cache = insert_rows(made(batch=4, capacity=16, lock_step=False), jnp.array([3, 1]), prefix)
            cache = clear_rows(run(model, params, tokens_of(4, 1), cache).cache, jnp.arange(4) == 2)
        caches.append(cache)
    one, many = caches
    assert {len(x.sharding.device_set) for x in jax.tree.leaves(many)} == {4}
    np.testing.assert_array_equal(many.length, [1, 5, 0, 5])
    np.testing.assert_array_equal(many.positions, one.positions)
    for a, b in zip(buffers(many), buffers(one), strict=True):
        np.testing.assert_allclose(a.astype(np.float32), b.astype(np.float32), atol=0.05)


@pytest.mark.parametrize("lock_step", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_nothing_is_overwritten_past_the_capacity(layout, lock_step):
    model, params = Qwen3(CONFIG), random_params(CONFIG, layout)
    cache = run(
        model, params, tokens_of(2, 5), init_cache(CONFIG, 2, 8, layout, jnp.float32, lock_step=lock_step)
    ).cache
    if not lock_step:
        cache = dataclasses.replace(cache, length=jnp.array([5, 2]))  # the second row takes four more tokens
    with pytest.raises(ValueError, match="must have room for the new tokens, got 4 at slot 5 of 8: grow_cache first"):
        model.apply({"params": params}, tokens_of(2, 4), cache=cache)
    out = run(model, params, tokens_of(2, 4), cache)
    full = np.array([True, lock_step])
    np.testing.assert_array_equal(np.isnan(out.logits), np.broadcast_to(full[:, None, None], out.logits.shape))
    rows = np.flatnonzero(full)
    np.testing.assert_array_equal(out.cache.positions[rows], cache.positions[rows])
    for before, after in zip(buffers(cache), buffers(out.cache), strict=True):
        np.testing.assert_array_equal(np.take(after, rows, axis=-4), np.take(before, rows, axis=-4))
    again = run(model, params, tokens_of(2, 1), out.cache)  # a full row stays full
    assert np.isnan(again.logits[0]).all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_per_row_writes_copy_no_cache(layout, dtype):
    """For the lock-step form, see tests/infer/test_decode.py."""
    layers = 24 if layout == "stacked" else 8  # scanned layers cost nothing; of 8, a copy of one would show too
    config = moe_config(num_hidden_layers=layers, mlp_only_layers=tuple(range(layers // 2)), vocab_size=64)
    model = Qwen3(config, layout=layout, dtype=jnp.dtype(dtype))
    params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    cache = abstract_cache(config, 4, 2048, layout, jnp.dtype(dtype), lock_step=False)
    step = jax.jit(lambda params, tokens, cache: model.apply({"params": params}, tokens, cache=cache), donate_argnums=2)
    memory = step.lower(params, jnp.zeros((4, 1), jnp.int32), cache).compile().memory_analysis()
    held = sum(x.size * x.dtype.itemsize for x in (*cache.keys, *cache.values))
    assert memory.temp_size_in_bytes < 0.1 * held
    assert memory.alias_size_in_bytes >= held


def test_an_empty_cache_on_a_mesh_is_compiled_once(compiles):
    mesh = make_mesh(data=2, tensor=2, devices=jax.devices()[:4])
    with jax.set_mesh(mesh):
        made = partial(init_cache, CONFIG, 2, 24, "stacked", "float32", place(CONFIG, mesh))
        made()
        first = len(compiles)
        cache = made()
        assert first > 0
        assert len(compiles) == first
        expected = abstract_cache(CONFIG, 2, 24, "stacked", "float32", place(CONFIG, mesh), mesh=mesh)
        for got, said in zip(jax.tree.leaves(cache), jax.tree.leaves(expected), strict=True):
            assert (got.shape, got.dtype) == (said.shape, said.dtype)
            assert got.sharding.is_equivalent_to(said.sharding, got.ndim)


def test_growing_frees_each_array_and_is_compiled_once(compiles):
    def grown():
        cache = init_cache(CONFIG, 2, 8, "unrolled", jnp.float32)
        cache = run(Qwen3(CONFIG), params, tokens_of(2, 5), cache).cache
        return cache, buffers(cache), grow_cache(cache, 12)

    params = random_params(CONFIG, "unrolled")
    old, before, new = grown()
    assert all(x.is_deleted() for x in (*old.keys, *old.values, old.positions))
    np.testing.assert_array_equal(new.positions, [[*range(5)] + [-1] * 7] * 2)
    for a, b in zip(before, buffers(new), strict=True):
        np.testing.assert_array_equal(b[:, :, :8], a)
        np.testing.assert_array_equal(b[:, :, 8:], 0)
    first = len(compiles)
    grown()
    assert len(compiles) == first


@pytest.mark.parametrize("layout", LAYOUTS)
def test_float32_parameters_decode_with_bfloat16_activations(layout):
    model, params = Qwen3(CONFIG, dtype=jnp.bfloat16), random_params(CONFIG, layout)
    assert model.activation_dtype(params) == jnp.bfloat16
    tokens = tokens_of(2, 6)
    cache = init_cache(CONFIG, 2, 8, layout, model.activation_dtype(params))
    out = run(model, params, tokens[:, :5], cache)
    out = run(model, params, tokens[:, 5:], out.cache)
    assert {x.dtype for x in (*out.cache.keys, out.hidden)} == {jnp.dtype(jnp.bfloat16)}
    expected = jax.jit(model.apply)({"params": params}, tokens).logits[:, 5:]
    np.testing.assert_allclose(out.logits, expected, atol=0.02 * np.abs(expected).max())
    with pytest.raises(ValueError, match="must have the dtype of the activations, bfloat16, got float32"):
        run(model, params, tokens, init_cache(CONFIG, 2, 8, layout, jnp.float32))


def test_the_cache_holds_given_positions():
    """The next token follows the largest of them."""
    model, params = Qwen3(CONFIG), random_params(CONFIG)
    cache = init_cache(CONFIG, 1, 8, "stacked", jnp.float32)
    step = jax.jit(model.apply)
    out = step({"params": params}, tokens_of(1, 3), positions=jnp.array([[4, 7, 5]]), cache=cache)
    out = step({"params": params}, tokens_of(1, 1), cache=out.cache)
    np.testing.assert_array_equal(out.cache.positions, [[4, 7, 5, 8, -1, -1, -1, -1]])
