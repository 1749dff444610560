"""Parameters to a directory that `transformers` and every tool that reads Hugging Face's Qwen3 load."""

import contextlib
import dataclasses
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

from qwen3_jax.checkpoints.names import Leaf, leaves
from qwen3_jax.checkpoints.safetensors import DTYPES, INDEX, PendingTensor, write_sharded
from qwen3_jax.config import ModelConfig
from qwen3_jax.files import write_json
from qwen3_jax.generation_defaults import GenerationDefaults
from qwen3_jax.network.model import Qwen3
from qwen3_jax.parameters.specs import Layout, Params, layout_of, spec_tree
from qwen3_jax.sharding import mesh_of
from qwen3_jax.sharding.launch.processes import first_does, is_first, is_shared

_WEIGHTS = re.compile(rf"model(-\d+-of-\d+)?\.safetensors|{re.escape(INDEX)}")
_TOKENIZER = re.compile(
    r"tokenizer\.json|tokenizer_config\.json|chat_template\.jinja|special_tokens_map\.json|added_tokens\.json|"
    r"vocab\.json|merges\.txt|additional_chat_templates|.*\.model"
)


@runtime_checkable
class SavesItself(Protocol):
    """What `save_pretrained` asks of a tokenizer."""

    def save(self, directory: Path) -> None: ...


def save_pretrained(
    directory: str | Path,
    model: Qwen3,
    params: Params,
    tokenizer: SavesItself | None = None,
    max_shard_size: int | str = "5GB",
) -> None:
    """Writes config.json, safetensors, generation_config.json and the tokenizer's files.

    Files are written into a temporary directory beside the target and moved when all are complete: a failure leaves
    what was there. One layer of one parameter at a time is copied to the host, whichever layout `params` is in.

    Parameters that lie on devices of several processes are saved by all of them together: each calls this, process 0
    writes, and all return when the files are there.

    Args:
      tokenizer: writes its own files when given.
      max_shard_size: bytes, or such as "5GB" and "200MB"; more becomes several files and an index.

    Raises:
      ValueError: parameters that are not this model's, a model without QK-Norm, or a size that can not be read.
    """
    if not model.qk_norm:
        raise ValueError(
            "qk_norm must be True to export, got False: no config.json says it, keep the run's checkpoints"
        )
    limit = parse_size(max_shard_size)
    tensors = pending_tensors(model.config, params, spec_tree)
    config = config_json(model.config, tensors[0].dtype, model.generation)

    def write(tensors: Sequence[PendingTensor]) -> None:
        with staged(Path(directory)) as stage:
            write_sharded(stage, tensors, limit)
            write_json(stage / "config.json", config)
            if _has_sampling(model.generation):
                write_json(stage / "generation_config.json", model.generation.to_hf())
            if tokenizer is not None:
                tokenizer.save(stage)

    save_tensors(write, tensors, params)


def save_tensors(
    write: Callable[[Sequence[PendingTensor]], None], tensors: Sequence[PendingTensor], params: Params
) -> None:
    """Calls `write` here, or on process 0 where the tensors' parameters lie on devices of several processes."""
    if is_shared(params):
        _write_together(write, tensors)
    else:
        write(tensors)


def _write_together(write: Callable[[Sequence[PendingTensor]], None], tensors: Sequence[PendingTensor]) -> None:
    """Process 0 writes, the others bring their parts of each tensor, in the order in which it is written.

    When writing fails, process 0 still takes part in what is left, so that nobody waits for it; then all raise.
    """
    left = {tensor.name: tensor for tensor in tensors}

    def blocks(name: str) -> Iterable[np.ndarray]:
        return left.pop(name).blocks()

    failure = None
    try:
        if is_first():
            write([dataclasses.replace(tensor, blocks=partial(blocks, tensor.name)) for tensor in tensors])
    except Exception as error:
        failure = error
    for tensor in left.values():
        for _ in tensor.blocks():
            pass

    def outcome() -> None:
        if failure is not None:
            raise failure

    first_does(outcome)


def config_json(config: ModelConfig, dtype: np.dtype, generation: GenerationDefaults) -> dict[str, Any]:
    """The published spelling, with the token ids that Hugging Face keeps there too."""
    out = config.to_hf() | {"torch_dtype": dtype.name}
    ends = generation.eos_token_ids
    if ends:
        # One id as in the published files where generation_config.json has the whole list.
        out["eos_token_id"] = ends[0] if len(ends) == 1 or _has_sampling(generation) else list(ends)
    for name in ("bos_token_id", "pad_token_id"):
        if getattr(generation, name) is not None:
            out[name] = getattr(generation, name)
    return dict(sorted(out.items()))


def _has_sampling(generation: GenerationDefaults) -> bool:
    return any(getattr(generation, name) is not None for name in ("temperature", "top_p", "top_k", "min_p"))


def parse_size(size: int | str) -> int:
    """In: "5GB". Out: 5_000_000_000.

    Raises:
      ValueError: not a positive size.
    """
    units = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]I?B)?", str(size).strip().upper())
    value = int(float(match[1]) * units[match[2] or ""]) if match else 0
    if value <= 0:
        raise ValueError(f"max_shard_size must be a number of bytes or such as '5GB', got {size!r}: correct it")
    return value


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
        array = _get(params, leaf.path)
        fetch = _HostCopy(leaf, array)
        for index, name in leaf.tensors.items():
            tensors[name] = PendingTensor(
                name=name,
                dtype=np.dtype(array.dtype),
                shape=leaf.tensor_shape,
                blocks=partial(fetch.blocks, index),
            )
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
    expected = {leaf.path: leaf.shape for leaf in ours}
    flat, _ = jax.tree_util.tree_flatten_with_path(dict(params))
    given = {tuple(str(getattr(key, "key", key)) for key in path): leaf for path, leaf in flat}
    problems = [
        f"{'.'.join(path)}: expected {list(shape)}, got none" for path, shape in expected.items() if path not in given
    ]
    for path, leaf in given.items():
        if path not in expected:
            problems.append(f"{'.'.join(path)}: expected none, got {list(leaf.shape)}")
        elif leaf.shape != expected[path]:
            problems.append(f"{'.'.join(path)}: expected {list(expected[path])}, got {list(leaf.shape)}")
        elif np.dtype(leaf.dtype) not in DTYPES.values():
            problems.append(f"{'.'.join(path)}: {leaf.dtype} can not be stored")
    if problems:
        raise ValueError(
            f"params must be those of the model, got {len(problems)} that differ: {'; '.join(problems[:5])}: pass the "
            "tree that init or from_pretrained returned"
        )


def _get(params: Params, path: tuple[str, ...]) -> Any:
    for key in path:
        params = params[key]
    return params


@contextlib.contextmanager
def staged(directory: Path) -> Iterator[Path]:
    """A directory to write a checkpoint into; its files replace the target's when the block ends without an error.

    Weights (and, when new ones come, tokenizer files) of the old checkpoint are removed, other files stay. When moving
    fails half-way, the old files are put back.

    Raises:
      ValueError: the target is a file.
    """
    directory = directory.expanduser()
    if directory.exists() and not directory.is_dir():
        raise ValueError(f"a checkpoint is saved into a directory, got the file {directory}: choose another path")
    parent = directory.absolute().parent
    parent.mkdir(parents=True, exist_ok=True)
    stage = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", suffix=".tmp", dir=parent))
    try:
        new = stage / "new"
        new.mkdir()
        yield new
        if directory.is_dir():
            _replace(directory, new, stage / "old")
        else:
            os.rename(new, directory)
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _replace(directory: Path, new: Path, old: Path) -> None:
    old.mkdir()
    names = sorted(path.name for path in new.iterdir())
    # A part of the old checkpoint that the new one has too goes whole: no stale shard, no stale template.
    replaced = [part for part in (_WEIGHTS, _TOKENIZER) if any(map(part.fullmatch, names))]
    outgoing = [
        path.name
        for path in directory.iterdir()
        if path.name in names or any(part.fullmatch(path.name) for part in replaced)
    ]
    placed: list[str] = []
    try:
        for name in outgoing:
            os.replace(directory / name, old / name)
        for name in names:
            os.replace(new / name, directory / name)
            placed.append(name)
    except BaseException:
        for name in placed:
            os.replace(directory / name, new / name)
        for path in old.iterdir():
            os.replace(path, directory / path.name)
        raise
