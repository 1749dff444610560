"""Who a process is, from flags and from what Slurm, GKE, Cloud TPU and SkyPilot say."""

from typing import Any

import pytest

from qwen3_jax.sharding.launch.cluster import Cluster, find_cluster, first_node
from qwen3_jax.sharding.launch.distributed import start

SLURM = {
    "SLURM_JOB_ID": "5000",
    "SLURM_STEP_NODELIST": "gpu[007,010-012]",
    "SLURM_NTASKS": "4",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "0",
    "SLURM_STEP_TASKS_PER_NODE": "1(x4)",
}
GKE = {"TPU_WORKER_HOSTNAMES": "slice-0-0.job,slice-0-1.job", "TPU_WORKER_ID": "1"}
MEGASCALE = {
    "MEGASCALE_NUM_SLICES": "3",
    "MEGASCALE_SLICE_ID": "2",
    "MEGASCALE_COORDINATOR_ADDRESS": "slice-0-0.job:8080",
}
METADATA = {
    "agent-worker-number": "1",
    "worker-network-endpoints": "unknown:unknown:10.0.0.5,unknown:unknown:10.0.0.6",
    "tpu-env": "ACCELERATOR_TYPE: 'v5p-16'\nMEGASCALE_NUM_SLICES: '1'",
}


def found(environ: dict[str, str], **given: Any) -> tuple[str, str, int, int, Any] | None:
    cluster = find_cluster(environ, **given)
    if cluster is None:
        return None
    return (cluster.kind, cluster.coordinator, cluster.num_processes, cluster.process_id, cluster.local_device_ids)


def test_a_single_process_stays_alone() -> None:
    assert found({}) is None
    assert found({"JAX_PLATFORMS": "tpu", "TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"}) is None
    assert found({**SLURM, "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}) is None
    assert found(SLURM, num_processes=1) is None  # said explicitly
    assert found({"SLURM_JOB_ID": "1", "SLURM_NTASKS": "4"}) is None  # in a job, but not started by srun
    assert start() is None


def test_timeouts_that_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    here: dict[str, Any] = {"coordinator": "127.0.0.1:1", "num_processes": 2, "process_id": 0}
    with pytest.raises(ValueError, match=r"the heartbeat timeout must be at least 1 seconds, got '0\.5'"):
        start(**here, heartbeat=0.5)
    with pytest.raises(ValueError, match="the start timeout must be a positive number of seconds, got '0'"):
        start(**here, timeout=0)
    monkeypatch.setenv("QWEN3_JAX_HEARTBEAT_TIMEOUT", "soon")
    with pytest.raises(ValueError, match="the heartbeat timeout must be at least 1 seconds, got 'soon'"):
        start(**here)


def test_flags_and_variables() -> None:
    explicit = {"coordinator": "10.0.0.1:1234", "num_processes": 4, "process_id": 2}
    assert found({}, **explicit) == ("flags", "10.0.0.1:1234", 4, 2, None)
    variables = {"JAX_COORDINATOR_ADDRESS": "h:1", "JAX_NUM_PROCESSES": "8", "JAX_PROCESS_ID": "7"}
    assert found(variables) == ("flags", "h:1", 8, 7, None)
    assert found(variables, process_id=3) == ("flags", "h:1", 8, 3, None)  # a flag wins
    del variables["JAX_PROCESS_ID"]
    assert found({**variables, "JOB_COMPLETION_INDEX": "5"}) == ("flags", "h:1", 8, 5, None)  # Kubernetes
    assert found(SLURM, coordinator="other:99") == ("Slurm", "other:99", 4, 3, None)
    assert Cluster(kind="flags", coordinator="[::1]:12", num_processes=2, process_id=0).address == ("::1", 12)


def test_slurm() -> None:
    address = "gpu007:" + str(61440 + 5000 % 4096)
    assert found(SLURM) == ("Slurm", address, 4, 3, None)
    one_a_gpu = {**SLURM, "SLURM_STEP_TASKS_PER_NODE": "8(x4)", "SLURM_LOCALID": "5", "SLURM_STEP_NUM_TASKS": "32"}
    assert found(one_a_gpu) == ("Slurm", address, 32, 3, (5,))
    assert found({**one_a_gpu, "CUDA_VISIBLE_DEVICES": "0"}) == ("Slurm", address, 32, 3, None)
    assert found({**one_a_gpu, "CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7"}) == ("Slurm", address, 32, 3, (5,))
    for nodes, first in {"a": "a", "a,b": "a", "n[3-5],m": "n3", "rack[1-2]-n[07,9]": "rack1-n07"}.items():
        assert first_node(nodes) == first


def test_tpu_pods() -> None:
    assert found(GKE) == ("GKE", "slice-0-0.job:8482", 2, 1, None)
    assert found({**GKE, **MEGASCALE}) == ("GKE", "slice-0-0.job:8482", 6, 5, None)
    assert found({**GKE, "JAX_PLATFORMS": "cpu"}) is None
    assert found({}, metadata=METADATA.get) == ("Cloud TPU", "10.0.0.5:8482", 2, 1, None)
    assert found(MEGASCALE, metadata=METADATA.get) == ("Cloud TPU", "slice-0-0.job:8482", 6, 5, None)
    assert found({}, metadata={}.get) is None  # a machine of Google's without a pod


def test_skypilot() -> None:
    environ = {"SKYPILOT_NODE_IPS": "10.1.0.1\n10.1.0.2", "SKYPILOT_NODE_RANK": "1"}
    assert found(environ) == ("SkyPilot", "10.1.0.1:8476", 2, 1, None)


@pytest.mark.parametrize(
    ("environ", "given", "says"),
    [
        ({}, {"num_processes": 4}, "got no --coordinator and no --process-id"),
        ({"JAX_COORDINATOR_ADDRESS": "h:1", "JAX_NUM_PROCESSES": "2"}, {}, "got no --process-id"),
        ({}, {"coordinator": "h", "num_processes": 2, "process_id": 0}, "must be HOST:PORT, got 'h'"),
        ({}, {"coordinator": "h:1", "num_processes": 2, "process_id": 2}, "must be 0 to 1 for 2 processes, got 2"),
        ({"JAX_NUM_PROCESSES": "two"}, {}, "JAX_NUM_PROCESSES must be a whole number, got 'two'"),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, {}, "TPU_WORKER_ID must be set"),
    ],
)
def test_a_mistake_is_one_line(environ: dict[str, str], given: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says) as error:
        find_cluster(environ, **given)
    assert "\n" not in str(error.value)
