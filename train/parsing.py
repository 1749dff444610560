"""From YAML files and `dotted.key=value` arguments to frozen dataclasses.

What a file says goes over its `base`, section by section; a key that a dataclass does not have is refused by name.
"""

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

T = TypeVar("T")
_ALIKE = 0.7  # difflib's ratio: "stepz" is near "steps", "lr" is not near "lora"


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


def parse(kind: type[T], values: Mapping[str, Any], prefix: str = "", whole: Any = None) -> T:
    """A dataclass of type `kind` from a nested mapping; see `train.config.load_config` for what it raises.

    Args:
      prefix: of the keys, in messages: "optimizer." where `kind` is that section.
      whole: the configuration of which it is a section, where a key that is not known is looked for; None: `kind`.
    """
    fields: Sequence[dataclasses.Field[Any]] = dataclasses.fields(kind)  # type: ignore[arg-type]  # any dataclass
    hints = typing.get_type_hints(kind)
    aliases = {field.name: field.metadata.get("aliases", {}) for field in fields}
    arguments = {}
    for key, value in values.items():
        if key not in hints:
            instead = suggestion(str(key), prefix, kind, whole or kind)
            raise ValueError(f"{prefix}{key} is not a key of the configuration: {instead}")
        if isinstance(value, bool):  # what older files say
            value = aliases[key].get(value, value)
        arguments[key] = _convert(hints[key], value, f"{prefix}{key}", whole or kind)
    for field in fields:
        if field.name not in arguments and field.default is field.default_factory is dataclasses.MISSING:
            raise ValueError(f"{prefix}{field.name} must be set, got nothing: add it")
    return kind(**arguments)


def to_dict(config: Any) -> dict[str, Any]:
    """Plain YAML values, the inverse of `parse`."""

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: plain(item) for key, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, tuple) else value

    return plain(dataclasses.asdict(config))


def suggestion(key: str, prefix: str, section: Any, whole: Any) -> str:
    """The end of a message.

    In: "learning_rate", "", TrainConfig, TrainConfig     Out: "did you mean optimizer.learning_rate?"
    In: "lr", "optimizer.", OptimizerConfig, TrainConfig  Out: "the keys of optimizer are name, learning_rate, ..."

    Args:
      prefix: of the section that the key was looked for in, with its dot; "" at the top.
      section, whole: dataclasses, that section and the configuration it is in.
    """
    names = [field.name for field in dataclasses.fields(section)]
    by_name: dict[str, list[str]] = {}
    for path in dotted_paths(whole):
        by_name.setdefault(path.rpartition(".")[2], []).append(path)
    if key in by_name:
        return _did_you_mean(by_name[key])
    near = difflib.get_close_matches(key, by_name, n=1, cutoff=_ALIKE)
    if near:
        return _did_you_mean([f"{prefix}{near[0]}"] if near[0] in names else by_name[near[0]])
    return f"the keys{f' of {prefix[:-1]}' if prefix else ''} are {', '.join(names)}"


def dotted_paths(kind: Any, prefix: str = "") -> Iterator[str]:
    """Every key of a dataclass and of the sections in it, sections and lists of them too."""
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        yield f"{prefix}{field.name}"
        for part in _parts(hints[field.name]):
            if dataclasses.is_dataclass(part):
                yield from dotted_paths(part, f"{prefix}{field.name}.")


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


def _convert(kind: Any, value: Any, name: str, whole: Any) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is str and value is None:
        return ""  # how YAML reads `init_from=`
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        if not isinstance(value, Mapping):
            raise ValueError(f"{name} must be a section with keys of its own, got {value!r}: correct the configuration")
        return parse(kind, value, f"{name}.", whole)
    if origin is Literal:
        if value not in arguments:
            raise ValueError(f"{name} must be one of {list(arguments)}, got {value!r}: correct the configuration")
        return value
    if origin in (typing.Union, types.UnionType):
        kind = next(a for a in arguments if a is not type(None))
        return None if value is None else _convert(kind, value, name, whole)
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise ValueError(f"{name} must be a list, got {value!r}: correct the configuration")
        return tuple(_convert(arguments[0], item, name, whole) for item in value)
    if kind is float and isinstance(value, (int, str)) and not isinstance(value, bool):
        try:
            value = float(value)  # YAML 1.1 reads 3e-3 as a string
        except OverflowError:
            value = math.inf
        except ValueError:
            pass
    _refuse_non_finite(value, name)
    expected = origin if isinstance(origin, type) else kind
    if not isinstance(value, expected) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"{name} must be of type {expected.__name__}, got {value!r}: correct the configuration")
    return value


def _refuse_non_finite(value: Any, name: str) -> None:
    """No number of a configuration may be NaN or infinite, in sections without declared keys (`model`) neither."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            _refuse_non_finite(item, f"{name}.{key}")
    elif isinstance(value, (list, tuple)):
        for item in value:
            _refuse_non_finite(item, name)
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number, got {value}: correct the configuration")


def _parts(hint: Any) -> tuple[Any, ...]:
    """In: Section, Section | None, tuple[Section, ...]     Out: what of it may be a section"""
    listed = typing.get_origin(hint) in (typing.Union, types.UnionType, tuple)
    return typing.get_args(hint) if listed else (hint,)


def _did_you_mean(paths: list[str]) -> str:
    return f"did you mean {' or '.join(paths)}?"
