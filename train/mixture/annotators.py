"""Annotators: plug-ins that read one record and give it labels.

An installed package offers one by an entry point of the group `qwen3_jax.annotators`:

    [project.entry-points."qwen3_jax.annotators"]
    toxicity = "my_package.toxicity:Toxicity"

A class of one's own needs no package: `--annotator my_module:Toxicity`. What stands behind either name is called with
nothing, or with the text after the name's last `=` (`language=en,zh`), and gives an `Annotator`.
"""

import difflib
import importlib
import importlib.metadata
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from qwen3_jax.train.mixture.language import Language
from qwen3_jax.train.mixture.rules import Characters, Heuristic, Length, Repetition

GROUP = "qwen3_jax.annotators"


@runtime_checkable
class Annotator(Protocol):
    """Gives labels to records."""

    @property
    def name(self) -> str:
        """What messages call it."""

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels it gives."""

    def annotate(self, record: Mapping[str, Any]) -> dict[str, str]:
        """A value of each of `labels`, for a record whose text is under "text". The record is left as it is."""


BUILT_IN: dict[str, Callable[..., Annotator]] = {
    "language": Language,
    "length": Length,
    "repetition": Repetition,
    "characters": Characters,
    "heuristic": Heuristic,
}


def available() -> tuple[str, ...]:
    """Names of the annotators at hand, those of installed packages included."""
    return tuple(sorted({*BUILT_IN, *importlib.metadata.entry_points(group=GROUP).names}))


def load_annotator(spec: str) -> Annotator:
    """The annotator that `NAME`, `NAME=ARGUMENT` or `module:attribute` stands for.

    Raises:
      ValueError: no such annotator (the nearest name is said), or what is there is none.
    """
    name, equals, argument = spec.partition("=")
    made = _factory(name)(*([argument] if equals else []))
    if not isinstance(made, Annotator) or not made.labels:
        raise ValueError(
            f"annotator {name} must have a name, labels and annotate(record), got {type(made).__name__}: correct it"
        )
    return made


def load_annotators(specs: Sequence[str]) -> tuple[Annotator, ...]:
    """Several, no label given by two; see `load_annotator` for the rest of what it raises."""
    made = tuple(load_annotator(spec) for spec in specs)
    owner: dict[str, str] = {}
    for annotator in made:
        for label in annotator.labels:
            if owner.setdefault(label, annotator.name) != annotator.name or annotator.labels.count(label) > 1:
                raise ValueError(f"label {label} must come from one annotator, got it twice: leave one out")
    if len({annotator.name for annotator in made}) < len(made):
        raise ValueError(f"each annotator may be named once, got {', '.join(specs)}: leave one out")
    return made


def labels_of(annotator: Annotator, record: Mapping[str, Any]) -> dict[str, str]:
    """What the annotator says of a record, held against what it promised.

    Raises:
      ValueError: other labels than it promised, or a value that is no text.
    """
    found = annotator.annotate(record)
    if set(found) != set(annotator.labels) or not all(isinstance(value, str) for value in found.values()):
        raise ValueError(
            f"annotator {annotator.name} must give texts for {list(annotator.labels)}, got {found!r}: correct it"
        )
    return found


def _factory(name: str) -> Callable[..., Any]:
    if name in BUILT_IN:
        return BUILT_IN[name]
    found = importlib.metadata.entry_points(group=GROUP)
    if name in found.names:
        made: Callable[..., Any] = found[name].load()
        return made
    module, colon, attribute = name.partition(":")
    if not colon:
        near = difflib.get_close_matches(name, available(), n=1)
        remedy = f"did you mean {near[0]}?" if near else "write module:attribute for one of your own"
        raise ValueError(f"an annotator must be one of {', '.join(available())}, got {name!r}: {remedy}")
    try:
        made = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"annotator {name} must be a class that can be imported, got none ({error})") from None
    return made
