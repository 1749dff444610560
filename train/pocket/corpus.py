"""A small multilingual corpus, made from a seed: documents with true labels, for tests, examples and ablations.

    language  the nine of the pocket tasks
    domain    math    chains of digits with worked steps        code    small functions, called
              state   cups that change places, step by step     table   lists of prices and their sum
              story   short stories about where things are      recall  numbers said once and asked for long after
    quality   clean; noisy (characters lost, doubled, swapped: what a bad scan looks like); repetitive (one part again
              and again)

Document `index` of a side depends on the seed, the side and the index alone. Held-out problems are those the pocket
tasks hold out, other held-out texts are told apart by a hash of what they say, so that no text is on both sides.
Written for this project; Apache-2.0 like the rest of it.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qwen3_jax.files import written_beside
from qwen3_jax.train.pocket import prompts, tasks
from qwen3_jax.train.pocket.tasks import HELD_OUT_SHARE, Split
from qwen3_jax.train.pocket.words import WORDS, Words

LICENSE = "Apache-2.0"


def _shares(**weights: float) -> Mapping[str, float]:
    return weights


@dataclasses.dataclass(frozen=True, kw_only=True)
class CorpusConfig:
    """What is made; shares are of documents, relative to one another."""

    seed: int = 0
    documents: int = 6000  # for training
    held_out: int = 600
    min_characters: int = 120  # of a document, about; between the two, short ones more often (log-uniform)
    max_characters: int = 1200
    max_recall_characters: int = 6000  # of the documents that ask for what was said long before
    domains: Mapping[str, float] = dataclasses.field(
        default_factory=lambda: _shares(math=0.15, state=0.15, story=0.4, code=0.1, table=0.15, recall=0.05)
    )
    qualities: Mapping[str, float] = dataclasses.field(
        default_factory=lambda: _shares(clean=0.5, noisy=0.3, repetitive=0.2)
    )
    languages: Mapping[str, float] = dataclasses.field(
        default_factory=lambda: {"en": 0.3} | dict.fromkeys(list(WORDS)[1:], 0.0875)
    )

    def __post_init__(self) -> None:
        for name in ("documents", "held_out", "min_characters"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}: correct it")
        for name in ("max_characters", "max_recall_characters"):
            if getattr(self, name) < self.min_characters:
                raise ValueError(f"{name} must be at least min_characters, got {getattr(self, name)}: raise it")
        for name, known in (("domains", DOMAINS), ("qualities", QUALITIES), ("languages", WORDS)):
            shares = getattr(self, name)
            if unknown := sorted(set(shares) - set(known)):
                raise ValueError(f"{name} must be of {sorted(known)}, got {unknown[0]!r}: correct the name")
            if not all(share >= 0 for share in shares.values()) or not sum(shares.values()) > 0:
                raise ValueError(f"{name} must have shares of at least 0 and one above, got {dict(shares)}: correct it")


def document(config: CorpusConfig, split: Split, index: int) -> dict[str, Any]:
    """Document `index` of one side: {"text": ..., "labels": {"language", "domain", "quality"}}."""
    side = 0 if split == "train" else 1
    for attempt in range(1000):
        rng = np.random.default_rng((config.seed, side, index, attempt))
        labels = {
            "language": _draw(rng, config.languages),
            "domain": _draw(rng, config.domains),
            "quality": _draw(rng, config.qualities),
        }
        longest = config.max_recall_characters if labels["domain"] == "recall" else config.max_characters
        size = int(np.exp(rng.uniform(np.log(config.min_characters), np.log(longest))))
        text = DOMAINS[labels["domain"]](rng, labels["language"], size, split)
        text = QUALITIES[labels["quality"]](rng, text)
        if split_of(text) == split:
            return {"text": text, "labels": labels}
    raise AssertionError("a hash gives one text in ten to each side, a thousand can not all fail")


def documents(config: CorpusConfig, split: Split) -> Iterator[dict[str, Any]]:
    """All documents of one side."""
    for index in range(config.documents if split == "train" else config.held_out):
        yield document(config, split, index)


def split_of(text: str) -> Split:
    """The side that a text is on, whichever seed made it."""
    digest = hashlib.sha256(text.encode()).digest()
    return "held_out" if int.from_bytes(digest[:8], "big") % HELD_OUT_SHARE == 0 else "train"


def write_corpus(config: CorpusConfig, directory: str | Path) -> dict[str, Path]:
    """Writes train.jsonl, held_out.jsonl and a LICENSE line beside them.

    Returns:
      split -> file.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    made: dict[str, Path] = {}
    splits: tuple[Split, Split] = ("train", "held_out")
    for split in splits:
        made[split] = directory / f"{split}.jsonl"
        with written_beside(made[split]) as file:
            for record in documents(config, split):
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
    with written_beside(directory / "LICENSE") as file:
        file.write(f"Made by qwen3-jax (train/pocket/corpus.py, seed {config.seed}). {LICENSE}.\n")
    return made


def _draw(rng: np.random.Generator, shares: Mapping[str, float]) -> str:
    names = sorted(shares)
    weights = np.array([shares[name] for name in names], float)
    return names[int(rng.choice(len(names), p=weights / weights.sum()))]


def _pick(rng: np.random.Generator, options: Sequence[str], count: int = 1) -> list[str]:
    return [options[i] for i in rng.choice(len(options), count, replace=False)]


def _until(size: int, part: Callable[[], str], joint: str) -> str:
    """Parts, until they have `size` characters; at least one."""
    parts, total = [part()], 0
    while (total := total + len(parts[-1]) + len(joint)) < size:
        parts.append(part())
    return joint.join(parts) + "\n"


def _problems(family: str) -> Callable[[np.random.Generator, str, int, Split], str]:
    def write(rng: np.random.Generator, language: str, size: int, split: Split) -> str:
        def one() -> str:
            problem = tasks.sample(rng, family, int(rng.integers(1, 7)), split)
            asked = prompts.question(problem, language, int(rng.integers(6)))
            return f"{asked}\n{problem.thinking}\n{prompts.answer(problem, language)}"

        return _until(size, one, "\n\n")

    return write


def _paragraph(rng: np.random.Generator, words: Words) -> str:
    n, m = _pick(rng, words.names, 2)
    slots = {"n": n, "m": m, "o": _pick(rng, words.things)[0], "p": _pick(rng, words.places)[0]}
    kept = [sentence for sentence in words.story if rng.random() < 0.85] or [words.story[0]]
    return words.stop.join(sentence.format(**slots) for sentence in kept)


def _story(rng: np.random.Generator, language: str, size: int, _: Split) -> str:
    return _until(size, lambda: _paragraph(rng, WORDS[language]), "\n")


def _code(rng: np.random.Generator, language: str, size: int, _: Split) -> str:
    def one() -> str:
        name = "".join(_pick(rng, "abcdfghkmprstxz", 3))
        a, b, x = (int(v) for v in rng.integers(1, 10, 3))
        symbol, value = (("+", a * x + b), ("-", a * x - b))[rng.integers(2)]
        formula = f"{a} * x {symbol} {b}"
        comment = WORDS[language].comment.format(f=name, e=formula)
        return f"{comment}\ndef {name}(x):\n    return {formula}\n\nassert {name}({x}) == {value}"

    return _until(size, one, "\n\n")


def _table(rng: np.random.Generator, language: str, size: int, _: Split) -> str:
    words = WORDS[language]

    def one() -> str:
        things = _pick(rng, words.things, int(rng.integers(2, 6)))
        prices = [int(price) for price in rng.integers(1, 30, len(things))]
        rows = [f"| {thing} | {price} |" for thing, price in zip(things, prices, strict=True)]
        name, price, total = words.table
        return "\n".join([f"| {name} | {price} |", *rows, f"| {total} | {sum(prices)} |"])

    return _until(size, one, "\n\n")


def _recall(rng: np.random.Generator, language: str, size: int, _: Split) -> str:
    """Notes at the beginning, stories between, questions at the end: what answers them is a document's length away."""
    words = WORDS[language]
    count = int(np.clip(size // 400, 2, 8))
    keys = ["".join(_pick(rng, "ABCDEFGHKLMNPRSTUVWX", 2)) for _ in range(3 * count)]
    keys = list(dict.fromkeys(keys))[:count]
    values = {key: str(rng.integers(100, 1000)) for key in keys}
    notes = "\n".join(words.note.format(k=key, v=value) for key, value in values.items())
    asked = "\n".join(words.asked.format(k=key, v=values[key]) for key in _pick(rng, keys, len(keys)))
    room = size - len(notes) - len(asked)
    return f"{notes}\n{_until(room, lambda: _paragraph(rng, words), chr(10))}{asked}\n"


def _noisy(rng: np.random.Generator, text: str, share: float = 0.15) -> str:
    """One character in seven is lost, doubled, or changes places with the next."""
    letters = list(text)
    for at in np.flatnonzero(rng.random(len(letters)) < share):
        kind = rng.integers(3)
        if kind == 0:
            letters[at] = ""
        elif kind == 1:
            letters[at] *= 2
        elif at + 1 < len(letters):
            letters[at], letters[at + 1] = letters[at + 1], letters[at]
    return "".join(letters)


def _repetitive(rng: np.random.Generator, text: str) -> str:
    """A part of the text, again and again up to its length."""
    lines = text.splitlines()
    first = int(rng.integers(len(lines)))
    part = "\n".join(lines[first : first + int(rng.integers(1, 3))]).strip() or lines[0]
    return "\n".join([part] * max(4, len(text) // (len(part) + 1))) + "\n"


DOMAINS: dict[str, Callable[[np.random.Generator, str, int, Split], str]] = {
    "math": _problems("arithmetic"),
    "state": _problems("cups"),
    "story": _story,
    "code": _code,
    "table": _table,
    "recall": _recall,
}
QUALITIES: dict[str, Callable[[np.random.Generator, str], str]] = {
    "clean": lambda rng, text: text,  # noqa: ARG005
    "noisy": _noisy,
    "repetitive": _repetitive,
}
