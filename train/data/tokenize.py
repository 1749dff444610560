"""Tokenises files ahead of training, shard by shard; what was finished is not done again."""

import dataclasses
import hashlib
import itertools
import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from qwen3_jax.files import write_json
from qwen3_jax.text.tokenizer import Tokenizer
from qwen3_jax.train.data.examples import Document, Encoder, fingerprint
from qwen3_jax.train.data.line_files import BadRecord, described
from qwen3_jax.train.data.readers import Reader, open_readers
from qwen3_jax.train.data.tables import label_of
from qwen3_jax.train.data.token_shards import MANIFEST, label_names, shard_name, write_shard
from qwen3_jax.train.settings import SourceConfig

Labelled = tuple[int, Document, dict[str, str]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tokenized:
    """Attributes:
    path: the directory.
    documents, tokens: in the shards that were written now.
    shards: all of them.
    done_before: shards that were there.
    """

    path: str
    documents: int
    tokens: int
    shards: int
    done_before: int


def tokenize(
    sources: Sequence[SourceConfig],
    tok: Tokenizer,
    output: Path,
    *,
    labels: Sequence[str] = (),
    shard_records: int = 10_000,
    workers: int = 1,
    cache: Path,
    advance: Callable[[int, int], None] | None = None,
) -> Tokenized:
    """Writes the shards that `output` lacks (see `token_shards`); the bytes do not depend on where it was stopped.

    Args:
      labels: fields that are labels; those in a record's `labels` are always kept.
      shard_records: input records a shard.
      workers: threads; the tokenizer works outside of Python's lock.
      cache: for the index of the input files.
      advance: is told of (records done, records in all).

    Raises:
      FileNotFoundError: a source names no files.
      ValueError: there are no records, `output` holds something else, or a record is malformed; the message names it.
    """
    files = [(reader, Encoder(tok, source)) for source in sources for reader in open_readers(source, cache)]
    total = sum(len(reader) for reader, _ in files)
    if not total:
        named = ", ".join(reader.name for reader, _ in files[:3]) + (" ..." if len(files) > 3 else "")
        raise ValueError(f"the inputs must hold examples, got none in {named}: correct them")
    shards = -(-total // shard_records)
    wanted = {
        "records": total,
        "shards": shards,
        "shard_records": shard_records,
        "labels": list(labels),
        "tokenizer": fingerprint(tok),
        "inputs": [
            [reader.name, reader.identity, encoder.key(), dict(encoder.source.labels)] for reader, encoder in files
        ],
    }
    wanted["digest"] = hashlib.sha256(json.dumps(wanted, sort_keys=True).encode()).hexdigest()
    _claim(output, wanted)
    done_before, documents, tokens = 0, 0, 0
    with ThreadPoolExecutor(workers) as pool:
        for number in range(shards):
            start, stop = number * shard_records, min((number + 1) * shard_records, total)
            if (output / shard_name(number)).is_dir():
                done_before += 1
                continue
            made: list[Labelled] = []
            for record, found in enumerate(_ahead(pool, _Work(files, labels), range(start, stop), 4 * workers), start):
                made += found
                if advance is not None:
                    advance(record + 1, total)
            write_shard(output / shard_name(number), made, sorted({name for _, _, own in made for name in own}))
            documents += len(made)
            tokens += sum(len(document.tokens) for _, document, _ in made)
    _warn_of_labels(labels, output, shards, files)
    return Tokenized(path=str(output), documents=documents, tokens=tokens, shards=shards, done_before=done_before)


def _warn_of_labels(labels: Sequence[str], output: Path, shards: int, files: Sequence[tuple[Reader, Encoder]]) -> None:
    """Of those that no record has; the ones there are: what is kept, and fields of the first record that could be."""
    found = {name for number in range(shards) for name in label_names(output / shard_name(number))} if labels else set()
    if not (missing := [name for name in labels if name not in found]):
        return
    reader, encoder = next((reader, encoder) for reader, encoder in files if len(reader))
    fields = {name for name, value in reader[0].items() if isinstance(value, (str, int, float))} - {encoder.field}
    there = ", ".join(sorted(found | fields)) or "none"
    warnings.warn(f"no record has the label {', '.join(missing)}; there are: {there}", stacklevel=3)


class _Work:
    """What a thread does with one record."""

    def __init__(self, files: Sequence[tuple[Reader, Encoder]], labels: Sequence[str]) -> None:
        self._files, self._labels = files, labels
        self._starts = list(itertools.accumulate((len(reader) for reader, _ in files), initial=0))

    def __call__(self, index: int) -> list[Labelled]:
        file = next(i for i, start in enumerate(self._starts[1:]) if index < start)
        (reader, encoder), local = self._files[file], index - self._starts[file]
        record = reader[local]
        try:
            names = {*dict(record.get("labels") or {}), *self._labels, *encoder.source.labels}
            found = {name: label_of(record, name, encoder.source.labels) for name in sorted(names)}
            own = {name: value for name, value in found.items() if value is not None}
            return [(index, document, own) for document in encoder.documents(record)]
        except ValueError as error:
            raise BadRecord(described(reader.name, local, error)) from None


def _ahead(
    pool: ThreadPoolExecutor, work: Callable[[int], list[Labelled]], indices: Sequence[int], ahead: int
) -> Iterator[list[Labelled]]:
    """The results in order, with a bounded number of them under way."""
    pending = [pool.submit(work, index) for index in indices[:ahead]]
    try:
        for following in range(len(indices)):
            yield pending.pop(0).result()
            if following + ahead < len(indices):
                pending.append(pool.submit(work, indices[following + ahead]))
    finally:
        for future in pending:
            future.cancel()


def _claim(output: Path, wanted: dict[str, Any]) -> None:
    """Writes the manifest, or requires the one there to be of the same work."""
    path = output / MANIFEST
    if path.exists():
        found = json.loads(path.read_text(encoding="utf-8"))
        if found != wanted:
            differ = ", ".join(key for key in wanted if found.get(key) != wanted[key] and key != "digest")
            raise ValueError(
                f"{output} must be empty or hold this work, got one that differs in {differ}: choose another --output"
            )
        return
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"{output} must be an empty or new directory, got one with other files: choose another")
    output.mkdir(parents=True, exist_ok=True)
    write_json(path, wanted)
