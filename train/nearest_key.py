"""What to say of a key that a configuration does not have: where a key of its name is, or what there is instead."""

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterator
from typing import Any

_ALIKE = 0.7  # difflib's ratio: "stepz" is near "steps", "lr" is not near "lora"


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


def _parts(hint: Any) -> tuple[Any, ...]:
    """In: Section, Section | None, tuple[Section, ...]     Out: what of it may be a section"""
    listed = typing.get_origin(hint) in (typing.Union, types.UnionType, tuple)
    return typing.get_args(hint) if listed else (hint,)


def _did_you_mean(paths: list[str]) -> str:
    return f"did you mean {' or '.join(paths)}?"
