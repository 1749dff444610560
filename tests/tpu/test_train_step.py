"""What the compiled training step of Qwen3-235B-A22B holds and sends: four of its 94 layers, on the slice of the known
point (v5p:8x8x4, fsdp=32, expert=8, one sequence of 4,096 tokens a chip). Minutes of compilation, done once."""

import dataclasses
import math

import pytest

from qwen3_jax.plans.estimate import estimate
from qwen3_jax.releases import load_model_config
from qwen3_jax.sharding import parse_mesh
from qwen3_jax.sharding.ahead_of_time.hlo import Program, parse_program, shape_dims
from qwen3_jax.sharding.ahead_of_time.topology import parse_topology, topology_devices
from qwen3_jax.sharding.ahead_of_time.traffic import Collective, communication
from qwen3_jax.train.settings import LossConfig
from qwen3_jax.train.step import plan_train

LAYERS, TOKENS, BATCH, LOSS_CHUNK = 4, 4096, 256, 2048
SIZES = "fsdp=32,expert=8"
CONFIG = dataclasses.replace(load_model_config("qwen3-235b-a22b"), num_hidden_layers=LAYERS)
HIDDEN, INNER, EXPERTS = CONFIG.hidden_size, CONFIG.moe_intermediate_size, CONFIG.num_experts
ROWS_BYTES = TOKENS * CONFIG.num_experts_per_tok * HIDDEN * 2  # what one chip's tokens make of rows, in bfloat16


@pytest.fixture(scope="module")
def compiled():
    config = parse_mesh(SIZES)
    mesh = config.build(topology_devices(parse_topology("v5p:8x8x4")))
    outcome, held = plan_train(CONFIG, mesh, config.table, TOKENS, BATCH, loss=LossConfig(chunk=LOSS_CHUNK))
    assert outcome.fits
    program = parse_program(outcome.text)
    return outcome, held, program, communication(program, mesh)


@pytest.fixture(scope="module")
def program(compiled) -> Program:
    return compiled[2]


@pytest.fixture(scope="module")
def sent(compiled) -> list[Collective]:
    return compiled[3]


def arrays(program: Program) -> set[tuple[str, tuple[int, ...]]]:
    """dtype and shape of everything that is written to memory, on one chip: not what stays inside a fusion."""
    return {
        array
        for name, instructions in program.computations.items()
        if name not in program.callers
        for instruction in instructions.values()
        for array in shape_dims(instruction.shape)
    }


def has(dims: tuple[int, ...], *sizes: int) -> bool:
    """Whether `dims` has all of these sizes, each in a dimension of its own."""
    left = list(dims)
    for size in sizes:
        if size not in left:
            return False
        left.remove(size)
    return True


def test_no_chip_has_the_weights_of_all_experts(program, sent):
    assert any(has(dims, EXPERTS // 8, INNER, HIDDEN) for _, dims in arrays(program)), "the gathered ones of its own"
    assert not [dims for _, dims in arrays(program) if has(dims, EXPERTS, INNER, HIDDEN)]
    own = EXPERTS // 8 * INNER * HIDDEN * 2
    gathered = [c for c in sent if c.kind == "all-gather" and c.operand_bytes * c.group_size >= own]
    assert gathered
    assert {c.axes for c in gathered if "segments" in c.op_name and "shard_map" in c.op_name} == {("fsdp",)}


def test_no_one_hot_over_experts_and_hidden(program):
    assert not [dims for _, dims in arrays(program) if has(dims, TOKENS, EXPERTS, HIDDEN)]
    assert max(math.prod(dims) for _, dims in arrays(program)) < TOKENS * EXPERTS * HIDDEN // 2


def test_logits_exist_for_a_chunk_of_tokens_only(program):
    of_head = (CONFIG.vocab_size, HIDDEN)  # its gradient, summed over chunks in float32
    logits = [d for dtype, d in arrays(program) if dtype == "f32" and CONFIG.vocab_size in d and d != of_head]
    assert logits
    assert max(math.prod(dims) // CONFIG.vocab_size for dims in logits) <= LOSS_CHUNK


def test_rows_travel_five_times_a_layer(sent):
    """To the experts and back; in the backward pass rows and gradients to the experts, gradients back."""
    exchanges = [c for c in sent if c.kind == "ragged-all-to-all"]
    large = [c for c in exchanges if c.operand_bytes >= ROWS_BYTES]
    assert {c.axes for c in exchanges} == {("expert",)}
    assert [c.runs for c in large] == [LAYERS] * 5
    assert sum("transpose" in c.op_name for c in large) == 3
    assert sum(c.total_bytes for c in exchanges) <= 1.05 * LAYERS * 5 * ROWS_BYTES * 7 / 8


def test_weights_are_gathered_in_bfloat16_and_never_by_an_all_reduce(sent):
    """What is sent in float32 are norms' gradients and numbers of the loss: no optimizer state, no master weights."""
    wide = [c for c in sent if c.shape.startswith("f32") and c.operand_bytes > 2**20]
    assert wide == []
    forward = [c for c in sent if c.kind == "all-reduce" and "transpose" not in c.op_name and "jvp" in c.op_name]
    assert not [c for c in forward if c.operand_bytes > 2**20]


def test_memory_is_that_of_the_design(compiled):
    outcome, held, _, _ = compiled
    expected = estimate(CONFIG, parse_mesh(SIZES).sizes, "train", TOKENS, BATCH)
    assert held["parameters"] == pytest.approx(expected.parameters, rel=0.1)
    # 6.1 GiB where the whole gradient of the head (1.16) waits until the layers have run backward, and the exchanged
    # rows (two times 0.25) are kept in two layouts at once.
    assert outcome.peak_bytes < 5.5 * 2**30  # 2.3 of it the float32 gradient of the head, which is summed over chunks


def test_bytes_are_those_of_the_analytic_model(sent):
    """But for gradients that leave by an all-reduce where a reduce-scatter would do: twice their bytes."""
    expected = sum(estimate(CONFIG, parse_mesh(SIZES).sizes, "train", TOKENS, BATCH).communication.values())
    reduced = sum(c.total_bytes for c in sent if c.kind == "all-reduce")
    assert sum(c.total_bytes for c in sent) - reduced / 2 == pytest.approx(expected, rel=0.1)
