"""Gradients of micro-batches inside one loss: the same numbers, less memory, one more forward pass, nothing sent."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen3_jax.network.model import Qwen3
from qwen3_jax.sharding.ahead_of_time.hlo import parse_program
from qwen3_jax.sharding.ahead_of_time.traffic import communication
from qwen3_jax.train.objectives.objective import cut, gradients, objective
from qwen3_jax.train.settings import LossConfig
from qwen3_jax.train.state import state_shardings
from qwen3_jax.train.step import make_model
from tests.tiny import dense_config, moe_config, random_params
from tests.train.batches import put_batch
from tests.train.test_sharded import ARCHITECTURES, packed_batch, relative, settings

MOE = moe_config(num_hidden_layers=2, mlp_only_layers=(0,), router_aux_loss_coef=0.5)
LOSS = LossConfig(chunk=64, z_loss=0.01)


def exact(model: Qwen3, loss: LossConfig, micro_batches: int, num_domains: int = 3) -> Any:
    run = partial(objective, model, config=loss, micro_batches=micro_batches, num_domains=num_domains)
    return jax.jit(jax.value_and_grad(lambda params, batch: run(params, batch), has_aux=True))


def batch_with_domains() -> Any:
    batch = packed_batch(512)
    return dataclasses.replace(batch, domains=(batch.segment_ids % 3).astype(np.int32))


@pytest.fixture(scope="module")
def whole() -> tuple[Any, Any]:
    return exact(Qwen3(MOE), LOSS, 1)(random_params(MOE), batch_with_domains())


def test_four_micro_batches_give_the_numbers_of_the_whole_batch(whole: tuple[Any, Any]) -> None:
    """Value, gradient (through the balance loss too) and everything that is reported; rows differ in counted tokens."""
    (value, report), gradient = exact(Qwen3(MOE), LOSS, 4)(random_params(MOE), batch_with_domains())
    (expected, reported), wanted = whole
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    assert relative(gradient, wanted) < 3e-6
    for field in dataclasses.fields(report):
        for got, want in zip(
            jax.tree.leaves(getattr(report, field.name)), jax.tree.leaves(getattr(reported, field.name)), strict=True
        ):
            np.testing.assert_allclose(got, want, rtol=2e-6, err_msg=field.name)
    assert float(report.balance_loss) > 0.5 * 2  # the coefficient is in it
    assert float(report.domain_tokens.sum()) == float(report.tokens) == batch_with_domains().loss_mask.sum()
    np.testing.assert_allclose(report.domain_loss.sum() / report.tokens, report.loss, rtol=1e-6)
    np.testing.assert_allclose(value, report.loss + report.z_loss + report.balance_loss, rtol=1e-6)
    for added in (report.z_loss, report.balance_loss):
        assert added > 1e-3 * report.loss  # each is seen in the sum


@pytest.mark.parametrize(("balance", "micro_batches"), [("none", 1), ("micro_batch", 4)])
def test_the_load_is_that_of_tokens_that_are_no_padding(
    whole: tuple[Any, Any], balance: Any, micro_batches: int
) -> None:
    """With a balance loss or without one: rows that are half padding give the load of rows without any."""
    batch = packed_batch(512)
    padded = jax.tree.map(lambda array: np.pad(array, ((0, 0), (0, array.shape[1]))), batch)
    loss = dataclasses.replace(LOSS, balance=balance)
    run = jax.jit(partial(gradients, Qwen3(MOE), config=loss, micro_batches=micro_batches))
    report, _ = run(random_params(MOE), padded)
    assert (report.balance_loss is None) == (balance == "none")
    expected = whole[0][1].expert_load
    jax.tree.map(np.testing.assert_array_equal, report.expert_load, expected)
    assert sum(load.sum() for load in expected) == (batch.segment_ids > 0).sum() * MOE.num_experts_per_tok  # one layer


def test_the_micro_batch_form_is_another_number_where_there_are_several(whole: tuple[Any, Any]) -> None:
    local = dataclasses.replace(LOSS, balance="micro_batch")
    run = partial(objective, Qwen3(MOE), random_params(MOE), jax.tree.map(jnp.asarray, batch_with_domains()))
    one, four = (jax.jit(partial(run, config=local, micro_batches=n))()[1].balance_loss for n in (1, 4))
    exact = whole[0][1].balance_loss
    np.testing.assert_allclose(one, exact, rtol=1e-6)
    assert abs(float(four) - float(exact)) > 1e-3 * float(exact)


@pytest.mark.parametrize("architecture", ["dense", "moe"])
def test_gradients_added_up_part_by_part_are_those_of_one_loss(architecture: str) -> None:
    """What a dense model and the local balance losses do, which need no second forward pass."""
    config = dense_config(num_hidden_layers=2) if architecture == "dense" else MOE
    model, batch = Qwen3(config), batch_with_domains()
    params, local = random_params(config), dataclasses.replace(LOSS, balance="micro_batch")
    report, gradient = jax.jit(partial(gradients, model, config=local, micro_batches=4, num_domains=3))(params, batch)
    (_, expected), wanted = exact(model, local, 4)(params, batch)
    assert relative(gradient, wanted) < 3e-6
    for got, want in zip(jax.tree.leaves(report), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(got, want, rtol=2e-6)


def test_cutting_interleaves_rows() -> None:
    batch = packed_batch(512)
    parts = cut(batch, 4, Qwen3(MOE).placement.rules)
    np.testing.assert_array_equal(parts["tokens"][1], batch.tokens[[1, 5]])


@pytest.mark.parametrize("form", ["global", "sequence"])
def test_a_mesh_gives_the_numbers_of_one_device_and_cutting_sends_nothing(form: Any) -> None:
    config = settings("moe", {"data": 2, "fsdp": 2, "expert": 2}, data={"rows": 16, "length": 32}, micro_batches=2)
    loss = dataclasses.replace(LOSS, balance=form, balance_coefficient=0.5)
    batch, params = packed_batch(512, rows=16), random_params(ARCHITECTURES["moe"])
    (value, report), expected = exact(make_model(config, None), loss, 2, 1)(params, batch)
    mesh = config.mesh.build()
    model = make_model(config, mesh)
    rules = model.placement.rules
    with jax.set_mesh(mesh):
        placed = jax.device_put(params, state_shardings(model, config, mesh).params)
        here = put_batch(batch, mesh, rules)
        (sharded, sharded_report), got = exact(model, loss, 2, 1)(placed, here)
        text = jax.jit(lambda batch: cut(batch, 2, rules)).lower(here).compile().as_text()
    np.testing.assert_allclose(sharded, value, rtol=1e-5)
    np.testing.assert_allclose(sharded_report.balance_loss, report.balance_loss, rtol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, sharded_report.expert_load, report.expert_load)
    assert relative(got, expected) < 1e-5
    assert communication(parse_program(text), mesh) == []


def test_gradients_that_accumulate_are_split_as_the_parameters_are() -> None:
    """In both ways of accumulating: the loop over micro-batches that goes backward carries no whole matrix."""
    config = settings("dense", {"fsdp": 8}, data={"rows": 16, "length": 32}, micro_batches=2)
    mesh = config.mesh.build()
    model = make_model(config, mesh)
    shardings = state_shardings(model, config, mesh).params
    params = jax.eval_shape(lambda: random_params(ARCHITECTURES["dense"]))
    abstract = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), params, shardings)
    rows, columns = params["segments_0"]["gate_proj"].shape[1:]
    split, whole = f"f32[3,{rows},{columns // 8}]", f"f32[3,{rows},{columns}]"
    exact = jax.grad(partial(objective, model, config=LOSS, micro_batches=2), has_aux=True)
    apart = partial(gradients, model, config=LOSS, micro_batches=2)
    with jax.set_mesh(mesh):
        batch = put_batch(packed_batch(512, rows=16), mesh, model.placement.rules)
        for function, loop in ((exact, "transpose(jvp())/while"), (apart, "jit(gradients)/while")):
            text = jax.jit(function).lower(abstract, batch).compile().as_text()
            (line,) = (line for line in text.splitlines() if " while(" in line and f'{loop}"' in line)
            assert split in line
            assert whole not in line


def test_micro_batches_that_devices_can_not_share_are_refused() -> None:
    config = settings("dense", {"fsdp": 8}, data={"rows": 8, "length": 32}, micro_batches=2)
    with pytest.raises(ValueError, match=r"in each of 2 micro-batches, got 8"):
        make_model(config, config.mesh.build())


WIDE = dense_config(num_hidden_layers=3, hidden_size=64, intermediate_size=256, vocab_size=128)


def compiled(function: Any, config: Any, rows: int = 16) -> Any:
    """A gradient, compiled for shapes alone: rows of 128 tokens."""
    params = jax.eval_shape(lambda: random_params(config))
    batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct((rows, 128), x.dtype), packed_batch(128))
    return jax.jit(function).lower(params, batch).compile()


def test_accumulation_needs_less_memory_and_at_most_one_more_forward_pass() -> None:
    """Work is counted by the compiler, which counts a loop's body once: of a quarter of the rows."""
    model, loss = Qwen3(WIDE, layout="unrolled"), LossConfig(chunk=64)
    one = compiled(partial(gradients, model, config=loss), WIDE)
    quarter = compiled(partial(gradients, model, config=loss), WIDE, rows=4)
    apart = compiled(partial(gradients, model, config=loss, micro_batches=4), WIDE)
    within = compiled(jax.grad(partial(objective, model, config=loss, micro_batches=4), has_aux=True), WIDE)
    held = [program.memory_analysis().temp_size_in_bytes for program in (one, apart, within)]
    assert max(held[1:]) < 0.5 * held[0]
    work = [program.cost_analysis()["flops"] for program in (quarter, apart, within)]
    assert work[1] < 1.05 * work[0]
    assert 1.2 * work[0] < work[2] < 1.05 * (4 / 3) * work[0]  # forward, forward again, twice backward


def test_gradients_of_micro_batches_are_summed_in_float32() -> None:
    """bfloat16 activations: the scan that goes backward carries the parameters' gradients, all of them float32."""
    model, config = Qwen3(WIDE, dtype=jnp.bfloat16), LossConfig(chunk=64)
    params, batch = random_params(WIDE), jax.tree.map(jnp.asarray, packed_batch(128))
    run = partial(objective, model, config=config, micro_batches=4)
    jaxpr = jax.make_jaxpr(jax.grad(lambda p: run(p, batch)[0]))(params)
    scans = [eqn for eqn in jaxpr.jaxpr.eqns if eqn.primitive.name == "scan" and eqn.params["reverse"]]
    (backward,) = scans
    shapes = {leaf.shape for leaf in jax.tree.leaves(params)}
    sums = [var.aval for var in backward.outvars if var.aval.shape in shapes]  # what is stacked has an axis more
    assert len(sums) >= len(jax.tree.leaves(params))
    assert {aval.dtype for aval in sums} == {jnp.dtype("float32")}


def test_remat_policies_trade_memory_for_work() -> None:
    """none keeps most and works least, full the other way round."""
    loss, policies = LossConfig(chunk=64), ("none", "dots", "attention", "full")
    deep = dataclasses.replace(WIDE, num_hidden_layers=12)  # so that what layers keep is most of the memory
    programs = [compiled(partial(gradients, Qwen3(deep, remat=remat), config=loss), deep) for remat in policies]
    held = [program.memory_analysis().temp_size_in_bytes for program in programs]
    assert held == sorted(held, reverse=True)
    assert held[0] > 1.2 * held[1] > 1.2 * held[3]
    flops = [program.cost_analysis()["flops"] for program in programs]
    assert flops[0] < flops[2] <= flops[3]
    with pytest.raises(ValueError, match="remat must be one of none, dots, attention, full, got 'half'"):
        jax.eval_shape(Qwen3(WIDE, remat="half").apply, {"params": random_params(WIDE)}, jnp.zeros((1, 4), jnp.int32))
