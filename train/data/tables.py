"""What is counted once about the records of a file and kept: labels, digests of the content, tokens."""

import contextlib
import dataclasses
import hashlib
import itertools
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from train.data.examples import Encoder, cut
from train.data.line_files import written_once
from train.data.readers import Reader

MISSING = -1
_PART = 10_000  # records; what was counted of so many is kept when counting is stopped or killed


@dataclasses.dataclass(frozen=True)
class Table:
    """One line a record.

    Attributes:
      labels: for each label, int32[n] numbers among its values (-1: the record has none).
      values: the values of each label.
      digests: uint64[n] of the content, or empty.
      tokens: int64[n], the length of the document (of a conversation: of its longest example), or empty.
      sizes: int64[n], the tokens that its pieces put into rows, or empty.
    """

    labels: Mapping[str, np.ndarray]
    values: Mapping[str, Sequence[str]]
    digests: np.ndarray
    tokens: np.ndarray
    sizes: np.ndarray


def make_table(
    reader: Reader, encoder: Encoder, names: Sequence[str], *, digests: bool, length: int, cache: Path
) -> Table:
    """The table of a file, from the cache or by reading all of it once; what was finished before a stop is not read
    again.

    Args:
      names: labels.
      digests: whether to digest the content.
      length: of a row, for `tokens` and `sizes`; 0: they are not counted.
    """
    wanted = [reader.identity, list(names), digests, length, encoder.field, encoder.key() if length else ""]
    key = hashlib.sha256(json.dumps([*wanted, dict(encoder.source.labels)], sort_keys=True).encode()).hexdigest()[:32]
    read = _Read(reader, encoder, tuple(names), digests, length)

    def write(path: Path) -> None:
        np.savez(path, **_in_parts(read, cache, key))

    path = cache / f"{key}.npz"
    made = not path.exists()
    arrays = _load(written_once(path, write))
    if made:
        for part in cache.glob(f"{key}.*.npz"):
            part.unlink(missing_ok=True)
    labels = {name: arrays[f"label_{number}"] for number, name in enumerate(names)}
    return Table(labels, _values(arrays), arrays["digests"], arrays["tokens"], arrays["sizes"])


def label_of(record: Mapping[str, Any], name: str, defaults: Mapping[str, str]) -> str | None:
    """A record's label: of its `labels`, else a field of that name, else the source's."""
    own = record.get("labels") or {}
    value = dict(own).get(name, record.get(name))
    if value is None:
        return defaults.get(name)
    if not isinstance(value, (str, int, float)):
        raise ValueError(f"the label {name!r} must be text or a number, got {type(value).__name__}: correct the record")
    return str(value).lower() if isinstance(value, bool) else str(value)


@dataclasses.dataclass(frozen=True)
class _Read:
    """How the arrays of a table are made of records."""

    reader: Reader
    encoder: Encoder
    names: tuple[str, ...]
    digests: bool
    length: int

    def records(self, start: int) -> Iterator[dict[str, Any]]:
        """From `start` on, with what is needed of them."""
        fields = {"labels", *self.names} | (self.encoder.fields() if self.digests or self.length else set())
        scanned = self.reader.scan(fields, start)
        return _progress(scanned, self.reader, start, "counting" if self.length else "reading")

    def __call__(self, records: Iterable[dict[str, Any]], start: int) -> dict[str, np.ndarray]:
        """The arrays of records, of which `start` is the number of the first."""
        numbers: dict[str, dict[str, int]] = {name: {} for name in self.names}
        codes: dict[str, list[int]] = {name: [] for name in self.names}
        found: dict[str, list[int]] = {"digests": [], "tokens": [], "sizes": []}
        for index, record in enumerate(records, start):
            try:
                for name in self.names:
                    value = label_of(record, name, self.encoder.source.labels)
                    known = numbers[name]
                    codes[name].append(MISSING if value is None else known.setdefault(value, len(known)))
                if self.digests:
                    found["digests"].append(self.encoder.digest(record))
                if self.length:
                    tokens, size = self._count(record)
                    found["tokens"].append(tokens)
                    found["sizes"].append(size)
            except ValueError as error:
                raise ValueError(f"{self.reader.name}:{index}: {error}") from None
        return {
            **{f"label_{number}": np.array(codes[name], np.int32) for number, name in enumerate(self.names)},
            "values": _to_array({name: list(known) for name, known in numbers.items()}),
            "digests": np.array(found["digests"], np.uint64),
            "tokens": np.array(found["tokens"], np.int64),
            "sizes": np.array(found["sizes"], np.int64),
        }

    def _count(self, record: Mapping[str, Any]) -> tuple[int, int]:
        documents = self.encoder.documents(record)
        pieces = [piece for document in documents for piece in cut(document, self.length)]
        size = sum(len(piece.tokens) for piece in pieces if len(piece.tokens) <= self.length)
        return max((len(document.tokens) for document in documents), default=0), size


def _in_parts(read: _Read, cache: Path, key: str) -> dict[str, np.ndarray]:
    """The arrays of all records. Those of a part of them are kept as soon as they are made."""
    parts: list[dict[str, np.ndarray]] = []
    count = len(read.reader)
    with contextlib.suppress(FileNotFoundError):
        while len(parts) * _PART < count:
            parts.append(_load(cache / f"{key}.{len(parts)}.npz"))
    records = read.records(min(len(parts) * _PART, count))
    while len(parts) * _PART < count or not parts:
        arrays: dict[str, Any] = read(itertools.islice(records, _PART), len(parts) * _PART)
        if count > _PART:
            written_once(cache / f"{key}.{len(parts)}.npz", lambda path, arrays=arrays: np.savez(path, **arrays))
        parts.append(arrays)
    return _join(parts, read.names)


def _join(parts: Sequence[Mapping[str, np.ndarray]], names: Sequence[str]) -> dict[str, np.ndarray]:
    """One table of parts, each of which numbers the values of labels by itself."""
    joined = {key: np.concatenate([part[key] for part in parts]) for key in parts[0] if key != "values"}
    values: dict[str, list[str]] = {}
    for place, name in enumerate(names):
        numbers: dict[str, int] = {}
        codes = []
        for part in parts:
            own = [numbers.setdefault(value, len(numbers)) for value in _values(part)[name]]
            codes.append(np.array([*own, MISSING], np.int32)[part[f"label_{place}"]])  # -1 takes the last one
        joined[f"label_{place}"], values[name] = np.concatenate(codes), list(numbers)
    return joined | {"values": _to_array(values)}


def _load(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


def _to_array(values: dict[str, list[str]]) -> np.ndarray:
    return np.frombuffer(json.dumps(values).encode(), np.uint8)


def _values(arrays: Mapping[str, np.ndarray]) -> dict[str, list[str]]:
    values: dict[str, list[str]] = json.loads(arrays["values"].tobytes())
    return values


def _progress(records: Any, reader: Reader, start: int, what: str) -> Any:
    """A bar on a terminal for what may take a while."""
    if not sys.stderr.isatty() or len(reader) < 10_000:
        return records
    from rich.console import Console
    from rich.progress import track

    said = f"{what} {Path(reader.name).name}"
    return track(records, said, total=len(reader), completed=start, console=Console(stderr=True), transient=True)
