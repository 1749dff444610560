"""Where a run begins: `init_from`, a model in Hugging Face form or an earlier run, with what changes."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from jax.sharding import Mesh

from qwen3_jax.checkpoints.files import resolve_checkpoint
from qwen3_jax.checkpoints.load import from_pretrained
from qwen3_jax.config import ModelConfig
from qwen3_jax.network.model import Qwen3
from qwen3_jax.parameters.specs import Params
from qwen3_jax.train.config import TrainConfig

# Keys of config.json that leave every parameter as it is.
CHANGEABLE = frozenset(
    "rope_theta rope_scaling max_position_embeddings router_aux_loss_coef rms_norm_eps num_experts_per_tok "
    "norm_topk_prob".split()
)


def source_of(init_from: str) -> Path:
    """The directory in Hugging Face form that `init_from` means: itself, a hub's snapshot, or an earlier run's export.

    Raises:
      FileNotFoundError: there is none; or a run that has not exported its model yet.
    """
    run_dir = Path(init_from).expanduser()
    if (run_dir / "checkpoints").is_dir() and not (run_dir / "config.json").exists():
        if (run_dir / "adapter").is_dir():
            raise FileNotFoundError(
                f"init_from must be a model, got {init_from}, which trained adapters: merge them (qwen3-jax convert "
                f"BASE DIR --adapter {run_dir / 'adapter'}) and set init_from=DIR"
            )
        if not (run_dir / "model" / "config.json").exists():
            raise FileNotFoundError(
                f"init_from must be a run that is done, got {init_from} without a model: finish it, or "
                f"export a step of it (qwen3-jax export {init_from} DIR) and set init_from=DIR"
            )
        return run_dir / "model"
    return resolve_checkpoint(init_from)


def resolve(config: TrainConfig, base: Mapping[str, Any] | None = None) -> TrainConfig:
    """`config` with the whole of its model's config.json in `model`; as it is without `init_from`.

    Args:
      base: the config.json that `model` changes; None reads that of `init_from`.

    Raises:
      FileNotFoundError: as `source_of`.
      ValueError: `model` changes a key that decides what parameters there are; it is named.
    """
    if not config.init_from:
        return config
    if base is None:
        base = ModelConfig.from_file(source_of(config.init_from) / "config.json").to_hf()
    for key, value in config.model.items():
        if key not in CHANGEABLE and value != base.get(key):
            raise ValueError(
                f"model.{key} must be {base.get(key)!r} as in init_from, got {value!r}: with init_from only "
                f"{', '.join(sorted(CHANGEABLE))} can change"
            )
    return dataclasses.replace(config, model={**base, **config.model})


def load_initial(config: TrainConfig, model: Qwen3, mesh: Mesh | None) -> Params:
    """The parameters of `init_from` as float32, each slice straight onto its device; a base that stays frozen is in the
    dtype of the activations."""
    dtype = jnp.float32 if model.lora is None else jnp.dtype(config.dtype)
    _, params = from_pretrained(source_of(config.init_from), dtype, mesh, model.layout, config.mesh.table)
    return params
