"""Which process of how many this is, from flags, environment variables or the metadata of a Cloud TPU machine."""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

TPU_PORT = 8482
SKYPILOT_PORT = 8476

Metadata = Callable[[str], str | None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cluster:
    """The processes of one job, as one of them sees it.

    Attributes:
      kind: where this was read.
      coordinator: host:port of process 0.
      local_device_ids: the GPUs of this machine that belong to this process; None for all it can see.
    """

    kind: str
    coordinator: str
    num_processes: int
    process_id: int
    local_device_ids: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        host, _, port = self.coordinator.rpartition(":")
        if not host or not port.isdigit() or not 0 < int(port) < 65536:
            raise ValueError(f"the coordinator must be HOST:PORT, got {self.coordinator!r} ({self.kind}): correct it")
        if self.num_processes < 1 or not 0 <= self.process_id < self.num_processes:
            raise ValueError(
                f"a process id must be 0 to {self.num_processes - 1} for {self.num_processes} processes, got "
                f"{self.process_id} ({self.kind}): correct one of them"
            )

    @property
    def address(self) -> tuple[str, int]:
        """Host and port of process 0."""
        host, _, port = self.coordinator.rpartition(":")
        return host.strip("[]"), int(port)


def find_cluster(
    environ: Mapping[str, str],
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    metadata: Metadata | None = None,
) -> Cluster | None:
    """The job this process belongs to; None where it is alone.

    What is given wins over JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, and these win over what
    Slurm, GKE, the metadata of a Cloud TPU machine and SkyPilot say, in this order.

    Args:
      metadata: reads an attribute of a Cloud TPU machine; None on other machines.

    Raises:
      ValueError: something that is no number, a setting that is missing, or an id that does not exist.
    """
    asked: dict[str, Any] = {
        "coordinator": coordinator or environ.get("JAX_COORDINATOR_ADDRESS") or None,
        "num_processes": _number(environ, "JAX_NUM_PROCESSES") if num_processes is None else num_processes,
        "process_id": _number(environ, "JAX_PROCESS_ID") if process_id is None else process_id,
    }
    if asked["num_processes"] == 1 and not asked["process_id"]:
        return None
    if asked["process_id"] is None and asked["coordinator"] is not None:
        asked["process_id"] = _number(environ, "JOB_COMPLETION_INDEX")  # an indexed job of Kubernetes
    given = {name: value for name, value in asked.items() if value is not None}
    if given.keys() == asked.keys():
        return Cluster(kind="flags", **given)
    found = _slurm(environ) or _tpu(environ, metadata) or _skypilot(environ)
    if given and found is None:
        missing = " and no ".join(f"--{name.replace('_', '-')}" for name in asked if name not in given)
        raise ValueError(
            "--coordinator, --num-processes and --process-id must be given together where no cluster is found, got no "
            f"{missing}: add it, or set JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID"
        )
    if found is not None:
        found = dataclasses.replace(found, **given)
    return None if found is None or found.num_processes == 1 else found


def _slurm(environ: Mapping[str, str]) -> Cluster | None:
    """A step of Slurm (srun); the port follows from the job, so that two jobs on one machine do not meet."""
    if not {"SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_LOCALID"} <= environ.keys():
        return None
    count = _number(environ, "SLURM_STEP_NUM_TASKS") or _number(environ, "SLURM_NTASKS")
    job, process_id, local = (_number(environ, f"SLURM_{name}") or 0 for name in ("JOB_ID", "PROCID", "LOCALID"))
    # One task a machine takes all its GPUs; one task a GPU takes the one of its number, unless Slurm hides the others.
    several = not re.fullmatch(r"1(\(x\d+\))?", environ.get("SLURM_STEP_TASKS_PER_NODE", "1"))
    shown = environ.get("CUDA_VISIBLE_DEVICES", environ.get("ROCR_VISIBLE_DEVICES"))
    hidden = shown is not None and "," not in shown
    return Cluster(
        kind="Slurm",
        coordinator=f"{first_node(environ['SLURM_STEP_NODELIST'])}:{61440 + job % 4096}",
        num_processes=count or 1,
        process_id=process_id,
        local_device_ids=(local,) if several and not hidden else None,
    )


def first_node(nodes: str) -> str:
    """The first machine of a list as Slurm writes it.

    In: "rack[1-2]-node[007,010-015],login"     Out: "rack1-node007"
    """
    return re.sub(r"\[(\d+)[^\]]*\]", r"\1", nodes).split(",")[0]


def _tpu(environ: Mapping[str, str], metadata: Metadata | None) -> Cluster | None:
    """The hosts of a TPU slice, or of several slices: GKE writes them into the environment, Cloud TPU into metadata."""
    platforms = environ.get("JAX_PLATFORMS", "")
    if platforms and "tpu" not in platforms.split(","):
        return None
    hosts = environ.get("TPU_PROCESS_ADDRESSES") or environ.get("TPU_WORKER_HOSTNAMES")
    if hosts:
        kind, workers, settings = "GKE", hosts.split(","), environ
        worker = _number(environ, "TPU_WORKER_ID")
        if worker is None and len(workers) > 1:
            raise ValueError("TPU_WORKER_ID must be set beside TPU_WORKER_HOSTNAMES, got nothing: set it")
    else:
        number = metadata("agent-worker-number") if metadata else None
        endpoints = metadata("worker-network-endpoints") if metadata else None
        if metadata is None or number is None or not endpoints:
            return None
        # A list of addresses, or of name:id:address.
        kind, worker = "Cloud TPU", int(number)
        workers = [entry.split(":")[-1] for entry in endpoints.split(",")]
        settings = {**_tpu_env(metadata("tpu-env") or ""), **environ}
    slices = int(settings.get("MEGASCALE_NUM_SLICES") or 1)
    own_slice = int(settings.get("MEGASCALE_SLICE_ID") or 0)
    first = settings.get("MEGASCALE_COORDINATOR_ADDRESS") or workers[0]
    return Cluster(
        kind=kind,
        coordinator=f"{first.split(':')[0]}:{TPU_PORT}",
        num_processes=len(workers) * slices,
        process_id=(worker or 0) + own_slice * len(workers),
    )


def _tpu_env(text: str) -> dict[str, str]:
    """In: "A: '1'\\nB: 'x'"     Out: {"A": "1", "B": "x"}"""
    pairs = (line.partition(":") for line in text.splitlines())
    return {key.strip(): value.strip().strip("'") for key, colon, value in pairs if colon}


def _skypilot(environ: Mapping[str, str]) -> Cluster | None:
    if not {"SKYPILOT_NODE_RANK", "SKYPILOT_NODE_IPS"} <= environ.keys():
        return None
    nodes, rank = environ["SKYPILOT_NODE_IPS"].split(), _number(environ, "SKYPILOT_NODE_RANK") or 0
    coordinator = f"{nodes[0]}:{SKYPILOT_PORT}"
    return Cluster(kind="SkyPilot", coordinator=coordinator, num_processes=len(nodes), process_id=rank)


def _number(environ: Mapping[str, str], name: str) -> int | None:
    text = environ.get(name)
    if text is None or not text.strip():
        return None
    if not text.strip().isdigit():
        raise ValueError(f"{name} must be a whole number, got {text!r}: correct it")
    return int(text)
