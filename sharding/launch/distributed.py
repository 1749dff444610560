"""Start-up of many processes: who they are, and a bounded wait until all of them are there.

A pod, a Slurm job or a set of machines runs the same command once a host (or once a GPU); `start` finds out from its
surroundings which of how many processes this one is and connects it with the others. One process stays one process and
waits for nothing.

JAX's own start ends a process from C++ when another is missing, without saying which. So the processes meet first, on
the port that JAX takes over afterwards: process 0 listens, each other one says its number, and all get the same word.
"""

import contextlib
import importlib.util
import os
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import jax

from qwen3_jax.sharding.launch.cluster import Cluster, find_cluster
from qwen3_jax.sharding.launch.rendezvous import meet

TIMEOUT = 300.0  # seconds that `start` waits for the others
HEARTBEAT = 100.0  # seconds without a sign of life after which a process counts as dead


def start(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    timeout: float | None = None,
    heartbeat: float | None = None,
) -> Cluster | None:
    """Connects this process with the others of its job; to be called before anything else of JAX.

    Args:
      coordinator: host:port of process 0 (or JAX_COORDINATOR_ADDRESS). Left out, as the next two, on a Cloud TPU pod,
        in GKE, under Slurm and SkyPilot, which say all three themselves.
      num_processes: how many there are (or JAX_NUM_PROCESSES); 1 stays alone wherever it runs.
      process_id: which one this is, from 0 on (or JAX_PROCESS_ID).
      timeout: seconds to wait for the others (or QWEN3_JAX_START_TIMEOUT; 300).
      heartbeat: whole seconds without a sign of life after which a process counts as dead and the others end (or
        QWEN3_JAX_HEARTBEAT_TIMEOUT; 100). One that ends is noticed at once, by the network; this is for machines that
        vanish.

    Returns:
      What was found; None where there is one process.

    Raises:
      ValueError: settings that contradict one another or are incomplete.
      TimeoutError: a process that did not arrive; the line names it and the address.
    """
    cluster = find_cluster(os.environ, coordinator, num_processes, process_id, _metadata())
    if cluster is None or is_started():
        return cluster
    seconds = _seconds("start", timeout, TIMEOUT)
    dead_after = round(_seconds("heartbeat", heartbeat, HEARTBEAT, least=1.0))
    meet(cluster, seconds)
    jax.distributed.initialize(
        cluster.coordinator,
        cluster.num_processes,
        cluster.process_id,
        local_device_ids=cluster.local_device_ids,
        cluster_detection_method="deactivate",
        initialization_timeout=max(60, round(seconds)),
        heartbeat_timeout_seconds=dead_after,
    )
    return cluster


def is_started() -> bool:
    """Whether this is one of many processes."""
    return bool(jax.distributed.is_initialized())


def leave(status: int) -> NoReturn:
    """Ends one of many processes at once, after an error.

    The ordinary way out waits for the others, who wait for this one's part of a computation. Its absence ends them:
    at once where the network tells them, else after the heartbeat timeout.
    """
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
    os._exit(status)


def _metadata() -> Callable[[str], str | None] | None:
    """Reads attributes of a Cloud TPU machine; None elsewhere, so that nothing is asked over the network in vain."""
    has_chips = any(Path("/dev").glob("accel*")) or any(Path("/dev/vfio").glob("[0-9]*"))
    if not has_chips or "TPU_SKIP_MDS_QUERY" in os.environ or importlib.util.find_spec("libtpu") is None:
        return None
    return _read_metadata


def _read_metadata(key: str) -> str | None:
    server = os.environ.get("GCE_METADATA_IP", "metadata.google.internal")
    url = f"http://{server}/computeMetadata/v1/instance/attributes/{key}"
    request = urllib.request.Request(url, headers={"Metadata-Flavor": "Google"})
    for attempt in range(3):
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                text: str = answer.read().decode()
                return text
        except urllib.error.HTTPError:
            return None  # no such attribute
        except OSError:
            time.sleep(0.5 * attempt)
    return None


def _seconds(name: str, given: float | None, default: float, least: float = 0.0) -> float:
    """The start or heartbeat timeout: what is given, what the environment says, or the default."""
    text = os.environ.get(f"QWEN3_JAX_{name.upper()}_TIMEOUT", str(default)) if given is None else str(given)
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not max(least, 1e-9) <= seconds < 1e6:
        rule = f"at least {least:g} seconds" if least else "a positive number of seconds"
        raise ValueError(f"the {name} timeout must be {rule}, got {text!r}: correct it")
    return seconds


def own_cluster() -> Cluster | None:
    """What `start` would find without arguments."""
    return find_cluster(os.environ, metadata=_metadata())
