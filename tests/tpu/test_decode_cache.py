"""The decode loop on TPU holds the cache once: temporary memory of the compiled loop stays below a tenth of it."""

import math

import pytest

from qwen3_jax.infer.ahead_of_time import plan_decode
from qwen3_jax.network.cache import buffer_axes
from qwen3_jax.parameters.placement import place
from qwen3_jax.sharding import DEFAULT_RULES, MeshConfig, named_sharding
from qwen3_jax.sharding.ahead_of_time.topology import parse_topology, topology_devices
from tests.tiny import dense_config

SLICES = {"v5e": "v5e:2x4", "v5p": "v5p:2x2x2", "v6e": "v6e:2x4"}  # eight chips each
# Key-value heads and a mesh: heads of their own on each device of `tensor`; 4 heads on 8 devices, two copies of each.
CASES = {"split": (8, {"data": 2, "tensor": 4}), "copied": (4, {"tensor": 8})}
LAYERS, ROWS, SLOTS, HEAD_DIM = 3, 8, 8192, 128


@pytest.mark.parametrize("lock_step", [True, False], ids=["lock-step", "slots"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("chip", SLICES)
def test_the_loop_copies_no_cache(chip, case, lock_step):
    kv_heads, sizes = CASES[case]
    config = dense_config(
        num_hidden_layers=LAYERS,
        hidden_size=512,
        intermediate_size=512,
        num_attention_heads=16,
        num_key_value_heads=kv_heads,
        head_dim=HEAD_DIM,
        vocab_size=1024,
    )
    mesh = MeshConfig(**sizes).build(topology_devices(parse_topology(SLICES[chip])))
    outcome, held = plan_decode(config, mesh, DEFAULT_RULES, SLOTS, ROWS, lock_step)
    assert outcome.fits
    placement = place(config, mesh)
    assert placement.kv_repeats == (2 if case == "copied" else 1)
    whole = (LAYERS, ROWS, kv_heads * placement.kv_repeats, SLOTS, HEAD_DIM)
    part = named_sharding(mesh, buffer_axes(5), placement.rules).shard_shape(whole)
    positions = named_sharding(mesh, ("batch", "cache_length"), placement.rules).shard_shape((ROWS, SLOTS))
    assert held["cache"] == 2 * 2 * math.prod(part) + 4 * math.prod(positions) + 4 * ROWS  # and a length a row
    assert held["cache"] > 10 * held["parameters"]
    assert outcome.peak_bytes - sum(held.values()) < 0.1 * held["cache"]
    # As the arguments of the program, so inside of its loops: the last dimension contiguous, the first outermost.
    shape = f"bf16[{','.join(map(str, part))}]"
    assert shape + "{4,3,2,1,0:" in outcome.text
    assert outcome.text.count(shape + "{") == outcome.text.count(shape + "{4,3,2,1,0:")
