"""Labels for every record of some JSONL files, one record at a time; goes on where it was stopped."""

import collections
import dataclasses
import itertools
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from qwen3_jax.train.mixture.annotators import Annotator, labels_of
from qwen3_jax.train.mixture.files import parse_record, read_jsonl, text_of, written_beside


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
