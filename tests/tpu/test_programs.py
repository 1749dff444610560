"""The training step and the decode loop of tiny models compile for each TPU, sharded, with the kernels in them."""

import pytest

from qwen3_jax.infer.ahead_of_time import plan_decode
from qwen3_jax.sharding import DEFAULT_RULES
from qwen3_jax.train.step import plan_train
from tests.tiny import dense_config, moe_config
from tests.tpu.conftest import kernels_of

SIZES = {"head_dim": 128, "hidden_size": 256, "intermediate_size": 256, "vocab_size": 1024}
MODELS = {
    "dense": (dense_config(**SIZES), {"fsdp": 2, "tensor": 2}),
    "moe": (moe_config(**SIZES, moe_intermediate_size=128), {"fsdp": 2, "expert": 2}),
}
ATTENTION = {"splash_mha_fwd", "splash_mha_dq", "splash_mha_dkv"}


@pytest.mark.parametrize("name", MODELS)
def test_training_step(mesh_of_slice, name):
    config, sizes = MODELS[name]
    length, rows = 384, 4  # 384 is no other size of the model
    outcome, held = plan_train(config, mesh_of_slice(**sizes), DEFAULT_RULES, length, rows)
    assert set(kernels_of(outcome)) == ATTENTION | ({"gmm", "tgmm"} if name == "moe" else set())
    assert f"{length},{length}]" not in outcome.text
    assert outcome.fits
    assert sum(held.values()) < outcome.peak_bytes < 2**28


@pytest.mark.parametrize("name", MODELS)
def test_decode(mesh_of_slice, name):
    config, sizes = MODELS[name]
    outcome, held = plan_decode(config, mesh_of_slice(**sizes), DEFAULT_RULES, sequence_length=512, batch_size=4)
    assert set(kernels_of(outcome)) == ({"gmm"} if name == "moe" else set())
    assert outcome.fits
    assert sum(held.values()) < outcome.peak_bytes < 2**28
