"""A stage of pretraining, compiled from its training file as `qwen3-jax plan --config` does."""

from qwen3_jax.cli.options import config_file
from qwen3_jax.sharding.ahead_of_time.topology import parse_topology, topology_devices
from qwen3_jax.train.config import load_config
from qwen3_jax.train.step import plan_run
from tests.support import REPO
from tests.tpu.conftest import kernels_of

STAGE = REPO / "configs" / "train" / "stages" / "1-general.yaml"


def test_the_general_stage_compiles_for_the_smallest_slice():
    """0.6B and one row a chip instead of 8B and 16: the same program, smaller."""
    small = ["model.base=qwen3-0.6b", "data.rows=4", "data.streams=4"]
    train = load_config(config_file("train", str(STAGE)), small)
    mesh = train.mesh.build(topology_devices(parse_topology("v5e:2x2")))
    outcome, held = plan_run(train, mesh)
    assert outcome.fits
    assert outcome.peak_bytes < 16 * 2**30
    assert held["optimizer"] > 1.9 * held["parameters"] > 2**28
    assert kernels_of(outcome)
