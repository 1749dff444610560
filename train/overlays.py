"""YAML files that change other YAML files: what a file says goes over its `base`, section by section."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml


def read_overlays(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file, over that of the file its `base` names (relative to the file), and so on.

    In: a.yaml `{base: b.yaml, data: {rows: 2}}` and b.yaml `{steps: 9, data: {rows: 4, length: 8}}`
    Out: {"steps": 9, "data": {"rows": 2, "length": 8}}

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: not YAML, not a mapping, or a file that is its own base.
    """
    return _read(Path(path), ())


def read_mapping(path: Path, folder: str = "train") -> dict[str, Any]:
    """The mapping in one YAML file of the kind in configs/`folder`, `base` and all; raises as `read_overlays`."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} must exist: no such configuration, see configs/{folder}")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"{path} must be YAML, got {' '.join(str(error).split())}: correct the file") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold a mapping, got {type(values).__name__}: correct the file")
    return values


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with what `over` says; sections are merged, anything else (lists too) is replaced."""
    out = dict(base)
    for key, value in over.items():
        below = out.get(key)
        out[key] = merge(below, value) if isinstance(value, Mapping) and isinstance(below, Mapping) else value
    return out


def apply(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with `changes`, whose keys may be dotted.

    In: {"data": {"rows": 4}}, {"data.rows": 2, "steps": 9}     Out: {"data": {"rows": 2}, "steps": 9}
    """
    out = dict(values)
    for key, value in changes.items():
        nested = value
        first, *rest = str(key).split(".")
        for name in reversed(rest):
            nested = {name: nested}
        if rest:
            _refuse_value_as_section(out, str(key).split("."))
        out = merge(out, {first: nested})
    return out


def parse_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    """In: ["optimizer.learning_rate=1e-3", "steps=5"]     Out: {"optimizer.learning_rate": "1e-3", "steps": 5}

    Raises:
      ValueError: one without "=", or whose value is not YAML.
    """
    changes = {}
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise ValueError(
                f"an override must be key=value, got {override!r}: write e.g. optimizer.learning_rate=1e-3"
            )
        try:
            changes[key] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ValueError(
                f"the value of {key} must be YAML, got {text!r} ({' '.join(str(error).split())}): correct the override"
            ) from None
    return changes


def _read(path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    if path.resolve() in above:
        raise ValueError(f"{path} must not be its own base, got {' <- '.join(map(str, above))}: correct base")
    values = read_mapping(path)
    base = values.pop("base", None)
    if base is None:
        return values
    if not isinstance(base, str):
        raise ValueError(f"base of {path} must be the path of a YAML file, got {base!r}: correct the file")
    return merge(_read(path.parent / base, (*above, path.resolve())), values)


def _refuse_value_as_section(values: Any, path: list[str]) -> None:
    for key in path[:-1]:
        values = values.get(key)
        if values is None:
            return
        if not isinstance(values, Mapping):
            raise ValueError(f"{'.'.join(path)} can not be set: {key} is a value, not a section; correct the override")
