"""Tokens of the labelled files: how many each combination has, and the held-out sets."""

from collections.abc import Iterator, Sequence
from typing import Protocol, runtime_checkable

from train.data import Example
from train.mixture.files import read_jsonl, text_of
from train.mixture.labels import Labels
from train.mixture.proxy import HeldOutSet
from train.settings import SourceConfig, WeightConfig


@runtime_checkable
class Encoder(Protocol):
    """What is asked of a tokenizer here."""

    def encode(self, text: str) -> list[int]: ...


def labelled(sources: Sequence[SourceConfig], tok: Encoder) -> Iterator[tuple[Labels, list[int]]]:
    """Labels and tokens of every document."""
    for source in sources:
        for number, record in enumerate(read_jsonl(source.path), start=1):
            text = text_of(record, source.field or "text", f"{source.path}:{number}")
            yield {**source.labels, **record.get("labels", {})}, tok.encode(text)


def held_out_sets(
    sources: Sequence[SourceConfig], tok: Encoder, target: Sequence[WeightConfig], domain: str, length: int
) -> tuple[HeldOutSet, ...]:
    """The sets that the loss is to be low on; a document longer than a row counts up to the row's end.

    Args:
      target: labels and weight of each; (): one for each value of the label `domain`, evenly.

    Raises:
      ValueError: a set without documents.
    """
    documents = [(labels, tokens[:length]) for labels, tokens in labelled(sources, tok)]
    if not target:
        values = sorted({labels.get(domain, "") for labels, _ in documents})
        target = [WeightConfig(labels={domain: value}) for value in values]
    sets = []
    for entry in target:
        name = ",".join(f"{label}={value}" for label, value in entry.labels.items())
        chosen = [tokens for labels, tokens in documents if entry.labels.items() <= labels.items()]
        examples = tuple(Example(tokens=t, loss=[True] * len(t)) for t in chosen if len(t) > 1)
        if not examples:
            raise ValueError(f"target {name or '(all)'} must match held-out documents, got none: correct its labels")
        sets.append(HeldOutSet(name=name or "all", weight=entry.weight, examples=examples))
    return tuple(sets)
