"""The ragged exchange against a description of it in numpy, and its gradient."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from qwen3_jax.sharding import make_mesh, ragged_all_to_all, target_platform

ROWS, SLOTS, WIDTH = 24, 40, 3


def plan(devices: int, slices: int, seed: int) -> tuple[np.ndarray, ...]:
    """Random slices, [devices, devices * slices] each: packed in the operand, with gaps in the output, many empty."""
    rng = np.random.default_rng(seed)
    count = devices * slices
    sizes = rng.integers(0, 2 * ROWS // count + 1, (devices, count)) * (rng.random((devices, count)) < 0.7)
    while (sizes.sum(1) > ROWS).any():
        sizes = np.maximum(sizes - 1, 0)
    sources = np.cumsum(sizes, axis=1) - sizes
    targets = np.zeros((devices, count), int)
    for receiver in range(devices):
        mine = [(s, k) for s in range(devices) for k in range(receiver * slices, (receiver + 1) * slices)]
        free = SLOTS - sum(sizes[s, k] for s, k in mine)
        place = 0
        for s, k in rng.permutation(mine):
            gap = int(rng.integers(0, 2)) if free > 0 else 0
            free -= gap
            targets[s, k] = place + gap
            place = targets[s, k] + sizes[s, k]
    received = np.stack(
        [sizes[:, r * slices : (r + 1) * slices].reshape(-1) for r in range(devices)]
    )  # [receiver, sender * slices + k]
    return tuple(a.astype(np.int32) for a in (sources, sizes, targets, received))


def described(operand: np.ndarray, output: np.ndarray, places: tuple[np.ndarray, ...]) -> np.ndarray:
    sources, sizes, targets, _ = places
    devices = operand.shape[0]
    result = output.copy()
    for sender in range(devices):
        for k in range(sizes.shape[1]):
            n, a, b = sizes[sender, k], sources[sender, k], targets[sender, k]
            result[k // (sizes.shape[1] // devices), b : b + n] = operand[sender, a : a + n]
    return result


def exchange(axis: str) -> Any:
    def local(operand: Any, output: Any, *places: Any) -> Any:
        return ragged_all_to_all(operand[0], output[0], *(p[0] for p in places), axis)[None]

    spec = PartitionSpec(axis)
    return jax.jit(jax.shard_map(local, in_specs=(spec,) * 6, out_specs=spec, check_vma=False))


def drawn(devices: int, dtype: Any = np.float32) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(5)
    return (
        rng.normal(size=(devices, ROWS, WIDTH)).astype(dtype),
        rng.normal(size=(devices, SLOTS, WIDTH)).astype(dtype),
    )


@pytest.mark.parametrize("slices", [1, 3])
@pytest.mark.parametrize("sizes", [{"expert": 8}, {"fsdp": 2, "expert": 4}, {"expert": 2, "tensor": 4}])
def test_the_emulation_does_what_is_described(sizes: dict[str, int], slices: int) -> None:
    devices = sizes["expert"]
    operand, output = drawn(devices)
    with jax.set_mesh(make_mesh(**sizes)):
        run = exchange("expert")
        for seed in range(3):
            places = plan(devices, slices, seed)
            assert (places[1] == 0).any(), "an empty slice is part of the case"
            np.testing.assert_array_equal(run(operand, output, *places), described(operand, output, places))


@pytest.mark.parametrize("slices", [1, 3])
def test_the_gradient_takes_each_row_back_where_it_came_from(slices: int) -> None:
    """The exchange is linear: its gradient is the transposed matrix, which the description gives row by row."""
    operand, output = drawn(4)
    cotangent = np.random.default_rng(6).normal(size=output.shape).astype(np.float32)
    places = plan(4, slices, 1)
    with jax.set_mesh(make_mesh(data=2, expert=4)):
        run = exchange("expert")
        _, pull = jax.vjp(lambda a, b: run(a, b, *places), operand, output)
        to_operand, to_output = pull(jnp.asarray(cotangent))
    labels = np.arange(1, operand[..., 0].size + 1, dtype=np.float32).reshape(4, ROWS, 1)
    arrived = described(labels, np.zeros((4, SLOTS, 1), np.float32), places)[..., 0].astype(int)
    expected = np.zeros_like(operand).reshape(-1, WIDTH)
    expected[arrived[arrived > 0] - 1] = cotangent[arrived > 0]
    np.testing.assert_array_equal(to_operand, expected.reshape(operand.shape))
    np.testing.assert_array_equal(to_output, np.where(arrived[..., None] > 0, 0, cotangent))


def test_any_dtype_and_trailing_shape() -> None:
    operand, output = drawn(8)
    places = plan(8, 1, 2)
    expected = described(operand, output, places)
    with jax.set_mesh(make_mesh(expert=8)):
        run = exchange("expert")
        narrow = run(operand.astype(jnp.bfloat16), output.astype(jnp.bfloat16), *places)
        flat = run(operand[..., 0], output[..., 0], *places)
    np.testing.assert_array_equal(narrow, expected.astype(jnp.bfloat16))
    np.testing.assert_array_equal(flat, expected[..., 0])


def test_the_platform_is_that_of_the_mesh() -> None:
    assert target_platform() == "cpu"
    seen: list[str] = []

    @partial(jax.shard_map, in_specs=PartitionSpec(), out_specs=PartitionSpec())
    def inside(x: Any) -> Any:
        seen.append(target_platform())
        return x

    with jax.set_mesh(make_mesh(fsdp=8)):
        jax.jit(inside)(jnp.zeros(1))
    assert seen == ["cpu"]
