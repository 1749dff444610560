"""What the pocket world says, in nine languages: the phrasings of its problems, small talk, and the made corpus.

The words themselves stand in `words.yaml`, with what their slots mean.
"""

import dataclasses
from pathlib import Path
from typing import Any

import yaml


@dataclasses.dataclass(frozen=True, kw_only=True)
class Language:
    """Phrasings of problems and answers."""

    arithmetic: tuple[str, ...]
    cups: tuple[str, ...]
    answer: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Words:
    """What documents of the corpus are made of."""

    names: tuple[str, ...]
    things: tuple[str, ...]
    places: tuple[str, ...]
    story: tuple[str, ...]  # sentences; the last ones of a paragraph ask for what the first ones said
    stop: str  # between sentences
    comment: str  # above a function of the code snippets
    table: tuple[str, str, str]  # heads of the two columns, and the word for their sum
    note: str  # a line to remember
    asked: str  # the question for it, long after, and its answer


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


_FILE = yaml.safe_load((Path(__file__).parent / "words.yaml").read_text(encoding="utf-8"))
LANGUAGES = {name: Language(**_plain(values)) for name, values in _FILE["languages"].items()}
SMALL_TALK: tuple[tuple[str, str, str], ...] = tuple((ask, think, say) for ask, think, say in _FILE["small_talk"])
WORDS = {name: Words(**_plain(values)) for name, values in _FILE["corpus"].items()}
