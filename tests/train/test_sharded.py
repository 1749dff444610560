"""The training step on a mesh is the step on one device: loss, gradients (through the optimizer), and the loop."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen3_jax.kernels.cross_entropy import token_losses
from qwen3_jax.sharding import DEFAULT_RULES, make_mesh, mesh_config
from qwen3_jax.train.config import TrainConfig
from qwen3_jax.train.data import Batch
from qwen3_jax.train.parsing import parse
from qwen3_jax.train.state import init_state, state_shardings
from qwen3_jax.train.step import make_model, make_step
from tests.tiny import dense_config, moe_config, random_params
from tests.train.batches import batch_loss, put_batch, three_steps

MESHES = {
    "fsdp": {"fsdp": 8},
    "tensor": {"data": 2, "tensor": 4},
    "context": {"fsdp": 2, "context": 4},
    "all": {"fsdp": 2, "context": 2, "tensor": 2},
    "experts": {"fsdp": 2, "expert": 2, "tensor": 2},
    "experts and context": {"expert": 4, "context": 2},
}
ARCHITECTURES = {
    "dense": dense_config(num_hidden_layers=3),
    "untied": dense_config(tie_word_embeddings=False),
    "moe": moe_config(num_hidden_layers=3, mlp_only_layers=(0,)),
}


def settings(architecture: str, sizes: dict[str, int], **changes: Any) -> TrainConfig:
    values = {
        "model": ARCHITECTURES[architecture].to_hf(),
        "steps": 10,
        "layout": "stacked",
        "data": {"rows": 8, "length": 32},
        "optimizer": {"warmup_steps": 0},
        "loss": {"chunk": 24},
        "mesh": sizes,
        **changes,
    }
    return parse(TrainConfig, values)


def packed_batch(vocab_size: int, rows: int = 8, length: int = 32) -> Batch:
    """Documents of different lengths, so that they end inside the parts of a sequence that devices share."""
    rng = np.random.default_rng(1)
    segments = np.stack([np.repeat([1, 2, 3, 0], sizes) for sizes in ([9, 14, 6, 3], [20, 2, 10, 0]) * (rows // 2)])
    tokens = rng.integers(1, vocab_size, (rows, length)).astype(np.int32)
    return Batch(
        tokens=tokens,
        targets=np.roll(tokens, -1, axis=1),
        loss_mask=(segments > 0) & (rng.random((rows, length)) < 0.8),
        segment_ids=segments.astype(np.int32),
        domains=np.zeros_like(tokens),
    )


def relative(got: Any, expected: Any) -> float:
    """Largest difference over the largest expected value, the worst leaf."""
    errors = jax.tree.map(lambda a, b: np.abs(np.asarray(a) - np.asarray(b)).max() / np.abs(b).max(), got, expected)
    return max(jax.tree.leaves(errors))


CASES = [("dense", "fsdp"), ("dense", "context"), ("dense", "all"), ("dense", "experts"), ("untied", "tensor")]
CASES += [("moe", "tensor"), ("moe", "experts"), ("moe", "experts and context")]


@pytest.mark.parametrize(("architecture", "name"), CASES)
def test_loss_and_gradients_are_those_of_one_device(architecture: str, name: str) -> None:
    sizes, remat = MESHES[name], name in ("fsdp", "all", "experts")
    config = settings(architecture, sizes, remat=remat)
    params = random_params(ARCHITECTURES[architecture])
    batch = packed_batch(512)

    def gradients(model: Any) -> Any:
        return jax.jit(jax.value_and_grad(lambda p, b: batch_loss(model, p, b, 24)[0]))

    loss, grads = gradients(make_model(config, None))(params, batch)
    mesh = config.mesh.build()
    model = make_model(config, mesh)
    layout = state_shardings(model, config, mesh).params
    with jax.set_mesh(mesh):
        placed = jax.device_put(params, layout)
        sharded_loss, sharded_grads = gradients(model)(placed, put_batch(batch, mesh, model.placement.rules))
    np.testing.assert_allclose(sharded_loss, loss, rtol=1e-5)
    assert relative(sharded_grads, grads) < 1e-5


@pytest.mark.parametrize("architecture", ["dense", "moe"])
def test_three_steps_are_those_of_one_device(architecture: str) -> None:
    """Losses of all steps, and the moments after the first (AdamW's update itself is the sign of a gradient where that
    is next to nothing, so parameters say less)."""
    batch = packed_batch(512)
    runs = []
    for sizes in ({}, {"fsdp": 2, "expert": 2, "tensor": 2}):
        config = settings(architecture, sizes)
        mesh = config.mesh.build() if sizes else None
        model = make_model(config, mesh)
        state, step = init_state(model, config, mesh), make_step(model, config, mesh)
        with jax.set_mesh(mesh) if mesh is not None else jax.default_device(None):
            state, *numbers = three_steps(step, state, put_batch(batch, mesh, model.placement.rules))
        runs.append(numbers)
    np.testing.assert_allclose(runs[1][0], runs[0][0], rtol=1e-5)
    assert relative(runs[1][1], runs[0][1]) < 1e-5
    kernel = state.opt_state[1][0].mu["segments_0"]["q_proj"]
    assert kernel.sharding.shard_shape(kernel.shape)[1:] == (kernel.shape[1] // 2, kernel.shape[2] // 4)


def test_no_gradient_crosses_documents_that_devices_share() -> None:
    """Context parallelism with packing: the loss of one document does not move the other's embeddings."""
    config = settings("dense", {"fsdp": 2, "context": 4})
    mesh = config.mesh.build()
    model = make_model(config, mesh)
    batch = packed_batch(512)
    tokens = np.where(batch.segment_ids == 2, batch.tokens % 100 + 300, batch.tokens % 100).astype(np.int32)
    batch = dataclasses.replace(batch, tokens=tokens, loss_mask=batch.segment_ids == 2)
    params = random_params(ARCHITECTURES["dense"])
    params = {**params, "embed_tokens": params["embed_tokens"]}

    def loss(table: Any, params: Any, batch: Batch) -> Any:
        out = model.apply(
            {"params": {**params, "embed_tokens": table}},
            batch.tokens,
            attention_mask=batch.segment_ids > 0,
            segment_ids=batch.segment_ids,
        )
        head = jnp.ones((512, 32), jnp.float32)
        head, counted = head * jnp.arange(512.0)[:, None], batch.loss_mask.astype(jnp.float32)
        return token_losses(out.hidden, head, batch.targets, counted, 16).objective

    with jax.set_mesh(mesh):
        placed = jax.device_put(params, state_shardings(model, config, mesh).params)
        table = placed["embed_tokens"]
        gradient = jax.jit(jax.grad(loss))(table, placed, put_batch(batch, mesh, DEFAULT_RULES))
    gradient = np.asarray(gradient)
    assert np.abs(gradient[300:400]).max() > 0
    assert np.abs(gradient[:100]).max() == 0


def test_a_batch_that_does_not_divide_is_refused_with_the_numbers() -> None:
    config = settings("dense", {"fsdp": 8}, data={"rows": 12, "length": 32})
    with pytest.raises(ValueError, match=r"data.rows must divide over the 8 devices .* got 12"):
        make_model(config, config.mesh.build())
    config = settings("dense", {"context": 8}, data={"rows": 8, "length": 36})
    with pytest.raises(ValueError, match=r"data.length must divide over the 8 devices .* got 36"):
        make_model(config, config.mesh.build())


def test_a_length_beyond_the_context_is_refused() -> None:
    """The context is that of YaRN where there is one."""
    config = settings("dense", {}, data={"rows": 8, "length": 4100})
    with pytest.raises(ValueError, match=r"data.length must be at most the model's context of 4096 tokens, got 4100"):
        make_model(config, None)
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048}
    model = make_model(dataclasses.replace(config, model={**config.model, "rope_scaling": yarn}), None)
    assert model.config.context_length == 8192


def test_a_mesh_section_is_read_and_checked() -> None:
    assert settings("dense", {"fsdp": -1}).mesh == mesh_config({"fsdp": -1})
    with pytest.raises(ValueError, match=r"mesh\.fdsp is not a key"):
        settings("dense", {"fdsp": 2})


def test_the_vocabulary_loss_is_that_of_one_device() -> None:
    """Every way a head can be split."""
    rng = np.random.default_rng(0)
    hidden, head = (rng.normal(size=size).astype(np.float32) for size in ((8, 16, 32), (64, 32)))
    targets, mask = jnp.asarray(rng.integers(0, 64, (8, 16)), jnp.int32), jnp.asarray(rng.random((8, 16)) < 0.7)
    weights = mask.astype(jnp.float32)
    total = jax.value_and_grad(lambda h, w: token_losses(h, w, targets, weights, 8).objective, argnums=(0, 1))
    expected = jax.jit(total)(hidden, head)
    for sizes in MESHES.values():
        with jax.set_mesh(make_mesh(**sizes)):
            got = jax.jit(lambda h, w: total(h, w))(hidden, head)
        np.testing.assert_allclose(got[0], expected[0], rtol=1e-5)
        assert relative(got[1], expected[1]) < 1e-5
