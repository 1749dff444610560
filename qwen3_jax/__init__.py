# ruff: noqa: F401 (`__all__` is made of a table)
"""Qwen3, dense and mixture-of-experts, in JAX and Flax: the model, its checkpoints, its tokenizer and templates.

`qwen3_jax.infer`, `qwen3_jax.train` and `qwen3_jax.sharding` are packages of their own; in a checkout they lie beside
this one and are reached through symbolic links. Names are imported when they are first used, so that
`qwen3-jax --help` does not load jax.
"""

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if not Path(__file__).with_name("train").is_dir():  # a checkout on a file system without symbolic links
    __path__.append(str(Path(__file__).resolve().parents[1]))

if TYPE_CHECKING:
    from qwen3_jax.checkpoints.adapters import load_adapters, merge_adapters, save_adapters
    from qwen3_jax.checkpoints.load import from_pretrained
    from qwen3_jax.checkpoints.save import save_pretrained
    from qwen3_jax.compile_cache import enable_compile_cache
    from qwen3_jax.config import ModelConfig, YarnConfig
    from qwen3_jax.generation_defaults import GenerationDefaults
    from qwen3_jax.network.cache import KVCache, init_cache
    from qwen3_jax.network.model import ModelOutput, Qwen3
    from qwen3_jax.parameters.adapters import with_adapters
    from qwen3_jax.parameters.placement import Placement, place
    from qwen3_jax.parameters.specs import num_parameters
    from qwen3_jax.paths import configs_path, pocket_path
    from qwen3_jax.releases import config_names, load_model_config
    from qwen3_jax.text.parsing import parse_output
    from qwen3_jax.text.tokenizer import Tokenizer, load_tokenizer

_MODULES = {
    "KVCache": "network.cache",
    "init_cache": "network.cache",
    "from_pretrained": "checkpoints.load",
    "enable_compile_cache": "compile_cache",
    "ModelConfig": "config",
    "YarnConfig": "config",
    "save_pretrained": "checkpoints.save",
    "GenerationDefaults": "generation_defaults",
    "load_adapters": "checkpoints.adapters",
    "merge_adapters": "checkpoints.adapters",
    "save_adapters": "checkpoints.adapters",
    "with_adapters": "parameters.adapters",
    "ModelOutput": "network.model",
    "Qwen3": "network.model",
    "config_names": "releases",
    "load_model_config": "releases",
    "num_parameters": "parameters.specs",
    "parse_output": "text.parsing",
    "configs_path": "paths",
    "pocket_path": "paths",
    "Placement": "parameters.placement",
    "place": "parameters.placement",
    "Tokenizer": "text.tokenizer",
    "load_tokenizer": "text.tokenizer",
}
_PACKAGES = ("infer", "sharding", "train")

__all__ = [*_MODULES, *_PACKAGES]


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return importlib.import_module(f"{__name__}.{name}")
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
