"""Qwen3, dense and mixture-of-experts, in JAX and Flax: the model, its checkpoints, its tokenizer and templates.

Names are imported when they are first used: `qwen3-jax --help` answers without loading jax.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qwen3_jax.cache import KVCache, init_cache
    from qwen3_jax.checkpoint import from_pretrained
    from qwen3_jax.compile_cache import enable_compile_cache
    from qwen3_jax.config import ModelConfig, YarnConfig
    from qwen3_jax.export import save_pretrained
    from qwen3_jax.generation_defaults import GenerationDefaults
    from qwen3_jax.lora import with_adapters
    from qwen3_jax.lora_files import load_adapters, merge_adapters, save_adapters
    from qwen3_jax.model import ModelOutput, Qwen3
    from qwen3_jax.model_configs import config_names, load_model_config
    from qwen3_jax.params import num_parameters
    from qwen3_jax.parsing import parse_output
    from qwen3_jax.paths import configs_path, pocket_path
    from qwen3_jax.placement import Placement, place
    from qwen3_jax.tokenizer import Tokenizer, load_tokenizer

_MODULES = {
    "KVCache": "cache",
    "init_cache": "cache",
    "from_pretrained": "checkpoint",
    "enable_compile_cache": "compile_cache",
    "ModelConfig": "config",
    "YarnConfig": "config",
    "save_pretrained": "export",
    "GenerationDefaults": "generation_defaults",
    "load_adapters": "lora_files",
    "merge_adapters": "lora_files",
    "save_adapters": "lora_files",
    "with_adapters": "lora",
    "ModelOutput": "model",
    "Qwen3": "model",
    "config_names": "model_configs",
    "load_model_config": "model_configs",
    "num_parameters": "params",
    "parse_output": "parsing",
    "configs_path": "paths",
    "pocket_path": "paths",
    "Placement": "placement",
    "place": "placement",
    "Tokenizer": "tokenizer",
    "load_tokenizer": "tokenizer",
}

__all__ = [  # noqa: RUF022 (the order of the table above)
    "KVCache",
    "init_cache",
    "from_pretrained",
    "enable_compile_cache",
    "ModelConfig",
    "YarnConfig",
    "save_pretrained",
    "GenerationDefaults",
    "load_adapters",
    "merge_adapters",
    "save_adapters",
    "with_adapters",
    "ModelOutput",
    "Qwen3",
    "config_names",
    "load_model_config",
    "num_parameters",
    "parse_output",
    "configs_path",
    "pocket_path",
    "Placement",
    "place",
    "Tokenizer",
    "load_tokenizer",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
