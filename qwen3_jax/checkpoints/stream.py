"""Reads parameters onto devices: reads started ahead, buffers handed over, stacks filled on the device.

What is resident on the host is the parameters themselves on CPU (each tensor is read straight into the buffer that XLA
then takes over), and a bounded window of single tensors on an accelerator. On a mesh, a device reads only its slice.
"""

from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, ArrayLike

from qwen3_jax.checkpoints.names import Leaf, leaves
from qwen3_jax.checkpoints.safetensors import TensorEntry, aligned_empty, read_into
from qwen3_jax.config import ModelConfig
from qwen3_jax.parameters.specs import Layout
from qwen3_jax.sharding import DEFAULT_RULES, Rules, named_sharding

_RUN = 32 << 20  # bytes one thread reads at a time
_WINDOW = 1 << 30  # bytes on the way to an accelerator; at least one tensor whatever its size

Region = tuple[slice, ...]


class _Read:
    """A parameter, or one layer of a stack, being read into host buffers: one a distinct slice that this process's
    devices need."""

    def __init__(self, leaf: Leaf, entries: Mapping[str, TensorEntry], dtype: np.dtype, sharding: NamedSharding | None):
        self.leaf, self.entries, self.dtype, self.sharding = leaf, entries, dtype, sharding
        if sharding is None:
            self.keys = {tuple((0, dim) for dim in leaf.shape)}
        else:
            self.keys = {self._key(region) for region in sharding.addressable_devices_indices_map(leaf.shape).values()}
        self.nbytes = sum(dtype.itemsize * int(np.prod([b - a for a, b in key])) for key in self.keys)
        self.buffers: dict[tuple[tuple[int, int], ...], np.ndarray] = {}
        self.reads: list[Future[None]] = []

    def _key(self, region: Region | None) -> tuple[tuple[int, int], ...]:
        assert region is not None
        return tuple(part.indices(dim)[:2] for part, dim in zip(region, self.leaf.shape, strict=True))

    def start(self, pool: ThreadPoolExecutor) -> None:
        for key in self.keys:
            buffer = self.buffers[key] = aligned_empty([b - a for a, b in key], self.dtype)
            lead = len(next(iter(self.leaf.tensors)))
            for index in product(*(range(a, b) for a, b in key[:lead])):
                entry = self.entries[self.leaf.tensors[index]]
                out = buffer[tuple(i - a for i, (a, _) in zip(index, key[:lead], strict=True))]
                self.reads += _submit(pool, entry, out, tuple(slice(a, b) for a, b in key[lead:]))

    def finish(self) -> Array:
        """The array on its devices; the host buffers are let go (or have become the array, on CPU)."""
        for read in self.reads:
            read.result()
        self.reads.clear()
        if self.sharding is None:
            (buffer,) = self.buffers.values()
            array = jax.device_put(buffer)
        else:
            array = jax.make_array_from_callback(
                self.leaf.shape, self.sharding, lambda region: self.buffers[self._key(region)]
            )
        self.buffers.clear()
        return array


_Job = tuple[Leaf, int | None, _Read]  # a parameter, or one layer of a stack with its number


def _submit(pool: ThreadPoolExecutor, entry: TensorEntry, out: np.ndarray, region: Region) -> Iterator[Future[None]]:
    """Reads one tensor's region in runs of rows, each a job."""
    step = max(1, _RUN * len(out) // max(out.nbytes, 1))
    for at in range(0, len(out), step):
        rows = slice(region[0].start + at, region[0].start + min(at + step, len(out)))
        yield pool.submit(read_into, entry, out[at : at + step], (rows, *region[1:]))


def load_parameters(
    config: ModelConfig,
    layout: Layout,
    entries: Mapping[str, TensorEntry],
    dtype: np.dtype,
    mesh: Mesh | None,
    pool: ThreadPoolExecutor,
    rules: Rules = DEFAULT_RULES,
    tree: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Reads every parameter: on CPU whole, its buffer becomes the array; on an accelerator a stack is filled layer by
    layer on the device. `tree` declares others than the model's own, see `names.leaves`."""
    on_host = _shares_host_memory(mesh)
    work: list[_Job] = []
    for leaf in leaves(config, layout, tree):
        sharding = None if mesh is None else named_sharding(mesh, leaf.axes, rules)
        if on_host or not leaf.stacked or (sharding is not None and sharding.spec[0] is not None):
            work.append((leaf, None, _Read(leaf, entries, dtype, sharding)))
            continue
        inner = None if sharding is None else NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[1:]))
        for number in range(leaf.shape[0]):
            work.append((leaf, number, _Read(leaf.layer(number), entries, dtype, inner)))

    params: dict[str, Any] = {}
    for leaf, layer, read in _windowed(work, pool, unlimited=on_host):
        array = read.finish()
        *parents, name = leaf.path
        holder = params
        for parent in parents:
            holder = holder.setdefault(parent, {})
        if layer is None:
            holder[name] = array
        else:
            if layer == 0:
                sharding = None if mesh is None else named_sharding(mesh, leaf.axes, rules)
                holder[name] = jax.jit(partial(jnp.zeros, leaf.shape, dtype), out_shardings=sharding)()
            holder[name] = _set_layer(holder[name], array, layer)
        if not on_host:
            array.block_until_ready()  # its host buffer is free again
    return params


def _shares_host_memory(mesh: Mesh | None) -> bool:
    return bool((jax.default_backend() if mesh is None else mesh.devices.flat[0].platform) == "cpu")


def _windowed(work: list[_Job], pool: ThreadPoolExecutor, unlimited: bool) -> Iterator[_Job]:
    """Starts reads ahead of their use, all of them or as many bytes as the window holds."""
    waiting, started, ahead = deque(work), deque[_Job](), 0
    while waiting or started:
        while waiting and (unlimited or not started or ahead + waiting[0][2].nbytes <= _WINDOW):
            item = waiting.popleft()
            item[2].start(pool)
            ahead += item[2].nbytes
            started.append(item)
        item = started.popleft()
        ahead -= item[2].nbytes
        yield item


@partial(jax.jit, donate_argnums=0)
def _set_layer(stack: Array, layer: Array, index: ArrayLike) -> Array:
    return jax.lax.dynamic_update_index_in_dim(stack, layer, index, 0)
