"""Training adapters: only they move and are stored, on any mesh as on one device, over a base that is told apart."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen3_jax.parameters.adapters import adapter_tree
from qwen3_jax.train.checkpoints import Checkpoints
from qwen3_jax.train.config import TrainConfig
from qwen3_jax.train.initial import base_digest, claim_base, noted_base
from qwen3_jax.train.parsing import parse
from qwen3_jax.train.state import init_state, joined, state_shardings
from qwen3_jax.train.step import make_model, make_step
from tests.qwen3_jax.checkpoints.written import write_checkpoint
from tests.tiny import dense_config, random_params
from tests.train.batches import batch_loss, put_batch, three_steps
from tests.train.test_sharded import packed_batch, relative

ARCHITECTURE = dense_config()


def settings(sizes: Any = None, **changes: Any) -> TrainConfig:
    values = {
        "model": ARCHITECTURE.to_hf(),
        "init_from": "base",
        "steps": 10,
        "layout": "stacked",
        "data": {"rows": 8, "length": 32},
        "optimizer": {"warmup_steps": 0, "learning_rate": 0.01},
        "loss": {"chunk": 24},
        "mesh": sizes or {},
        "lora": {"r": 4, "target_modules": ["all-linear"]},
        **changes,
    }
    return parse(TrainConfig, values)


def begun(config: TrainConfig, mesh: Any = None) -> Any:
    """Model and state, with adapters of which both matrices count."""
    model = make_model(config, mesh)
    base = random_params(ARCHITECTURE)
    if mesh is not None:
        base = jax.device_put(base, state_shardings(model, config, mesh).frozen)
    state = init_state(model, config, mesh, base)
    rng = np.random.default_rng(2)
    params = jax.tree.map(
        lambda x: jax.device_put(0.1 * rng.normal(size=x.shape).astype("f4"), x.sharding), state.params
    )
    return model, dataclasses.replace(state, params=params)


def test_a_mesh_trains_the_adapters_as_one_device_does() -> None:
    batch, runs, sizes = packed_batch(512), [], {"fsdp": 4, "tensor": 2}
    for mesh_sizes in ({}, sizes):
        config = settings(mesh_sizes)
        mesh = config.mesh.build() if mesh_sizes else None
        with jax.set_mesh(mesh) if mesh is not None else jax.default_device(None):
            model, state = begun(config, mesh)
            step = make_step(model, config, mesh)
            state, *numbers = three_steps(step, state, put_batch(batch, mesh, model.placement.rules))
        runs.append(numbers)
    np.testing.assert_allclose(runs[1][0], runs[0][0], rtol=1e-5)
    assert relative(runs[1][1], runs[0][1]) < 1e-5
    assert runs[0][0][2] < runs[0][0][0]
    b = state.params["segments_0"]["q_proj_lora_B"]
    assert b.sharding.shard_shape(b.shape)[1] == b.shape[1] // 2  # split over tensor as q_proj is


def test_only_adapters_move_and_the_optimizer_knows_nothing_of_the_base() -> None:
    config = settings()
    model, state = begun(config)
    before = jax.tree.map(np.array, (state.params, state.frozen))
    program = make_step(model, config).lower(state, packed_batch(512)).compile()
    sizes = {leaf.shape for leaf in jax.tree.leaves(adapter_tree(model.config, model.lora, "stacked"), is_leaf=is_spec)}
    assert {leaf.shape for leaf in jax.tree.leaves(state.opt_state)} == sizes | {()}
    state, metrics = program(state, packed_batch(512))
    jax.tree.map(np.testing.assert_array_equal, state.frozen, before[1])
    moved = jax.tree.map(lambda new, old: bool(np.any(np.asarray(new) != old)), state.params, before[0])
    assert all(jax.tree.leaves(moved))
    assert float(metrics.grad_norm) > 0
    # The base goes through the step in place: every byte of the state is an input and an output at once.
    memory = program.memory_analysis()
    total = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    assert memory.alias_size_in_bytes >= total


def is_spec(leaf: Any) -> bool:
    return hasattr(leaf, "hf_name")


def test_a_base_in_bfloat16_loses_nothing_where_activations_are() -> None:
    """It would be cast to their dtype anyway; adapters and their gradients stay float32."""
    config = settings(dtype="bfloat16")
    narrow = random_params(ARCHITECTURE, dtype=jnp.bfloat16)
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), narrow)
    model, state = begun(config)

    def loss(params: Any, frozen: Any, batch: Any) -> Any:
        return batch_loss(model, joined(params, frozen), batch, 24)[0]

    batch = packed_batch(512, rows=2)
    losses = [float(jax.jit(loss)(state.params, base, batch)) for base in (narrow, wide)]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-6)
    grads = jax.eval_shape(jax.grad(loss), state.params, narrow, jax.tree.map(jnp.asarray, batch))
    assert {leaf.dtype for leaf in jax.tree.leaves(grads)} == {jnp.dtype("float32")}


def test_a_checkpoint_holds_the_adapters_and_not_the_base(tmp_path) -> None:
    config = settings()
    model, state = begun(config)
    step = make_step(model, config)
    state, _ = step(state, packed_batch(512))
    with Checkpoints(tmp_path / "checkpoints", 1) as checkpoints:
        checkpoints.save(state, list)
    stored = "".join(path.read_text(errors="replace") for path in (tmp_path / "checkpoints").rglob("_METADATA"))
    assert "q_proj_lora_A" in stored
    assert "embed_tokens" not in stored
    with Checkpoints(tmp_path / "checkpoints", 1) as checkpoints:
        again, _ = checkpoints.restore(init_state(model, config, None, random_params(ARCHITECTURE)))
    jax.tree.map(np.testing.assert_array_equal, again, state)
    assert float(step(again, packed_batch(512))[1].loss) == float(step(state, packed_batch(512))[1].loss)


def test_the_base_is_noted_and_another_one_refused(tmp_path) -> None:
    base = write_checkpoint(tmp_path / "base", dense_config())
    claim_base(tmp_path, "base", base)
    assert noted_base(tmp_path) == "base"  # no directory here: as good as a hub's id
    claim_base(tmp_path, "elsewhere", base)  # moved, but the same
    other = write_checkpoint(tmp_path / "other", dense_config(), np.float16)
    assert base_digest(other) != base_digest(base)
    with pytest.raises(ValueError, match=r"must be the model that the adapters of .* were begun on \(base, ") as error:
        claim_base(tmp_path, "base", other)
    assert "\n" not in str(error.value)


def test_the_configuration_is_checked() -> None:
    with pytest.raises(ValueError, match="lora needs a base, got no init_from"):
        make_model(settings(init_from=""), None)
    with pytest.raises(ValueError, match=r"lora\.target_modules must be 'all-linear' or some of .* got query"):
        make_model(settings(lora={"target_modules": ["query"]}), None)
    with pytest.raises(ValueError, match=r"lora\.lora_dropout is not a key"):
        settings(lora={"lora_dropout": 0.1})
