"""The published releases by name: `configs/model/*.yaml`, each a `config.json` of the hub in YAML."""

import difflib
import re
from pathlib import Path

import yaml

from qwen3_jax.config import ModelConfig
from qwen3_jax.paths import configs_path


def config_names() -> list[str]:
    """Names that `load_model_config` takes, such as "qwen3-0.6b"."""
    return sorted(path.stem for path in (configs_path() / "model").glob("*.yaml"))


def load_model_config(name: str | Path) -> ModelConfig:
    """The architecture of a release by its name, or of any YAML or JSON file in the form of `config.json` by its path.

    Raises:
      FileNotFoundError: neither a known name nor a file.
      ValueError: the file is not YAML, not a mapping, or describes another model (see `ModelConfig.from_hf`).
    """
    path = Path(name)
    if path.suffix not in (".yaml", ".yml", ".json"):
        path = configs_path() / "model" / f"{name}.yaml"
    if not path.is_file():
        known = config_names()
        near = difflib.get_close_matches(str(name).lower(), known, n=1)
        remedy = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
        raise FileNotFoundError(f"a model config must be a release or a YAML or JSON file, got {str(name)!r}: {remedy}")
    if path.suffix == ".json":
        return ModelConfig.from_file(path)
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} must be YAML, got {reason}: correct the file") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold a mapping of config.json's keys, got {type(values).__name__}: correct it")
    return ModelConfig.from_hf(values)


class _Loader(yaml.SafeLoader):
    """Reads `1e-6` as a number, as YAML 1.2 and people do; YAML 1.1 takes it for text because it has no dot."""


_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?\d+[eE][-+]?\d+$"), list("-+0123456789"))
