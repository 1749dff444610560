"""Parameters to a directory that `transformers` and every tool that reads Hugging Face's Qwen3 load."""

import dataclasses
import re
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from qwen3_jax.checkpoints.host_copy import pending_tensors
from qwen3_jax.checkpoints.safetensors import PendingTensor, write_sharded
from qwen3_jax.checkpoints.staging import staged
from qwen3_jax.config import ModelConfig
from qwen3_jax.files import write_json
from qwen3_jax.generation_defaults import GenerationDefaults
from qwen3_jax.network.model import Qwen3
from qwen3_jax.parameters.specs import Params, spec_tree
from qwen3_jax.sharding.launch.processes import first_does, is_first, is_shared


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
