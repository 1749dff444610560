"""A checkpoint written anew in another dtype or shard size, or with adapters merged: tensor by tensor, no device."""

import shutil
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from qwen3_jax.checkpoints.adapters import merged_blocks, read_adapters
from qwen3_jax.checkpoints.files import read_entries, resolve_checkpoint
from qwen3_jax.checkpoints.load import check_tied, parse_dtype
from qwen3_jax.checkpoints.names import check_tensors, expected_shapes
from qwen3_jax.checkpoints.safetensors import PendingTensor, TensorEntry, read_blocks, write_sharded
from qwen3_jax.checkpoints.save import parse_size
from qwen3_jax.checkpoints.staging import staged
from qwen3_jax.config import ModelConfig, read_json_object
from qwen3_jax.files import write_json

_COMPANIONS = ("*.json", "*.jinja", "*.txt", "*.model", "additional_chat_templates")


def convert(
    source: str | Path,
    target: str | Path,
    dtype: Any = None,
    max_shard_size: int | str = "5GB",
    adapter: str | Path | None = None,
) -> dict[str, Any]:
    """Writes the checkpoint `source` into the directory `target`, a few megabytes in memory at a time.

    Tensor names and the spelling of config.json stay; a head that repeats a tied embedding is left out; the tokenizer's
    files and generation_config.json are copied byte for byte.

    Args:
      dtype: "bfloat16", "float32" or "float16"; None keeps each tensor's.
      max_shard_size: bytes, or such as "5GB".
      adapter: low-rank adapters in PEFT's format, added to the weights in float32.

    Returns:
      What was written: path, dtype, files, tensors, bytes.

    Raises:
      FileNotFoundError, ValueError: as in `from_pretrained`; or the target is the source, or a file.
    """
    wanted = None if dtype is None else parse_dtype(dtype)
    limit = parse_size(max_shard_size)
    directory, target = resolve_checkpoint(source), Path(target).expanduser()
    if target.resolve() == directory.resolve():
        raise ValueError(f"a checkpoint must be converted into another directory, got {target} for both: name another")
    hf = read_json_object(directory / "config.json")
    config = ModelConfig.from_hf(hf)
    entries = read_entries(directory)
    if check_tensors(config, entries, directory):
        check_tied(entries)
    merge = None if adapter is None else partial(merged_blocks, *read_adapters(adapter, config))
    tensors = []
    for name, shape in expected_shapes(config).items():
        kind = wanted or entries[name].dtype
        blocks = partial(_blocks, entries[name], kind, None if merge is None else merge(name))
        tensors.append(PendingTensor(name=name, dtype=kind, shape=shape, blocks=blocks))
    with staged(target) as stage:
        files = write_sharded(stage, tensors, limit)
        key = "dtype" if "dtype" in hf and "torch_dtype" not in hf else "torch_dtype"
        _copy_companions(directory, stage, {**hf, key: tensors[0].dtype.name})
    return {
        "path": str(target),
        "dtype": tensors[0].dtype.name,
        "files": files,
        "tensors": len(tensors),
        "bytes": sum(tensor.nbytes for tensor in tensors),
    }


def _blocks(
    entry: TensorEntry, kind: np.dtype, merge: Callable[[Iterator[np.ndarray]], Iterator[np.ndarray]] | None
) -> Iterator[np.ndarray]:
    if merge is None:
        return read_blocks(entry, kind)
    return (block.astype(kind) for block in merge(read_blocks(entry, np.dtype(np.float32))))


def _copy_companions(directory: Path, stage: Path, config: Mapping[str, Any]) -> None:
    for pattern in _COMPANIONS:
        for path in directory.glob(pattern):
            if path.is_dir():
                shutil.copytree(path, stage / path.name)
            elif not path.name.endswith(".index.json") and not (stage / path.name).exists():
                shutil.copyfile(path, stage / path.name)
    write_json(stage / "config.json", config)
