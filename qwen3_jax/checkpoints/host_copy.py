"""Parameters as the tensors of a checkpoint: checked, then copied to the host a layer at a time as they are written."""

import functools
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

from qwen3_jax.checkpoints.names import Leaf, differences, leaves
from qwen3_jax.checkpoints.safetensors import DTYPES, PendingTensor
from qwen3_jax.config import ModelConfig
from qwen3_jax.parameters.specs import Layout, Params, layout_of
from qwen3_jax.sharding import mesh_of
from qwen3_jax.sharding.launch.processes import is_first


def pending_tensors(
    config: ModelConfig, params: Params, declaration: Callable[[ModelConfig, Layout], Mapping[str, Any]]
) -> list[PendingTensor]:
    """Every tensor of the checkpoint, in the order of the layers; fetched from its parameter when it is written.

    Args:
      declaration: gives the specs of `params` in either layout, as `spec_tree` does for a model.
    """
    layout = layout_of(params)
    ours = list(leaves(config, layout, declaration(config, layout)))
    _check_params(ours, params)
    tensors: dict[str, PendingTensor] = {}
    for leaf in ours:
        array: Any = functools.reduce(operator.getitem, leaf.path, params)
        fetch = _HostCopy(leaf, array)
        for index, name in leaf.tensors.items():
            blocks = partial(fetch.blocks, index)
            tensors[name] = PendingTensor(name=name, dtype=array.dtype, shape=leaf.tensor_shape, blocks=blocks)
    unrolled = leaves(config, "unrolled", declaration(config, "unrolled"))
    order = [name for leaf in unrolled for name in leaf.tensors.values()]
    return [tensors[name] for name in order]


class _HostCopy:
    """Copies one parameter to the host, a layer at a time; a layer's experts, which follow each other, share the copy.

    On one CPU device nothing is copied. Elsewhere a new array is made on the device first: jax keeps the host's copy of
    an array as long as the array lives, and the parameters outlive this. A layer that lies on devices of several
    processes is gathered on all of them; only process 0 copies it.
    """

    def __init__(self, leaf: Leaf, array: Array):
        self.leaf, self.array = leaf, array
        self.experts = leaf.shape[leaf.axes.index("expert")] if "expert" in leaf.axes else 0
        self.layer: np.ndarray | None = None

    def blocks(self, index: tuple[int, ...]) -> Iterator[np.ndarray]:
        """The tensor at `index` of the parameter (see `Leaf.tensors`), in one block."""
        if _on_host(self.array):
            yield np.asarray(self.array)[index]
            return
        layer, inner = (index[0], index[1:]) if self.leaf.stacked else (None, index)
        if self.layer is None:
            self.layer = self._copy(layer)
        yield self.layer[inner]
        if not self.experts or inner[0] == self.experts - 1:
            self.layer = None

    def _copy(self, layer: int | None) -> np.ndarray:
        if self.array.is_fully_addressable:
            return np.asarray(self.array.copy() if layer is None else self.array[layer])
        mesh = mesh_of(self.array)
        assert mesh is not None  # what lies on several processes lies on a mesh
        gathered = jax.block_until_ready(_gather(self.array, layer, NamedSharding(mesh, P())))
        # What the others yield is not looked at.
        return np.asarray(gathered) if is_first() else np.broadcast_to(np.zeros((), gathered.dtype), gathered.shape)


@partial(jax.jit, static_argnums=2)
def _gather(array: Array, layer: int | None, whole: NamedSharding) -> Array:
    if layer is not None:
        array = jax.lax.dynamic_index_in_dim(array, layer, keepdims=False)
    return jax.lax.with_sharding_constraint(array, whole)


def _on_host(array: Array) -> bool:
    return isinstance(array, np.ndarray) or (
        len(array.devices()) == 1 and next(iter(array.devices())).platform == "cpu"
    )


def _check_params(ours: Sequence[Leaf], params: Params) -> None:
    expected = {".".join(leaf.path): leaf.shape for leaf in ours}
    flat, _ = jax.tree_util.tree_flatten_with_path(dict(params))
    given = {".".join(str(getattr(key, "key", key)) for key in path): leaf for path, leaf in flat}
    problems = differences(expected, {name: leaf.shape for name, leaf in given.items()}, "got")
    stored = DTYPES.values()
    problems += [f"{name}: {x.dtype} can not be stored" for name, x in given.items() if np.dtype(x.dtype) not in stored]
    if problems:
        raise ValueError(
            f"params must be those of the model, got {len(problems)} that differ: {'; '.join(problems[:5])}: pass the "
            "tree that init or from_pretrained returned"
        )
