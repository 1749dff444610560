"""Labels for every record of some JSONL files, one record at a time; goes on where it was stopped."""

import collections
import dataclasses
import difflib
import importlib
import importlib.metadata
import itertools
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from qwen3_jax.files import parse_record, read_jsonl, written_beside
from qwen3_jax.train.mixture.labels import Language
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


@dataclasses.dataclass
class Summary:
    """What was annotated.

    Attributes:
      records: number of them, those of an earlier start included.
      resumed: of an earlier start.
      documents, characters, tokens: label -> value -> sum; tokens stay 0 without a tokenizer.
      compared, agreed: label -> records that had the label before, and those where the annotator says the same.
    """

    records: int = 0
    resumed: int = 0
    documents: dict[str, collections.Counter[str]] = dataclasses.field(default_factory=dict)
    characters: dict[str, collections.Counter[str]] = dataclasses.field(default_factory=dict)
    tokens: dict[str, collections.Counter[str]] = dataclasses.field(default_factory=dict)
    compared: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    agreed: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)

    def add(self, labels: Mapping[str, str], characters: int, tokens: int) -> None:
        self.records += 1
        for label, value in labels.items():
            for table, amount in ((self.documents, 1), (self.characters, characters), (self.tokens, tokens)):
                table.setdefault(label, collections.Counter())[value] += amount


def annotate(
    inputs: Sequence[str | Path],
    output: str | Path,
    annotators: Sequence[Annotator],
    *,
    specs: Sequence[str] = (),
    field: str = "text",
    overwrite: bool = False,
    count: Callable[[str], int] | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> Summary:
    """Writes the records of `inputs`, in order, with `labels` added.

    A label that a record has already stays, and is counted as compared with the annotator's; `overwrite` replaces it.
    `output` appears when all is done. Until then `output.partial` grows, and the same call goes on behind its last
    whole line; what it belongs to stands in `output.partial.json`.

    Args:
      specs: how the annotators were asked for: with the inputs, what a partial output must agree in to be gone on with.
      field: of a record, that has its text.
      count: tokens of a text.
      progress: called with the bytes read so far, all inputs together.

    Raises:
      FileNotFoundError, ValueError: an input that is not there or not JSONL, an output that is an input, labels that
        are no mapping, or a partial output of another command.
    """
    paths, output = [Path(path) for path in inputs], Path(output)
    for path in paths:
        if not path.is_file():
            raise FileNotFoundError(f"{path} must be a JSONL file, got none there: correct the path")
        if path.resolve() == output.resolve():
            raise ValueError(f"--output must be another file than the inputs, got {output}: name a new one")
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_name(f"{output.name}.partial")
    summary = Summary()
    _claim(partial, paths, list(specs), field, overwrite)
    for record in _whole_lines(partial):
        _count(summary, record, field, count)
    summary.resumed = summary.records
    with partial.open("a", encoding="utf-8") as file:
        for record, where, read in itertools.islice(_records(paths), summary.resumed, None):
            labels = record.get("labels", {})
            if not isinstance(labels, dict):
                raise ValueError(f"{where}: labels must be a mapping, got {labels!r}: correct the record")
            text = text_of(record, field, where)
            found: dict[str, str] = {}
            for annotator in annotators:
                found |= labels_of(annotator, {**record, "text": text})
            for label in found.keys() & labels.keys():
                summary.compared[label] += 1
                summary.agreed[label] += found[label] == labels[label]
            record["labels"] = {**labels, **found} if overwrite else {**found, **labels}
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
            _count(summary, record, field, count)
            progress(read)
    os.replace(partial, output)
    _owner(partial).unlink()
    return summary


def _count(summary: Summary, record: dict[str, Any], field: str, count: Callable[[str], int] | None) -> None:
    text = text_of(record, field, "a record of the output")
    summary.add(record["labels"], len(text), 0 if count is None else count(text))


def _records(paths: Sequence[Path]) -> Iterator[tuple[dict[str, Any], str, int]]:
    """Each record, where it stands, and the bytes of the files read so far."""
    read = 0
    for path in paths:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                read += len(line)
                if line.strip():
                    where = f"{path}:{number}"
                    yield parse_record(line.decode("utf-8", errors="replace"), where), where, read


def _owner(partial: Path) -> Path:
    return partial.with_name(f"{partial.name}.json")


def _claim(partial: Path, paths: Sequence[Path], specs: list[str], field: str, overwrite: bool) -> None:
    """Says whose the partial output is, or requires it to be ours."""
    files = [[str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns] for path in paths]
    ours = {"inputs": files, "annotators": specs, "field": field, "overwrite": overwrite}
    if _owner(partial).exists():
        if json.loads(_owner(partial).read_text(encoding="utf-8")) != ours:
            raise ValueError(
                f"{partial} must be of this command, it was begun with other inputs or annotators: give those again, "
                "or remove it"
            )
        return
    partial.unlink(missing_ok=True)
    with written_beside(_owner(partial)) as file:
        json.dump(ours, file)


def _whole_lines(partial: Path) -> Iterator[dict[str, Any]]:
    """The records of a partial output; a line that was cut off is cut away first."""
    if not partial.exists():
        return
    with partial.open("rb+") as file:
        end = 0
        for line in file:
            if line.endswith(b"\n"):
                end += len(line)
        file.truncate(end)
    yield from read_jsonl(partial)


def text_of(record: Mapping[str, Any], field: str, where: str) -> str:
    """The text that a record is judged by: its field, or what the messages of a conversation say.

    In:  {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    Out: "a\\nb"

    Raises:
      ValueError: neither is there.
    """
    value = record.get(field)
    if value is None and isinstance(record.get("messages"), list):
        messages = [message for message in record["messages"] if isinstance(message, dict)]
        contents = (message.get(key) for message in messages for key in ("reasoning_content", "content"))
        value = "\n".join(content for content in contents if isinstance(content, str))
    if not isinstance(value, str):
        raise ValueError(f"{where} must have a text in {field!r} or messages, got {sorted(record)}: name the field")
    return value
