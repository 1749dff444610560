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

from qwen3_jax.train.data.examples import Encoder, cut
from qwen3_jax.train.data.line_files import BadRecord, described, stopped_by, written_once
from qwen3_jax.train.data.readers import Reader
from qwen3_jax.train.data.token_shards import TokenShard

MISSING = -1
_FAULTS = 20  # messages that are kept
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
      bad: bool[n], whether the record is malformed and left out.
      faults: what is wrong with the first of these: (number of the record, message).
    """

    labels: Mapping[str, np.ndarray]
    values: Mapping[str, Sequence[str]]
    digests: np.ndarray
    tokens: np.ndarray
    sizes: np.ndarray
    bad: np.ndarray
    faults: Sequence[tuple[int, str]]


def make_table(
    reader: Reader,
    encoder: Encoder,
    names: Sequence[str],
    *,
    digests: bool,
    length: int,
    cache: Path,
    skip: bool = False,
) -> Table:
    """The table of a file, from the cache or by reading all of it once; what was finished before a stop is not read
    again.

    Args:
      names: labels.
      digests: whether to digest the content.
      length: of a row, for `tokens` and `sizes`; 0: they are not counted.
      skip: whether malformed records are left out.

    Raises:
      BadRecord: a record is malformed, and not to be left out.
    """
    if isinstance(reader, TokenShard) and length and not digests:
        tokens, sizes = reader.count(length)
        rest = make_table(reader, encoder, names, digests=False, length=0, cache=cache, skip=skip)
        return dataclasses.replace(rest, tokens=tokens, sizes=sizes)
    if not (names or digests or length):  # nothing is asked of the records, so none is read
        none = np.zeros(0, np.int64)
        return Table({}, {}, none.astype(np.uint64), none, none, np.zeros(len(reader), bool), ())
    wanted = [reader.identity, list(names), digests, length, encoder.field, encoder.key() if length else ""]
    wanted += ["skip"] if skip else []
    key = hashlib.sha256(json.dumps([*wanted, dict(encoder.source.labels)], sort_keys=True).encode()).hexdigest()[:32]
    read = _Read(reader, encoder, tuple(names), digests, length, skip)

    path = cache / f"{key}.npz"
    made = not path.exists()
    arrays = _load(written_once(path, lambda target: _save(target, _in_parts(read, cache, key))))
    if made:
        for part in cache.glob(f"{key}.*.npz"):
            part.unlink(missing_ok=True)
    labels = {name: arrays[f"label_{number}"] for number, name in enumerate(names)}
    bad = arrays.get("bad", np.zeros(len(reader), bool))  # tables of earlier versions have none
    faults = [(index, text) for index, text in _from_array(arrays["faults"])] if "faults" in arrays else []
    values = _from_array(arrays["values"])
    return Table(labels, values, arrays["digests"], arrays["tokens"], arrays["sizes"], bad, faults)


def label_of(record: Mapping[str, Any], name: str, defaults: Mapping[str, str]) -> str | None:
    """A record's label: of its `labels`, else a field of that name, else the source's."""
    own = record.get("labels") or {}
    try:
        value = dict(own).get(name, record.get(name))
    except TypeError:
        raise ValueError(f"labels must be a mapping, got {type(own).__name__}: correct the record") from None
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
    skip: bool

    def records(self, start: int) -> Iterator[dict[str, Any] | BadRecord]:
        """From `start` on, with what is needed of them."""
        fields = {"labels", *self.names} | (self.encoder.fields() if self.digests or self.length else set())
        scanned = _with_errors(self.reader.scan(fields, start))
        return _progress(scanned, self.reader, start, "counting" if self.length else "reading")

    def __call__(self, records: Iterable[dict[str, Any] | BadRecord], start: int) -> dict[str, np.ndarray]:
        """The arrays of records, of which `start` is the number of the first."""
        numbers: dict[str, dict[str, int]] = {name: {} for name in self.names}
        codes: dict[str, list[int]] = {name: [] for name in self.names}
        rows: list[tuple[int, int, int]] = []
        bad: list[int] = []
        faults: list[tuple[int, str]] = []
        for index, record in enumerate(records, start):
            try:
                if isinstance(record, BadRecord):
                    raise record
                values = [label_of(record, name, self.encoder.source.labels) for name in self.names]
                row = (self.encoder.digest(record) if self.digests else 0, *self._count(record))
            except ValueError as error:
                text = described(self.reader.name, index, error)
                if not self.skip:
                    raise stopped_by(text) from None
                values, row = [None] * len(self.names), (0, 0, 0)
                bad.append(index - start)
                if len(faults) < _FAULTS:
                    faults.append((index, text))
            for name, value in zip(self.names, values, strict=True):
                codes[name].append(MISSING if value is None else numbers[name].setdefault(value, len(numbers[name])))
            rows.append(row)
        digests, tokens, sizes = zip(*rows, strict=True) if rows else ((), (), ())
        flags = np.zeros(len(rows), bool)
        flags[bad] = True
        return {
            **{f"label_{number}": np.array(codes[name], np.int32) for number, name in enumerate(self.names)},
            "values": _to_array({name: list(known) for name, known in numbers.items()}),
            "digests": np.array(digests if self.digests else (), np.uint64),
            "tokens": np.array(tokens if self.length else (), np.int64),
            "sizes": np.array(sizes if self.length else (), np.int64),
            "bad": flags,
            "faults": _to_array(faults),
        }

    def _count(self, record: Mapping[str, Any]) -> tuple[int, int]:
        if not self.length:
            return 0, 0
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
        parts.append(read(itertools.islice(records, _PART), len(parts) * _PART))
        if count > _PART:
            written_once(cache / f"{key}.{len(parts) - 1}.npz", lambda target: _save(target, parts[-1]))
    return _join(parts, read.names)


def _join(parts: Sequence[Mapping[str, np.ndarray]], names: Sequence[str]) -> dict[str, np.ndarray]:
    """One table of parts, each of which numbers the values of labels by itself."""
    joined = {key: np.concatenate([part[key] for part in parts]) for key in parts[0] if key not in ("values", "faults")}
    values: dict[str, list[str]] = {}
    for place, name in enumerate(names):
        numbers: dict[str, int] = {}
        codes = []
        for part in parts:
            known = _from_array(part["values"])[name]
            own = [numbers.setdefault(value, len(numbers)) for value in known]
            codes.append(np.array([*own, MISSING], np.int32)[part[f"label_{place}"]])  # -1 takes the last one
        joined[f"label_{place}"], values[name] = np.concatenate(codes), list(numbers)
    faults = [fault for part in parts for fault in _from_array(part["faults"])][:_FAULTS]
    return joined | {"values": _to_array(values), "faults": _to_array(faults)}


def _with_errors(records: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any] | BadRecord]:
    """Records, and in the place of a malformed one what a reader said of it."""
    while True:
        try:
            yield next(records)
        except StopIteration:
            return
        except BadRecord as error:
            yield error


def _save(path: Path, arrays: Mapping[str, Any]) -> None:
    np.savez(path, **arrays)


def _load(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


def _to_array(value: Any) -> np.ndarray:
    return np.frombuffer(json.dumps(value).encode(), np.uint8)


def _from_array(array: np.ndarray) -> Any:
    return json.loads(array.tobytes())


def _progress(records: Any, reader: Reader, start: int, what: str) -> Any:
    """A bar on a terminal for what may take a while."""
    if not sys.stderr.isatty() or len(reader) < 10_000:
        return records
    from rich.console import Console
    from rich.progress import track

    said = f"{what} {Path(reader.name).name}"
    return track(records, said, total=len(reader), completed=start, console=Console(stderr=True), transient=True)
