"""Small checkpoints made without torch, and the pieces to damage them with."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from qwen3_jax.checkpoints.names import expected_shapes
from qwen3_jax.checkpoints.safetensors import PendingTensor, write_sharded
from qwen3_jax.checkpoints.save import config_json
from qwen3_jax.checkpoints.staging import write_json
from qwen3_jax.config import ModelConfig
from qwen3_jax.generation_defaults import GenerationDefaults

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def random_tensors(config: ModelConfig, dtype: Any = np.float32, seed: int = 0) -> dict[str, np.ndarray]:
    """Every tensor of a checkpoint by its Hugging Face name."""
    random = np.random.default_rng(seed)
    return {
        name: (random.standard_normal(shape) * 0.1).astype(dtype) for name, shape in expected_shapes(config).items()
    }


def write_tensors(directory: Path, tensors: dict[str, np.ndarray], max_shard_size: int = 10**12) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    write_sharded(directory, [_pending(name, value) for name, value in tensors.items()], max_shard_size)
    return directory


def _pending(name: str, value: np.ndarray) -> PendingTensor:
    def blocks() -> Iterable[np.ndarray]:
        return [value]

    return PendingTensor(name=name, dtype=value.dtype, shape=value.shape, blocks=blocks)


def write_checkpoint(directory: Path, config: ModelConfig, dtype: Any = np.float32, **options: Any) -> Path:
    """Random weights and their config.json."""
    write_tensors(directory, random_tensors(config, dtype), **options)
    write_json(directory / "config.json", config_json(config, np.dtype(dtype), GenerationDefaults()))
    return directory


def edit_json(path: Path, **changes: Any) -> None:
    """Sets keys of a JSON file; None removes one."""
    value = {**json.loads(path.read_text(encoding="utf-8")), **changes}
    write_json(path, {key: item for key, item in value.items() if item is not None})
