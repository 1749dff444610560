"""Processes (threads here) that meet, and what all learn when one does not come."""

import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from qwen3_jax.sharding.launch.cluster import Cluster
from qwen3_jax.sharding.launch.rendezvous import meet
from tests.distributed.launch import free_port


def outcomes(
    ids: list[int], count: int, seconds: float = 1.5, port: int | None = None, counts: dict[int, int] | None = None
) -> list[Exception | None]:
    """What `meet` raised for each of the processes `ids` of `count`."""
    address = f"127.0.0.1:{free_port() if port is None else port}"

    def one(process_id: int) -> Exception | None:
        own = (counts or {}).get(process_id, count)
        cluster = Cluster(kind="flags", coordinator=address, num_processes=own, process_id=process_id)
        try:
            meet(cluster, seconds)
        except Exception as error:
            return error
        return None

    with ThreadPoolExecutor(len(ids)) as pool:
        return list(pool.map(one, ids))


def test_all_meet_and_the_port_is_free_again() -> None:
    port = free_port()
    assert outcomes([3, 1, 0, 2], 4, seconds=20, port=port) == [None] * 4
    with socket.create_server(("127.0.0.1", port)):
        pass


def test_an_absent_process_is_named_to_all_in_time() -> None:
    began = time.monotonic()
    errors = outcomes([0, 1, 3], 5)
    assert time.monotonic() - began < 6
    for error in errors:
        assert isinstance(error, TimeoutError)
        assert "for 2 of them, with the ids 2, 4" in str(error)
        assert "127.0.0.1:" in str(error)
        assert "\n" not in str(error)
    assert "said by process 0" in str(errors[1])


def test_an_absent_coordinator_is_named() -> None:
    (error,) = outcomes([1], 2)
    assert isinstance(error, TimeoutError)
    assert "process 1 waited in vain for process 0 at 127.0.0.1:" in str(error)


def test_contradictions_are_refused_by_all() -> None:
    errors = outcomes([0, 1, 1], 4, seconds=20)
    assert all(isinstance(error, ValueError) for error in errors)
    assert "must have its own id, got 1 a second time" in str(errors[0])
    errors = outcomes([0, 1], 2, seconds=20, counts={1: 3})
    assert [str(error).split(",")[0] for error in errors] == ["all processes must count the same number of them"] * 2


def test_a_stranger_and_a_process_that_starts_again_do_no_harm() -> None:
    port = free_port()
    with ThreadPoolExecutor(2) as pool:
        meeting = pool.submit(outcomes, [0], 2, 20, port)
        time.sleep(0.3)
        for hello in (b"GET / HTTP/1.1\r\n\r\n", b'{"process_id": 1, "num_processes": 2'):
            with socket.create_connection(("127.0.0.1", port)) as stranger:
                stranger.sendall(hello)
        assert outcomes([1], 2, 20, port) == [None]
        assert meeting.result() == [None]


def test_a_port_that_is_taken_is_named() -> None:
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        (error,) = outcomes([0], 2, port=port)
    assert isinstance(error, OSError)
    assert f"must be able to listen on port {port}" in str(error)


@pytest.mark.parametrize("count", [40])
def test_many(count: int) -> None:
    assert outcomes(list(range(count)), count, seconds=30) == [None] * count
