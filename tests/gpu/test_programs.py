"""The training step and the decode loop of tiny models compile for GPUs, sharded, with the project's kernel in them."""

import pytest

from qwen3_jax.infer.ahead_of_time import plan_decode
from qwen3_jax.sharding import DEFAULT_RULES
from qwen3_jax.sharding.ahead_of_time.chips import CHIPS
from qwen3_jax.sharding.ahead_of_time.hlo import parse_program
from qwen3_jax.sharding.ahead_of_time.topology import parse_topology, topology_devices
from qwen3_jax.sharding.ahead_of_time.traffic import communication
from qwen3_jax.train.step import plan_train
from tests.tiny import dense_config, moe_config

# A vocabulary of which sampling takes the best tokens by top_k first, as it does of the real one.
SIZES = {"head_dim": 128, "hidden_size": 256, "intermediate_size": 256, "vocab_size": 2048}
MOE = moe_config(**SIZES, moe_intermediate_size=128)
TRITON = 'custom_call_target="__gpu$xla.gpu.triton"'
LAYERS = MOE.num_hidden_layers


def test_training_step_of_a_mixture(mesh_of_gpus):
    mesh = mesh_of_gpus(fsdp=2, expert=2)
    outcome, held = plan_train(MOE, mesh, DEFAULT_RULES, 384, 4)
    assert sum(held.values()) < outcome.peak_bytes < 2**28
    assert TRITON in outcome.text  # the grouped matmul
    program = parse_program(outcome.text)
    assert program.unknown_loops == []
    runs = {}
    for collective in communication(program, mesh):
        runs[collective.kind, collective.axes] = runs.get((collective.kind, collective.axes), 0) + collective.runs
    # rows go to the experts and back, forward; forward once more without the way back, and both ways, backward
    assert runs["ragged-all-to-all", ("expert",)] >= 5 * LAYERS
    # the weights of a layer's experts are gathered once in each direction and their gradients scattered once
    assert runs["all-gather", ("fsdp",)] >= 2 * LAYERS
    assert runs["reduce-scatter", ("fsdp",)] >= LAYERS


@pytest.mark.parametrize("name", ["dense", "moe"])
def test_decode(mesh_of_gpus, name):
    config = MOE if name == "moe" else dense_config(**SIZES)
    mesh = mesh_of_gpus(**{"dense": {"tensor": 2}, "moe": {"fsdp": 2, "expert": 2}}[name])
    outcome, held = plan_decode(config, mesh, DEFAULT_RULES, sequence_length=512, batch_size=4)
    assert (TRITON in outcome.text) == (name == "moe")
    assert sum(held.values()) < outcome.peak_bytes < 2**28
    assert len(parse_program(outcome.text).unknown_loops) == 1  # the loop over tokens, which ends when all rows have


@pytest.mark.parametrize("name", [name for name, chip in CHIPS.items() if not chip.torus])
def test_the_plugin_takes_the_description_of_every_gpu(name):
    devices = topology_devices(parse_topology(f"{name}:2x8"))
    assert [device.process_index for device in devices] == [0] * 8 + [1] * 8
    assert {device.platform for device in devices} == {"gpu"}
