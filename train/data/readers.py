"""Files of examples by index: JSONL, text, Parquet, ArrayRecord, Hugging Face datasets, and tokens made ahead."""

import bisect
import functools
import glob
import hashlib
import itertools
import json
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable
from urllib.parse import parse_qsl

from qwen3_jax.train.data.line_files import BadRecord, LineFile, identity
from qwen3_jax.train.settings import SourceConfig

SUFFIXES = (".jsonl", ".jsonl.gz", ".txt", ".txt.gz", ".parquet", ".arrayrecord", ".array_record")


@runtime_checkable
class Reader(Protocol):
    """Records by index, as Grain's random-access sources, with what finding labels needs.

    Attributes:
      name: what error messages and example names call it.
      identity: changes when the content does.
    """

    name: str
    identity: str

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...

    def scan(self, fields: set[str], start: int = 0) -> Iterator[dict[str, Any]]: ...


class ParquetReader:
    """A Parquet file. One row is read with its whole row group, and the last few groups are kept decoded."""

    def __init__(self, path: Path) -> None:
        parquet = _package("pyarrow.parquet", "Parquet files", "'qwen3-jax[data]'")
        self.name, self.identity = str(path), identity(path)
        try:
            self._file = parquet.ParquetFile(path, memory_map=True)
        except Exception as error:  # pyarrow's own kinds, which are not all ValueErrors
            raise ValueError(f"{path} must be a Parquet file, got an error ({error}): replace it") from None
        sizes = [self._file.metadata.row_group(i).num_rows for i in range(self._file.num_row_groups)]
        self._starts = [0, *itertools.accumulate(sizes)]
        self._lock = threading.Lock()
        self._group = functools.lru_cache(maxsize=4)(self._file.read_row_group)

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: int) -> dict[str, Any]:
        group = bisect.bisect_right(self._starts, index) - 1
        with self._lock:
            table = self._group(group)
        rows: list[dict[str, Any]] = table.slice(index - self._starts[group], 1).to_pylist()
        return _without_none(rows[0])

    def scan(self, fields: set[str], start: int = 0) -> Iterator[dict[str, Any]]:
        names = [name for name in self._file.schema_arrow.names if name in fields]
        if not names:
            return itertools.repeat({}, len(self) - start)
        first = min(bisect.bisect_right(self._starts, start) - 1, len(self._starts) - 1)
        groups = list(range(first, len(self._starts) - 1))
        read = self._file.iter_batches(batch_size=1024, row_groups=groups, columns=names)
        rows = (_without_none(row) for batch in read for row in batch.to_pylist())
        return itertools.islice(rows, start - self._starts[first], None)


class ArrayRecordReader:
    """An ArrayRecord file whose records are JSON objects."""

    def __init__(self, path: Path) -> None:
        import grain

        self.name, self.identity = str(path), identity(path)
        try:
            self._source = grain.sources.ArrayRecordDataSource(str(path))
            self._length = len(self._source)
        except Exception as error:
            raise ValueError(f"{path} must be an ArrayRecord file, got an error ({error}): replace it") from None

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> dict[str, Any]:
        try:
            record = json.loads(self._source[index])
        except ValueError as error:
            raise BadRecord(f"{self.name}:{index} must be JSON, got an error ({error}): correct it") from None
        if not isinstance(record, dict):
            raise BadRecord(f"{self.name}:{index} must be a JSON object, got {type(record).__name__}: correct it")
        return record

    def scan(self, fields: set[str], start: int = 0) -> Iterator[dict[str, Any]]:
        del fields
        return map(self.__getitem__, range(start, len(self)))


class HuggingFaceReader:
    """A dataset of the `datasets` package: hf:NAME from the hub, or hf:DIRECTORY as `save_to_disk` wrote it.

    hf:NAME?name=CONFIG&split=SPLIT names a configuration and a split ("train").

    Attributes:
      fingerprint: what the package takes for the identity of the contents.
    """

    def __init__(self, name: str) -> None:
        datasets = _package("datasets", "hf: sources", "datasets")
        path, _, query = name.removeprefix("hf:").partition("?")
        options = dict(parse_qsl(query))
        if unknown := options.keys() - {"name", "split", "revision"}:
            raise ValueError(f"{name} may set name, split and revision, got {', '.join(sorted(unknown))}: correct it")
        split = options.pop("split", "train")
        if Path(path).is_dir() and any((Path(path) / file).exists() for file in ("state.json", "dataset_dict.json")):
            found = datasets.load_from_disk(path)
            found = found[split] if isinstance(found, datasets.DatasetDict) else found
        else:
            found = datasets.load_dataset(path, split=split, **options)
        self.name, self._dataset, self.fingerprint = name, found, str(found._fingerprint)
        self.identity = hashlib.sha256(f"{name} {self.fingerprint}".encode()).hexdigest()[:32]

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return _without_none(self._dataset[index])

    def scan(self, fields: set[str], start: int = 0) -> Iterator[dict[str, Any]]:
        names = [name for name in self._dataset.column_names if name in fields]
        if not names:
            return itertools.repeat({}, len(self) - start)
        chosen = self._dataset.select_columns(names)
        return map(_without_none, chosen.select(range(start, len(self))) if start else chosen)


def open_readers(source: SourceConfig, cache: Path) -> list[Reader]:
    """The files of a source, in the order of their names.

    Raises:
      FileNotFoundError: there is none.
      ValueError: a kind of file that is not read, or a damaged one.
    """
    if source.path.startswith("hf:"):
        return [HuggingFaceReader(source.path)]
    readers: list[Reader] = []
    for path in find_files(source.path, SUFFIXES):
        if source.sample_by != "line" and ".txt" not in path.suffixes[-2:]:
            raise ValueError(f"data.sources.sample_by={source.sample_by} is of .txt files, got {path}: remove it")
        if path.suffix == ".parquet":
            readers.append(ParquetReader(path))
        elif path.suffix in (".arrayrecord", ".array_record"):
            readers.append(ArrayRecordReader(path))
        else:
            readers.append(LineFile(path, cache, source.sample_by))
    return readers


def find_files(pattern: str, suffixes: Sequence[str]) -> list[Path]:
    """The files that a path, a directory or a glob names, sorted.

    Raises:
      FileNotFoundError: none.
      ValueError: a file of another kind.
    """
    path = Path(pattern)
    if path.is_dir():
        found = sorted(file for file in path.rglob("*") if file.name.endswith(tuple(suffixes)))
    else:
        found = [path] if path.is_file() else sorted(Path(file) for file in glob.glob(pattern, recursive=True))
    if not found:
        raise FileNotFoundError(f"{pattern or 'data.sources.path'} must name files of examples, got none: correct it")
    for file in found:
        if not file.name.endswith(tuple(suffixes)):
            raise ValueError(f"a source must be {', '.join(suffixes)}, got {file}: convert it")
    return found


def _package(module: str, what: str, install: str) -> Any:
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError:
        raise ValueError(
            f"{what} need the package {module.split('.')[0]}, which is not installed: pip install {install}"
        ) from None


def _without_none(record: dict[str, Any]) -> dict[str, Any]:
    """Columnar files write null where a row has no value; structs inside messages too."""
    return {key: _plain(value) for key, value in record.items() if value is not None}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return _without_none(value)
    return [_plain(item) for item in value] if isinstance(value, list) else value
