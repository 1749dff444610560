"""What is counted once about the records of a file and kept: labels, digests of the content, tokens."""

import dataclasses
import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from train.data.examples import Encoder, cut
from train.data.line_files import written_once
from train.data.readers import Reader

MISSING = -1


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
    """The table of a file, from the cache or by reading all of it once.

    Args:
      names: labels.
      digests: whether to digest the content.
      length: of a row, for `tokens` and `sizes`; 0: they are not counted.
    """
    wanted = [reader.identity, list(names), digests, length, encoder.field, encoder.key() if length else ""]
    key = hashlib.sha256(json.dumps([*wanted, dict(encoder.source.labels)], sort_keys=True).encode()).hexdigest()[:32]

    def write(path: Path) -> None:
        arrays: dict[str, Any] = _read(reader, encoder, names, digests, length)
        np.savez(path, **arrays)

    with np.load(written_once(cache / f"{key}.npz", write)) as file:
        arrays = {name: file[name] for name in file.files}
    values: dict[str, list[str]] = json.loads(arrays["values"].tobytes())
    labels = {name: arrays[f"label_{number}"] for number, name in enumerate(names)}
    return Table(labels, values, arrays["digests"], arrays["tokens"], arrays["sizes"])


def label_of(record: Mapping[str, Any], name: str, defaults: Mapping[str, str]) -> str | None:
    """A record's label: of its `labels`, else a field of that name, else the source's."""
    own = record.get("labels") or {}
    value = dict(own).get(name, record.get(name))
    if value is None:
        return defaults.get(name)
    if not isinstance(value, (str, int, float)):
        raise ValueError(f"the label {name!r} must be text or a number, got {type(value).__name__}: correct the record")
    return str(value).lower() if isinstance(value, bool) else str(value)


def _read(reader: Reader, encoder: Encoder, names: Sequence[str], digests: bool, length: int) -> dict[str, np.ndarray]:
    numbers: dict[str, dict[str, int]] = {name: {} for name in names}
    codes: dict[str, list[int]] = {name: [] for name in names}
    found: dict[str, list[int]] = {"digests": [], "tokens": [], "sizes": []}
    fields = {"labels", *names} | (encoder.fields() if digests or length else set())
    for index, record in enumerate(_progress(reader.scan(fields), reader, "counting" if length else "reading")):
        try:
            for name in names:
                value = label_of(record, name, encoder.source.labels)
                known = numbers[name]
                codes[name].append(MISSING if value is None else known.setdefault(value, len(known)))
            if digests:
                found["digests"].append(encoder.digest(record))
            if length:
                documents = encoder.documents(record)
                pieces = [piece for document in documents for piece in cut(document, length)]
                found["tokens"].append(max((len(document.tokens) for document in documents), default=0))
                found["sizes"].append(sum(len(piece.tokens) for piece in pieces if len(piece.tokens) <= length))
        except ValueError as error:
            raise ValueError(f"{reader.name}:{index}: {error}") from None
    return {
        **{f"label_{number}": np.array(codes[name], np.int32) for number, name in enumerate(names)},
        "values": np.frombuffer(json.dumps({name: list(known) for name, known in numbers.items()}).encode(), np.uint8),
        "digests": np.array(found["digests"], np.uint64),
        "tokens": np.array(found["tokens"], np.int64),
        "sizes": np.array(found["sizes"], np.int64),
    }


def _progress(records: Any, reader: Reader, what: str) -> Any:
    """A bar on a terminal for what may take a while."""
    if not sys.stderr.isatty() or len(reader) < 10_000:
        return records
    from rich.console import Console
    from rich.progress import track

    return track(
        records, f"{what} {Path(reader.name).name}", total=len(reader), console=Console(stderr=True), transient=True
    )
