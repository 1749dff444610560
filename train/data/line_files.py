"""JSONL and plain text by index, and what becomes of malformed records.

Where each example begins and ends is found once and kept."""

import gzip
import hashlib
import json
import os
import shutil
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np

from qwen3_jax.files import replacing

_NAMED = 10  # records that a warning each names; more are counted only


class BadRecord(ValueError):
    """A malformed record; the message names its file, its place in it, and what is wrong."""


class LeftOut:
    """Warns of records that are left out, of each once and up to a limit; threads may share it.

    Attributes:
      named: records that a warning named.
    """

    def __init__(self) -> None:
        self.named = 0
        self._seen: set[int] = set()
        self._lock = threading.Lock()

    def note(self, index: int, text: str) -> None:
        """Of record `index`, which may have been noted before."""
        with self._lock:
            if index in self._seen or self.named > _NAMED:
                return
            self._seen.add(index)
            self.named += 1
            more = self.named > _NAMED
        if more:
            warnings.warn("more malformed records are left out, and not named any more", stacklevel=3)
        else:
            warnings.warn(f"a malformed record is left out: {text}", stacklevel=3)


def described(name: str, index: int, error: Exception) -> str:
    """What is wrong with a record of a file, which readers name themselves.

    In: "a.jsonl", 3, "text must be text"     Out: "a.jsonl:3: text must be text"
    """
    text = str(error)
    return text if text.startswith(name) else f"{name}:{index}: {text}"


def stopped_by(text: str) -> BadRecord:
    """The error where such records end the run."""
    return BadRecord(f"{text} (data.on_bad_record=skip leaves such records out)")


SampleBy = Literal["line", "paragraph", "document"]


def identity(path: Path, *more: object) -> str:
    """A digest that changes when the file does (path, size, time of its last change) or when `more` does."""
    stat = path.stat()
    text = json.dumps([str(path.resolve()), stat.st_size, stat.st_mtime_ns, *more], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def written_once(path: Path, write: Callable[[Path], None]) -> Path:
    """Makes the file at `path` unless it is there: beside its place, then renamed, so that it is whole or absent."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as partial:
            write(partial)
    return path


class LineFile:
    """Examples of a file of lines, read by their byte range.

    A compressed file is decompressed into the cache first, since gzip can not be read from the middle.
    """

    def __init__(self, path: Path, cache: Path, sample_by: SampleBy = "line") -> None:
        self.name, self.identity = str(path), identity(path, sample_by)
        self._json = ".jsonl" in path.suffixes[-2:]
        if path.suffix == ".gz":
            path = written_once(cache / f"{identity(path)}.plain", lambda target: _decompress(path, target))
        ranges = written_once(
            cache / f"{self.identity}.npy", lambda target: np.save(target, _ranges(path, sample_by), allow_pickle=False)
        )
        self._ranges = np.load(ranges, mmap_mode="r")
        self._file = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            os.close(self._file)

    def __len__(self) -> int:
        return len(self._ranges)

    def __getitem__(self, index: int) -> dict[str, Any]:
        start, stop = self._ranges[index].tolist()
        raw = os.pread(self._file, stop - start, start)  # has no position, so that threads may share the file
        try:
            text = raw.decode("utf-8")
            record = json.loads(text) if self._json else {"text": text}
        except ValueError as error:
            kind = "JSON" if self._json else "UTF-8"
            raise BadRecord(f"{self.name}:{index} must be {kind}, got an error ({error}): correct it") from None
        if not isinstance(record, dict):
            raise BadRecord(f"{self.name}:{index} must be a JSON object, got {type(record).__name__}: correct it")
        return record

    def scan(self, fields: set[str], start: int = 0) -> Iterator[dict[str, Any]]:
        """The records from `start` on, with at least `fields` of what they have."""
        del fields
        return map(self.__getitem__, range(start, len(self)))


def _decompress(source: Path, target: Path) -> None:
    try:
        with gzip.open(source, "rb") as packed, target.open("wb") as plain:
            shutil.copyfileobj(packed, plain, 1 << 20)
    except (EOFError, gzip.BadGzipFile) as error:
        raise ValueError(f"{source} must be a whole gzip file, got an error ({error}): replace it") from None


def _ranges(path: Path, sample_by: SampleBy) -> np.ndarray:
    """int64[n, 2], first byte and the one after the last of each example; blank ones are none.

    In:  b"a\\nb\\n\\nc\\n"         Out: line [[0, 1], [2, 3], [5, 6]], paragraph [[0, 3], [5, 6]], document [[0, 7]]
    """
    with path.open("rb") as file:
        found = list(_document(file) if sample_by == "document" else _parts(file, sample_by == "line"))
    return np.array(found, np.int64).reshape(-1, 2)


def _document(file: BinaryIO) -> Iterator[tuple[int, int]]:
    size = os.fstat(file.fileno()).st_size
    if size:
        yield 0, size


def _parts(file: BinaryIO, lines: bool) -> Iterator[tuple[int, int]]:
    at, start, stop = 0, 0, 0
    for line in file:
        text = line.rstrip(b"\r\n")
        if text.strip():
            if lines:
                yield at, at + len(text)
            else:
                start = at if stop <= start else start
                stop = at + len(text)
        elif not lines and stop > start:
            yield start, stop
            start = stop = at + len(line)
        at += len(line)
        if stop <= start:
            start = stop = at
    if not lines and stop > start:
        yield start, stop
