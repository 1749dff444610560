"""All processes of a job meet at process 0 within a bounded time, or all of them learn who did not come.

On the wire a process sends one line of JSON, {"process_id", "num_processes"}, and gets one back: {"error": null} when
all are there, else the error that every process then raises.
"""

import contextlib
import json
import socket
import time
from typing import Any

from qwen3_jax.sharding.launch.cluster import Cluster

_HELLO_SECONDS = 10.0  # from a connection to its first line
_GRACE_SECONDS = 10.0  # that the others wait longer than process 0, whose word they wait for


def meet(cluster: Cluster, seconds: float) -> None:
    """Returns when all processes have come.

    Raises:
      TimeoutError: one did not come within `seconds`.
      ValueError: two have the same number, or count their number differently.
      OSError: the port of process 0 is taken.
    """
    if cluster.process_id == 0:
        _receive_all(cluster, seconds)
    else:
        _report(cluster, seconds)


def _receive_all(cluster: Cluster, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    arrived: dict[int, socket.socket] = {}
    told: list[socket.socket] = []  # who gets the word: also one that contradicts another
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(_listen(cluster))
        error = None
        while error is None and len(arrived) < cluster.num_processes - 1:
            listener.settimeout(max(deadline - time.monotonic(), 0.01))
            try:
                connection, (peer, *_) = listener.accept()
            except TimeoutError:
                error = _absence(cluster, seconds, arrived)
                break
            stack.enter_context(connection)
            hello = _read_line(connection, min(_HELLO_SECONDS, max(deadline - time.monotonic(), 0.01)))
            if hello is not None and isinstance(hello.get("process_id"), int):
                arrived = {number: other for number, other in arrived.items() if _is_open(other)}
                error = _contradiction(cluster, hello, peer, arrived)
                arrived.setdefault(hello["process_id"], connection)
                told.append(connection)
        # Nobody listens any more when the word is given: JAX takes the port over.
        listener.close()
        word = json.dumps({"error": error}).encode() + b"\n"
        for connection in told:
            with contextlib.suppress(OSError):
                connection.sendall(word)
        # Who closes first keeps the port for a while: let it be the others.
        for connection in told:
            _read_line(connection, 2.0)
    if error is not None:
        raise _as_exception(error)


def _report(cluster: Cluster, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    reason = "it did not answer"
    while (left := deadline - time.monotonic()) > 0:
        try:
            word = _say_hello(cluster, min(5.0, left), seconds + _GRACE_SECONDS)
        except OSError as failure:
            reason = failure.strerror or str(failure)
        else:
            if word is not None and word.get("error") is not None:
                raise _as_exception(f"{word['error']} (said by process 0)")
            if word is not None:
                return
            reason = "it answered and left before all had come"
        time.sleep(min(0.2, max(deadline - time.monotonic(), 0.0)))
    raise TimeoutError(
        f"all {cluster.num_processes} processes must start within {seconds:g} s, process {cluster.process_id} waited "
        f"in vain for process 0 at {cluster.coordinator} ({reason}): start it, check the address and the firewall, "
        "or raise --start-timeout"
    )


def _say_hello(cluster: Cluster, connect_seconds: float, answer_seconds: float) -> dict[str, Any] | None:
    hello = {"process_id": cluster.process_id, "num_processes": cluster.num_processes}
    with socket.create_connection(cluster.address, timeout=connect_seconds) as connection:
        connection.sendall(json.dumps(hello).encode() + b"\n")
        return _read_line(connection, answer_seconds)


def _as_exception(text: str) -> Exception:
    return TimeoutError(text) if "in vain" in text else ValueError(text)


def _absence(cluster: Cluster, seconds: float, arrived: dict[int, socket.socket]) -> str:
    missing = [number for number in range(1, cluster.num_processes) if number not in arrived]
    return (
        f"all {cluster.num_processes} processes must start within {seconds:g} s, process 0 waited in "
        f"vain at {cluster.coordinator} for {len(missing)} of them, with the ids {_some(missing)}: start them, check "
        "that they reach this address, or raise --start-timeout"
    )


def _contradiction(cluster: Cluster, hello: dict[str, Any], peer: str, arrived: dict[int, socket.socket]) -> str | None:
    number, count = hello["process_id"], hello.get("num_processes")
    if count != cluster.num_processes:
        return (
            f"all processes must count the same number of them, got {cluster.num_processes} from process 0 and {count} "
            f"from process {number} at {peer}: correct --num-processes"
        )
    if number in arrived or number == 0:
        return f"every process must have its own id, got {number} a second time from {peer}: correct --process-id"
    return None


def _listen(cluster: Cluster) -> socket.socket:
    port = cluster.address[1]
    try:
        if socket.has_dualstack_ipv6():
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=4096)
        return socket.create_server(("", port), backlog=4096)
    except OSError as error:
        raise OSError(
            f"process 0 must be able to listen on port {port} of {cluster.coordinator}, got {error.strerror}: choose "
            "another port, or end what uses it"
        ) from None


def _read_line(connection: socket.socket, seconds: float) -> dict[str, Any] | None:
    """One JSON object; None when the other side left or wrote something else."""
    deadline, received = time.monotonic() + seconds, b""
    with contextlib.suppress(OSError, ValueError):
        while not received.endswith(b"\n") and len(received) <= 65536:
            connection.settimeout(max(deadline - time.monotonic(), 0.01))
            if not (part := connection.recv(4096)):
                break
            received += part
        value = json.loads(received)
        return value if isinstance(value, dict) else None
    return None


def _is_open(connection: socket.socket) -> bool:
    connection.setblocking(False)
    try:
        return connection.recv(1, socket.MSG_PEEK) != b""
    except BlockingIOError:
        return True
    except OSError:
        return False


def _some(numbers: list[int], limit: int = 8) -> str:
    """In: [1, 2, 3], limit 2     Out: "1, 2 and 1 more"."""
    more = f" and {len(numbers) - limit} more" if len(numbers) > limit else ""
    return ", ".join(map(str, numbers[:limit])) + more
